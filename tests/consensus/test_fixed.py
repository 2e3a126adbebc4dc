"""The integer sigmoid: exact tables, error, order, symmetry, ends."""

from __future__ import annotations

import random
from decimal import Decimal, getcontext

import pytest

from consensus import fixed
from consensus.errors import InvariantViolation
from consensus.fixed import TRUST_HALF, TRUST_ONE, sigmoid
from interop.oracle import naive_sigmoid
from tests.consensus.ledger_strategies import SCALE

ENDS = [
    0,
    1,
    -1,
    511,
    512,
    2**18 - 1,
    2**18,
    2**28 - 2,
    2**28 - 1,
    2**28,
    -(2**28),
    2**80,
    -(2**80),
]


def test_the_error_is_below_the_stated_bound() -> None:
    getcontext().prec = 50
    rng = random.Random(1)
    worst = Decimal(0)
    for _ in range(2_000 * SCALE):
        t = rng.randrange(2**28) >> rng.randrange(28)
        true = 2**30 / (1 + (-Decimal(t) / 2**24).exp())
        worst = max(worst, abs(true - sigmoid(t)))
    assert worst <= Decimal("1.31")


def test_it_is_monotone_around_every_seam() -> None:
    for seam in [h << 18 for h in range(1024)] + [m << 9 for m in range(2048)]:
        for t in range(seam - 2, seam + 2):
            assert sigmoid(t) <= sigmoid(t + 1)
            assert sigmoid(-t - 1) <= sigmoid(-t)


@pytest.mark.parametrize("t", ENDS)
def test_it_is_antisymmetric_and_bounded(t: int) -> None:
    assert sigmoid(t) + sigmoid(-t) == TRUST_ONE
    assert 0 <= sigmoid(t) <= TRUST_ONE
    assert sigmoid(t) == naive_sigmoid(t)


def test_zero_is_exactly_one_half() -> None:
    assert sigmoid(0) == TRUST_HALF


def test_it_agrees_with_decimal_tables() -> None:
    rng = random.Random(2)
    for _ in range(300 * SCALE):
        t = rng.randrange(-(2**29), 2**29)
        assert sigmoid(t) == naive_sigmoid(t)


def test_wrong_tables_end_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "TABLES_SHA256", "0" * 64)
    with pytest.raises(InvariantViolation, match="sigmoid tables"):
        fixed._tables.__wrapped__()
