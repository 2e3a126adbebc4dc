"""The lookup: it converges to the true closest, it ends, and poison costs little."""

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale_dht import measure_dht
from p2p.identity import PeerId
from p2p.kademlia import Contact, Key, Lookup, RoutingTable
from p2p.kademlia.lookup import (
    DISTRUST_FAILURES,
    PARALLEL,
    PATIENCE_S,
    REQUESTS_MAX,
    SUBNET_ANSWERS_MAX,
)
from p2p.kademlia.table import nearest
from tests.p2p.kademlia.strategies import SCALE, contact, peer, public

LOCAL = peer(10_000)
TARGET = contact(20_000).key


def lookup_from(seeds: list[Contact], width: int = 20) -> Lookup:
    """A lookup of TARGET."""
    return Lookup(target=TARGET, local=LOCAL, seeds=seeds, width=width)


class Peers:
    """A network whose peers answer from tables that know everybody, as far as buckets allow."""

    def __init__(self, count: int, *, width: int, rng: random.Random) -> None:
        self.width = width
        self.contacts = [contact(number) for number in range(count)]
        self.tables: dict[PeerId, RoutingTable] = {}
        for owner in self.contacts:
            table = RoutingTable(owner.peer_id, bucket_size=width)
            for other in rng.sample(self.contacts, count):
                table.answered(other, 0.0)
            self.tables[owner.peer_id] = table

    def answer(self, asked: Contact, target: Key) -> list[Contact]:
        return self.tables[asked.peer_id].closest(target, self.width)


@settings(max_examples=20 * SCALE, deadline=None)
@given(count=st.integers(1, 120), seed=st.integers(0, 2**32), target=st.integers(0, 10**6))
def test_a_lookup_finds_the_true_closest_whatever_the_order_of_answers(
    count: int, seed: int, target: int
) -> None:
    rng = random.Random(seed)
    network = Peers(count, width=6, rng=rng)
    key = contact(target + 10**6).key
    seeds = rng.sample(network.contacts, min(3, count))
    lookup = Lookup(target=key, local=LOCAL, seeds=seeds, width=6)
    waiting: list[Contact] = []
    while not lookup.done:
        waiting += lookup.poll(0.0)
        asked = waiting.pop(rng.randrange(len(waiting)))
        lookup.answered(asked.peer_id, network.answer(asked, key))
    assert lookup.closest() == nearest(network.contacts, key, 6)


@settings(max_examples=50 * SCALE, deadline=None)
@given(data=st.data())
def test_fuzz_any_answers_keep_the_bounds_and_end(data: st.DataObject) -> None:
    seeds = [contact(number) for number in data.draw(st.lists(st.integers(0, 30), max_size=5))]
    lookup = lookup_from(seeds, width=4)
    asked: list[PeerId] = []
    waiting: dict[PeerId, float] = {}
    now_s = 0.0
    for _ in range(2 * REQUESTS_MAX):
        for polled in lookup.poll(now_s):
            assert polled.peer_id != LOCAL
            assert polled.peer_id not in asked
            asked.append(polled.peer_id)
            waiting[polled.peer_id] = now_s
        patient = [p for p, since_s in waiting.items() if now_s < since_s + PATIENCE_S]
        assert len(patient) <= PARALLEL
        if lookup.done:
            break
        step = data.draw(st.sampled_from(["answer", "fail", "wait", "nonsense"]))
        if step == "wait" or not waiting:
            now_s += data.draw(st.floats(0, 2))
            continue
        if step == "nonsense":  # from peers that were not asked, or not any more
            stranger = data.draw(
                st.sampled_from([peer(999), *(p for p in asked if p not in waiting)])
            )
            lookup.answered(stranger, [contact(60)])
            lookup.failed(stranger)
            continue
        peer_id = data.draw(st.sampled_from(sorted(waiting)))
        del waiting[peer_id]
        if step == "fail":
            lookup.failed(peer_id)
        else:
            named = data.draw(st.lists(st.integers(0, 200), max_size=8))
            lookup.answered(peer_id, [*map(contact, named), Contact(peer_id=LOCAL)])
    assert lookup.requests == len(asked) <= REQUESTS_MAX
    closest = lookup.closest()
    assert len(closest) <= 4
    assert closest == nearest(closest, TARGET, 4)


