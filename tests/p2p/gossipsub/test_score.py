"""The score function (gossipsub v1.1), term by term."""

from __future__ import annotations

import pytest

from p2p.gossipsub.score import RETAINED_MAX, PeerScoring, Scoreboard, TopicScoring
from tests.p2p.gossipsub.strategies import peer

ALICE, BOB = peer(1), peer(2)
PUBLIC = "/ip4/8.8.8.8/tcp/4001"


def scoreboard(scoring: PeerScoring | None = None, **topic: float) -> Scoreboard:
    scores = Scoreboard(scoring or PeerScoring())
    scores.add_topic("t", TopicScoring(**topic))
    scores.add_peer(ALICE, "")
    return scores


def test_a_stranger_is_at_zero() -> None:
    assert scoreboard().score(BOB) == 0
    assert scoreboard().score(ALICE) == 0


def test_time_in_the_mesh_is_worth_a_little() -> None:
    scores = scoreboard(mesh_time_weight=0.5, mesh_time_cap=4)
    scores.graft(ALICE, "t", now=10)
    scores.decay(now=13)
    assert scores.score(ALICE) == pytest.approx(1.5)
    scores.decay(now=100)
    assert scores.score(ALICE) == pytest.approx(2)
    scores.prune(ALICE, "t")
    assert scores.score(ALICE) == 0


def test_first_deliveries_count_are_capped_and_decay() -> None:
    scores = scoreboard(
        first_deliveries_weight=1, first_deliveries_cap=5, first_deliveries_decay=0.5
    )
    for _ in range(9):
        scores.first_delivery(ALICE, "t")
    scores.decay(now=1)
    assert scores.score(ALICE) == pytest.approx(2.5)
    for _ in range(10):
        scores.decay(now=1)
    assert scores.score(ALICE) == 0


def test_mesh_deficit_is_squared_after_activation_and_sticks() -> None:
    scores = scoreboard(
        mesh_time_weight=0,
        first_deliveries_weight=0,
        mesh_deliveries_weight=-1,
        mesh_deliveries_threshold=4,
        mesh_deliveries_activation_s=10,
        mesh_deliveries_decay=1,
        mesh_failure_weight=-1,
        mesh_failure_decay=0.5,
    )
    scores.graft(ALICE, "t", now=0)
    scores.decay(now=9)
    assert scores.score(ALICE) == 0
    scores.first_delivery(ALICE, "t")
    scores.near_first_delivery(ALICE, "t")
    scores.decay(now=11)
    assert scores.score(ALICE) == -4
    scores.prune(ALICE, "t")
    assert scores.score(ALICE) == -4
    scores.decay(now=12)
    assert scores.score(ALICE) == -2


def test_invalid_messages_are_squared() -> None:
    scores = scoreboard()
    seen = []
    for _ in range(3):
        scores.invalid_message(ALICE, "t")
        seen.append(scores.score(ALICE))
    assert seen == [-10, -40, -90]
    assert scores.is_graylisted(ALICE)
    for second in range(60):
        scores.decay(now=second)
    assert not scores.is_graylisted(ALICE)


def test_misbehaviour_is_tolerated_then_squared() -> None:
    scores = scoreboard()
    scores.misbehaviour(ALICE, 2)
    assert scores.score(ALICE) == 0
    scores.misbehaviour(ALICE, 3)
    assert scores.score(ALICE) == -45
    scores.misbehaviour(BOB)  # unknown: no-op
    assert scores.score(BOB) == 0


def test_topics_are_capped_together_and_penalties_are_not() -> None:
    scores = scoreboard(PeerScoring(topic_cap=5), first_deliveries_weight=10)
    scores.first_delivery(ALICE, "t")
    scores.decay(now=1)
    assert scores.score(ALICE) == 5
    scores.set_application_score(ALICE, 7)
    assert scores.score(ALICE) == 12


@pytest.mark.parametrize(
    ("addresses", "surplus"),
    [
        ([PUBLIC] * 10, 2),
        (["/ip4/8.8.8.8/tcp/1", "/ip4/8.8.4.4/tcp/1"] * 6, 0),
        (["/ip4/127.0.0.1/tcp/1"] * 20, 0),
        (["/ip4/10.0.0.1/tcp/1"] * 20, 0),
        (["/ip6/::ffff:8.8.8.8/tcp/1", PUBLIC] * 5, 2),
        ([f"/ip6/2606:4700::{i:x}/tcp/1" for i in range(10)], 2),
        (["/dns4/example.org/tcp/1"] * 20, 0),
        (["/ip4/nonsense/tcp/1"] * 20, 0),
        ([""] * 20, 0),
    ],
)
def test_colocation(addresses: list[str], surplus: int) -> None:
    scores = Scoreboard(PeerScoring())
    for index, address in enumerate(addresses):
        scores.add_peer(peer(index), address)
    assert scores.score(peer(0)) == -5 * surplus**2
    scores.remove_peer(peer(len(addresses) - 1), now=0)
    assert scores.score(peer(0)) == -5 * max(0, surplus - 1) ** 2


def test_private_addresses_count_by_option() -> None:
    scores = Scoreboard(PeerScoring(colocation_of_private=True))
    for index in range(10):
        scores.add_peer(peer(index), "/ip4/127.0.0.1/tcp/1")
    assert scores.score(peer(0)) == -20


def test_a_bad_score_outlives_its_connection_and_a_good_one_does_not() -> None:
    scores = scoreboard()
    scores.add_peer(BOB, "")
    scores.invalid_message(ALICE, "t")
    scores.set_application_score(BOB, 10)
    for one in (ALICE, BOB, ALICE):  # leaving twice is leaving once
        scores.remove_peer(one, now=0)
    scores.decay(now=1)
    scores.add_peer(ALICE, "")
    scores.add_peer(BOB, "")
    assert scores.score(ALICE) < -9
    assert scores.score(BOB) == 0
    scores.remove_peer(ALICE, now=2)
    scores.decay(now=603)
    scores.add_peer(ALICE, "")
    assert scores.score(ALICE) == 0


def test_retained_scores_are_bounded() -> None:
    scores = scoreboard()
    for number in range(10, 12 + RETAINED_MAX):
        scores.add_peer(peer(number), "")
        scores.invalid_message(peer(number), "t")
        scores.remove_peer(peer(number), now=0)
    assert scores.score(peer(10)) == scores.score(peer(11)) == 0
    assert scores.score(peer(12)) == -10


def test_leaving_a_topic_forgets_what_happened_in_it() -> None:
    scores = scoreboard()
    scores.invalid_message(ALICE, "t")
    scores.invalid_message(ALICE, "unknown")
    scores.remove_topic("t")
    assert scores.score(ALICE) == 0


def test_absurd_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="penalty"):
        TopicScoring(invalid_weight=1)
    with pytest.raises(ValueError, match="cap"):
        TopicScoring(mesh_deliveries_cap=0)
    with pytest.raises(ValueError, match="graylist"):
        PeerScoring(graylist_threshold=-1)
    with pytest.raises(ValueError, match="opportunistic"):
        PeerScoring(opportunistic_threshold=-1)
