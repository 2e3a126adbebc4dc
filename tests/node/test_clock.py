"""Node time: follows a forward step of the wall clock, never a backward one."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from node import clock
from node.clock import STEP_MS, SystemClock


async def test_virtual_time(autojump_clock: trio.testing.MockClock) -> None:
    ours = SystemClock(origin_ms=1_000)
    assert ours.now_ms() == 1_000
    await trio.sleep(2.5)
    assert ours.now_ms() == 3_500


async def test_steps_of_the_wall_clock(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall_ms = 10_000
    monkeypatch.setattr(clock, "_wall_ms", lambda: wall_ms)
    ours = SystemClock()
    await trio.sleep(1)
    wall_ms = 2_000  # somebody sets the clock back
    assert ours.now_ms() == 11_000
    assert ours.skew_ms() == -9_000
    wall_ms = 11_000 + STEP_MS  # drift, not a step
    assert ours.now_ms() == 11_000
    wall_ms = 3_600_000  # a laptop wakes up
    assert ours.now_ms() == 3_600_000
    await trio.sleep(1)
    wall_ms = 0
    assert ours.now_ms() == 3_601_000
