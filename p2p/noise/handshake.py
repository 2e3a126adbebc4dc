"""The Noise XX handshake, Noise_XX_25519_ChaChaPoly_SHA256, as a machine without I/O.

The rule: messages are written and read strictly in turn, every byte of them is hashed into `h`, and
nothing of the other side is believed before its payload is authenticated. Noise specification
revision 34, sections 5 (processing rules) and 7 (patterns); libp2p Noise spec for the payloads:

    -> e                                  the dialler
    <- e, ee, s, es  + identity payload   the listener
    -> s, se         + identity payload   the dialler

A payload in the first message (early data of older peers) is hashed and dropped.
"""

from __future__ import annotations

import enum
import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from p2p.errors import HandshakeFailed, InvariantViolation
from p2p.noise.cipher import CHACHAPOLY, TAG_BYTES, Aead, agree
from p2p.noise.frames import Opener, Sealer
from p2p.noise.payload import RemoteParty, StaticKey, authenticate

PROTOCOL_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"
KEY_BYTES = 32
ENCRYPTED_KEY_BYTES = KEY_BYTES + TAG_BYTES
MESSAGES = 3


class Role(enum.Enum):
    """Who speaks first; libp2p's dialler is the initiator."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class Handshake:
    """One side of one handshake: alternate `write` and `read` until `is_complete`, then `split`.

    Any `HandshakeFailed` is final: throw the machine and its connection away.
    """

    def __init__(
        self,
        role: Role,
        static: StaticKey,
        *,
        prologue: bytes = b"",
        ephemeral: X25519PrivateKey | None = None,
    ) -> None:
        """`ephemeral` is for test vectors; by default it is fresh, as it must be."""
        self._role = role
        self._static = static
        self._ephemeral = X25519PrivateKey.generate() if ephemeral is None else ephemeral
        self._symmetric = _SymmetricState(prologue)
        self._turn = 0  # messages done
        self._remote_ephemeral = b""
        self._remote: RemoteParty | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all three messages are done."""
        return self._turn == MESSAGES

    @property
    def is_our_turn(self) -> bool:
        """Whether the next step is `write`; otherwise it is `read`."""
        is_initiators = self._turn % 2 == 0
        return not self.is_complete and is_initiators == (self._role is Role.INITIATOR)

    def write(self) -> bytes:
        """The next message of ours, without its length prefix."""
        if not self.is_our_turn:
            raise InvariantViolation("a Noise message was written out of turn")
        self._turn += 1
        match self._turn:
            case 1:
                return self._write_ephemeral() + self._symmetric.encrypt_and_hash(b"")
            case 2:
                message = self._write_ephemeral()
                self._mix(self._ephemeral, self._remote_ephemeral)
                message += self._symmetric.encrypt_and_hash(self._static.public)
                self._mix(self._static.private, self._remote_ephemeral)
                return message + self._symmetric.encrypt_and_hash(self._static.payload)
            case _:
                message = self._symmetric.encrypt_and_hash(self._static.public)
                self._mix(self._static.private, self._remote_ephemeral)
                return message + self._symmetric.encrypt_and_hash(self._static.payload)

    def read(self, message: bytes) -> None:
        """Take the other side's next message, without its length prefix.

        Raises:
            HandshakeFailed: too short, not authentic, a weak key, or an invalid identity payload.
        """
        if self.is_complete or self.is_our_turn:
            raise InvariantViolation("a Noise message was read out of turn")
        self._turn += 1
        match self._turn:
            case 1:
                rest = self._read_ephemeral(message)
                self._symmetric.decrypt_and_hash(rest)
            case 2:
                rest = self._read_ephemeral(message)
                self._mix(self._ephemeral, self._remote_ephemeral)
                self._read_static(rest, self._ephemeral)
            case _:
                self._read_static(message, self._ephemeral)

    def split(self) -> tuple[Sealer, Opener, RemoteParty]:
        """The two directions of the finished handshake, and who is at the other end."""
        if not self.is_complete or self._remote is None:
            raise InvariantViolation("a Noise handshake was split before its end")
        cipher = agree(self._static.ciphers, self._remote.ciphers)
        sending, receiving = self._symmetric.split()
        if self._role is Role.RESPONDER:
            sending, receiving = receiving, sending
        return Sealer(sending, cipher), Opener(receiving, cipher), self._remote

    def _write_ephemeral(self) -> bytes:
        public = self._ephemeral.public_key().public_bytes_raw()
        self._symmetric.mix_hash(public)
        return public

    def _read_ephemeral(self, message: bytes) -> bytes:
        if len(message) < KEY_BYTES:
            raise HandshakeFailed("a Noise message ends within its ephemeral key")
        self._remote_ephemeral = message[:KEY_BYTES]
        self._symmetric.mix_hash(self._remote_ephemeral)
        return message[KEY_BYTES:]

    def _read_static(self, message: bytes, with_key: X25519PrivateKey) -> None:
        if len(message) < ENCRYPTED_KEY_BYTES + TAG_BYTES:
            raise HandshakeFailed("a Noise message ends within its static key")
        public = self._symmetric.decrypt_and_hash(message[:ENCRYPTED_KEY_BYTES])
        self._mix(with_key, public)
        payload = self._symmetric.decrypt_and_hash(message[ENCRYPTED_KEY_BYTES:])
        self._remote = authenticate(payload, public)

    def _mix(self, private: X25519PrivateKey, public: bytes) -> None:
        try:
            secret = private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # an all-zero secret: a point of small order
            raise HandshakeFailed("a weak Diffie-Hellman key") from error
        self._symmetric.mix_key(secret)


class _SymmetricState:
    """Chaining key, handshake hash and cipher of section 5.2."""

    def __init__(self, prologue: bytes) -> None:
        self._hash = PROTOCOL_NAME  # exactly 32 bytes, so it is not hashed
        self._chaining_key = PROTOCOL_NAME
        self._aead: Aead | None = None
        self._nonce = 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chaining_key, key = _hkdf(self._chaining_key, secret)
        self._aead = CHACHAPOLY.with_key(key)
        self._nonce = 0

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = plaintext
        if self._aead is not None:
            ciphertext = self._aead.encrypt(CHACHAPOLY.nonce_of(self._nonce), plaintext, self._hash)
            self._nonce += 1
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = ciphertext
        if self._aead is not None:
            try:
                plaintext = self._aead.decrypt(
                    CHACHAPOLY.nonce_of(self._nonce), ciphertext, self._hash
                )
            except InvalidTag as error:
                raise HandshakeFailed("a Noise message is not authentic") from error
            self._nonce += 1
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        return _hkdf(self._chaining_key, b"")


def _hkdf(chaining_key: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Two outputs of the HKDF of section 4.3."""
    temporary = hmac.digest(chaining_key, secret, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")


__all__ = ["Handshake", "Role"]
