"""The router, rule by rule (gossipsub v1.0, v1.1, v1.2)."""

from __future__ import annotations

import pytest

from p2p.errors import InvariantViolation
from p2p.gossipsub.codec import Rpc
from p2p.gossipsub.events import (
    Judge,
    Judged,
    PeerJoined,
    PeerLeft,
    SendRefused,
    TopicJoined,
    TopicLeft,
)
from p2p.gossipsub.message import SignaturePolicy, WireMessage, sign_message
from p2p.gossipsub.parameters import MESHSUB_1_1, MESHSUB_1_2, MeshParameters
from p2p.gossipsub.topic import TopicRules
from p2p.identity import Identity
from p2p.network import Verdict
from tests.p2p.gossipsub.harness import (
    SELF,
    TOPIC,
    Bench,
    announcements,
    controls,
    delivered,
    id_of,
    judged,
    receivers,
)
from tests.p2p.gossipsub.strategies import peer


def test_peers_are_told_what_we_join_and_leave() -> None:
    bench = Bench(joined=False)
    [alice] = bench.join([1], topic=None)
    assert announcements(bench.told, alice) == []
    effects = bench.do(TopicJoined(TOPIC, TopicRules()))
    assert announcements(effects, alice) == [(True, TOPIC)]
    effects = bench.do(PeerJoined(peer(2), MESHSUB_1_2))
    assert announcements(effects, peer(2)) == [(True, TOPIC)]
    effects = bench.do(TopicLeft(TOPIC))
    assert announcements(effects, alice) == [(False, TOPIC)]
    bench.do(TopicJoined(TOPIC, TopicRules()))
    with pytest.raises(InvariantViolation):
        bench.do(TopicJoined(TOPIC, TopicRules()))


def test_the_mesh_grows_to_d_and_is_pruned_above_d_hi() -> None:
    bench = Bench()
    peers = bench.join(range(1, 31))
    assert len(bench.mesh) == 8
    assert all(controls(bench.told, one).graft == (TOPIC,) for one in bench.mesh)
    for one in peers[:20]:
        bench.control(one, graft=(TOPIC,))
    assert len(bench.mesh) == 12  # D_hi: further grafts of inbound peers are refused
    refused = [one for one in peers[:20] if controls(bench.told, one).prune]
    assert len(refused) == len([one for one in peers[:20] if one not in bench.mesh])
    bench.join(range(40, 45), outbound=True)
    for number in range(40, 45):
        bench.control(peer(number), graft=(TOPIC,))
    assert len(bench.mesh) == 17  # peers that we dialled may come into a full mesh
    before = bench.mesh
    effects = bench.beat()
    assert len(bench.mesh) == 8
    assert sum(one in bench.mesh for one in map(peer, range(40, 45))) >= 2  # D_out
    for one in before - bench.mesh:
        assert controls(effects, one).prune == ((TOPIC, 60),)


def test_a_small_mesh_is_filled_at_the_heartbeat() -> None:
    bench = Bench()
    peers = bench.join(range(1, 21))
    for one in list(bench.mesh)[:4]:
        bench.do(PeerLeft(one))
    assert len(bench.mesh) == 4
    bench.beat()
    assert len(bench.mesh) == 8
    assert bench.mesh <= set(peers)


def test_pruned_peers_are_not_grafted_before_their_backoff_ends() -> None:
    bench = Bench()
    [alice] = bench.join([1])
    assert alice in bench.mesh
    bench.control(alice, prune=((TOPIC, 30),))
    assert alice not in bench.mesh
    bench.beat(30)
    assert alice not in bench.mesh
    bench.beat(3)
    assert alice in bench.mesh


