"""Rows: what is one, what is none, and rounding."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import Reader
from consensus.errors import DecodeError
from consensus.params import WEIGHT_ONE
from consensus.types import Uid
from consensus.weights import ROW_ENTRIES_MAX, Row, read_row, rounded_row, self_row
from tests.consensus.ledger_strategies import SCALE, rows


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ((), "1 to 64 entries"),
        (tuple((uid, 1_008) for uid in range(65)), "1 to 64 entries"),
        (((1, 32_768), (0, 32_768)), "not ascending"),
        (((1, 32_768), (1, 32_768)), "not ascending"),
        (((2**32, WEIGHT_ONE),), "not ascending"),
        (((-1, WEIGHT_ONE),), "not ascending"),
        (((0, 0), (1, WEIGHT_ONE)), "weight 0"),
        (((0, WEIGHT_ONE + 1),), "weight 65537"),
        (((0, WEIGHT_ONE - 1),), "sum to 65535"),
    ],
)
def test_what_is_no_row(entries, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Row(entries)


@given(rows())
@settings(max_examples=50 * SCALE)
def test_a_row_survives_its_encoding(row: Row) -> None:
    reader = Reader(row.encoded)
    assert read_row(reader) == row
    reader.end()


def test_a_decoder_refuses_what_the_constructor_refuses() -> None:
    with pytest.raises(DecodeError, match="sum to"):
        read_row(Reader(bytes([1]) + (0).to_bytes(4, "big") + (5).to_bytes(4, "big")))
    with pytest.raises(DecodeError, match="at most 64"):
        read_row(Reader(bytes([65])))


scores = st.dictionaries(st.integers(0, 2**32 - 1), st.integers(0, 2**70), max_size=200)


@given(scores)
@settings(max_examples=100 * SCALE)
def test_rounding_is_nearest_and_ties_go_to_the_lowest_uid(given_scores) -> None:
    positive = {uid: score for uid, score in given_scores.items() if score}
    if not positive:
        with pytest.raises(ValueError, match="no positive score"):
            rounded_row(given_scores)
        return
    row = rounded_row(given_scores)
    kept = sorted(positive, key=lambda uid: (-positive[uid], uid))[:ROW_ENTRIES_MAX]
    total = sum(positive[uid] for uid in kept)
    weights = dict(row.entries)
    for uid in kept:
        assert abs(weights.get(uid, 0) - Fraction(positive[uid] * WEIGHT_ONE, total)) < 1
    for low, high in pairwise(sorted(kept)):
        if positive[low] == positive[high]:
            assert weights.get(low, 0) >= weights.get(high, 0)


def test_three_equal_scores() -> None:
    row = rounded_row({Uid(7): 1, Uid(3): 1, Uid(5): 1})
    assert row.entries == ((3, 21_846), (5, 21_845), (7, 21_845))


def test_weights_to_the_departed_return_to_the_self_edge() -> None:
    row = Row(((Uid(1), 16_384), (Uid(2), 16_384), (Uid(3), 32_768)))
    assert row.without(frozenset({Uid(9)}), Uid(2)) is row
    gone = row.without(frozenset({Uid(1), Uid(3)}), Uid(2))
    assert gone == self_row(Uid(2))
    assert row.without(frozenset({Uid(1)}), Uid(5)).weight_to(Uid(5)) == 16_384
