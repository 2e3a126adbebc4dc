"""The mempool: bounded whatever arrives, nonces in order, and only the touched looked at again."""

from __future__ import annotations

import dataclasses
import os
import tracemalloc
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consensus.transaction import EXPIRY_HEIGHTS_MAX, RevealWeights, Role, Transaction
from consensus.types import AccountId, Nonce, Uid
from consensus.weights import Row
from node.mempool import NONCE_WINDOW, Choice, Mempool, Refusal
from tests.node.strategies import transfer, transfers

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))


class FakeLedger:
    """A state that only counts nonces, and what it was asked."""

    def __init__(self, height: int = 0) -> None:
        self.height = height
        self.nonces: Counter[AccountId] = Counter()
        self.refused: dict[bytes, str] = {}
        self.asked = 0

    def next_nonce(self, account: AccountId, role: Role) -> int:
        return self.nonces[account] if role is Role.OWNER else 0

    def refusal(self, transaction: Transaction) -> str | None:
        self.asked += 1
        return self.refused.get(transaction.hash)


def refusal(pool: Mempool, transaction: Transaction, ledger: FakeLedger) -> Refusal | None:
    refused = pool.add(transaction, ledger)
    return None if refused is None else refused.refusal


def account(number: int) -> AccountId:
    return AccountId(number.to_bytes(32, "big"))


def test_what_is_taken_and_what_is_not() -> None:
    pool, ledger = Mempool(fee_min=1), FakeLedger(height=10)
    ledger.nonces[account(0)] = 5
    good = transfer(0, 5)
    assert refusal(pool, good, ledger) is None
    assert good.hash in pool
    assert pool.get(good.hash) is good
    assert refusal(pool, good, ledger) is Refusal.DUPLICATE
    assert refusal(pool, transfer(0, 4), ledger) is Refusal.NONCE_PASSED
    assert refusal(pool, transfer(0, 5 + NONCE_WINDOW), ledger) is Refusal.NONCE_FAR
    assert refusal(pool, transfer(0, 4 + NONCE_WINDOW), ledger) is None
    assert refusal(pool, transfer(1, 0, expiry=10), ledger) is Refusal.EXPIRED
    far = transfer(1, 0, expiry=11 + EXPIRY_HEIGHTS_MAX)
    assert refusal(pool, far, ledger) is Refusal.EXPIRY_FAR
    bad = transfer(1, 0)
    ledger.refused[bad.hash] = "wrong signature"
    refused = pool.add(bad, ledger)
    assert refused is not None
    assert (refused.refusal, refused.reason) == (Refusal.INVALID, "wrong signature")
    assert len(pool) == 2
    assert next(iter(pool)) is good
    assert pool.bytes_held == sum(len(each.encoded) for each in pool)


def test_a_replacement_pays_an_eighth_more() -> None:
    pool, ledger = Mempool(fee_min=1), FakeLedger()
    assert refusal(pool, transfer(0, 0, fee=100), ledger) is None
    assert refusal(pool, transfer(0, 0, fee=112), ledger) is Refusal.UNDERPRICED
    assert refusal(pool, transfer(0, 0, fee=99), ledger) is Refusal.UNDERPRICED
    better = transfer(0, 0, fee=113)
    assert refusal(pool, better, ledger) is None
    assert list(pool) == [better]
    ledger.refused[better.hash] = "no funds any more"
    assert refusal(pool, transfer(0, 0, fee=1), ledger) is None
    assert len(pool) == 1


def test_zero_fees_are_not_replaced_for_nothing() -> None:
    pool, ledger = Mempool(fee_min=0), FakeLedger()
    assert refusal(pool, transfer(0, 0, fee=0, expiry=9), ledger) is None
    assert refusal(pool, transfer(0, 0, fee=0, expiry=8), ledger) is Refusal.UNDERPRICED


