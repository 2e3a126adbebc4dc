"""The queue against an exact fluid server, its policies one by one, and attacks on each."""

import math
import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tensorwire import InvariantViolation, LocalProtocolError, QueueRefusal, StakeQueue
from tensorwire.flow import FirstInFirstOut, Floor, Flow, Standing, Ticket
from tensorwire.queue import FLOOR_SHARE_PPM, RETRY_MS_MAX, RETRY_MS_MIN, WEIGHT_UNIT
from tensorwire.virtual_time import STALE_ENTRIES_MAX, VIRTUAL_SCALE, virtual_cost
from tests.tensorwire.fluid import FluidServer
from tests.tensorwire.strategies import SCALE


def queue(**bounds: int) -> StakeQueue[Any]:
    defaults = {"items_max": 100_000, "bytes_max": 1 << 40, "per_sender_max": 100_000}
    return StakeQueue(**(defaults | bounds))


def serve(waiting: StakeQueue[Any], count: int) -> Counter[str]:
    """Cost served per sender over the next `count` services."""
    served: Counter[str] = Counter()
    for _ in range(count):
        ticket = waiting.pop()
        if ticket is None:
            break
        served[str(ticket.sender)] += ticket.cost
    return served


COST_MAX = 50
arrivals = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(1, COST_MAX), st.integers(0, 3)),
    min_size=1,
    max_size=80,
)
weights_drawn = st.lists(
    st.one_of(st.integers(1, 20), st.sampled_from([1, 1 << 40, (1 << 80) - 1])),
    min_size=6,
    max_size=6,
)


@settings(max_examples=150 * SCALE, deadline=None)
@given(arrivals, weights_drawn)
def test_every_sender_lags_the_fluid_by_at_most_one_maximal_request(
    drawn: list[tuple[str, int, int]], weights: list[int]
) -> None:
    by_sender = dict(zip("abcdef", weights, strict=True))
    waiting, fluid, served = queue(), FluidServer(by_sender), Counter[str]()

    def pop() -> bool:
        ticket = waiting.pop()
        if ticket is None:
            return False
        served[str(ticket.sender)] += ticket.cost
        fluid.work(ticket.cost)
        for sender in by_sender:
            lag = fluid.served[sender] - served[sender]
            assert lag <= COST_MAX + 1e-9, f"{sender} is {float(lag)} behind"
        return True

    for sender, cost, services in drawn:
        waiting.push(sender, None, weight=by_sender[sender], cost=cost)
        fluid.arrive(sender, cost)
        for _ in range(services):
            pop()
    while pop():
        pass
    assert served == {sender: served[sender] for sender in served}
    assert len(waiting) == 0


@settings(max_examples=60 * SCALE, deadline=None)
@given(weights_drawn, st.randoms(use_true_random=False))
def test_over_a_backlogged_interval_service_is_within_one_request_of_the_share(
    weights: list[int], rng: random.Random
) -> None:
    waiting, total = queue(), sum(weights)
    for index, weight in enumerate(weights):
        for _ in range(60):
            waiting.push(f"s{index}", None, weight=weight, cost=rng.randint(1, COST_MAX))
    served: Counter[str] = Counter()
    while all(waiting.senders.get(f"s{index}") for index in range(6)):
        ticket = waiting.pop()
        assert ticket is not None
        served[str(ticket.sender)] += ticket.cost
        done = sum(served.values())
        for index, weight in enumerate(weights):
            assert served[f"s{index}"] >= done * weight / total - COST_MAX * 1.0001
            assert served[f"s{index}"] <= done * weight / total + COST_MAX * 1.0001


def test_a_heavy_sender_gets_its_half_at_once_beside_a_hundred_light_ones() -> None:
    waiting = queue()
    for index in range(100):
        waiting.push(f"light{index}", None, weight=1, cost=1)
    for _ in range(100):
        waiting.push("heavy", None, weight=100, cost=1)
    for services in range(2, 100):
        served = serve(queue_copy(waiting), services) if services in (2, 10, 50) else None
        if served is not None:
            assert abs(served["heavy"] - services / 2) <= 1


