"""The wire of a network in one process: what is sent arrives later, in order, or not for now.

The rule: between two peers each direction is a *lane* with its own seeded chance; what one lane
carries arrives in the order in which it was sent, as over TCP, while lanes overtake each other. A
lost segment is one that arrives late, by as many retransmission timeouts as it was lost. A cut
lane holds what it carries until it is healed.

Time is trio's clock: under `trio.testing.MockClock` hours pass in milliseconds.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from p2p.identity import PeerId

RETRANSMISSION_TIMEOUT_S = 0.2
"""The least that common TCP stacks wait before they send a lost segment again."""

RETRANSMISSIONS_MAX = 8
"""Bounds the delay of one segment at high loss; TCP gives up after a similar number."""

Delivery = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How well a network carries.

    Raises:
        ValueError: a latency is negative or the lower is above the higher; loss is not in [0, 1).
    """

    latency_min_s: float = 0.0  # one way, drawn evenly for each segment
    latency_max_s: float = 0.0
    loss: float = 0.0  # the chance of a segment to be lost, each time that it is sent

    def __post_init__(self) -> None:
        if not 0 <= self.latency_min_s <= self.latency_max_s or not 0 <= self.loss < 1:
            raise ValueError(f"no network is like this: {self}")


@dataclass(slots=True)
class Lane:
    """One direction between two peers."""

    rng: random.Random
    is_cut: bool = False
    busy_until_s: float = 0.0  # the arrival of the last segment on its way
    on_its_way: int = 0
    held: list[Delivery] = field(default_factory=list)


class Wire:
    """All lanes, and the one queue of what is on its way."""

    def __init__(self, weather: Weather, seed: int) -> None:
        self.weather = weather
        self._seed = seed
        self._lanes: dict[tuple[PeerId, PeerId], Lane] = {}
        self._islands: dict[PeerId, int] = {}
        self._queue: list[tuple[float, int, Lane | None, Delivery]] = []
        self._numbers = itertools.count()
        self._changed = trio.Event()

    def send(self, source: PeerId, target: PeerId, delivery: Delivery) -> None:
        """Call `delivery` when a segment from `source` has arrived at `target`."""
        self._send(self._lane(source, target), delivery)

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Call `action` at a time of trio's clock."""
        self._push(time_s, None, action)

    def is_cut(self, one: PeerId, other: PeerId) -> bool:
        """Whether a partition lies between two peers now."""
        return self._islands.get(one, 0) != self._islands.get(other, 0)

    def partition(self, groups: Iterable[Iterable[PeerId]]) -> None:
        """Cut every lane between peers of different groups; who is in none forms one more group."""
        self._islands = {
            peer_id: number for number, group in enumerate(groups, start=1) for peer_id in group
        }
        for (source, target), lane in self._lanes.items():
            lane.is_cut = self.is_cut(source, target)
            if not lane.is_cut:
                held, lane.held = lane.held, []
                for delivery in held:
                    self._send(lane, delivery)

    async def run(self) -> None:
        """Deliver in time, until cancelled."""
        while True:
            self._changed = trio.Event()
            with trio.move_on_at(self._queue[0][0] if self._queue else float("inf")):
                await self._changed.wait()
            while self._queue and self._queue[0][0] <= trio.current_time():
                _, _, lane, delivery = heapq.heappop(self._queue)
                if lane is not None:
                    lane.on_its_way -= 1
                    if lane.is_cut:
                        lane.held.append(delivery)
                        continue
                delivery()

    def _send(self, lane: Lane, delivery: Delivery) -> None:
        if lane.is_cut:
            lane.held.append(delivery)
            return
        delay_s = self._delay_s(lane.rng)
        if delay_s == 0 and not lane.on_its_way:
            delivery()
            return
        lane.on_its_way += 1
        lane.busy_until_s = max(lane.busy_until_s, trio.current_time() + delay_s)
        self._push(lane.busy_until_s, lane, delivery)

    def _push(self, time_s: float, lane: Lane | None, delivery: Delivery) -> None:
        heapq.heappush(self._queue, (time_s, next(self._numbers), lane, delivery))
        self._changed.set()

    def _delay_s(self, rng: random.Random) -> float:
        weather = self.weather
        if not weather.latency_max_s and not weather.loss:
            return 0.0
        delay_s = rng.uniform(weather.latency_min_s, weather.latency_max_s)
        for _ in range(RETRANSMISSIONS_MAX):
            if rng.random() >= weather.loss:
                break
            delay_s += RETRANSMISSION_TIMEOUT_S + 2 * weather.latency_max_s
        return delay_s

    def _lane(self, source: PeerId, target: PeerId) -> Lane:
        lane = self._lanes.get((source, target))
        if lane is None:
            lane = Lane(random.Random(f"{self._seed}/{source}/{target}"))
            lane.is_cut = self.is_cut(source, target)
            self._lanes[source, target] = lane
        return lane


__all__ = ["Weather", "Wire"]
