"""A peer's row of the weight matrix W: what it says the others are worth (paper, Figure 3).

Rule: a row is at most 64 (uid, weight) pairs, sorted by uid, without zeros, weights in Q16 that
sum to exactly 65,536. So W is row-stochastic in integers, which is what every bound of the
mechanism rests on (ledger.md, The exactness rule). Every peer always has a row; a new one has all
weight on itself. Encoding: u8 count, then u32 uid and u32 weight of each entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from consensus.codec import Reader
from consensus.errors import DecodeError
from consensus.params import WEIGHT_ONE
from consensus.types import UID_MAX, Uid

ROW_ENTRIES_MAX: Final = 64
"""A transaction of 64 entries is 0.7 KiB; a node of 64 neighbours is a well-connected one."""
ENTRY_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Weights by uid. Raises ValueError when they are not a canonical row."""

    entries: tuple[tuple[Uid, int], ...]
    encoded: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        entries = self.entries
        if not 1 <= len(entries) <= ROW_ENTRIES_MAX:
            raise ValueError(f"a row has 1 to {ROW_ENTRIES_MAX} entries, not {len(entries)}")
        out = bytearray([len(entries)])
        total, previous = 0, -1
        for uid, weight in entries:
            if not previous < uid <= UID_MAX:
                raise ValueError(f"uid {uid} after {previous}: not ascending")
            if not 1 <= weight <= WEIGHT_ONE:
                raise ValueError(f"weight {weight}, expected 1 to {WEIGHT_ONE}")
            out += (uid << 32 | weight).to_bytes(ENTRY_BYTES, "big")
            total += weight
            previous = uid
        if total != WEIGHT_ONE:
            raise ValueError(f"weights sum to {total}, not {WEIGHT_ONE}")
        object.__setattr__(self, "encoded", bytes(out))

    def weight_to(self, uid: Uid) -> int:
        """Q16, 0 when the row does not name `uid`."""
        for other, weight in self.entries:
            if other == uid:
                return weight
        return 0

    def without(self, gone: frozenset[Uid], own: Uid) -> Row:
        """The row with the weight of every uid in `gone` moved to the self edge `own`."""
        moved = sum(weight for uid, weight in self.entries if uid in gone)
        if not moved:
            return self
        kept = {uid: weight for uid, weight in self.entries if uid not in gone}
        kept[own] = kept.get(own, 0) + moved
        return Row(tuple(sorted(kept.items())))


def self_row(uid: Uid) -> Row:
    """All weight on oneself: the row of a new peer."""
    return Row(((uid, WEIGHT_ONE),))


def read_row(reader: Reader) -> Row:
    """The next row of `reader`. Raises DecodeError."""
    count = reader.count(reader.u8(), ROW_ENTRIES_MAX)
    try:
        return Row(tuple((Uid(reader.u32()), reader.u32()) for _ in range(count)))
    except ValueError as error:
        raise DecodeError(str(error)) from None


def rounded_row(scores: Mapping[Uid, int]) -> Row:
    """The row nearest to non-negative integer `scores`, for clients: largest remainders.

    The 64 largest scores are kept, ties and last units go to the lowest uid. Raises ValueError
    when no score is positive.
    """
    kept = sorted(
        ((uid, score) for uid, score in scores.items() if score > 0),
        key=lambda item: (-item[1], item[0]),
    )[:ROW_ENTRIES_MAX]
    total = sum(score for _, score in kept)
    if not total:
        raise ValueError("no positive score")
    weights = {uid: score * WEIGHT_ONE // total for uid, score in kept}
    left = WEIGHT_ONE - sum(weights.values())
    by_remainder = sorted(kept, key=lambda item: (-(item[1] * WEIGHT_ONE % total), item[0]))
    for uid, _ in by_remainder[:left]:
        weights[uid] += 1
    return Row(tuple(sorted((uid, weight) for uid, weight in weights.items() if weight)))
