"""One hostile peer at a time against a router: it is bounded, scored, and in the end not heard."""

from __future__ import annotations

import random

import pytest

from p2p.gossipsub.codec import Control, Rpc, encode_rpc
from p2p.gossipsub.events import FrameReceived, PeerLeft, SendRefused, StreamViolated
from p2p.gossipsub.parameters import (
    BACKOFFS_PER_TOPIC_MAX,
    IDONTWANT_IDS_MAX,
    IHAVE_IDS_MAX,
    IHAVE_MESSAGES_MAX,
    OWED_IDS_MAX,
    PENDING_BYTES_MAX,
    PENDING_MAX,
    PROMISES_MAX,
)
from p2p.gossipsub.topic import TopicRules
from p2p.network import Verdict
from tests.p2p.gossipsub.harness import TOPIC, Bench, controls, id_of, judged, receivers
from tests.p2p.gossipsub.strategies import SCALE, hostile_frames, peer

MALLORY = peer(666)


def bench_with_mallory(**options: object) -> Bench:
    bench = Bench(**options)  # type: ignore[arg-type]
    bench.join(range(1, 5))
    bench.join([666])
    return bench


def is_deaf_to_mallory(bench: Bench) -> bool:
    data = b"is anybody there %d" % len(bench.told)
    return judged(bench.message(MALLORY, data)) == []


def test_invalid_messages_lead_to_the_graylist_and_back_after_a_while() -> None:
    bench = bench_with_mallory()
    heard = 0
    for number in range(1000):
        data = b"bad %d" % number
        heard += len(judged(bench.message(MALLORY, data)))
        bench.judge(data, Verdict.REJECT)
    assert heard == 3
    assert bench.router.counters["frames_graylisted"] == 997
    assert is_deaf_to_mallory(bench)
    bench.beat(2)
    assert MALLORY not in bench.mesh
    assert MALLORY not in receivers(bench.publish(b"ours"), b"ours")
    bench.do(PeerLeft(MALLORY))
    bench.join([666])
    assert is_deaf_to_mallory(bench)  # coming back does not wash a score
    bench.beat(60)
    assert judged(bench.message(MALLORY, b"good again")) == [b"good again"]


def test_oversize_messages_are_rejected_without_being_judged() -> None:
    bench = bench_with_mallory(rules=TopicRules(payload_bytes_max=100))
    for number in range(3):
        assert bench.message(MALLORY, b"%d" % number + bytes(100)) == []
    assert bench.router.counters["messages_oversize"] == 3
    assert is_deaf_to_mallory(bench)


def test_garbage_and_broken_framing_are_misbehaviour() -> None:
    bench = bench_with_mallory()
    bench.do(FrameReceived(MALLORY, b"\x12\xff"))
    assert bench.router.scores.score(MALLORY) < bench.router.scores.scoring.publish_threshold
    bench.do(StreamViolated(MALLORY))
    assert is_deaf_to_mallory(bench)


def test_ihave_floods_are_capped_and_broken_promises_punished() -> None:
    bench = bench_with_mallory()
    asked = 0
    for batch in range(100):
        ids = tuple(b"%d/%d" % (batch, number) for number in range(1000))
        asked += len(controls(bench.control(MALLORY, ihave=((TOPIC, ids),)), MALLORY).iwant)
    assert asked == IHAVE_IDS_MAX
    assert bench.router.counters["ihave_over_limit"] == 100 - IHAVE_MESSAGES_MAX
    rounds = 0
    while not is_deaf_to_mallory(bench):
        bench.beat()
        for one in range(5):
            bench.control(MALLORY, ihave=((TOPIC, (b"%d lie %d" % (rounds, one),)),))
        rounds += 1
    assert rounds < 6
    assert bench.router.counters["promises_broken"] >= 5


def test_kept_promises_cost_nothing_whoever_sends_the_message() -> None:
    bench = bench_with_mallory()
    for number in range(20):
        data = b"true %d" % number
        bench.control(MALLORY, ihave=((TOPIC, (id_of(data),)),))
        bench.message(peer(1), data)
        bench.judge(data, Verdict.IGNORE)
    bench.beat(5)
    assert bench.router.counters["promises_broken"] == 0
    assert bench.router.scores.score(MALLORY) >= 0


