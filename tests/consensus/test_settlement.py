"""Emission: equal to the paper's eq. 5 in the limit it describes, exact at its edges."""

from __future__ import annotations

import dataclasses
import math
import random
from itertools import pairwise

import pytest

from consensus.fixed import TRUST_HALF
from consensus.incentive import mechanism_step
from consensus.params import PAPER, SUPPLY_LIMIT, WEIGHT_ONE
from consensus.settlement import pending_of
from consensus.transaction import SetWeights, Transfer
from consensus.types import Amount, Uid
from consensus.weights import Row, self_row
from tests.consensus.ledger_chain import (
    TEST_PARAMETERS,
    LedgerChain,
    account_id,
    even_row,
    make_genesis,
)
from tests.consensus.ledger_strategies import random_row

TOKENS = 10**12
FEE = TEST_PARAMETERS.fee


@pytest.mark.parametrize("seed", range(3))
def test_when_everybody_settles_every_block_the_result_is_eq_5(seed: int) -> None:
    """S' = S + tau |S| I / |I|, to 1e-9, under PAPER with one block an epoch."""
    rng = random.Random(seed)
    n = 10
    stakes = [rng.randrange(10**14, 10**15) for _ in range(n)]
    rows = [random_row(rng, sorted(rng.sample(range(n), 4))) for _ in range(n)]
    chain = LedgerChain(make_genesis(stakes, PAPER, rows=rows))
    outcome = mechanism_step(chain.state.snapshot, PAPER)
    assert outcome.open
    chain.extend(*[chain.sign(i, SetWeights(row=rows[i])) for i in range(n)])
    tau = PAPER.inflation / 2**32
    total, incentive = sum(stakes), [x / 2**52 for x in outcome.incentive]
    for i in range(n):
        expected = stakes[i] + tau * total * incentive[i] / sum(incentive)
        assert math.isclose(chain.state.stake[Uid(i)], expected, rel_tol=1e-9)
    assert chain.state.issued == sum(chain.state.stake.values()) + chain.state.pool
    assert chain.state.pool < n


def test_eq_5_holds_for_many_blocks_while_trust_is_steady() -> None:
    """Each block follows eq. 5 with the trust in effect and the ranks of the snapshot before."""
    stakes = [10**14 * (i + 1) for i in range(4)]
    rows = [even_row(4)] * 4
    chain = LedgerChain(make_genesis(stakes, PAPER, rows=rows))
    for _ in range(5):
        before = dict(chain.state.stake)
        chain.extend(*[chain.sign(i, SetWeights(row=rows[i])) for i in range(4)])
        emitted = PAPER.inflation / 2**32 * sum(before.values())
        for uid, stake in before.items():
            # Everybody has the same rank and trust, so an equal part.
            assert math.isclose(chain.state.stake[uid], stake + emitted / 4, rel_tol=1e-8)


def test_nothing_is_emitted_while_the_network_is_closed() -> None:
    rows = [Row(((Uid((i + 1) % 4), WEIGHT_ONE),)) for i in range(4)]
    scaling = [0] * 4
    chain = LedgerChain(make_genesis([TOKENS] * 4, rows=rows, scaling=scaling))
    assert not chain.state.is_open
    chain.extend(*[chain.sign(i, SetWeights(row=rows[i])) for i in range(4)])
    assert chain.state.issued == 4 * TOKENS
    assert chain.state.open_blocks == 0


def test_emission_is_the_same_whether_accrued_at_once_or_block_by_block() -> None:
    parameters = dataclasses.replace(TEST_PARAMETERS, blocks_per_epoch=10)
    lazy = LedgerChain(make_genesis([TOKENS] * 3, parameters))
    eager = LedgerChain(make_genesis([TOKENS] * 3, parameters))
    for _ in range(6):
        lazy.extend()
        draft = eager.state.draft()
        for uid in draft.accounts:
            draft.pending[uid] = pending_of(draft, uid, parameters)
            draft.accrued[uid] = draft.open_blocks
        draft.touched = None
        eager.state = draft
        eager.extend()
    for uid in lazy.state.accounts:
        assert pending_of(lazy.state, uid, parameters) == pending_of(eager.state, uid, parameters)


