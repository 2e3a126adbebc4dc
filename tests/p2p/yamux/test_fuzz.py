"""Any bytes, cut anywhere: a session keeps the rules or raises `ProtocolViolation`, within bounds.

100,000 inputs at AGORA_TEST_SCALE=100.
"""

from __future__ import annotations

import random

import pytest

from p2p.errors import ProtocolViolation
from p2p.yamux import Budget, Session
from p2p.yamux.session import CONTROL_BYTES_MAX
from tests.p2p.yamux.strategies import (
    FUZZ_INPUTS,
    SMALL,
    budget_holds,
    cut,
    drain,
    new_session,
    random_frame,
)


def stays_within_bounds(session: Session) -> bool:
    return (
        len(session.control) <= CONTROL_BYTES_MAX + 64
        and session.unread_bytes <= SMALL.session_bytes_max
        and session.inbound_streams <= SMALL.inbound_streams_max
        and all(s.unread_bytes <= s.window_bytes for s in session.streams.values())
    )


def test_fuzz_raw_bytes() -> None:
    rng = random.Random("yamux raw")
    for _ in range(FUZZ_INPUTS):
        session = new_session()
        try:
            for piece in cut(rng.randbytes(rng.randrange(200)), rng):
                session.receive(piece, 0.0)
        except ProtocolViolation:
            continue
        assert stays_within_bounds(session)


def test_fuzz_frames() -> None:
    """Frames that look right until they do not, while a reader takes, resets and closes."""
    rng = random.Random("yamux frames")
    accepted = 0
    for _ in range(FUZZ_INPUTS // 4):
        budget = Budget()
        session = new_session(budget=budget)
        try:
            for _ in range(rng.randrange(1, 30)):
                session.receive(random_frame(rng), 0.0)
                accepted += 1
                _act(session, rng)
                assert stays_within_bounds(session)
        except ProtocolViolation:
            pass
        session.close()
        assert (budget.unread_bytes, budget.granted_bytes, budget.streams) == (0, 0, 0)
    assert accepted > FUZZ_INPUTS  # most frames get behind the first check


def _act(session: Session, rng: random.Random) -> None:
    """What handlers may do meanwhile."""
    streams = list(session.streams.values())
    if streams:
        stream = rng.choice(streams)
        match rng.randrange(6):
            case 0 | 1 if stream.pieces:
                stream.take(rng.choice((None, 1, 1000)), 0.0)
            case 2:
                session.finish(stream)
            case 3:
                session.reset(stream)
            case 4:
                session.discard(stream)
    if rng.randrange(4):
        drain(session)


@pytest.mark.parametrize("seed", range(20))
def test_fuzz_cutting_changes_nothing(seed: int) -> None:
    """The same bytes in one piece and in many leave the same state."""
    rng = random.Random(seed)
    data = b"".join(random_frame(rng) for _ in range(40))
    outcomes = []
    for pieces in ([data], cut(data, rng)):
        budget = Budget()
        session = new_session(budget=budget)
        try:
            for piece in pieces:
                session.receive(piece, 0.0)
            failure = ""
            assert budget_holds(session, budget)
        except ProtocolViolation as error:
            failure = str(error)
        state = {
            stream_id: (stream.unread_bytes, stream.receive_side, stream.send_window)
            for stream_id, stream in session.streams.items()
        }
        outcomes.append((failure, state, bytes(session.control)))
    assert outcomes[0] == outcomes[1]