def drive(lookup: Lookup, answers: dict[PeerId, list[Contact]]) -> list[PeerId]:
    """Answer every request from `answers`; peers that are not there are dead. Who was asked."""
    asked: list[PeerId] = []
    while not lookup.done:
        for polled in lookup.poll(0.0):
            asked.append(polled.peer_id)
            if polled.peer_id in answers:
                lookup.answered(polled.peer_id, answers[polled.peer_id])
            else:
                lookup.failed(polled.peer_id)
    return asked


def nearest_invented(count: int) -> list[Contact]:
    """Invented peers nearer to the target than any honest one of these tests."""
    return nearest((contact(number) for number in range(30_000, 34_000)), TARGET, count)


def test_invented_peers_cost_their_source_its_credit() -> None:
    honest = [contact(number) for number in range(60)]
    answers = {c.peer_id: nearest(honest, TARGET, 20) for c in honest}
    liars = nearest(honest, TARGET, 3)
    invented = nearest_invented(60)
    for number, liar in enumerate(liars):
        answers[liar.peer_id] = invented[number::3]
    lookup = lookup_from(honest[:6])
    asked = drive(lookup, answers)
    assert lookup.closest() == nearest(honest, TARGET, 20)
    wasted = [p for p in asked if p not in answers]
    assert len(wasted) >= DISTRUST_FAILURES, "the liars were heard"
    assert len(wasted) <= len(liars) * (DISTRUST_FAILURES + PARALLEL)


def test_a_poisoner_cannot_end_a_lookup_by_naming_only_itself_and_the_dead() -> None:
    honest = [contact(number) for number in range(30)]
    answers = {c.peer_id: nearest(honest, TARGET, 20) for c in honest}
    poisoner = nearest_invented(1)[0]
    answers[poisoner.peer_id] = [poisoner, *nearest_invented(20)[1:]]
    answers[honest[0].peer_id] = [poisoner, *honest[:19]]
    lookup = lookup_from(honest[:1])
    drive(lookup, answers)
    assert set(nearest(honest, TARGET, 19)) <= set(lookup.closest())


def test_peers_that_invent_ever_nearer_peers_that_answer_are_cut_off() -> None:
    ladder = sorted(
        (public(number) for number in range(4000)), key=lambda c: c.key ^ TARGET, reverse=True
    )
    answers = {low.peer_id: [high] for low, high in itertools.pairwise(ladder)}
    lookup = lookup_from(ladder[:1])
    assert len(drive(lookup, answers)) == REQUESTS_MAX


def test_peers_of_one_subnet_are_heard_a_few_times_only() -> None:
    ladder = sorted(
        (contact(number, "8.8.8.8") for number in range(400)),
        key=lambda c: c.key ^ TARGET,
        reverse=True,
    )
    answers = {low.peer_id: [high] for low, high in itertools.pairwise(ladder)}
    assert len(drive(lookup_from(ladder[:1]), answers)) == SUBNET_ANSWERS_MAX


def test_a_silent_peer_holds_its_place_for_a_second_only() -> None:
    lookup = lookup_from([contact(number) for number in range(6)])
    first = lookup.poll(0.0)
    assert len(first) == PARALLEL
    assert lookup.poll(PATIENCE_S / 2) == []
    assert lookup.wake_s == PATIENCE_S
    second = lookup.poll(PATIENCE_S)
    assert len(second) == PARALLEL
    assert lookup.unanswered() == sorted((c.peer_id for c in first), key=lookup.unanswered().index)
    lookup.answered(first[0].peer_id)  # late, but welcome
    assert first[0] in lookup.closest()


def test_with_hardly_an_answer_the_late_are_waited_for() -> None:
    lookup = lookup_from([contact(1)])
    lookup.poll(0.0)
    lookup.poll(2 * PATIENCE_S)
    assert not lookup.done
    lookup.answered(peer(1))
    assert lookup.done
    assert lookup.closest() == [contact(1)]


def test_nobody_known_is_an_end() -> None:
    lookup = lookup_from([])
    assert lookup.poll(0.0) == []
    assert lookup.done


def test_stopping_asks_nobody_more() -> None:
    lookup = lookup_from([contact(number) for number in range(9)])
    lookup.poll(0.0)
    lookup.stop()
    assert lookup.done
    assert lookup.poll(9.0) == []


def test_a_network_of_which_a_fifth_has_died_is_searched_well() -> None:
    figures = measure_dht(nodes=200, seed=3, lookups=100)
    assert figures.dht_success >= 0.99
    assert figures.dht_rpcs_mean <= 2 * 7.64  # 2 log2 200
    assert figures.full_recall >= 0.97