def test_settlement_is_split_by_the_old_row_and_trust() -> None:
    row = Row(((Uid(0), 16_384), (Uid(1), 16_384), (Uid(2), 32_768)))
    chain = LedgerChain(make_genesis([TOKENS] * 3, rows=[row] * 3, bonds=[TOKENS // 2, None, None]))
    execution = chain.make_block()
    assert not execution.body.transactions
    before, trust = dict(chain.state.stake), dict(chain.state.trust)
    chain.extend(chain.sign(0, SetWeights(row=even_row(3))))
    e = TEST_PARAMETERS.inflation * TOKENS
    emitted = e >> 32
    assert chain.state.issued == 3 * TOKENS + emitted
    assert chain.state.stake[Uid(1)] - before[Uid(1)] == emitted * 16_384 * trust[Uid(1)] >> 46
    assert chain.state.stake[Uid(2)] - before[Uid(2)] == emitted * 32_768 * trust[Uid(2)] >> 46
    # The self edge (a quarter of the emission) pays the fee; under this preset it keeps nothing.
    assert chain.state.stake[Uid(0)] == before[Uid(0)]
    assert chain.state.pending[Uid(0)] == e & (2**32 - 1)


def test_the_self_edge_keeps_what_trust_lets_it_where_the_preset_says_so() -> None:
    parameters = dataclasses.replace(TEST_PARAMETERS, self_edge_to_pool=False)
    chain = LedgerChain(make_genesis([TOKENS] * 2, parameters))
    trust = chain.state.trust_of(Uid(0))
    emitted = parameters.inflation * TOKENS >> 32
    own = emitted * 32_768 >> 16
    chain.extend(chain.sign(0, SetWeights(row=even_row(2))))
    assert chain.state.stake[Uid(0)] == TOKENS + ((own - FEE) * trust >> 30)


def test_what_the_self_edge_does_not_cover_comes_from_the_stake() -> None:
    rows = [Row(((Uid(1), WEIGHT_ONE),)), Row(((Uid(0), WEIGHT_ONE),))]
    chain = LedgerChain(make_genesis([TOKENS] * 2, rows=rows))
    chain.extend(chain.sign(0, SetWeights(row=rows[0])))
    assert chain.state.stake[Uid(0)] == TOKENS - FEE


def test_the_cap_ends_emission_and_the_claim_lapses() -> None:
    cap = 2 * TOKENS + 7
    parameters = dataclasses.replace(TEST_PARAMETERS, supply_cap=cap)
    chain = LedgerChain(make_genesis([TOKENS] * 2, parameters))
    chain.extend(chain.sign(0, SetWeights(row=even_row(2))))
    assert chain.state.issued == cap
    assert chain.state.pending[Uid(0)] < 2**32
    chain.extend(chain.sign(1, SetWeights(row=even_row(2))))
    assert chain.state.issued == cap
    chain.extend_to_boundary()
    assert sum(chain.state.stake.values()) + chain.state.pool == cap


def test_the_full_cap_in_one_account_stays_in_bounds() -> None:
    parameters = dataclasses.replace(
        TEST_PARAMETERS, supply_cap=SUPPLY_LIMIT - 1, inflation=2**32, fee=0
    )
    chain = LedgerChain(make_genesis([2**54, 0], parameters))
    for _ in range(9):
        chain.extend(chain.sign(0, SetWeights(row=even_row(2))))
    assert chain.state.issued == SUPPLY_LIMIT - 1
    chain.check_entries()


def test_a_newcomer_is_paid_at_trust_one_half() -> None:
    chain = LedgerChain(make_genesis([TOKENS] * 2))
    chain.extend()
    chain.extend()
    chain.extend(chain.subscription(9))
    assert chain.state.trust_of(Uid(2)) == TRUST_HALF
    row = Row(((Uid(1), 32_768), (Uid(2), 32_768)))
    chain.extend(chain.sign(0, SetWeights(row=row)))
    assert chain.state.epoch == 1
    chain.extend()
    emitted = pending_of(chain.state, Uid(0), TEST_PARAMETERS)
    assert emitted
    stake = chain.state.stake[Uid(0)]
    chain.extend(chain.sign(0, SetWeights(row=row)))
    paid = chain.state.issued - chain.state.pool - chain.state.stake[Uid(1)] - stake
    assert chain.state.stake[Uid(2)] > 0
    assert paid > 0


def test_a_disjoint_cabal_loses_under_settlement() -> None:
    """The rule that E is not normalised by sum_k w_ik T_k: 49 % do not keep 49 %."""
    honest, cabal = even_row(3), Row(((Uid(3), 21_846), (Uid(4), 21_845), (Uid(5), 21_845)))
    rows = [honest] * 3 + [cabal] * 3
    stakes = [17 * TOKENS] * 3 + [16 * TOKENS] * 3
    parameters = dataclasses.replace(PAPER, inflation=2**29)
    chain = LedgerChain(make_genesis(stakes, parameters, rows=rows))
    shares = []
    for _ in range(45):
        chain.extend(*[chain.sign(i, SetWeights(row=rows[i])) for i in range(6)])
        stake = chain.state.stake
        shares.append(sum(stake[Uid(i)] for i in (3, 4, 5)) / sum(stake.values()))
    assert shares[0] < 0.49
    assert shares[-1] < 0.02
    assert all(later < earlier for earlier, later in pairwise(shares))


def test_a_payment_accrues_before_it_changes_the_stake() -> None:
    parameters = dataclasses.replace(TEST_PARAMETERS, blocks_per_epoch=50)
    chain = LedgerChain(make_genesis([TOKENS] * 2, parameters, bonds=[1_000, 1_000]))
    chain.extend()
    pay = Transfer(recipient=account_id(1), amount=Amount(TOKENS // 2))
    chain.extend(chain.sign(0, pay))
    claim = 2 * parameters.inflation * TOKENS
    assert pending_of(chain.state, Uid(0), parameters) == claim
    assert pending_of(chain.state, Uid(1), parameters) == claim
    chain.extend()
    assert pending_of(chain.state, Uid(1), parameters) == claim + parameters.inflation * (
        TOKENS + TOKENS // 2
    )


def test_a_lone_founder_earns_by_the_pool() -> None:
    chain = LedgerChain(make_genesis([TOKENS], dataclasses.replace(PAPER, blocks_per_epoch=1)))
    chain.extend(chain.sign(0, SetWeights(row=self_row(Uid(0)))))
    assert math.isclose(chain.state.stake[Uid(0)], TOKENS * 1.01, rel_tol=1e-9)


def test_what_rounds_to_nothing_goes_to_the_pool() -> None:
    row = Row(((Uid(0), WEIGHT_ONE - 1), (Uid(1), 1)))
    parameters = dataclasses.replace(TEST_PARAMETERS, fee=0, self_weight_max=WEIGHT_ONE)
    chain = LedgerChain(make_genesis([10**6, 10**6], parameters, rows=[row] * 2))
    chain.extend(chain.sign(0, SetWeights(row=row)))
    emitted = chain.state.issued - 2 * 10**6
    assert 0 < emitted < WEIGHT_ONE
    assert chain.state.stake[Uid(1)] == 10**6
    assert chain.state.pool == emitted


def test_the_claim_grows_with_the_scaled_stake() -> None:
    scaling = [2**30, 2**29, 1]
    chain = LedgerChain(make_genesis([TOKENS] * 3, scaling=scaling))
    chain.extend()
    claims = [pending_of(chain.state, Uid(i), TEST_PARAMETERS) for i in range(3)]
    assert claims == [TEST_PARAMETERS.inflation * (TOKENS * a >> 30) for a in scaling]
    assert claims[0] == 2 * claims[1] > claims[2]