def queue_copy(waiting: StakeQueue[Any]) -> StakeQueue[Any]:
    """The same backlog again; the queue itself has nothing to copy."""
    again = queue()
    for index in range(100):
        again.push(f"light{index}", None, weight=1, cost=1)
    for _ in range(100):
        again.push("heavy", None, weight=100, cost=1)
    assert len(again) == len(waiting)
    return again


# Order and ties.


def test_one_sender_is_served_in_its_own_order_and_equals_by_arrival() -> None:
    waiting = queue()
    for number in range(5):
        waiting.push("a", number, weight=3, cost=5 - number)
    assert [waiting.pop().request for _ in range(5)] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    for sender in "xyz":
        waiting.push(sender, sender, weight=2, cost=7)
    assert [waiting.pop().request for _ in range(3)] == ["x", "y", "z"]  # type: ignore[union-attr]
    assert waiting.pop() is None


def test_an_unaccepted_ticket_stays_next() -> None:
    waiting = queue()
    waiting.push("a", 1, weight=1, cost=1)
    waiting.push("a", 2, weight=1, cost=1)
    assert waiting.pop(accept=lambda request: request == 2) is None
    ticket = waiting.pop(accept=lambda request: request == 1)
    assert ticket is not None
    assert ticket.request == 1


# Nobody starves; the floor.


def test_the_floor_gets_its_share_whatever_the_weights() -> None:
    waiting = queue()
    for index, weight in enumerate((5, 1 << 60, 1 << 75)):
        for _ in range(2_000):
            waiting.push(f"w{index}", None, weight=weight, cost=10)
    for index in range(50):
        for _ in range(20):
            waiting.push(f"nobody{index}", None, weight=0, cost=10)
    served = serve(waiting, 1_500)
    floor = sum(cost for sender, cost in served.items() if sender.startswith("nobody"))
    assert floor / sum(served.values()) == pytest.approx(FLOOR_SHARE_PPM / 1e6, rel=0.2)
    assert served["w0"] <= 10


def test_the_floor_has_everything_when_nobody_else_is_there() -> None:
    waiting = queue()
    for _ in range(3):
        waiting.push("nobody", None, weight=0, cost=1)
    assert waiting.share_ppm("nobody", 0) == 1_000_000
    assert serve(waiting, 5)["nobody"] == 3


def test_the_floor_goes_round_its_members() -> None:
    waiting = queue()
    for _ in range(10):
        waiting.push("greedy", None, weight=0, cost=1)
    for index in range(3):
        waiting.push(f"m{index}", None, weight=0, cost=1)
    first = [waiting.pop().sender for _ in range(5)]  # type: ignore[union-attr]
    assert first == ["greedy", "m0", "m1", "m2", "greedy"] or set(first[:5]) >= {"m0", "m1", "m2"}


# Attacks: none gains service.


def honest_share(waiting: StakeQueue[Any], services: int) -> float:
    served = serve(waiting, services)
    return served["honest"] / sum(served.values())


def backlog(waiting: StakeQueue[Any], count: int = 400) -> None:
    for _ in range(count):
        waiting.push("honest", None, weight=50, cost=10)
        waiting.push("rival", None, weight=50, cost=10)


def test_fresh_identities_gain_nothing() -> None:
    waiting = queue()
    backlog(waiting)
    for index in range(10_000):
        waiting.push(f"fresh{index}", None, weight=0, cost=10)
    assert honest_share(waiting, 400) >= 0.5 * (1 - FLOOR_SHARE_PPM / 1e6) - 0.02


def test_fresh_identities_do_not_starve_an_old_member_of_the_floor() -> None:
    waiting = queue()
    waiting.push("old", None, weight=0, cost=10)
    services = 0
    for index in range(100):
        waiting.push(f"fresh{index}", None, weight=0, cost=1)
        ticket = waiting.pop()
        assert ticket is not None
        services += 1
        if ticket.sender == "old":
            break
    assert services <= 2


