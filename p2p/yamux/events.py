"""What a Yamux session tells its owner.

The rule: an event is a reason to look again at the state that it names, and carries nothing else;
none is repeated while its cause lasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from p2p.yamux.stream import StreamState


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream."""

    stream: StreamState


@dataclass(frozen=True, slots=True)
class Readable:
    """A stream that had nothing to read now has bytes, or its end."""

    stream: StreamState


@dataclass(frozen=True, slots=True)
class Writable:
    """A stream whose window was shut can send again, or was reset and never will."""

    stream: StreamState


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The peer took a stream of ours; another may be opened if the backlog was full."""


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer will open and accept no more streams."""

    code: int


Event: TypeAlias = StreamOpened | Readable | Writable | Acknowledged | GoneAway

__all__ = ["Acknowledged", "Event", "GoneAway", "Readable", "StreamOpened", "Writable"]
