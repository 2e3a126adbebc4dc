"""What the Yamux tests are made of: sessions back to back, frames, and bytes cut anywhere."""

from __future__ import annotations

import os
import random

from p2p.yamux import Bounds, Budget, Event, Session, StreamState
from p2p.yamux.frame import Flag, Type, encode_header

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
FUZZ_INPUTS = 1000 * SCALE
"""100,000 at the scale of `make fuzz`."""

SMALL = Bounds(
    window_bytes_max=1024 * 1024, session_bytes_max=2 * 1024 * 1024, inbound_streams_max=8
)

DATA, UPDATE, PING, GO_AWAY = Type
SYN, ACK, FIN, RST = Flag


def new_session(
    *, is_initiator: bool = False, bounds: Bounds = SMALL, budget: Budget | None = None
) -> Session:
    """A session with small bounds."""
    return Session(is_initiator=is_initiator, bounds=bounds, budget=budget or Budget())


def drain(session: Session) -> bytes:
    """The frames that the session wants to send."""
    frames = bytes(session.control)
    session.control.clear()
    return frames


def send(session: Session, stream: StreamState, payload: bytes, *, is_last: bool = False) -> bytes:
    """The frames that carry `payload`, with whatever waited before it."""
    frames = drain(session)
    return frames + session.data_header(stream, len(payload), is_last=is_last) + payload


def read_all(stream: StreamState, now: float = 0.0) -> bytes:
    """Everything that waits to be read."""
    parts = []
    while stream.pieces:
        parts.append(stream.take(None, now))
    return b"".join(parts)


def open_inbound(session: Session, stream_id: int) -> StreamState:
    """A stream that the other side has just opened."""
    session.receive(encode_header(UPDATE, SYN, stream_id, 0), 0.0)
    return session.streams[stream_id]


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """The same bytes in pieces of random size."""
    pieces = []
    while data:
        size = rng.choice((1, 2, 11, 12, 13, 100, 5000))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def random_frame(rng: random.Random) -> bytes:
    """One frame that may well be nonsense, with as much payload as it announces, or less."""
    kind = rng.choices((DATA, UPDATE, PING, GO_AWAY, 7), (50, 30, 10, 1, 1))[0]
    flags = rng.choices((0, SYN, ACK, FIN, RST, SYN | FIN, 0xFFFF), (40, 30, 5, 10, 10, 4, 1))[0]
    stream_id = rng.choices((rng.randrange(1, 30, 2), rng.randrange(40), 0), (90, 8, 1))[0]
    length = rng.choice((0, 1, 12, rng.randrange(2000), 65_536, 262_144))
    if rng.random() < 0.01:
        length = rng.randrange(2**32)
    version = 0 if rng.random() < 0.998 else rng.randrange(256)
    header = bytes([version]) + encode_header(kind, flags, stream_id, length)[1:]
    return header + bytes(min(length, 300_000)) if kind == DATA else header


def budget_holds(session: Session, budget: Budget) -> bool:
    """Whether the sums of a lone session are those of its streams."""
    unread = sum(stream.unread_bytes for stream in session.streams.values())
    granted = sum(stream.granted_bytes for stream in session.streams.values())
    return (
        session.unread_bytes == budget.unread_bytes >= unread
        and budget.granted_bytes == granted
        and budget.streams == len(session.streams)
    )


def names(events: list[Event]) -> list[str]:
    """The kinds of some events, in order."""
    return [type(event).__name__ for event in events]
