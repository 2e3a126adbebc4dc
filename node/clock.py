"""Time for the node: one port, so that everything above it runs under a virtual clock.

Block times are Unix milliseconds (consensus compares them with `now_ms`); deadlines and pacing use
the monotonic trio clock, which a test may replace by `trio.testing.MockClock`. The two are tied
together once at the start: between two readings the wall time advances exactly as the monotonic
one, so a step of the system clock (NTP, a suspended laptop, a person) never moves a running node's
time backwards. `skew_ms` says how far the system clock has walked away since; `doctor` shows it.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

import trio

SKEW_WARN_MS: Final = 1_000
"""Half of the 2 s by which a block's time may lie ahead: warn before blocks are refused."""


class Clock(Protocol):
    """What the node asks of time."""

    def now_ms(self) -> int:
        """Unix time in milliseconds; never decreases."""
        ...


class SystemClock:
    """The wall clock at construction, advanced by trio's monotonic clock from then on.

    Use inside a trio run only. Under `MockClock` it is fully virtual apart from its origin;
    `origin_ms` fixes that too.
    """

    __slots__ = ("_origin_ms", "_origin_s")

    def __init__(self, *, origin_ms: int | None = None) -> None:
        self._origin_ms = _wall_ms() if origin_ms is None else origin_ms
        self._origin_s = trio.current_time()

    def now_ms(self) -> int:
        """Unix time in milliseconds; never decreases."""
        return self._origin_ms + int((trio.current_time() - self._origin_s) * 1000)

    def skew_ms(self) -> int:
        """How far the system's wall clock has moved against this one since the start."""
        return _wall_ms() - self.now_ms()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
