"""The state as entries: round trip, root, proofs, deltas, and what decoding refuses."""

from __future__ import annotations

import dataclasses
import random

import pytest

from consensus.codec import Writer
from consensus.entries import entries_of, entry_key, seal, state_of_entries, value_of
from consensus.errors import DecodeError, InvariantViolation
from consensus.merkle import MerkleTree, verify_range
from consensus.state import Table
from consensus.transaction import CommitWeights, SetWeights, SubscribeFor, Transfer
from consensus.types import Amount, Digest, Uid
from tests.consensus.ledger_chain import (
    ANNOUNCEMENT,
    TEST_PARAMETERS,
    LedgerChain,
    account_id,
    even_row,
    make_genesis,
    peer_key,
)
from tests.consensus.ledger_strategies import SCALE
from tests.consensus.test_transaction import mutate
from tests.consensus.test_transition import double_vote

TOKENS = 10**12


@pytest.fixture(scope="module")
def chain() -> LedgerChain:
    """One that has an entry in every table."""
    from consensus.transaction import RotatePeerKey, Unsubscribe

    parameters = dataclasses.replace(TEST_PARAMETERS, commit_reveal=True)
    chain = LedgerChain(
        make_genesis([TOKENS] * 5, parameters, bonds=[TOKENS // 2] * 3 + [None] * 2)
    )
    chain.extend()
    chain.extend()
    chain.extend(chain.subscription(9), evidence=(double_vote(chain, 2),))
    chain.extend()
    chain.extend(chain.sign(0, CommitWeights(commitment=Digest(b"d" * 32))))
    chain.extend(chain.sign(4, Unsubscribe(recipient=account_id(3))))
    chain.extend(chain.sign(3, RotatePeerKey(peer_key=peer_key(50))))
    return chain


def test_every_table_is_used(chain: LedgerChain) -> None:
    assert {key[0] for key, _ in entries_of(chain.state)} == set(Table)


def test_entries_make_the_same_state(chain: LedgerChain) -> None:
    back = state_of_entries(entries_of(chain.state))
    assert back.root == chain.state.root
    other = LedgerChain(chain.genesis)
    other.state, other.parent_hash, other.view = back, chain.parent_hash, chain.view
    block = chain.make_block(chain.sign(1, Transfer(recipient=account_id(2), amount=Amount(1))))
    assert other.make_block(chain.sign(1, Transfer(recipient=account_id(2), amount=Amount(1)))) == (
        block
    )


def test_the_root_is_that_of_a_tree_built_anew(chain: LedgerChain) -> None:
    assert MerkleTree(dict(entries_of(chain.state))).root == chain.state.root


def test_the_delta_turns_the_parent_into_the_child(chain: LedgerChain) -> None:
    before = dict(entries_of(chain.state))
    paid = SubscribeFor(owner=account_id(60), peer_key=peer_key(60), announcement=ANNOUNCEMENT)
    chain.make_block(chain.sign(1, paid))
    assert chain.last is not None
    child = chain.last.state
    for key, value in child.delta.items():
        if value is None:
            before.pop(key)
        else:
            before[key] = value
    assert before == dict(entries_of(child))


def test_a_chunk_of_entries_is_proved_against_the_root(chain: LedgerChain) -> None:
    entries = list(entries_of(chain.state))
    tree = chain.state.tree
    rng = random.Random(1)
    for _ in range(30):
        first = rng.randrange(len(entries))
        last = rng.randrange(first, len(entries))
        proof = tree.proof(first, last)
        chunk = entries[first : last + 1]
        assert verify_range(chain.state.root, chunk, proof)
        key, value = chunk[0]
        assert not verify_range(chain.state.root, [(key, value + b"\x00"), *chunk[1:]], proof)
        assert not verify_range(chain.state.root, chunk[1:], proof)
        assert not verify_range(chain.state.root, chunk[::-1] + chunk, proof)
        shifted = dataclasses.replace(proof, first=proof.first + 1)
        assert not verify_range(chain.state.root, chunk, shifted)
        shorter = dataclasses.replace(proof, left=proof.left[1:], right=proof.right[1:])
        assert shorter == proof or not verify_range(chain.state.root, chunk, shorter)


@pytest.mark.parametrize("seed", range(150 * SCALE))
def test_a_mutated_entry_is_refused_or_is_another_state(chain: LedgerChain, seed: int) -> None:
    rng = random.Random(seed)
    entries = list(entries_of(chain.state))
    at = rng.randrange(len(entries))
    key, value = entries[at]
    if rng.random() < 0.2:
        del entries[at]
    else:
        entries[at] = (key, mutate(value, rng)) if rng.random() < 0.8 else (mutate(key, rng), value)
    try:
        back = state_of_entries(entries)
    except DecodeError:
        return
    assert list(entries_of(back)) == entries
    assert (back.root == chain.state.root) == (entries == list(entries_of(chain.state)))


def with_entry(chain: LedgerChain, key: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    return sorted({**dict(entries_of(chain.state)), key: value}.items())


def test_entries_that_are_no_state(chain: LedgerChain) -> None:
    entries = list(entries_of(chain.state))
    with pytest.raises(DecodeError, match="ascending"):
        state_of_entries(entries[::-1])
    with pytest.raises(DecodeError, match="key"):
        state_of_entries(with_entry(chain, b"\xff" * 5, b""))
    with pytest.raises(DecodeError, match="singleton 99"):
        state_of_entries(with_entry(chain, entry_key(Table.SINGLETON, 99), b""))
    with pytest.raises(DecodeError, match="missing or surplus"):
        state_of_entries(with_entry(chain, entry_key(Table.ROW, 99), even_row(2).encoded))
    with pytest.raises(DecodeError, match="singleton is missing"):
        state_of_entries(entries[1:])
    supply = Writer().u64(1).u64(10).done()
    with pytest.raises(DecodeError, match="not what was issued"):
        state_of_entries(with_entry(chain, entry_key(Table.SINGLETON, 2), supply))


def test_a_value_is_found_by_its_key(chain: LedgerChain) -> None:
    for key, value in entries_of(chain.state):
        assert value_of(chain.state, key) == value
    with pytest.raises(KeyError):
        value_of(chain.state, entry_key(Table.ROW, 99))


def test_sealing_twice_or_without_a_trace_is_impossible(chain: LedgerChain) -> None:
    with pytest.raises(InvariantViolation, match="sealed"):
        seal(chain.state)
    draft = chain.state.draft()
    draft.touch(Table.SINGLETON, 0)
    with pytest.raises(InvariantViolation, match="never touched"):
        seal(draft)
    broken = state_of_entries(entries_of(chain.state))
    del broken.evidence[0]
    with pytest.raises(InvariantViolation, match="lacks"):
        list(entries_of(broken))


def test_executing_does_not_change_the_parent() -> None:
    chain = LedgerChain(make_genesis([TOKENS] * 4))
    before = list(entries_of(chain.state))
    parent = chain.state
    for number in range(8):
        chain.extend(chain.sign(number % 4, SetWeights(row=even_row(4))))
    assert list(entries_of(parent)) == before
    assert parent.stake[Uid(0)] == TOKENS