def test_selection_by_density_with_nonces_in_order() -> None:
    pool, ledger = Mempool(fee_min=1), FakeLedger()
    poor_then_rich = [transfer(0, 0, fee=10), transfer(0, 1, fee=9_000)]
    middle = [transfer(1, 0, fee=500), transfer(1, 1, fee=400)]
    gap = transfer(2, 1, fee=10**9)
    for each in (*reversed(poor_then_rich), *middle, gap):
        assert pool.add(each, ledger) is None
    assert pool.select(ledger, bytes_max=10**6) == middle + poor_then_rich
    size = len(middle[0].encoded)
    assert pool.select(ledger, bytes_max=size) == middle[:1]
    assert pool.next_free_nonce(ledger, account(1), Role.OWNER) == 2
    assert pool.next_free_nonce(ledger, account(2), Role.OWNER) == 0
    choices = {middle[0].hash: Choice.SKIP, poor_then_rich[1].hash: Choice.STOP}
    picked = pool.select(
        ledger, bytes_max=10**6, choose=lambda each: choices.get(each.hash, Choice.TAKE)
    )
    assert picked == poor_then_rich[:1]
    ledger.height = 50  # everything has expired, though nobody said so yet
    assert pool.select(ledger, bytes_max=10**6) == []


def test_selection_on_a_parent_that_is_not_final() -> None:
    pool, ledger = Mempool(fee_min=1), FakeLedger()
    both = [transfer(0, 0), transfer(0, 1)]
    for each in both:
        assert pool.add(each, ledger) is None
    parent = FakeLedger(height=1)
    parent.nonces[account(0)] = 1
    assert pool.select(parent, bytes_max=10**6) == both[1:]


def test_a_block_touches_only_its_senders() -> None:
    pool, ledger = Mempool(fee_min=1), FakeLedger()
    for number in range(50):
        for nonce in range(3):
            assert pool.add(transfer(number, nonce), ledger) is None
    ledger.asked = 0
    ledger.height = 1
    ledger.nonces[account(7)] = 2
    assert pool.advance(ledger, [account(7)]) == 2
    assert ledger.asked == 1
    assert pool.select(ledger, bytes_max=10**6, choose=lambda _: Choice.STOP) == []
    poorer = transfer(8, 0)
    ledger.refused[poorer.hash] = "no funds"
    assert pool.advance(ledger, [account(9)]) == 0
    assert pool.advance(ledger, None) == 1
    assert poorer.hash not in pool


def test_expiry_needs_no_touch() -> None:
    pool, ledger = Mempool(fee_min=1), FakeLedger()
    for number in range(6):
        assert pool.add(transfer(number, 0, expiry=5 + number), ledger) is None
    ledger.height = 6
    assert pool.advance(ledger, []) == 2
    assert len(pool) == 4
    pool.remove(next(iter(pool)).hash)
    pool.remove(b"unknown")
    assert len(pool) == 3


def test_a_full_pool_keeps_what_pays_more() -> None:
    pool, ledger = Mempool(fee_min=1, transactions_max=4), FakeLedger()
    for nonce, fee in enumerate((50, 10, 90, 80)):
        assert pool.add(transfer(0, nonce, fee=fee), ledger) is None
    assert refusal(pool, transfer(1, 0, fee=10), ledger) is Refusal.FULL
    # Sender 0's own next nonce cannot push out what it depends on.
    assert refusal(pool, transfer(0, 4, fee=10**6), ledger) is Refusal.FULL
    assert len(pool) == 4
    rich = transfer(1, 0, fee=60)
    assert pool.add(rich, ledger) is None
    # Nonce 1 paid least; 2 and 3 cannot be executed without it.
    assert {each.nonce for each in pool if each.account == account(0)} == {0}
    assert rich.hash in pool


def test_the_byte_bound() -> None:
    size = len(transfer(0, 0).encoded)
    pool, ledger = Mempool(fee_min=1, bytes_max=3 * size + 1), FakeLedger()
    for number in range(5):
        pool.add(transfer(number, 0, fee=100 + number), ledger)
    assert pool.bytes_held == 3 * size
    assert {each.fee for each in pool} == {102, 103, 104}


