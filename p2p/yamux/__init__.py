"""Yamux (`/yamux/1.0.0`): many flow-controlled streams over one connection, without I/O."""

from __future__ import annotations

from p2p.yamux.events import (
    Acknowledged,
    Event,
    GoneAway,
    Readable,
    StreamOpened,
    Writable,
)
from p2p.yamux.frame import GoAway
from p2p.yamux.session import UNACKNOWLEDGED_MAX, Session
from p2p.yamux.stream import Side, StreamState
from p2p.yamux.window import WINDOW_BYTES_INITIAL, Bounds, Budget

PROTOCOL_ID = "/yamux/1.0.0"

__all__ = [
    "PROTOCOL_ID",
    "UNACKNOWLEDGED_MAX",
    "WINDOW_BYTES_INITIAL",
    "Acknowledged",
    "Bounds",
    "Budget",
    "Event",
    "GoAway",
    "GoneAway",
    "Readable",
    "Session",
    "Side",
    "StreamOpened",
    "StreamState",
    "Writable",
]
