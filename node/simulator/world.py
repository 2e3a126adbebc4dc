"""Virtual time and an unreliable network: one heap of events, one source of chance.

Rule upheld: everything that happens is an entry of one heap, ordered by time and then by order of
entry, and every choice comes from one `Random(seed)`; so one seed is one run, to the last byte.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

EVENTS_MAX: Final = 500_000
"""In one run: five times what seven voters need for two minutes; more is a livelock."""


class Livelock(Exception):
    """A run had more events than any sound run has."""


@dataclass(slots=True)
class Links:
    """How the network treats messages between replicas now. Times in virtual milliseconds."""

    delay_ms: int = 20
    jitter_ms: int = 20
    loss: float = 0.0
    duplication: float = 0.0
    cut: set[tuple[int, int]] = field(default_factory=set)
    """Ordered pairs (from, to) between which nothing passes."""

    def calm(self) -> None:
        """No faults any more; delays stay."""
        self.loss = 0.0
        self.duplication = 0.0
        self.cut.clear()


class World:
    """The clock, the heap and the links of one run."""

    def __init__(self, seed: int, events_max: int = EVENTS_MAX) -> None:
        self._events_max = events_max
        self.random = random.Random(seed)
        self.now_ms = 0
        self.events = 0
        self.links = Links()
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._entered = 0

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do `action` in `delay_ms` from now (at least one millisecond)."""
        self._entered += 1
        at_ms = self.now_ms + max(1, delay_ms)
        heapq.heappush(self._heap, (at_ms, self._entered, action))

    def carry(self, source: int, target: int, deliver: Callable[[], None]) -> None:
        """Carry a message: late, twice, or not at all, as the links are now."""
        links, chance = self.links, self.random
        if (source, target) in links.cut or chance.random() < links.loss:
            return
        copies = 2 if chance.random() < links.duplication else 1
        for _ in range(copies):
            self.after(links.delay_ms + chance.randint(0, links.jitter_ms), deliver)

    def run(self, until_ms: int) -> None:
        """Let everything happen up to `until_ms`. Raises Livelock."""
        while self._heap and self._heap[0][0] <= until_ms:
            self.now_ms, _, action = heapq.heappop(self._heap)
            self.events += 1
            if self.events > self._events_max:
                raise Livelock(f"{self.events} events at {self.now_ms} ms")
            action()
        self.now_ms = until_ms