def test_a_return_after_leaving_has_its_own_rank() -> None:
    pool, ledger = Mempool(fee_min=1, transactions_max=2), FakeLedger()
    first, second = transfer(0, 0, fee=100), transfer(1, 0, fee=100)
    for each in (first, second):
        assert pool.add(each, ledger) is None
    pool.remove(first.hash)
    assert pool.add(first, ledger) is None  # now the later one of two equals
    assert pool.add(transfer(2, 0, fee=200), ledger) is None
    assert second.hash in pool
    assert first.hash not in pool


def test_free_kinds_rank_as_the_smallest_fee() -> None:
    pool, ledger = Mempool(fee_min=1_000, transactions_max=2), FakeLedger()
    base = transfer(0, 0)
    reveal = dataclasses.replace(
        base,
        fee=0,
        nonce=Nonce(0),
        content=RevealWeights(salt=bytes(32), row=Row(((Uid(0), 65_536),))),
    )
    assert reveal.role is Role.PEER
    for each in (reveal, transfer(1, 0, fee=900)):
        assert pool.add(each, ledger) is None
    assert pool.add(transfer(2, 0, fee=1_000), ledger) is None
    assert reveal.hash in pool


def test_a_flood_stays_inside_the_bounds() -> None:
    """50,000 transactions at a pool of 20,000: memory stops growing, the best ones stay."""
    pool, ledger = Mempool(fee_min=1), FakeLedger()

    def flood(first: int, count: int) -> None:
        for number in range(first, first + count):
            pool.add(transfer(number // 16, number % 16, fee=1_000 + number % 977), ledger)

    tracemalloc.start()
    flood(0, 20_000)
    full_bytes, _ = tracemalloc.get_traced_memory()
    assert len(pool) == 20_000
    flood(20_000, 30_000)
    flooded_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pool) <= 20_000
    assert pool.bytes_held <= 32 << 20
    assert flooded_bytes < 1.3 * full_bytes
    assert full_bytes < 96 << 20
    chosen = pool.select(ledger, bytes_max=512 << 10)
    assert len(chosen) > 500
    for each in chosen:
        ledger.nonces[each.account] += 1
    ledger.height += 1
    touched = {each.account for each in chosen}
    assert pool.advance(ledger, touched) >= len(chosen)


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of arrivals and blocks: the bounds hold, selections execute, books agree."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = FakeLedger()
        self.pool = Mempool(fee_min=1, transactions_max=12, bytes_max=12 * 200)

    @rule(transaction=transfers())
    def arrive(self, transaction: Transaction) -> None:
        refused = self.pool.add(transaction, self.ledger)
        assert (refused is None) <= (transaction.hash in self.pool)

    @rule(size=st.integers(0, 2_000))
    def block(self, size: int) -> None:
        chosen = self.pool.select(self.ledger, bytes_max=size)
        assert sum(len(each.encoded) for each in chosen) <= size
        for each in chosen:
            assert each.nonce == self.ledger.nonces[each.account]
            assert each.expiry > self.ledger.height
            self.ledger.nonces[each.account] += 1
        self.ledger.height += 1
        self.pool.advance(self.ledger, {each.account for each in chosen})
        for each in self.pool:
            assert each.expiry > self.ledger.height
            assert each.nonce >= self.ledger.nonces[each.account]

    @precondition(lambda self: len(self.pool))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.pool.remove(data.draw(st.sampled_from([each.hash for each in self.pool])))

    @invariant()
    def books_agree(self) -> None:
        held = list(self.pool)
        assert len(held) == len(self.pool) <= 12
        assert self.pool.bytes_held == sum(len(each.encoded) for each in held) <= 12 * 200
        slots = {(each.account, each.role, each.nonce) for each in held}
        assert len(slots) == len(held)
        for each in held:
            assert each.nonce < self.ledger.nonces[each.account] + NONCE_WINDOW


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=40 * SCALE, deadline=None, stateful_step_count=40)