def test_tiny_requests_gain_nothing() -> None:
    waiting = queue()
    for _ in range(200):
        waiting.push("honest", None, weight=1, cost=100)
    for _ in range(20_000):
        waiting.push("tiny", None, weight=1, cost=1)
    served: Counter[str] = Counter()
    while sum(served.values()) < 10_000:
        ticket = waiting.pop()
        assert ticket is not None
        served[str(ticket.sender)] += ticket.cost
    assert abs(served["honest"] - served["tiny"]) <= 200


def test_cancel_and_resend_gains_nothing_and_leaves_nothing_behind() -> None:
    waiting = queue()
    backlog(waiting)
    for _ in range(5_000):
        ticket = waiting.push("attacker", None, weight=50, cost=10)
        assert waiting.cancel(ticket)
        assert not waiting.cancel(ticket)
    for _ in range(100):
        waiting.push("attacker", None, weight=50, cost=10)
    assert serve(waiting, 300)["attacker"] == 0
    heaps = (waiting._eligible, waiting._waiting, waiting._clock._departures)
    assert max(map(len, heaps)) <= 2 * 4 + STALE_ENTRIES_MAX + 1


def test_cancel_in_the_middle_is_charged_and_the_line_goes_on() -> None:
    waiting = queue()
    tickets = [waiting.push("a", n, weight=1, cost=10) for n in range(4)]
    for _ in range(8):
        waiting.push("b", None, weight=1, cost=10)
    waiting.cancel(tickets[1])
    waiting.cancel(tickets[2])
    order = [waiting.pop() for _ in range(10)]
    senders = "".join(str(ticket.sender) for ticket in order if ticket is not None)
    assert senders.count("a") == 2
    assert senders.startswith("abbb"), senders  # its last comes after what the other has for 30


def test_expired_requests_are_dropped_uncharged() -> None:
    waiting = queue()
    for _ in range(6):
        waiting.push("slow", None, weight=1, cost=10, deadline_ms=100)
        waiting.push("other", None, weight=1, cost=10)
    waiting.push("slow", None, weight=1, cost=10)
    first = waiting.pop(50)
    assert first is not None
    served = [waiting.pop(100) for _ in range(7)]
    dropped = waiting.dropped()
    assert {ticket.standing for ticket in dropped} == {Standing.EXPIRED}
    assert len(dropped) == 5
    assert waiting.dropped() == []
    assert "slow" in [ticket.sender for ticket in served[:3] if ticket is not None]


def test_a_caller_may_expire_a_ticket_itself() -> None:
    waiting = queue()
    ticket = waiting.push("a", None, weight=1, cost=1)
    assert waiting.cancel(ticket, expired=True)
    assert ticket.standing is Standing.EXPIRED
    assert waiting.pop() is None


def test_cost_lies_are_corrected_within_four_times() -> None:
    """A liar's requests take 3 times what their headers promise; its share holds by time."""
    waiting, spent = queue(), Counter[str]()
    for _ in range(8):
        waiting.push("liar", None, weight=1, cost=10)
        waiting.push("honest", None, weight=1, cost=10)
    for _ in range(2_000):
        ticket = waiting.pop()
        assert ticket is not None
        measured = 30 if ticket.sender == "liar" else 10
        spent[str(ticket.sender)] += measured
        waiting.correct(ticket, measured)
        waiting.push(ticket.sender, None, weight=1, cost=10)
    assert spent["liar"] / spent["honest"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("measured", "charged"), [(1, 3), (10_000, 48), (24, 24)])
