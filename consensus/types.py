"""Distinct types of the ledger's quantities and names, so that one cannot stand for another.

They cost nothing at run time; mypy tells a Height from an Epoch and an AccountId from a PeerKey.
Fixed-point scales are written `Q16`, `Q24`, `Q30`, `Q36`, `Q52`: an integer of that many
fractional bits (ledger.md, Formats).
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final, NewType

Height = NewType("Height", int)
"""Blocks since genesis, which has height 0; epoch e covers e*E + 1 ... (e + 1)*E."""
Epoch = NewType("Epoch", int)
View = NewType("View", int)
"""Attempt number inside an epoch; view 0 is the previous epoch's boundary block."""
Amount = NewType("Amount", int)
"""Base units, 10^9 to a token, 0 <= amount < 2^55."""
Uid = NewType("Uid", int)
"""Row of a peer in S, W and C: u32, given in order of registration and never reused."""
Nonce = NewType("Nonce", int)

AccountId = NewType("AccountId", bytes)
"""Owner key, 32 bytes Ed25519: it *is* the account."""
PeerKey = NewType("PeerKey", bytes)
"""Hot key of a peer's node, 32 bytes Ed25519: its network identity, signs weights and votes."""
Digest = NewType("Digest", bytes)
"""blake3-256 of a tagged payload, 32 bytes."""
ChainId = NewType("ChainId", bytes)
"""Digest of the canonical genesis, 32 bytes."""
Signature = NewType("Signature", bytes)
"""Ed25519 signature, 64 bytes."""

KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
UID_MAX: Final = 2**32 - 1
ZERO_DIGEST: Final = Digest(bytes(DIGEST_BYTES))

TOKEN: Final = 10**9
"""Base units in one token."""


class Modality(IntFlag):
    """What a peer's model accepts; a peer that bridges several sets several bits."""

    TEXT = 1
    IMAGE = 2
    SPEECH = 4
    TENSOR = 8
