"""The tree against a recursive reading of RFC 6962."""

from __future__ import annotations

import random

import pytest
from blake3 import blake3

from consensus.crypto import H
from consensus.errors import InvariantViolation
from consensus.merkle import (
    EMPTY_TAG,
    ROOT_TAG,
    MerkleTree,
    _with_leaves,
    leaf_hash,
    root_of_list,
    verify_range,
)
from tests.consensus.ledger_strategies import SCALE


def recursive_root(items: dict[bytes, bytes]) -> bytes:
    leaves = [leaf_hash(key, value) for key, value in sorted(items.items())]

    def top(part: list[bytes]) -> bytes:
        if len(part) == 1:
            return part[0]
        split = 1
        while split * 2 < len(part):
            split *= 2
        return blake3(b"\x01" + top(part[:split]) + top(part[split:])).digest()

    count = len(leaves).to_bytes(8, "big")
    return H(ROOT_TAG, count + (top(leaves) if leaves else H(EMPTY_TAG, b"")))


@pytest.mark.parametrize("seed", range(20 * SCALE))
def test_updates_give_the_tree_built_anew(seed: int) -> None:
    rng = random.Random(seed)
    items: dict[bytes, bytes] = {}
    tree = MerkleTree()
    for _ in range(60):
        changes: dict[bytes, bytes | None] = {}
        for _ in range(rng.randrange(5)):
            gone = rng.random() < 0.4
            changes[bytes([rng.randrange(50)])] = None if gone else rng.randbytes(3)
        for key, value in changes.items():
            if value is None:
                items.pop(key, None)
            else:
                items[key] = value
        older = tree.root
        older_tree, tree = tree, tree.updated(changes)
        assert tree.root == recursive_root(items)
        assert older_tree.root == older
        assert list(tree.keys) == sorted(items)


def test_every_range_of_small_trees_is_proved() -> None:
    for count in range(1, 18):
        items = {bytes([number]): bytes([number]) for number in range(count)}
        tree, entries = MerkleTree(items), sorted(items.items())
        for first in range(count):
            for last in range(first, count):
                proof = tree.proof(first, last)
                assert verify_range(tree.root, entries[first : last + 1], proof)
                assert not verify_range(H(b"x", b""), entries[first : last + 1], proof)


def test_ranges_that_do_not_exist() -> None:
    tree = MerkleTree({b"a": b"1", b"b": b"2"})
    for first, last in ((-1, 0), (0, 2), (1, 0)):
        with pytest.raises(IndexError):
            tree.proof(first, last)
    assert not verify_range(tree.root, [], tree.proof(0, 0))


def test_a_proof_short_of_siblings_is_refused() -> None:
    import dataclasses

    items = {bytes([number]): b"v" for number in range(8)}
    tree, entries = MerkleTree(items), sorted(items.items())
    proof = tree.proof(3, 4)
    for changes in ({"left": ()}, {"right": ()}):
        assert not verify_range(tree.root, entries[3:5], dataclasses.replace(proof, **changes))


def test_a_list_has_the_root_of_its_positions() -> None:
    values = [b"a", b"b", b"c"]
    items = {number.to_bytes(4, "big"): value for number, value in enumerate(values)}
    assert root_of_list(values) == recursive_root(items)
    assert root_of_list([]) == recursive_root({})


def test_a_tree_without_a_top_is_impossible() -> None:
    with pytest.raises(InvariantViolation):
        _with_leaves([[b"a", b"b"]], {0: b"c"})
