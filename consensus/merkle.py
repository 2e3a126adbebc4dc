"""Merkle tree over the sorted key -> value map of the state, with cached hashes.

Rule: the shape is that of RFC 6962 (a left subtree is the largest power of two of leaves), which
is what pairing neighbours level by level gives when an odd last node moves up unchanged. The leaf
count is bound into the root, so no node can be shown as a leaf:

    empty = H(empty tag, "")             leaf = H(0x00 || key || value)
    root  = H(root tag, u64 count || top)    node = H(0x01 || left || right)

A tree is a value: `updated` returns a new one that shares what it can. A block that only changes
values rehashes paths; one that adds or removes keys rebuilds the inner nodes right of the first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from blake3 import blake3

from consensus.crypto import H
from consensus.errors import InvariantViolation
from consensus.types import Digest

EMPTY_TAG: Final = b"merkle-empty"
ROOT_TAG: Final = b"merkle-root"
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"
PROOF_NODES_MAX: Final = 64
"""Siblings a proof may carry on each side: more than 2^64 leaves do not exist."""


class MerkleTree:
    """A sorted map of keys to leaf hashes with every level of the tree above it."""

    __slots__ = ("_keys", "_levels", "_root")

    def __init__(self, leaves: Mapping[bytes, bytes] | None = None) -> None:
        """Build from key -> value."""
        items = sorted((leaves or {}).items())
        self._keys = [key for key, _ in items]
        self._levels = _levels_above([leaf_hash(key, value) for key, value in items])
        self._root = _root_of(self._levels)

    @property
    def root(self) -> Digest:
        """The digest that commits to every key, every value and their number."""
        return self._root

    @property
    def keys(self) -> Sequence[bytes]:
        """Ascending."""
        return self._keys

    def updated(self, changes: Mapping[bytes, bytes | None]) -> MerkleTree:
        """A tree with the given values set and the keys of None values removed."""
        tree = object.__new__(MerkleTree)
        known = self._keys
        moved = [key for key, value in changes.items() if (value is None) == (key in self)]
        if not moved:
            tree._keys = known
            tree._levels = _with_leaves(
                self._levels,
                {
                    bisect_left(known, key): leaf_hash(key, value)
                    for key, value in changes.items()
                    if value is not None
                },
            )
        else:
            leaves = dict(zip(known, self._levels[0], strict=True))
            for key, value in changes.items():
                if value is None:
                    leaves.pop(key, None)
                else:
                    leaves[key] = leaf_hash(key, value)
            tree._keys = sorted(leaves)
            level = [leaves[key] for key in tree._keys]
            first = min(bisect_left(known, key) for key in changes)
            tree._levels = _levels_above(level, shared=self._levels, unchanged=first)
        tree._root = _root_of(tree._levels)
        return tree

    def proof(self, first: int, last: int) -> RangeProof:
        """What is needed to check leaves `first` to `last` (inclusive) against the root."""
        count = len(self._keys)
        if not 0 <= first <= last < count:
            raise IndexError(f"leaves {first} to {last} of {count}")
        left, right = [], []
        low, high = first, last
        for level in self._levels[:-1]:
            if low % 2:
                left.append(level[low - 1])
            if high % 2 == 0 and high + 1 < len(level):
                right.append(level[high + 1])
            low, high = low // 2, high // 2
        return RangeProof(count=count, first=first, left=tuple(left), right=tuple(right))

    def __contains__(self, key: bytes) -> bool:
        at = bisect_left(self._keys, key)
        return at < len(self._keys) and self._keys[at] == key


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeProof:
    """Siblings, from the leaves upwards, on either side of a run of neighbouring leaves."""

    count: int
    first: int
    left: tuple[bytes, ...]
    right: tuple[bytes, ...]


def root_of_list(values: Iterable[bytes]) -> Digest:
    """Root over a plain list: the key of value i is i as u32."""
    level = [leaf_hash(i.to_bytes(4, "big"), value) for i, value in enumerate(values)]
    return _root_of(_levels_above(level))


def verify_range(root: Digest, entries: Sequence[tuple[bytes, bytes]], proof: RangeProof) -> bool:
    """Whether `entries` are leaves first ... of the map under `root`, in order, with no gap."""
    level = [leaf_hash(key, value) for key, value in entries]
    low, count = proof.first, proof.count
    if not level or low < 0 or low + len(level) > count:
        return False
    if any(a >= b for (a, _), (b, _) in pairwise(entries)):
        return False
    left, right = list(proof.left), list(proof.right)
    while count > 1:
        if low % 2:
            if not left:
                return False
            level.insert(0, left.pop(0))
            low -= 1
        if (low + len(level)) % 2 and low + len(level) < count:
            if not right:
                return False
            level.append(right.pop(0))
        level = _level_above(level)
        low, count = low // 2, (count + 1) // 2
    return not left and not right and _bound_root(level[0], proof.count) == root


def leaf_hash(key: bytes, value: bytes) -> bytes:
    """Of one entry."""
    return blake3(_LEAF + key + value).digest()


def _root_of(levels: list[list[bytes]]) -> Digest:
    count = len(levels[0])
    top = levels[-1][0] if count else H(EMPTY_TAG, b"")
    return _bound_root(top, count)


def _bound_root(top: bytes, count: int) -> Digest:
    return H(ROOT_TAG, count.to_bytes(8, "big") + top)


def _level_above(level: list[bytes]) -> list[bytes]:
    above = [
        blake3(_NODE + left + right).digest()
        for left, right in zip(level[::2], level[1::2], strict=False)
    ]
    if len(level) % 2:
        above.append(level[-1])
    return above


def _levels_above(
    level: list[bytes], *, shared: list[list[bytes]] | None = None, unchanged: int = 0
) -> list[list[bytes]]:
    """All levels over `level`; its first `unchanged` leaves are those of `shared`."""
    levels = [level]
    while len(level) > 1:
        unchanged //= 2
        old = shared[len(levels)] if shared and len(levels) < len(shared) else []
        keep = min(unchanged, len(old))
        level = old[:keep] + _level_above(level[2 * keep :])
        levels.append(level)
    return levels


def _with_leaves(levels: list[list[bytes]], leaves: Mapping[int, bytes]) -> list[list[bytes]]:
    """A copy of `levels` with the given leaf hashes and the paths above them."""
    if not leaves:
        return levels
    out = [list(level) for level in levels]
    for index, hashed in leaves.items():
        out[0][index] = hashed
    touched = sorted(leaves)
    for below, above in pairwise(out):
        touched = sorted({index // 2 for index in touched})
        for index in touched:
            if 2 * index + 1 < len(below):
                above[index] = blake3(_NODE + below[2 * index] + below[2 * index + 1]).digest()
            else:
                above[index] = below[2 * index]
    if len(out[-1]) != 1:
        raise InvariantViolation("a Merkle tree without a single top")
    return out