def test_promises_are_bounded() -> None:
    bench = Bench()
    numbers = range(1000, 1000 + PROMISES_MAX // 10 + 10)
    for one in bench.join(numbers):
        for batch in range(IHAVE_MESSAGES_MAX):
            bench.control(one, ihave=((TOPIC, (one.encode()[-20:] + b"%d" % batch,)),))
    assert len(bench.router._gossip._promises) == PROMISES_MAX


def test_graft_floods_are_answered_with_prune_and_then_not_at_all() -> None:
    bench = bench_with_mallory()
    bench.message(MALLORY, b"bad")
    bench.judge(b"bad", Verdict.REJECT)
    bench.beat()  # pruned for its score
    answers = [controls(bench.control(MALLORY, graft=(TOPIC,)), MALLORY).prune for _ in range(1000)]
    assert 0 < sum(map(bool, answers)) < 5
    assert MALLORY not in bench.mesh


def test_iwant_floods_get_each_message_three_times() -> None:
    bench = bench_with_mallory()
    bench.publish(b"one")
    bench.publish(b"two")
    bench.told.clear()
    for _ in range(1000):
        bench.control(MALLORY, iwant=(id_of(b"one"), id_of(b"two"), id_of(b"one"), b"unknown"))
    assert len(receivers(bench.told, b"one")) == len(receivers(bench.told, b"two")) == 3


def test_idontwant_floods_are_bounded_per_heartbeat() -> None:
    bench = bench_with_mallory()
    for batch in range(10):
        bench.control(MALLORY, idontwant=tuple(b"%d/%d" % (batch, n) for n in range(1000)))
    neighbour = bench.router._neighbours.by_peer[MALLORY]
    assert len(neighbour.unwanted) == IDONTWANT_IDS_MAX
    bench.beat(3)
    assert not neighbour.unwanted


def test_subscription_floods_are_bounded() -> None:
    bench = bench_with_mallory()
    for batch in range(20):
        bench.rpc(MALLORY, Rpc(subscriptions=tuple((True, f"{batch}/{n}") for n in range(100))))
    assert len(bench.router._neighbours.by_peer[MALLORY].topics) == 256
    bench.do(PeerLeft(MALLORY))
    assert set(bench.router._neighbours._by_topic) == {TOPIC}


def test_messages_that_are_never_judged_are_bounded() -> None:
    bench = bench_with_mallory()
    for number in range(PENDING_MAX + 100):
        bench.message(MALLORY, b"%d" % number)
    assert len(bench.router._pending) == PENDING_MAX
    assert bench.router.counters["messages_over_limit"] == 100


def test_bytes_that_wait_for_a_judge_are_bounded() -> None:
    bench = bench_with_mallory()
    size = PENDING_BYTES_MAX // 40
    for number in range(50):
        bench.message(MALLORY, b"%02d" % number + bytes(size - 2))
    assert len(bench.router._pending) == 40
    for number in range(50):
        bench.judge(b"%02d" % number + bytes(size - 2), Verdict.IGNORE)
    assert bench.router._pending_bytes == 0


def test_backoffs_and_debts_are_bounded() -> None:
    bench = Bench()
    for number in range(1000, 1100 + BACKOFFS_PER_TOPIC_MAX):
        bench.join([number])
        bench.control(peer(number), prune=((TOPIC, 3600),))
    assert len(bench.router._mesh._backoffs[TOPIC]) == BACKOFFS_PER_TOPIC_MAX
    for number in range(OWED_IDS_MAX + 50):
        bench.do(SendRefused(peer(1000), TOPIC, b"%d" % number))
    assert len(bench.router._neighbours.by_peer[peer(1000)].owed) == OWED_IDS_MAX


def test_strangers_are_not_heard_before_they_have_joined() -> None:
    bench = Bench()
    assert bench.message(MALLORY, b"hello") == []
    assert bench.do(FrameReceived(MALLORY, encode_rpc(Rpc(control=Control(graft=(TOPIC,)))))) == []
    assert not bench.mesh


@pytest.mark.parametrize("seed", range(2))
def test_fuzz_router(seed: int) -> None:
    rng = random.Random(seed)
    bench = bench_with_mallory()
    numbers = iter(range(10_000, 10**9))
    sender = MALLORY
    for frame in hostile_frames(seed, 500 * SCALE):
        bench.do(FrameReceived(sender, frame))
        for effect in bench.told:
            if (data := judged([effect])) and rng.random() < 0.9:
                bench.judge(data[0], rng.choice(list(Verdict)))
        bench.told.clear()
        if bench.router.scores.is_graylisted(sender):
            bench.do(PeerLeft(sender))
            [sender] = bench.join([next(numbers)])
        if rng.random() < 0.01:
            bench.beat()
    honest = bench.message(peer(1), b"still at work")
    assert judged(honest) == [b"still at work"]


def test_a_spammer_does_not_cost_honest_senders_their_score() -> None:
    bench = bench_with_mallory()
    for number in range(100):
        bench.message(MALLORY, b"bad %d" % number)
        bench.judge(b"bad %d" % number, Verdict.REJECT)
        bench.accept(peer(1), b"good %d" % number)
    bench.beat()
    assert bench.router.scores.score(peer(1)) > 0
    assert peer(1) in bench.mesh
