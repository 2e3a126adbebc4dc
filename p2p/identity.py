"""Who a peer is: an Ed25519 key pair, and the peer id that is nothing but its public key.

The rule: a `PeerId` that exists is well formed, and names exactly one Ed25519 public key. The
mapping is pure in both directions (libp2p peer-ids spec, "identity" multihash of the protobuf key):

    00 24        multihash: identity, 36 bytes
    08 01 12 20  protobuf PublicKey: Type = Ed25519, Data of 32 bytes
    key          32 bytes

The text form is base58btc of those 38 bytes and always begins with 12D3KooW.

Deviations: other key types of libp2p (RSA, secp256k1, ECDSA) are refused: one signature scheme, and
ids from which the key can be read.
"""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass, field

import base58
import nacl.exceptions
import nacl.signing

from p2p.errors import MalformedPeerId

PUBLIC_KEY_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64
PEER_ID_PREFIX = bytes.fromhex("002408011220")
PEER_ID_BYTES = len(PEER_ID_PREFIX) + PUBLIC_KEY_BYTES

PEER_ID_TEXT_LENGTH_MAX = 64
"""Base58 of 38 bytes is 52 characters; longer text is refused before base58's quadratic
decoding."""

PEER_IDS_CACHED_MAX = 8192
"""Base58 in Python costs about 10 µs per id; lookups and gossip name the same thousands again."""


class PeerId(str):
    """The network name of a peer: base58 text that is well formed by construction.

    It is a `str`: it hashes, compares, sorts, prints and serialises as its text.

    Raises:
        MalformedPeerId: the text is not the id of an Ed25519 key.
    """

    __slots__ = ("_raw",)
    _raw: bytes

    def __new__(cls, text: str) -> PeerId:
        if isinstance(text, PeerId):
            return text
        return _peer_id_of_text(text)

    @classmethod
    def from_bytes(cls, raw: bytes) -> PeerId:
        """The id whose binary form (38 bytes) is `raw`; `MalformedPeerId` when it is none."""
        return _peer_id_of_bytes(bytes(raw))

    @classmethod
    def from_public_key(cls, public_key: bytes) -> PeerId:
        """The id of an Ed25519 public key of 32 bytes; `MalformedPeerId` for another length."""
        return cls.from_bytes(PEER_ID_PREFIX + public_key)

    def to_bytes(self) -> bytes:
        """The binary form: 38 bytes."""
        return self._raw

    @property
    def public_key(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""
        return self._raw[len(PEER_ID_PREFIX) :]

    def __repr__(self) -> str:
        return f"PeerId({str(self)!r})"

    def __reduce__(self) -> tuple[type[PeerId], tuple[str]]:
        return (PeerId, (str(self),))


@dataclass(frozen=True, slots=True)
class Identity:
    """An Ed25519 key pair, made from its 32-byte seed; the seed never appears in `repr`.

    Raises:
        ValueError: the seed is not 32 bytes long.
    """

    seed: bytes = field(repr=False)
    peer_id: PeerId = field(init=False, compare=False)
    _key: nacl.signing.SigningKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise ValueError(f"an Ed25519 seed has {SEED_BYTES} bytes, not {len(self.seed)}")
        key = nacl.signing.SigningKey(self.seed)
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "peer_id", PeerId.from_public_key(bytes(key.verify_key)))

    @classmethod
    def generate(cls) -> Identity:
        """A new identity from the operating system's randomness."""
        return cls(secrets.token_bytes(SEED_BYTES))

    @property
    def public_key(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""
        return self.peer_id.public_key

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature (RFC 8032) of `message`, 64 bytes."""
        return self._key.sign(message).signature


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `message` under `public_key`; False for malformed input."""
    try:
        nacl.signing.VerifyKey(public_key).verify(message, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        return False
    return True


def _make(text: str, raw: bytes) -> PeerId:
    peer_id = str.__new__(PeerId, text)
    peer_id._raw = raw
    return peer_id


@functools.lru_cache(maxsize=PEER_IDS_CACHED_MAX)
def _peer_id_of_bytes(raw: bytes) -> PeerId:
    if len(raw) != PEER_ID_BYTES or not raw.startswith(PEER_ID_PREFIX):
        raise MalformedPeerId("not the 38 bytes of an Ed25519 peer id")
    return _make(base58.b58encode(raw).decode("ascii"), raw)


@functools.lru_cache(maxsize=PEER_IDS_CACHED_MAX)
def _peer_id_of_text(text: str) -> PeerId:
    if len(text) > PEER_ID_TEXT_LENGTH_MAX:
        raise MalformedPeerId(f"{len(text)} characters are no peer id")
    try:
        raw = base58.b58decode(text.encode("ascii"))
    except ValueError as error:
        raise MalformedPeerId(f"{text!r} is not base58 text") from error
    peer_id = _peer_id_of_bytes(raw)
    if str(peer_id) != text:
        raise MalformedPeerId(f"{text!r} is not the canonical text of a peer id")
    return peer_id


__all__ = [
    "PEER_ID_BYTES",
    "PUBLIC_KEY_BYTES",
    "SEED_BYTES",
    "SIGNATURE_BYTES",
    "Identity",
    "PeerId",
    "verify",
]