def test_a_graft_in_the_backoff_that_we_set_is_misbehaviour() -> None:
    bench = Bench()
    bench.join(range(1, 20))
    late = peer(19)
    for number in range(1, 13):
        bench.control(peer(number), graft=(TOPIC,))
    assert len(bench.mesh) == 12
    effects = bench.control(late, graft=(TOPIC,))
    assert controls(effects, late).prune == ((TOPIC, 60),)
    assert bench.router.scores.score(late) == 0
    for _ in range(3):
        effects = bench.control(late, graft=(TOPIC,))
        assert controls(effects, late).prune == ((TOPIC, 60),)
    assert bench.router.scores.score(late) <= -80
    assert late not in bench.mesh


def test_a_peer_that_left_the_topic_or_restarted_may_come_back_at_once() -> None:
    bench = Bench()
    [alice, bob] = bench.join([1, 2])
    bench.control(alice, prune=((TOPIC, 10),))
    bench.control(alice, graft=(TOPIC,))
    assert alice in bench.mesh
    bench.control(bob, prune=((TOPIC, 10),))
    bench.do(PeerLeft(bob))
    bench.join([2])
    assert bob in bench.mesh
    assert bench.router.scores.score(alice) == bench.router.scores.score(bob) == 0


def test_grafts_for_unknown_topics_are_not_answered() -> None:
    bench = Bench()
    [alice] = bench.join([1])
    assert bench.control(alice, graft=("other",), prune=(("other", 60),)) == []


def test_leaving_prunes_with_the_short_backoff_and_rejoining_waits() -> None:
    bench = Bench()
    [alice] = bench.join([1])
    effects = bench.do(TopicLeft(TOPIC))
    assert controls(effects, alice).prune == ((TOPIC, 10),)
    bench.do(TopicJoined(TOPIC, TopicRules()))
    assert not bench.mesh
    bench.beat(11)
    assert alice in bench.mesh


def test_peers_below_zero_leave_the_mesh() -> None:
    bench = Bench()
    [alice, bob] = bench.join([1, 2])
    bench.message(alice, b"bad")
    bench.judge(b"bad", Verdict.REJECT)
    effects = bench.beat()
    assert bench.mesh == {bob}
    assert controls(effects, alice).prune == ((TOPIC, 60),)


def test_opportunistic_grafting_replaces_a_poor_mesh() -> None:
    bench = Bench(MeshParameters(opportunistic_heartbeats=5))
    bench.join(range(1, 9))
    good = bench.join(range(20, 24))
    assert not bench.mesh & set(good)
    for number, one in enumerate(good):
        bench.accept(one, b"first %d" % number)
        bench.accept(one, b"second %d" % number)
    bench.beat(5)
    assert len(bench.mesh & set(good)) == 2
    assert bench.router.counters["grafted_opportunistically"] == 2


def test_an_accepted_message_is_delivered_and_forwarded_once() -> None:
    bench = Bench()
    peers = bench.join(range(1, 6))
    effects = bench.message(peers[0], b"news")
    assert judged(effects) == [b"news"]
    assert bench.message(peers[1], b"news") == []  # judged once
    effects = bench.judge(b"news", Verdict.ACCEPT)
    assert delivered(effects) == [b"news"]
    assert set(receivers(effects, b"news")) == set(peers[2:])
    assert bench.message(peers[2], b"news") == []
    assert bench.judge(b"news", Verdict.ACCEPT) == []


def test_an_ignored_message_is_judged_again_and_nobody_is_penalised() -> None:
    bench = Bench()
    [alice, bob] = bench.join([1, 2])
    bench.message(alice, b"early")
    assert bench.judge(b"early", Verdict.IGNORE) == []
    assert bench.router.scores.score(alice) == 0
    assert judged(bench.message(bob, b"early")) == [b"early"]
    assert delivered(bench.judge(b"early", Verdict.ACCEPT)) == [b"early"]


def test_a_rejected_message_costs_everybody_who_sends_it() -> None:
    bench = Bench()
    peers = bench.join([1, 2, 3, 4])
    bench.message(peers[0], b"bad")
    bench.message(peers[1], b"bad")
    assert bench.judge(b"bad", Verdict.REJECT) == []
    bench.message(peers[2], b"bad")
    scores = [bench.router.scores.score(one) for one in peers]
    assert scores == [-10, -10, -10, 0]
    assert bench.router.has_rejected(id_of(b"bad"))


