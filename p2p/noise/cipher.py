"""The ciphers of Noise transport messages, and which of them two peers use.

The rule: libp2p's ChaChaPoly, unless both peers list another in their handshake payloads. Those are
authenticated, so nobody in between can talk two peers into the slower one, and implementations that
do not know the extension never notice it. The handshake itself is always ChaChaPoly.

AESGCM is the other cipher of the Noise specification (revision 34, section 12). Where the processor
has instructions for it, it takes a third of the time; where it has not, several times as much:
which is the case is measured once, and only a machine on which it is faster lists it.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.hazmat.primitives.ciphers import aead

Aead: TypeAlias = aead.AESGCM | aead.ChaCha20Poly1305

_TRIAL_BYTES = 16_384
_TRIALS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cipher:
    """One cipher: its name in the Noise specification, and what that says of it."""

    name: str
    with_key: Callable[[bytes], Aead]  # of 32 bytes
    nonce_of: Callable[[int], bytes]  # 32 zero bits, then the counter: 12 bytes
    messages_max: int  # under one key


CHACHAPOLY = Cipher(
    name="ChaChaPoly",
    with_key=aead.ChaCha20Poly1305,
    nonce_of=struct.Struct("<4xQ").pack,
    messages_max=2**64 - 1,  # nonce 2^64 - 1 is reserved (section 5.1)
)
AESGCM = Cipher(
    name="AESGCM",
    with_key=aead.AESGCM,
    nonce_of=struct.Struct(">4xQ").pack,
    messages_max=2**40,  # of 2^16 bytes: no more than 2^56 bytes under one key (section 14)
)


@functools.cache
def faster_ciphers() -> tuple[str, ...]:
    """The names of the ciphers that are faster here than ChaChaPoly, for a peer to know."""
    return (AESGCM.name,) if _cost_s(AESGCM) < _cost_s(CHACHAPOLY) else ()


def agree(ours: Collection[str], theirs: Collection[str]) -> Cipher:
    """What two peers use that listed these names; both come to the same answer."""
    return AESGCM if AESGCM.name in ours and AESGCM.name in theirs else CHACHAPOLY


def _cost_s(cipher: Cipher) -> float:
    """The best of a few encryptions of a quarter of a full message."""
    trial, plaintext = cipher.with_key(bytes(32)), bytes(_TRIAL_BYTES)
    costs_s = []
    for counter in range(_TRIALS):
        began_s = time.perf_counter()
        trial.encrypt(cipher.nonce_of(counter), plaintext, None)
        costs_s.append(time.perf_counter() - began_s)
    return min(costs_s)


__all__ = ["AESGCM", "CHACHAPOLY", "Aead", "Cipher", "agree", "faster_ciphers"]
