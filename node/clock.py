"""Time for the node: one port, so that everything above it runs under a virtual clock.

Block times are Unix milliseconds (consensus compares them with `now_ms`); deadlines and pacing use
trio's monotonic clock, which a test may replace by `trio.testing.MockClock`. Node time is the wall
time of the start advanced by the monotonic clock, so a backward step of the system clock (NTP, a
person) never moves a running node back. A forward step is followed: after a suspended laptop wakes
the monotonic clock has stood still, and a node living in the past would refuse everybody's blocks.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

import trio

STEP_MS: Final = 1_000
"""Wall time further ahead than this is a step, not drift: half of the 2 s that a block may lead."""


class Clock(Protocol):
    """What the node asks of time."""

    def now_ms(self) -> int:
        """Unix time in milliseconds; never decreases."""
        ...


class SystemClock:
    """The wall clock made monotonic; construct and use it inside a trio run.

    With `origin_ms` the clock starts there and is fully virtual under `MockClock`: the system's
    wall clock is not read again.
    """

    __slots__ = ("_follows_wall", "_origin_ms", "_origin_s")

    def __init__(self, *, origin_ms: int | None = None) -> None:
        self._follows_wall = origin_ms is None
        self._origin_ms = _wall_ms() if origin_ms is None else origin_ms
        self._origin_s = trio.current_time()

    def now_ms(self) -> int:
        """Unix time in milliseconds; never decreases."""
        now_ms = self._running_ms()
        if self._follows_wall and (ahead_ms := _wall_ms() - now_ms) > STEP_MS:
            self._origin_ms += ahead_ms
            now_ms += ahead_ms
        return now_ms

    def skew_ms(self) -> int:
        """The system's wall clock minus node time: below zero after it was set back."""
        return _wall_ms() - self._running_ms()

    def _running_ms(self) -> int:
        return self._origin_ms + int((trio.current_time() - self._origin_s) * 1000)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