def test_own_messages_flood_to_every_subscriber() -> None:
    bench = Bench()
    peers = bench.join(range(1, 21))
    bench.join([30], topic="other")
    effects = bench.publish(b"mine")
    assert delivered(effects) == [b"mine"]
    assert set(receivers(effects, b"mine")) == set(peers)
    assert bench.publish(b"mine") == []
    assert bench.message(peers[0], b"mine") == []
    assert delivered(bench.told) == [b"mine"]


def test_without_flood_publishing_own_messages_go_to_mesh_or_fanout() -> None:
    bench = Bench(MeshParameters(flood_publish=False))
    bench.join(range(1, 21))
    assert set(receivers(bench.publish(b"mine"), b"mine")) == bench.mesh
    others = bench.join(range(30, 50), topic="other")
    fanout = receivers(bench.publish(b"one", "other"), b"one")
    assert len(fanout) == 8
    assert set(fanout) <= set(others)
    assert receivers(bench.publish(b"two", "other"), b"two") == fanout
    bench.do(PeerLeft(fanout[0]))
    bench.beat()
    renewed = receivers(bench.publish(b"three", "other"), b"three")
    assert len(renewed) == 8
    assert set(fanout[1:]) < set(renewed)
    effects = bench.do(TopicJoined("other", TopicRules()))
    assert set(bench.router.mesh_peers("other")) == set(renewed)
    assert controls(effects, renewed[0]).graft == ("other",)
    bench.publish(b"x", "third")
    bench.beat(61)
    assert not bench.router._mesh._fanout


def test_a_message_that_is_published_while_it_is_judged_is_ours() -> None:
    bench = Bench()
    [alice, bob] = bench.join([1, 2])
    bench.message(alice, b"same")
    assert receivers(bench.publish(b"same"), b"same") == [bob]
    assert bench.judge(b"same", Verdict.REJECT) == []
    assert bench.router.scores.score(alice) == 0


def test_gossip_goes_to_subscribers_outside_the_mesh_for_three_heartbeats() -> None:
    bench = Bench()
    peers = bench.join(range(1, 31))
    inside = next(iter(bench.mesh))
    bench.accept(inside, b"news")
    gossiped = []
    for _ in range(5):
        effects = bench.beat()
        told = [one for one in peers if controls(effects, one).ihave]
        assert not set(told) & bench.mesh
        gossiped.append(len(told))
    assert gossiped == [6, 6, 6, 0, 0]


def test_an_ihave_is_answered_with_an_iwant_and_an_iwant_with_the_message() -> None:
    bench = Bench()
    peers = bench.join(range(1, 12))
    alice = next(one for one in peers if one not in bench.mesh)
    bench.accept(peers[0], b"known")
    ids = (id_of(b"known"), id_of(b"new"))
    effects = bench.control(alice, ihave=((TOPIC, ids), ("other", (b"x",))))
    assert controls(effects, alice).iwant == (id_of(b"new"),)
    for _ in range(3):
        assert receivers(bench.control(alice, iwant=ids), b"known") == [alice]
    assert bench.control(alice, iwant=ids) == []  # retransmissions are limited


def test_a_new_link_begins_with_what_is_recent() -> None:
    bench = Bench()
    bench.publish(b"before")
    [alice] = bench.join([1])
    assert controls(bench.told, alice).ihave == ((TOPIC, (id_of(b"before"),)),)


def test_a_message_that_did_not_fit_is_announced_at_the_heartbeat() -> None:
    bench = Bench()
    [alice] = bench.join([1])
    bench.publish(b"large")
    bench.do(SendRefused(alice, TOPIC, id_of(b"large")))
    assert controls(bench.beat(), alice).ihave == ((TOPIC, (id_of(b"large"),)),)
    assert controls(bench.beat(), alice).ihave == ()


