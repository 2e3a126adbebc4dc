"""The ciphers of Noise transport messages, and which of them two peers use.

The rule: libp2p's ChaChaPoly, unless both peers list another in their handshake payloads. Those are
authenticated, so nobody in between can talk two peers into the slower one, and implementations that
do not know the extension never notice it. The handshake itself is always ChaChaPoly.

AESGCM is the other cipher of the Noise specification (revision 34, section 12). Where the processor
has instructions for it, it takes a third of the time; where it has not, several times as much:
which is the case is measured once, and only a machine on which it is faster lists it.

Deviation: messages under AESGCM may be twice as long as Noise allows, with a length of four bytes
before them. Every message costs the interpreter what 64 KiB cost the cipher, and a tensor of 64 KiB
does not fit into one of Noise's together with its header.
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

TAG_BYTES = 16
_TRIAL_BYTES = 16_384
_TRIALS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cipher:
    """One cipher, and how its messages are framed: `length || ciphertext || tag`."""

    name: str  # in the handshake payload
    with_key: Callable[[bytes], Aead]  # of 32 bytes
    nonce_of: Callable[[int], bytes]  # 32 zero bits, then the counter: 12 bytes
    messages_max: int  # under one key
    length: struct.Struct  # big-endian, of ciphertext and tag
    plaintext_bytes_max: int  # of one message

    @property
    def overhead_bytes(self) -> int:
        """What a frame has beside its plaintext."""
        return self.length.size + TAG_BYTES


CHACHAPOLY = Cipher(
    name="ChaChaPoly",
    with_key=aead.ChaCha20Poly1305,
    nonce_of=struct.Struct("<4xQ").pack,
    messages_max=2**64 - 1,  # nonce 2^64 - 1 is reserved (section 5.1)
    length=struct.Struct(">H"),
    plaintext_bytes_max=2**16 - 1 - TAG_BYTES,
)
AESGCM = Cipher(
    name="AESGCM/129KiB",
    with_key=aead.AESGCM,
    nonce_of=struct.Struct(">4xQ").pack,
    messages_max=2**38,  # of up to 2^18 bytes: no more than 2^56 under one key (section 14)
    length=struct.Struct(">I"),
    plaintext_bytes_max=129 * 1024,  # 128 KiB, and the headers of what carries them
)
FRAME_BYTES_MAX = AESGCM.overhead_bytes + AESGCM.plaintext_bytes_max
"""The largest frame of any cipher."""


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


__all__ = [
    "AESGCM",
    "CHACHAPOLY",
    "FRAME_BYTES_MAX",
    "TAG_BYTES",
    "Aead",
    "Cipher",
    "agree",
    "faster_ciphers",
]
