"""Two sessions back to back under arbitrary use: what is sent arrives, in order, once, and ends.

The wire between them delivers in any portions; readers lag as they like. Between honest sides
nothing is ever a violation, and when both have closed everything nothing is left.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2p.yamux import Bounds, Budget, Session, Side, StreamOpened, StreamState
from tests.p2p.yamux.strategies import SCALE, budget_holds, drain

BOUNDS = Bounds(window_bytes_max=1024 * 1024, session_bytes_max=8 * 1024 * 1024)
LIVE_STREAMS_MAX = 6


class BackToBack(RuleBasedStateMachine):
    """`ends[0]` dialled `ends[1]`; streams are known by id on both."""

    def __init__(self) -> None:
        super().__init__()
        self.budgets = (Budget(), Budget())
        self.ends = tuple(
            Session(is_initiator=side == 0, bounds=BOUNDS, budget=self.budgets[side])
            for side in (0, 1)
        )
        self.wires = [bytearray(), bytearray()]  # towards side 0, towards side 1
        self.streams: tuple[dict[int, StreamState], dict[int, StreamState]] = ({}, {})
        self.sent: dict[tuple[int, int], bytearray] = {}  # by sender and stream
        self.read: dict[tuple[int, int], bytearray] = {}  # by reader and stream
        self.reset: set[int] = set()
        self.now = 0.0
        self.rng = random.Random(0)

    def choose(self, side: int, pick: int) -> StreamState | None:
        streams = [s for s in self.streams[side].values() if s.stream_id not in self.reset]
        return streams[pick % len(streams)] if streams else None

    def flush(self, side: int) -> None:
        self.wires[1 - side] += drain(self.ends[side])

    @rule(side=st.integers(0, 1))
    def open(self, side: int) -> None:
        if len(self.ends[side].streams) < LIVE_STREAMS_MAX:
            stream = self.ends[side].open(self.now)
            self.streams[side][stream.stream_id] = stream

    @rule(side=st.integers(0, 1), pick=st.integers(0, 9), size=st.integers(0, 300_000))
    def send(self, side: int, pick: int, size: int) -> None:
        stream = self.choose(side, pick)
        if stream is None or stream.send_side is not Side.OPEN:
            return
        payload = self.rng.randbytes(min(size, stream.send_window))
        self.flush(side)
        self.wires[1 - side] += self.ends[side].data_header(stream, len(payload)) + payload
        self.sent.setdefault((side, stream.stream_id), bytearray()).extend(payload)

    @rule(side=st.integers(0, 1), pick=st.integers(0, 9))
    def finish(self, side: int, pick: int) -> None:
        stream = self.choose(side, pick)
        if stream is not None:
            self.ends[side].finish(stream)
            self.flush(side)

    @rule(side=st.integers(0, 1), pick=st.integers(0, 9))
    def reset_one(self, side: int, pick: int) -> None:
        stream = self.choose(side, pick)
        if stream is not None:
            self.ends[side].reset(stream)
            self.reset.add(stream.stream_id)
            self.flush(side)

    @rule(side=st.integers(0, 1), count=st.integers(1, 400_000))
    def deliver(self, side: int, count: int) -> None:
        data = bytes(self.wires[side][:count])
        del self.wires[side][:count]
        self.now += 0.001
        for event in self.ends[side].receive(data, self.now):
            if isinstance(event, StreamOpened):
                self.streams[side][event.stream.stream_id] = event.stream
        self.flush(side)

    @rule(side=st.integers(0, 1), pick=st.integers(0, 9), limit=st.integers(1, 200_000))
    def take(self, side: int, pick: int, limit: int) -> None:
        stream = self.choose(side, pick)
        if stream is not None and stream.pieces:
            data = stream.take(limit, self.now)
            assert 0 < len(data) <= limit
            self.read.setdefault((side, stream.stream_id), bytearray()).extend(data)
            self.flush(side)

    @rule()
    def deliver_everything(self) -> None:
        while any(self.wires):
            for side in (0, 1):
                self.deliver(side, 1_000_000)

    @invariant()
    def what_is_read_was_sent(self) -> None:
        for (side, stream_id), data in self.read.items():
            assert self.sent[1 - side, stream_id].startswith(data)

    @invariant()
    def sums_hold(self) -> None:
        for session, budget in zip(self.ends, self.budgets, strict=True):
            assert session.unread_bytes == budget.unread_bytes
            assert all(s.unread_bytes <= s.window_bytes for s in session.streams.values())

    def teardown(self) -> None:
        for _ in range(2):  # what arrives first opens streams that are then to be finished too
            self.deliver_everything()
            for side in (0, 1):
                for stream in list(self.streams[side].values()):
                    self.ends[side].finish(stream)
                self.flush(side)
        self.deliver_everything()
        for side in (0, 1):
            for stream_id, stream in self.streams[side].items():
                if stream_id in self.reset:
                    self.ends[side].discard(stream)
                    continue
                assert stream.receive_side is Side.FINISHED
                read = self.read.setdefault((side, stream_id), bytearray())
                while stream.pieces:
                    read += stream.take(None, self.now)
                assert read == self.sent.get((1 - side, stream_id), bytearray())
            assert self.ends[side].streams == {}
            assert self.ends[side].unread_bytes == 0
            assert budget_holds(self.ends[side], self.budgets[side])


@pytest.mark.timeout(3600)
class TestStateful(BackToBack.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(
        max_examples=25 * SCALE, stateful_step_count=40, deadline=None, print_blob=True
    )