def test_large_messages_are_declined_by_idontwant() -> None:
    bench = Bench()
    peers = bench.join([1, 2])
    [old] = bench.join([3], protocol=MESHSUB_1_1)
    large = b"x" * 5000
    effects = bench.message(peers[0], large)
    assert controls(effects, peers[1]).idontwant == (id_of(large),)
    assert controls(effects, peers[0]).idontwant == controls(effects, old).idontwant == ()
    assert not controls(bench.message(peers[0], b"small"), peers[1]).idontwant


def test_idontwant_is_heeded_for_three_heartbeats() -> None:
    bench = Bench()
    peers = bench.join([1, 2, 3])
    bench.control(peers[1], idontwant=(id_of(b"news"), id_of(b"later")))
    assert receivers(bench.accept(peers[0], b"news"), b"news") == [peers[2]]
    bench.beat(3)
    assert peers[1] in receivers(bench.accept(peers[0], b"later"), b"later")


def test_signed_messages_do_not_return_to_their_author() -> None:
    identity = Identity(bytes(range(32)))
    bench = Bench(rules=TopicRules(signatures=SignaturePolicy.STRICT_SIGN))
    author = identity.peer_id
    [alice, bob] = bench.join([1, 2])
    bench.do(PeerJoined(author, MESHSUB_1_2))
    bench.rpc(author, Rpc(subscriptions=((True, TOPIC),)))
    message = sign_message(TOPIC, b"signed", identity, 1)
    [judge] = bench.rpc(alice, Rpc(messages=(message,)))
    assert isinstance(judge, Judge)
    effects = bench.do(Judged(judge.message.message_id, Verdict.ACCEPT))
    assert receivers(effects, b"signed") == [bob]
    bench.rpc(alice, Rpc(messages=(WireMessage(TOPIC, b"unsigned"),)))
    assert bench.router.scores.score(alice) < -9


def test_a_forged_copy_does_not_keep_the_honest_message_out() -> None:
    bench = Bench()
    [mallory, alice] = bench.join([1, 2])
    bench.rpc(mallory, Rpc(messages=(WireMessage(TOPIC, b"honest", source=b"me"),)))
    assert bench.router.scores.score(mallory) == -10
    assert judged(bench.message(alice, b"honest")) == [b"honest"]


def test_messages_of_other_topics_and_after_leaving_are_dropped() -> None:
    bench = Bench()
    [alice, _] = bench.join([1, 2])
    assert bench.message(alice, b"x", "other") == []
    bench.message(alice, b"late")
    bench.do(TopicLeft(TOPIC))
    effects = bench.judge(b"late", Verdict.ACCEPT)
    assert receivers(effects, b"late") == []


def test_unsubscribing_peers_leave_mesh_and_topic() -> None:
    bench = Bench()
    [alice] = bench.join([1])
    bench.rpc(alice, Rpc(subscriptions=((False, TOPIC), (False, "never"))))
    assert not bench.mesh
    assert bench.router.topic_peers(TOPIC) == ()
    assert SELF not in bench.router.topic_peers(TOPIC)


def test_a_graft_counts_as_a_subscription() -> None:
    bench = Bench()
    [alice] = bench.join([1], topic=None)
    bench.control(alice, graft=(TOPIC,))
    assert bench.mesh == {alice}
    assert receivers(bench.publish(b"x"), b"x") == [alice]


def test_equal_seeds_give_equal_effects() -> None:
    def run() -> list[object]:
        bench = Bench(seed=7)
        peers = bench.join(range(1, 40))
        for number, one in enumerate(peers):
            bench.accept(one, b"%d" % number)
        bench.beat(3)
        return list(bench.told)

    assert run() == run()


def test_absurd_parameters_are_refused() -> None:
    for wrong in (
        {"degree_low": 9},
        {"degree_out": 5},
        {"gossip_windows": 6},
        {"heartbeat_s": 0},
    ):
        with pytest.raises(ValueError, match=r"not hold|positive"):
            MeshParameters(**wrong)
    MeshParameters(degree=0, degree_low=0, degree_high=0, degree_out=0)  # a bootstrapper
