"""Signatures are checked once: a bounded memory in front of the verifier.

The same vote is judged by gossip, counted by the engine and met again inside certificates and
attests; a transaction by the mempool, the builder and the executor. Only valid ones are remembered,
so nobody can make a bad signature pass, nor fill the memory without signing.
"""

from collections import OrderedDict
from threading import Lock
from typing import Final

from blake3 import blake3

from consensus.crypto import Domain, Ed25519Verifier, Verifier
from consensus.types import KEY_BYTES, SIGNATURE_BYTES, ChainId, Signature

REMEMBERED_MAX: Final = 65_536  # 3 MiB: a full mempool, and the votes of two epochs of 128 voters


class RememberingVerifier:
    """A `Verifier` that asks `inner` once per valid signature. Safe to use from threads."""

    def __init__(self, inner: Verifier | None = None) -> None:
        self._inner = inner or Ed25519Verifier()
        self._valid: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def verify(
        self,
        public_key: bytes,
        domain: Domain,
        chain_id: ChainId,
        payload: bytes,
        signature: Signature,
    ) -> bool:
        """Whether `signature` was made by the key's holder for exactly this."""
        if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
            return False
        # All of fixed length but the payload, which stands last: no two statements share a key.
        parts = (public_key, domain.value, chain_id, signature, payload)
        key = blake3(b"".join(parts)).digest()
        with self._lock:
            if key in self._valid:
                self._valid.move_to_end(key)
                return True
        if not self._inner.verify(public_key, domain, chain_id, payload, signature):
            return False
        with self._lock:
            self._valid[key] = None
            if len(self._valid) > REMEMBERED_MAX:
                self._valid.popitem(last=False)
        return True


class JudgedBefore:
    """Accepts every signature: for blocks that this node judged before it stored them.

    Executing them again shows where stake went; that they are valid is what `replay` proves.
    """

    __slots__ = ()

    def verify(
        self,
        public_key: bytes,
        domain: Domain,
        chain_id: ChainId,
        payload: bytes,
        signature: Signature,
    ) -> bool:
        """True."""
        return True