def test_a_correction_is_bounded(measured: int, charged: int) -> None:
    waiting = queue()
    ticket = waiting.push("a", None, weight=1, cost=12)
    waiting.push("b", None, weight=1, cost=12)
    assert waiting.pop() is ticket
    before = waiting._flows["a"].finish
    waiting.correct(ticket, measured)
    moved = waiting._flows["a"].finish - before
    assert -(-moved * WEIGHT_UNIT // VIRTUAL_SCALE) == charged - 12


def serve_at(waiting: StakeQueue[Any], count: int, measured: int) -> Counter[str]:
    """Services per sender over the next `count`, each corrected to `measured`."""
    services: Counter[str] = Counter()
    for _ in range(count):
        ticket = waiting.pop()
        assert ticket is not None
        waiting.correct(ticket, measured)
        services[str(ticket.sender)] += 1
    return services


@pytest.mark.parametrize("measured", [10, 40, 160])
def test_virtual_time_advances_by_the_work_that_was_really_done(measured: int) -> None:
    """dV/dwork = 1 / Σ weight; a promise counts until it is measured, and then no longer."""
    waiting = queue()
    for _ in range(4):
        waiting.push("a", None, weight=1, cost=40)
        waiting.push("b", None, weight=1, cost=40)
    assert serve_at(waiting, 1, measured) == {"a": 1}
    assert waiting.pop() is not None
    assert waiting._clock.now == virtual_cost(measured + 40, 2 * WEIGHT_UNIT)


def test_a_newcomer_does_not_wait_for_work_that_was_promised_and_never_done() -> None:
    """Were V ahead of the work, whoever arrives would start behind all that the others only said:
    here behind 60 services. It lags its third by at most one request of 40, 4 services of 10."""
    waiting = queue()
    for _ in range(60):
        waiting.push("a", None, weight=1, cost=40)
        waiting.push("b", None, weight=1, cost=40)
    serve_at(waiting, 20, 10)
    for _ in range(20):
        waiting.push("new", None, weight=1, cost=40)
    assert serve_at(waiting, 30, 10)["new"] >= 30 // 3 - 4


def test_an_idle_moment_does_not_forgive_what_a_sender_owes() -> None:
    waiting = queue()
    expensive = waiting.push("a", None, weight=1, cost=10)
    for _ in range(10):
        waiting.push("b", None, weight=1, cost=10)
    assert waiting.pop() is expensive
    waiting.correct(expensive, 40)
    for _ in range(10):
        waiting.push("a", None, weight=1, cost=10)
    assert serve(waiting, 4)["b"] == 40


# Full: who gives way.


def test_the_flow_with_the_largest_part_for_its_weight_gives_way() -> None:
    waiting = queue(items_max=32)
    hog = [waiting.push("hog", n, weight=1, cost=1) for n in range(32)]
    mine = [waiting.push("late", n, weight=1, cost=1) for n in range(16)]
    assert [ticket.request for ticket in waiting.dropped()] == list(range(31, 15, -1))
    assert all(ticket.standing is Standing.WAITING for ticket in mine)
    assert hog[31].standing is Standing.DISPLACED
    with pytest.raises(QueueRefusal) as caught:
        waiting.push("late", None, weight=1, cost=1)
    assert caught.value.position == 32
    assert RETRY_MS_MIN <= caught.value.retry_after_ms <= RETRY_MS_MAX
    assert waiting.dropped() == []
    with pytest.raises(QueueRefusal):
        waiting.check("late", weight=1)
    waiting.check("third", weight=1)
    assert len(waiting) == 32


def test_one_within_its_share_is_never_displaced() -> None:
    waiting = queue(items_max=40)
    quiet = [waiting.push("quiet", None, weight=10, cost=1) for _ in range(4)]
    for index in range(400):
        try:
            waiting.push(f"loud{index % 3}", None, weight=10, cost=1)
        except QueueRefusal:
            continue
    assert all(ticket.standing is Standing.WAITING for ticket in quiet)
    waiting.push("quiet", None, weight=10, cost=1)


def test_the_floor_keeps_its_reserved_slots() -> None:
    waiting = queue(items_max=32)
    floor = [waiting.push(f"n{index}", None, weight=0, cost=1) for index in range(2)]
    for _ in range(100):
        try:
            waiting.push("rich", None, weight=1 << 70, cost=1)
        except QueueRefusal:
            break
    assert all(ticket.standing is Standing.WAITING for ticket in floor)
    assert len(waiting) == 32


def test_the_floor_gives_way_beyond_them() -> None:
    waiting = queue(items_max=32)
    for index in range(32):
        waiting.push(f"n{index % 4}", None, weight=0, cost=1)
    with pytest.raises(QueueRefusal):
        waiting.push("n0", None, weight=0, cost=1)
    newcomer = waiting.push("new", None, weight=0, cost=1)
    assert newcomer.standing is Standing.WAITING
    for _ in range(30):
        waiting.push("rich", None, weight=5, cost=1)
    with pytest.raises(QueueRefusal):
        waiting.push("rich", None, weight=5, cost=1)
    assert len(waiting) == 32
    assert sum(held for sender, held in waiting.senders.items() if sender != "rich") == 2


def test_bytes_give_way_too() -> None:
    waiting = queue(bytes_max=1_000)
    big = [waiting.push("big", None, weight=1, cost=1, payload_bytes=300) for _ in range(3)]
    waiting.push("small", None, weight=1, cost=1, payload_bytes=450)
    assert [ticket.standing for ticket in big].count(Standing.DISPLACED) == 2
    assert waiting.bytes <= 1_000
    with pytest.raises(QueueRefusal):
        waiting.push("big", None, weight=1, cost=1, payload_bytes=500)
    with pytest.raises(QueueRefusal):
        waiting.push("third", None, weight=1, cost=1, payload_bytes=1_001)
    with pytest.raises(QueueRefusal):
        waiting.push("small", None, weight=1, cost=1, payload_bytes=300)


def test_nobody_gives_way_for_bytes_that_the_floors_reserve_holds() -> None:
    waiting = queue(items_max=16, bytes_max=1_000)
    waiting.push("nobody", None, weight=0, cost=1, payload_bytes=900)
    with pytest.raises(QueueRefusal):
        waiting.push("rich", None, weight=5, cost=1, payload_bytes=120)
    waiting.push("rich", None, weight=5, cost=1, payload_bytes=80)
    with pytest.raises(QueueRefusal):
        waiting.push("other", None, weight=5, cost=1, payload_bytes=60)
    assert waiting.dropped() == []


def test_a_member_of_the_floor_pays_for_cancelling_with_turns() -> None:
    waiting = queue()
    waiting.push("first", None, weight=0, cost=1)
    tickets = [waiting.push("fickle", number, weight=0, cost=1) for number in range(3)]
    for _ in range(2):
        waiting.push("steady", None, weight=0, cost=1)
    waiting.cancel(tickets[0])
    waiting.cancel(tickets[1], expired=True)
    order = [waiting.pop() for _ in range(4)]
    waiting.push("fickle", 3, weight=0, cost=1)
    assert [ticket.sender for ticket in order if ticket] == [
        "first",
        "steady",
        "fickle",
        "steady",
    ]


def test_expire_and_resend_leaves_nothing_behind() -> None:
    waiting = queue()
    waiting.push("a", None, weight=3, cost=1_000)
    for _ in range(1_000):
        waiting.cancel(waiting.push("a", None, weight=3, cost=5), expired=True)
        waiting.cancel(waiting.push("b", None, weight=3, cost=5), expired=True)
    heaps = (waiting._eligible, waiting._waiting, waiting._clock._departures)
    assert max(map(len, heaps)) <= 2 * 4 + STALE_ENTRIES_MAX + 1
    assert waiting.pop() is not None
    assert waiting.pop() is None


def test_displacement_gains_nothing() -> None:
    """Filling the queue and being displaced leaves the attacker charged for what it lost."""
    waiting = queue(items_max=64)
    for _ in range(64):
        waiting.push("attacker", None, weight=1, cost=10)
    for _ in range(32):
        waiting.push("honest", None, weight=1, cost=10)
    assert len(waiting.dropped()) == 32
    served = serve(waiting, 40)
    assert served["honest"] >= served["attacker"]


def test_what_was_displaced_stays_charged() -> None:
    """The attacker's first has its tags; its next waits for all that its displaced ones cost."""
    waiting = queue(items_max=64)
    for _ in range(64):
        waiting.push("attacker", None, weight=1, cost=10)
    for _ in range(32):
        waiting.push("honest", None, weight=1, cost=10)
    assert serve(waiting, 33) == {"attacker": 10, "honest": 320}


def test_one_sender_has_a_bound_of_its_own() -> None:
    for weight in (0, 5):
        waiting = queue(per_sender_max=3)
        for _ in range(3):
            waiting.push("a", None, weight=weight, cost=1)
        with pytest.raises(QueueRefusal):
            waiting.push("a", None, weight=weight, cost=1)
        waiting.push("b", None, weight=weight, cost=1)


# Weights change.


def test_a_new_weight_moves_what_already_waits() -> None:
    waiting = queue()
    for _ in range(200):
        waiting.push("a", None, weight=1, cost=10)
        waiting.push("b", None, weight=99, cost=10)
    serve(waiting, 50)
    waiting.reweigh("a", 99)
    served = serve(waiting, 100)
    assert abs(served["a"] - served["b"]) <= 30


def test_a_sender_moves_between_the_floor_and_a_flow_of_its_own() -> None:
    waiting = queue()
    for number in range(6):
        waiting.push("a", number, weight=0, cost=10)
        waiting.push("b", number, weight=5, cost=10)
    waiting.reweigh("a", 5)
    order = [waiting.pop() for _ in range(6)]
    assert Counter(ticket.sender for ticket in order if ticket) == {"a": 3, "b": 3}
    assert [ticket.request for ticket in order if ticket and ticket.sender == "a"] == [0, 1, 2]
    waiting.reweigh("a", 0)
    assert [waiting.pop().sender for _ in range(4)].count("b") == 3  # type: ignore[union-attr]
    waiting.push("a", 6, weight=7, cost=10)
    assert [waiting.pop().request for _ in range(3)] == [4, 5, 6]  # type: ignore[union-attr]
    waiting.reweigh("stranger", 9)
    assert waiting.senders == {}


def test_weights_that_flap_leave_nothing_behind() -> None:
    waiting = queue()
    for sender in "ab":
        waiting.push(sender, None, weight=3, cost=10)
    for index in range(3_000):
        waiting.reweigh("a", 3 + index % 2)
        waiting.reweigh("b", 3)
    heaps = (
        waiting._eligible,
        waiting._waiting,
        waiting._clock._departures,
        waiting._occupancy._heap,
    )
    assert max(map(len, heaps)) <= 2 * 4 + STALE_ENTRIES_MAX + 1
    assert {waiting.pop().sender for _ in range(2)} == {"a", "b"}  # type: ignore[union-attr]


def test_what_is_kept_to_find_who_gives_way_is_bounded() -> None:
    """In a queue that is full: weights that flap, and senders that come with one request each."""
    waiting = queue(items_max=8)
    for number in range(8):
        waiting.push("hog", number, weight=1, cost=1)
    entries, flows = [], []
    for index in range(3_000):
        waiting.push(f"guest{index}", None, weight=1 + index % 7, cost=1)
        waiting.reweigh("hog", 1 + index % 2)
        while len(waiting) > 7:
            waiting.pop()
        waiting.push("hog", None, weight=1 + index % 2, cost=1)
        entries.append(len(waiting._occupancy._heap))
        flows.append(len(waiting._flows))
    assert 0 < max(entries) <= 2 * (max(flows) + 1) + STALE_ENTRIES_MAX
    assert max(flows) < 500
    waiting.push("late", None, weight=100, cost=1)
    assert waiting.dropped()[-1].sender == "hog"


def test_who_gives_way_is_found_again_after_the_order_was_dropped() -> None:
    waiting = queue(items_max=32)
    for _ in range(32):
        waiting.push("hog", None, weight=1, cost=1)
    waiting.push("late", None, weight=1, cost=1)
    for index in range(200):  # more entries than the order may have, while the queue is not full
        waiting.pop()
        waiting.pop()
        waiting.push("late", None, weight=1 + index % 2, cost=1)
        waiting.push("hog", None, weight=1, cost=1)
    while len(waiting) < 32:
        waiting.push("hog", None, weight=1, cost=1)
    waiting.dropped()
    waiting.push("third", None, weight=1, cost=1)
    assert [ticket.sender for ticket in waiting.dropped()] == ["hog"]


def test_a_sender_that_was_large_once_gives_way_when_it_is_again() -> None:
    waiting = queue(items_max=32)
    for _ in range(32):
        waiting.push("hog", None, weight=1, cost=1)
    waiting.push("late", None, weight=1, cost=1)
    for index in range(200):
        waiting.reweigh("late", 1 + index % 2)
    serve(waiting, 32)
    for index in range(32):
        waiting.push("ab"[index % 2], None, weight=1, cost=1)
    waiting.push("third", None, weight=1, cost=1)  # the order is built while "hog" has nothing
    serve(waiting, 24)
    for _ in range(24):
        waiting.push("hog", None, weight=1, cost=1)
    waiting.dropped()
    waiting.push("fourth", None, weight=1, cost=1)
    assert [ticket.sender for ticket in waiting.dropped()] == ["hog"]


def test_shares_are_told() -> None:
    waiting = queue()
    waiting.push("a", None, weight=1, cost=1)
    waiting.push("b", None, weight=3, cost=1)
    assert waiting.share_ppm("a", 1) == 250_000
    assert waiting.share_ppm("new", 4) == 500_000
    waiting.push("nobody", None, weight=0, cost=1)
    assert waiting.share_ppm("b", 3) == 735_000
    assert waiting.share_ppm("nobody", 0) == FLOOR_SHARE_PPM


def test_retry_after_grows_with_the_backlog() -> None:
    waiting = queue()
    waiting.cost_per_s = 100
    assert waiting.retry_after_ms("a") == RETRY_MS_MIN
    for _ in range(10):
        waiting.push("a", None, weight=1, cost=100)
    assert waiting.retry_after_ms("a") == 10_000
    for _ in range(1_000):
        waiting.push("a", None, weight=1, cost=100)
    assert waiting.retry_after_ms("a") == RETRY_MS_MAX


# Misuse, memory, speed.


def test_misuse_is_our_fault() -> None:
    for wrong in ({"items_max": 0}, {"bytes_max": 0}, {"floor_share_ppm": 0}):
        with pytest.raises(LocalProtocolError):
            queue(**wrong)
    for push in ({"cost": 0}, {"payload_bytes": -1}, {"weight": -1}):
        with pytest.raises(LocalProtocolError):
            queue().push("a", None, **({"weight": 1, "cost": 1} | push))  # type: ignore[arg-type]
    with pytest.raises(InvariantViolation):
        queue().correct(Ticket("a", None, cost=1, payload_bytes=0, deadline_ms=None), 1)
    with pytest.raises(InvariantViolation):
        Flow(1, FirstInFirstOut()).newest()


def test_idle_flows_are_forgotten() -> None:
    waiting = queue()
    for index in range(10_000):
        waiting.push(f"s{index}", None, weight=1 + index % 7, cost=1 + index % 3)
        waiting.pop()
    assert len(waiting._flows) < 1_000


def test_the_floors_own_heap_is_bounded() -> None:
    floor = Floor()
    for number in range(2_000):
        ticket = Ticket("a", None, cost=1, payload_bytes=0, deadline_ms=None)
        ticket.number = number
        floor.put(ticket)
        floor.discard(ticket, charged=True)
    assert floor.newest() is None
    assert floor.take() is None
    assert len(floor._largest) <= STALE_ENTRIES_MAX + 2


def test_a_push_and_pop_costs_about_the_logarithm_of_the_flows() -> None:
    """Counting comparisons would tie the test to heapq; time within one process is steady enough
    for a factor of four against a factor of 64 in size."""

    def seconds(flows: int) -> float:
        waiting = queue()
        for index in range(flows):
            waiting.push(f"s{index}", None, weight=1 + index % 97, cost=10)
        best = math.inf
        for _ in range(3):
            began = time.process_time()
            for index in range(1_500):
                waiting.push(f"s{index % flows}", None, weight=1 + index % flows % 97, cost=10)
                waiting.pop()
            best = min(best, time.process_time() - began)
        return best

    assert seconds(12_800) <= 4 * seconds(200)


class QueueMachine(RuleBasedStateMachine):
    """Any sequence of operations keeps the counts, the bounds and the order's promises."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.waiting = queue(items_max=24, bytes_max=400, per_sender_max=8)
        self.model: dict[int, Ticket[Any]] = {}
        self.now_ms = 0

    @rule(
        target=tickets,
        sender=st.sampled_from(["a", "b", "c", "n1", "n2", "n3"]),
        weight=st.sampled_from([0, 1, 5, 1 << 70]),
        cost=st.integers(1, 1_000),
        payload_bytes=st.integers(0, 120),
        lasts_ms=st.one_of(st.none(), st.integers(1, 5)),
    )
    def push(
        self, sender: str, weight: int, cost: int, payload_bytes: int, lasts_ms: int | None
    ) -> Ticket[Any] | None:
        deadline_ms = None if lasts_ms is None else self.now_ms + lasts_ms
        try:
            self.waiting.check(sender, weight=weight, payload_bytes=payload_bytes)
            refused = False
        except QueueRefusal:
            refused = True
        try:
            ticket = self.waiting.push(
                sender,
                None,
                weight=weight,
                cost=cost,
                payload_bytes=payload_bytes,
                deadline_ms=deadline_ms,
            )
        except QueueRefusal:
            self.forget_dropped()
            return None
        assert not refused
        self.model[ticket.number] = ticket
        self.forget_dropped()
        return ticket

    @rule()
    def pop(self) -> None:
        ticket = self.waiting.pop(self.now_ms)
        self.forget_dropped()
        if ticket is None:
            assert not self.model
            return
        assert self.model.pop(ticket.number) is ticket
        older = [
            other
            for other in self.model.values()
            if other.sender == ticket.sender and other.number < ticket.number
        ]
        assert not older, "a sender's own order is kept"
        self.waiting.correct(ticket, ticket.cost * (self.now_ms % 7))

    @rule(ticket=consumes(tickets), expired=st.booleans())
    def cancel(self, ticket: Ticket[Any] | None, expired: bool) -> None:
        if ticket is not None:
            cancelled = self.waiting.cancel(ticket, expired=expired)
            assert cancelled == (self.model.pop(ticket.number, None) is not None)

    @rule(sender=st.sampled_from(["a", "b", "n1"]), weight=st.sampled_from([0, 2, 1 << 60]))
    def reweigh(self, sender: str, weight: int) -> None:
        self.waiting.reweigh(sender, weight)

    @rule()
    def pass_time(self) -> None:
        self.now_ms += 2

    def forget_dropped(self) -> None:
        for ticket in self.waiting.dropped():
            assert ticket.standing in (Standing.DISPLACED, Standing.EXPIRED)
            del self.model[ticket.number]

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.waiting) == len(self.model) <= 24
        assert self.waiting.bytes == sum(t.payload_bytes for t in self.model.values()) <= 400
        assert self.waiting.senders == Counter(t.sender for t in self.model.values())
        assert max(self.waiting.senders.values(), default=0) <= 8
        weights = {f.weight for f in self.waiting._flows.values() if f.items}
        assert self.waiting._weight == sum(
            f.weight for f in self.waiting._flows.values() if f.items
        )
        assert all(weight > 0 for weight in weights)
        clock = self.waiting._clock
        assert clock.weight == sum(
            f.fluid.weight
            for f in (*self.waiting._flows.values(), self.waiting._floor)
            if f.fluid.key is not None
        )


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=40 * SCALE, stateful_step_count=60, deadline=None)
