"""Hashes with a domain tag and signatures bound to a purpose and to one chain.

Rules: a hash is blake3-256 of `tag || 0x00 || payload` (tags contain no 0x00, so no two pairs
collide); a signature covers `DOMAIN(16) || chain_id(32) || payload`, so that nothing signed for
one purpose or chain means anything in another.

*Which* Ed25519 library verifies is consensus-critical: libraries differ on non-canonical points
and small-order keys. libsodium (PyNaCl) is the rule: it refuses both. `Signer` and `Verifier` are
ports: the simulator puts a keyed hash behind them, a hundred times cheaper and checked alike.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Final, Protocol

import nacl.exceptions
import nacl.signing
from blake3 import blake3

from consensus.types import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    ChainId,
    Digest,
    Signature,
)

DOMAIN_BYTES: Final = 16
SEED_BYTES: Final = 32


class Domain(Enum):
    """What a signature is for; the value is 16 bytes, padded with zeros."""

    TRANSACTION_OWNER = b"agora:tx:owner\x00\x00"
    TRANSACTION_PEER = b"agora:tx:peer\x00\x00\x00"
    KEY_POSSESSION = b"agora:key\x00\x00\x00\x00\x00\x00\x00"
    VOTE = b"agora:vote\x00\x00\x00\x00\x00\x00"
    PROPOSAL = b"agora:proposal\x00\x00"


class Signer(Protocol):
    """Holds one private key."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        ...

    def sign(self, domain: Domain, chain_id: ChainId, payload: bytes) -> Signature:
        """Sign `payload` for one purpose on one chain."""
        ...


class Verifier(Protocol):
    """Knows the signature scheme of a chain."""

    def verify(
        self,
        public_key: bytes,
        domain: Domain,
        chain_id: ChainId,
        payload: bytes,
        signature: Signature,
    ) -> bool:
        """Whether `signature` was made by the key's holder for exactly this; never raises."""
        ...


def H(tag: bytes, payload: bytes) -> Digest:  # noqa: N802 - the specification's name
    """blake3-256 of `tag || 0x00 || payload`; `tag` is ASCII without zero bytes."""
    return Digest(blake3(tag + b"\x00" + payload).digest())


def signed_bytes(domain: Domain, chain_id: ChainId, payload: bytes) -> bytes:
    """The bytes that a signature covers."""
    return domain.value + chain_id + payload


class Ed25519Signer:
    """A signer from a 32-byte seed; the same seed gives the same signatures."""

    __slots__ = ("_key", "_public_key")

    def __init__(self, seed: bytes) -> None:
        self._key = nacl.signing.SigningKey(seed)
        self._public_key = bytes(self._key.verify_key)

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return self._public_key

    def sign(self, domain: Domain, chain_id: ChainId, payload: bytes) -> Signature:
        """Sign `payload` for one purpose on one chain."""
        return Signature(self._key.sign(signed_bytes(domain, chain_id, payload)).signature)


class Ed25519Verifier:
    """libsodium's strict rule: canonical encodings only, no small-order keys."""

    __slots__ = ()

    def verify(
        self,
        public_key: bytes,
        domain: Domain,
        chain_id: ChainId,
        payload: bytes,
        signature: Signature,
    ) -> bool:
        """Whether `signature` holds; False for keys and signatures of a wrong length too."""
        if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
            return False
        try:
            _verify_key(public_key).verify(signed_bytes(domain, chain_id, payload), signature)
        except (nacl.exceptions.BadSignatureError, ValueError):
            return False
        return True


class KeyedHashSigner:
    """Test double: the signature is a hash keyed by the *public* key. For simulations only."""

    __slots__ = ("_public_key",)

    def __init__(self, seed: bytes) -> None:
        self._public_key = bytes(H(b"double-key", seed))

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return self._public_key

    def sign(self, domain: Domain, chain_id: ChainId, payload: bytes) -> Signature:
        """Sign `payload` for one purpose on one chain."""
        return _keyed_hash(self._public_key, signed_bytes(domain, chain_id, payload))


class KeyedHashVerifier:
    """Verifies what `KeyedHashSigner` made. For simulations only."""

    __slots__ = ()

    def verify(
        self,
        public_key: bytes,
        domain: Domain,
        chain_id: ChainId,
        payload: bytes,
        signature: Signature,
    ) -> bool:
        """Whether `signature` is the keyed hash of exactly this."""
        if len(public_key) != KEY_BYTES:
            return False
        return signature == _keyed_hash(public_key, signed_bytes(domain, chain_id, payload))


def _keyed_hash(public_key: bytes, message: bytes) -> Signature:
    return Signature(blake3(message, key=public_key).digest(length=SIGNATURE_BYTES))


@lru_cache(maxsize=8192)  # twice the largest account table
def _verify_key(public_key: bytes) -> nacl.signing.VerifyKey:
    return nacl.signing.VerifyKey(public_key)
