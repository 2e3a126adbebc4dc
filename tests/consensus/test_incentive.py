"""The mechanism against an oracle, its own reference path, finite differences and the paper."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest

from consensus.errors import InvariantViolation
from consensus.incentive import (
    SOURCES_PER_BLOCK,
    Outcome,
    Snapshot,
    mechanism_step,
    payouts,
    weight_matrix,
)
from consensus.params import PAPER, SCALING_ONE, TESTNET, WEIGHT_ONE, Parameters
from consensus.product import EXACT_LIMIT, Arithmetic, exact_product, sparse
from consensus.types import Uid
from consensus.weights import Row, rounded_row, self_row
from interop.oracle import naive_step
from tests.consensus.ledger_strategies import SCALE, random_case, random_row


def snapshot_of(case) -> Snapshot:
    return Snapshot(
        uids=tuple(Uid(uid) for uid in range(len(case["stake"]))),
        stake=tuple(case["stake"]),
        scaling=tuple(case["scaling"]),
        rows=tuple(Row(tuple((Uid(u), w) for u, w in row)) for row in case["rows"]),
    )


def parameters_of(case) -> Parameters:
    return dataclasses.replace(PAPER, **case["params"])


def answer(case, arithmetic: Arithmetic = Arithmetic.FLOAT64) -> dict[str, object]:
    outcome = mechanism_step(snapshot_of(case), parameters_of(case), arithmetic=arithmetic)
    paid = payouts(outcome, case["pool"])
    if not outcome.scaled_total:
        names = ["open", "scaling_next"]
    else:
        names = ["share", "rank", "tau", "trust", "incentive", "loss", "open", "gradient"]
        names.append("scaling_next")
    result = {
        name: list(value) if isinstance(value := getattr(outcome, name), tuple) else value
        for name in names
    }
    return {**result, "payout": list(paid), "pool_next": case["pool"] - sum(paid)}


@pytest.mark.parametrize("seed", range(60 * SCALE))
def test_it_gives_what_the_oracle_gives(seed: int) -> None:
    rng = random.Random(seed)
    case = random_case(rng, rng.choice([1, 2, 3, 5, 9, 20]))
    assert answer(case) == naive_step(case)


@pytest.mark.parametrize("seed", range(8 * SCALE))
def test_float64_and_int64_agree_bit_for_bit(seed: int) -> None:
    rng = random.Random(seed)
    case = random_case(rng, rng.choice([70, 200, 300]))
    assert answer(case, Arithmetic.INT64) == answer(case, Arithmetic.FLOAT64)


def test_more_peers_than_one_block_of_sources_holds() -> None:
    n = SOURCES_PER_BLOCK + 3
    case = random_case(random.Random(5), n)
    case["stake"] = [10**9] * n
    case["scaling"] = [2**30] * n
    assert answer(case, Arithmetic.INT64) == answer(case)


def extreme(n: int, stake: int, scaling: int, rows: list[Row]) -> dict[str, object]:
    return {
        "params": {
            "temperature": 16,
            "depth": 8,
            "cutoff": 0,
            "rank_cutoff": 65_536,
            "self_edge_to_pool": False,
            "recovery": 2**30,
            "learning_rate": 2**20,
        },
        "stake": [stake] * n,
        "scaling": [scaling] * n,
        "rows": [[list(entry) for entry in row.entries] for row in rows],
        "pool": 2**55 - 1,
    }


PEERS = 20


@pytest.mark.parametrize("scaling", [0, 1, 2**29, 2**30])
@pytest.mark.parametrize("stake", [0, 1, (2**55 - 1) // PEERS])
def test_extremes_agree_with_the_oracle(stake: int, scaling: int) -> None:
    ring = [Row(((Uid((i + 1) % PEERS), WEIGHT_ONE),)) for i in range(PEERS)]
    even = [random_row(random.Random(i), list(range(PEERS))) for i in range(PEERS)]
    thin = [
        Row(tuple(sorted(((Uid(i), WEIGHT_ONE - 1), (Uid((i + 1) % PEERS), 1)))))
        for i in range(PEERS)
    ]
    star = [Row(((Uid(0), WEIGHT_ONE),))] * PEERS
    alone = [self_row(Uid(i)) for i in range(PEERS)]
    for rows in (ring, even, thin, star, alone):
        case = extreme(PEERS, stake, scaling, rows)
        assert answer(case) == naive_step(case)
        assert answer(case, Arithmetic.INT64) == naive_step(case)


def test_one_peer_with_everything() -> None:
    case = extreme(1, 2**55 - 1, 2**30, [self_row(Uid(0))])
    assert answer(case) == naive_step(case)
    assert answer(case)["trust"][0] > 2**30 - 2**10


def test_nobody_with_scaled_stake_closes_and_starts_again() -> None:
    case = extreme(2, 10**9, 0, [self_row(Uid(0)), self_row(Uid(1))])
    outcome = mechanism_step(snapshot_of(case), parameters_of(case))
    assert not outcome.open
    assert outcome.scaling_next == (SCALING_ONE, SCALING_ONE)
    assert payouts(outcome, 100) == (0, 0)


def test_a_network_where_no_incentive_arises_keeps_its_pool() -> None:
    outcome = dataclasses.replace(
        mechanism_step(snapshot_of(extreme(1, 9, 2**30, [self_row(Uid(0))])), TESTNET), open=True
    )
    assert sum(outcome.incentive) == 0
    assert payouts(outcome, 100) == (0,)


# The exact product ------------------------------------------------------------------------------


def test_the_bound_is_what_decides() -> None:
    masses = np.array([2**37], dtype=np.int64)
    weights = sparse(np.array([2**16]), np.array([0]), np.array([0]), (1, 1))
    assert exact_product(weights, masses).tolist() == [EXACT_LIMIT]
    with pytest.raises(InvariantViolation, match="bounded only by"):
        exact_product(weights, masses + 1)


def test_rows_that_sum_to_one_bound_what_columns_do_not() -> None:
    # 64 centred trusts of 2^29: by column 2^16 * 64 * 2^29 > 2^53 would be refused at N = 4,096.
    n = 4_096
    weights = sparse(np.full(n, WEIGHT_ONE), np.arange(n), np.arange(n), (n, n))
    centred = np.full(n, 2**29, dtype=np.int64)
    assert exact_product(weights, centred, shift=16).tolist() == [2**29] * n


@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_it_floors_towards_minus_infinity(arithmetic: Arithmetic) -> None:
    matrix = np.array([[1, 1], [-1, 0], [0, 0]], dtype=np.int64)
    masses = np.array([3, -4], dtype=np.int64)
    assert exact_product(matrix, masses, shift=1, arithmetic=arithmetic).tolist() == [-1, -2, 0]


def test_an_empty_matrix_has_an_empty_product() -> None:
    empty = exact_product(np.zeros((0, 3), dtype=np.int64), np.zeros(3, dtype=np.int64))
    assert empty.shape == (0,)


@pytest.mark.parametrize("seed", range(5 * SCALE))
def test_dense_sparse_and_integer_products_at_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(WEIGHT_ONE, np.ones(50) / 50, size=50).astype(np.int64)
    masses = rng.multinomial(2**36, np.ones(50) / 50).astype(np.int64)
    rows, columns = np.nonzero(weights.T)
    thin = sparse(weights.T[rows, columns], rows, columns, (50, 50))
    true = [
        sum(int(w) * int(x) for w, x in zip(row, masses, strict=True)) >> 16 for row in weights.T
    ]
    for matrix in (thin, np.ascontiguousarray(weights.T)):
        for arithmetic in Arithmetic:
            assert exact_product(matrix, masses, shift=16, arithmetic=arithmetic).tolist() == true


def test_a_weight_to_a_missing_uid_is_impossible() -> None:
    for uid in (1, 3):
        lost = Snapshot(
            uids=(Uid(0), Uid(2)),
            stake=(1, 1),
            scaling=(1, 1),
            rows=(self_row(Uid(uid)), self_row(Uid(2))),
        )
        with pytest.raises(InvariantViolation, match="outside the snapshot"):
            weight_matrix(lost)


# Against the mathematics ------------------------------------------------------------------------


def float_loss(case, scaling: list[float]) -> float:
    """L as a function of a, in floats, with the connectivity of the integer step held fixed."""
    w, c = case["w"], case["c"]
    scaled = np.array(case["stake"]) * np.array(scaling)
    share = scaled / scaled.sum()
    rank = w.T @ share
    trust = 1 / (1 + np.exp(-case["temperature"] * (c.T @ share)))
    return -float(rank @ (trust - 0.5))


@pytest.mark.parametrize("seed", range(6 * SCALE))
def test_the_gradient_is_the_one_of_finite_differences(seed: int) -> None:
    """-dL/da_i = s_i / Z * G_i: the true gradient, with the positive factor dropped."""
    rng = random.Random(seed)
    n = 12
    rows = [random_row(rng, sorted({i, *rng.sample(range(n), 2)})) for i in range(n)]
    stake = [rng.randrange(10**9, 10**12) for _ in range(n)]
    scaling = [rng.randrange(2**28, 2**30) for _ in range(n)]
    snapshot = Snapshot(
        uids=tuple(Uid(i) for i in range(n)),
        stake=tuple(stake),
        scaling=tuple(scaling),
        rows=tuple(rows),
    )
    parameters = dataclasses.replace(PAPER, depth=2, temperature=4)
    outcome = mechanism_step(snapshot, parameters)
    w = np.zeros((n, n))
    for i, row in enumerate(rows):
        for uid, weight in row.entries:
            w[i, uid] = weight / WEIGHT_ONE
    hops = w - np.diag(np.diag(w))
    visits = sum(np.linalg.matrix_power(hops, t) for t in range(3))
    c = np.where(visits > 0, 1, -1)
    case = {"w": w, "c": c, "stake": stake, "temperature": 4}
    a = [x / 2**30 for x in scaling]
    total = sum(s * x for s, x in zip(stake, a, strict=True))
    step = 1e-6
    for i in range(n):
        up, down = list(a), list(a)
        up[i] += step
        down[i] -= step
        slope = -(float_loss(case, up) - float_loss(case, down)) / (2 * step)
        given = outcome.gradient[i] / 2**30 * stake[i] / total
        assert math.isclose(slope, given, rel_tol=1e-3, abs_tol=1e-7)
    assert math.isclose(outcome.loss / 2**52, float_loss(case, a), abs_tol=1e-7)


def step(sizes: tuple[int, int], shares: tuple[float, float], parameters: Parameters) -> Outcome:
    """Two disjoint groups, everybody naming everybody in its own."""
    rows, stake = [], []
    for group, size in enumerate(sizes):
        first = group * sizes[0]
        row = rounded_row({Uid(first + k): 1 for k in range(size)})
        rows += [row] * size
        stake += [int(shares[group] * 10**15) // size] * size
    n = sum(sizes)
    return mechanism_step(
        Snapshot(
            uids=tuple(Uid(i) for i in range(n)),
            stake=tuple(stake),
            scaling=(SCALING_ONE,) * n,
            rows=tuple(rows),
        ),
        parameters,
    )


@pytest.mark.parametrize("parameters", [PAPER, TESTNET])
def test_a_disjoint_cabal_of_49_percent_is_distrusted(parameters: Parameters) -> None:
    outcome = step((6, 4), (0.51, 0.49), parameters)
    honest, cabal = outcome.trust[0], outcome.trust[-1]
    expected = 1 / (1 + math.exp(-10 * (2 * 0.51 - 1)))
    assert math.isclose(honest / 2**30, expected, rel_tol=1e-6)
    assert cabal < 2**29 < honest
    assert outcome.open


def test_a_loss_of_exactly_zero_is_closed() -> None:
    """Two equal islands: everybody has trust 1/2, L = 0, and nobody may be paid."""
    case = extreme(2, 10**9, 2**30, [self_row(Uid(0)), self_row(Uid(1))])
    outcome = mechanism_step(snapshot_of(case), parameters_of(case))
    assert outcome.trust == (2**29, 2**29)
    assert outcome.loss == 0
    assert not outcome.open


def test_order_of_peers_does_not_matter() -> None:
    rng = random.Random(3)
    case = random_case(rng, 9)
    order = list(range(9))
    rng.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    shuffled = {
        **case,
        "stake": [case["stake"][old] for old in order],
        "scaling": [case["scaling"][old] for old in order],
        "rows": [sorted([place[k], w] for k, w in case["rows"][old]) for old in order],
    }
    one, other = answer(case), answer(shuffled)
    for name in ("trust", "incentive", "gradient", "payout", "scaling_next"):
        assert [one[name][old] for old in order] == other[name]
