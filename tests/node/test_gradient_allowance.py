"""The bound on what callers teach in an interval, for any arrivals, and who cannot get round it."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gradient_allowance import (
    ALL_MAX,
    INTERVAL_S,
    SENDER_MAX,
    SENDERS_MAX,
    GradientAllowance,
)
from p2p.identity import Identity, PeerId

ROUNDING = 1e-9


def peer(index: int) -> PeerId:
    return Identity(index.to_bytes(32, "big")).peer_id


PEERS = [peer(index) for index in range(4)]

# Bursts of one sender: who, its share, how many gradients, how long after the burst before.
BURSTS = st.lists(
    st.tuples(
        st.sampled_from(PEERS),
        st.floats(0.001, 1.0),
        st.integers(1, 100),
        st.sampled_from([0.0, 0.1, 1.0, INTERVAL_S / 2, INTERVAL_S]),
    ),
    max_size=40,
)


def greatest_sum(granted: Sequence[tuple[float, float]]) -> float:
    """The most that lies within any closed stretch of INTERVAL_S; of (time, amount) in order."""
    return max(
        (
            sum(amount for at_s, amount in granted[first:] if at_s - began_s <= INTERVAL_S)
            for first, (began_s, _) in enumerate(granted)
        ),
        default=0.0,
    )


@given(BURSTS)
def test_no_interval_takes_more_than_its_bounds(
    bursts: list[tuple[PeerId, float, int, float]],
) -> None:
    allowance, now_s = GradientAllowance(), 0.0
    granted: list[tuple[float, float]] = []
    of_sender: dict[PeerId, list[tuple[float, float]]] = {}
    for sender, share, count, wait_s in bursts:
        now_s += wait_s
        parts = [allowance.take(sender, share, now_s=now_s) for _ in range(count)]
        assert all(0 <= part <= share for part in parts)
        assert all(later <= earlier for earlier, later in pairwise(parts))
        granted.append((now_s, sum(parts)))
        of_sender.setdefault(sender, []).append((now_s, sum(parts) / share))
    assert greatest_sum(granted) <= ALL_MAX + ROUNDING
    for own in of_sender.values():
        assert greatest_sum(own) <= SENDER_MAX + ROUNDING


def test_a_learner_at_its_own_pace_is_never_cut() -> None:
    """Four gradients a second, the most that `node.neuron.loop` sends to one peer, for a minute."""
    allowance = GradientAllowance()
    parts = [allowance.take(PEERS[0], 1.0, now_s=index / 4) for index in range(240)]
    assert parts == [1.0] * 240


def test_sending_more_does_not_make_up_for_a_small_share() -> None:
    allowance = GradientAllowance()
    total = sum(allowance.take(PEERS[0], 0.01, now_s=0.0) for _ in range(10_000))
    assert total == pytest.approx(0.01 * SENDER_MAX / 2)


def test_one_that_takes_all_leaves_as_much_to_another_and_regains_it() -> None:
    allowance = GradientAllowance()
    for now_s in (0.0, INTERVAL_S):
        greedy = sum(allowance.take(PEERS[0], 1.0, now_s=now_s) for _ in range(500))
        other = sum(allowance.take(PEERS[1], 1.0, now_s=now_s) for _ in range(500))
        assert greedy == pytest.approx(SENDER_MAX / 2)
        assert other == pytest.approx(SENDER_MAX / 2)
        assert allowance.take(PEERS[2], 1.0, now_s=now_s) == pytest.approx(0, abs=ROUNDING)


def test_nobody_is_forgotten_before_it_has_drained_and_memory_is_bounded() -> None:
    allowance = GradientAllowance()
    used = sum(allowance.take(PEERS[0], 0.1, now_s=0.0) for _ in range(500))
    assert used == pytest.approx(0.1 * SENDER_MAX / 2)
    for index in range(2 * SENDERS_MAX):
        allowance.take(peer(100 + index), 1e-6, now_s=0.0)
    assert len(allowance) == SENDERS_MAX
    assert allowance.take(PEERS[0], 0.1, now_s=0.0) == pytest.approx(0, abs=ROUNDING)
    assert allowance.take(PEERS[1], 0.1, now_s=0.0) == 0.0, "a newcomer, and no place"
    assert allowance.take(PEERS[1], 0.1, now_s=INTERVAL_S) == 0.1
    assert len(allowance) == 1
