"""The identity payload of a Noise handshake: who holds this static key, and what it speaks.

The rule: a payload that decodes proves that the owner of an Ed25519 identity signed exactly the
static key that this handshake used (libp2p Noise spec, "Static Key Authentication"):

    identity_sig = Ed25519(identity, "noise-libp2p-static-key:" || X25519 static public key)

Deviations: identities of other key types are refused, as everywhere here (`p2p.identity`). Early
data and extensions that are not known are tolerated and ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

from p2p.errors import HandshakeFailed
from p2p.identity import PEER_ID_PREFIX, PUBLIC_KEY_BYTES, Identity, PeerId, verify
from p2p.noise.payload_pb2 import NoiseExtensions, NoiseHandshakePayload

SIGNATURE_PREFIX = b"noise-libp2p-static-key:"
IDENTITY_KEY_PREFIX = PEER_ID_PREFIX[2:]  # the protobuf of an Ed25519 public key, without the key
NAMES_READ_MAX = 16
"""Names read from each of a peer's lists; more exist nowhere, and each costs a string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteParty:
    """The authenticated other side: its peer id, and what it listed, in its order."""

    peer_id: PeerId
    muxers: tuple[str, ...]
    ciphers: tuple[str, ...]  # of transport messages, beside ChaChaPoly


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticKey:
    """An X25519 key that lives as long as the process, with the payload that certifies it."""

    private: X25519PrivateKey
    public: bytes  # 32 bytes
    payload: bytes  # encoded once: the signature covers nothing of a single handshake
    ciphers: tuple[str, ...] = ()

    @classmethod
    def certify(
        cls, identity: Identity, *, muxers: tuple[str, ...] = (), ciphers: tuple[str, ...] = ()
    ) -> StaticKey:
        """A fresh static key signed by `identity`, listing `muxers` and `ciphers`."""
        private = X25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        extensions = NoiseExtensions(
            stream_muxers=[muxer.encode() for muxer in muxers],
            ciphers=[cipher.encode() for cipher in ciphers],
        )
        message = NoiseHandshakePayload(
            identity_key=IDENTITY_KEY_PREFIX + identity.public_key,
            identity_sig=identity.sign(SIGNATURE_PREFIX + public),
            extensions=extensions if muxers or ciphers else None,
        )
        return cls(
            private=private, public=public, payload=message.SerializeToString(), ciphers=ciphers
        )


def authenticate(payload: bytes, static_public: bytes) -> RemoteParty:
    """Who certified `static_public` (32 bytes) by `payload`.

    Raises:
        HandshakeFailed: not a payload, another key type, or a signature of something else.
    """
    message = NoiseHandshakePayload()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise HandshakeFailed("the handshake payload is not a protobuf message") from error
    prefix, key = message.identity_key[: len(IDENTITY_KEY_PREFIX)], message.identity_key[4:]
    if prefix != IDENTITY_KEY_PREFIX or len(key) != PUBLIC_KEY_BYTES:
        raise HandshakeFailed("the identity key is not an Ed25519 key")
    if not verify(key, SIGNATURE_PREFIX + static_public, message.identity_sig):
        raise HandshakeFailed("the static key is not signed by the identity key")
    return RemoteParty(
        peer_id=PeerId.from_public_key(key),
        muxers=_names(message.extensions.stream_muxers),
        ciphers=_names(message.extensions.ciphers),
    )


def _names(listed: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(name.decode("utf-8", "replace") for name in listed[:NAMES_READ_MAX])


__all__ = ["RemoteParty", "StaticKey", "authenticate"]
