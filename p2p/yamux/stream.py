"""One stream of a Yamux session: two windows, what was received and not yet read, and its ends.

The rule: the peer has never more bytes under way than `receive_window`, which shrinks as a frame is
announced and grows only by an update that is sent; so `unread_bytes` cannot exceed `window_bytes`
(libp2p Yamux spec, "Flow Control"). Growing the window follows go-yamux: when half a window was
consumed within four round trips, the window and not the reader is what limits, and it doubles.

The state belongs to its `Session`; the only calls for others are `take`, `take_into` and the
properties.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

from p2p.yamux.frame import Flag
from p2p.yamux.window import WINDOW_BYTES_INITIAL

if TYPE_CHECKING:
    from p2p.yamux.session import Session

MERGE_BYTES_MAX = 4096
"""Pieces up to this size are appended to the piece before them: an object per byte received would
cost fifty times its window in memory."""

KEPT_PART_MIN = (3, 4)
"""A piece that is at least this part of the message it came in is kept where it lies; others are
copied, or few bytes could hold a whole message each."""

TAKE_BYTES = 65_536
"""What `take` joins at most when the caller names no maximum; a larger piece goes out as it is."""


class Side(enum.Enum):
    """Which of its ends a stream has lost, and how."""

    OPEN = "open"
    FINISHED = "finished"  # ended in order
    RESET = "reset"


class StreamState:
    """The state of one stream; `session` owns it."""

    __slots__ = (
        "flags_due",
        "granted_bytes",
        "is_acknowledged",
        "is_discarding",
        "is_inbound",
        "owner",
        "pieces",
        "receive_side",
        "receive_window",
        "send_side",
        "send_window",
        "session",
        "stream_id",
        "taken_of_first",
        "target",
        "unread_bytes",
        "updated_at",
        "window_bytes",
    )

    def __init__(self, session: Session, stream_id: int, *, is_inbound: bool, now: float) -> None:
        self.session = session
        self.stream_id = stream_id
        self.is_inbound = is_inbound
        self.owner: object = None  # the shell's own object for this stream
        self.flags_due = Flag.ACK if is_inbound else Flag.SYN  # leave with the next frame
        self.is_acknowledged = is_inbound
        self.send_side = Side.OPEN
        self.receive_side = Side.OPEN
        self.is_discarding = False  # nobody reads any more
        self.send_window = WINDOW_BYTES_INITIAL
        self.receive_window = WINDOW_BYTES_INITIAL
        self.window_bytes = WINDOW_BYTES_INITIAL
        self.granted_bytes = 0  # of the budget
        self.pieces: deque[bytes | bytearray | memoryview] = deque()
        self.taken_of_first = 0  # bytes of the first piece that the reader has already
        self.target: memoryview | None = None  # the rest of what the reader wants filled
        self.unread_bytes = 0
        self.updated_at = now  # when the last window update was sent

    @property
    def is_alive(self) -> bool:
        """Whether frames of this stream are still to be expected or sent."""
        if Side.RESET in (self.send_side, self.receive_side):
            return False
        return self.send_side is Side.OPEN or self.receive_side is Side.OPEN

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left to read and nothing can come."""
        return self.receive_side is not Side.OPEN and not self.pieces

    def put(self, piece: bytes | memoryview) -> None:
        """Append received bytes (the session has accounted for them).

        What nobody can change is kept where it lies, if little else lies there; else it is copied.
        """
        count = len(piece)
        if count <= MERGE_BYTES_MAX and self.pieces:
            last = self.pieces[-1]
            if isinstance(last, bytearray) and len(last) + count <= TAKE_BYTES:
                last += piece
                return
            if len(last) <= MERGE_BYTES_MAX:
                self.pieces[-1] = merged = bytearray(last)
                merged += piece
                return
        self.pieces.append(piece if _is_kept(piece) else bytes(piece))

    def take(self, bytes_max: int | None, now: float) -> bytes:
        """Up to `bytes_max` received bytes, at least one; the caller checked that there are some.

        May queue a window update on the session: flush it afterwards.
        """
        limit = TAKE_BYTES if bytes_max is None else bytes_max
        pieces, skip = self.pieces, self.taken_of_first
        first = pieces[0]
        if bytes_max is not None and len(first) - skip > limit:
            taken = bytes(memoryview(first)[skip : skip + limit])
            self.taken_of_first = skip + limit
        else:
            taken = self._take_whole(limit)
        self.session.consumed(self, len(taken), now)
        return taken

    def _take_whole(self, limit: int) -> bytes:
        """What is left of the first piece, and the whole pieces behind it up to `limit`."""
        pieces, skip = self.pieces, self.taken_of_first
        first = pieces.popleft()
        self.taken_of_first = 0
        count = len(first) - skip
        if not pieces or count + len(pieces[0]) > limit:
            return bytes(memoryview(first)[skip:] if skip else first)
        parts = [memoryview(first)[skip:]]
        while pieces and count + len(pieces[0]) <= limit:
            count += len(pieces[0])
            parts.append(memoryview(pieces.popleft()))
        return b"".join(parts)

    def take_into(self, target: memoryview, now: float) -> int:
        """Copy received bytes to the front of `target`, as many as fit; returns how many.

        May queue a window update on the session: flush it afterwards.
        """
        pieces, skip, room, filled = self.pieces, self.taken_of_first, len(target), 0
        while pieces and filled < room:
            first = pieces[0]
            stop = min(len(first), skip + room - filled)
            target[filled : filled + stop - skip] = memoryview(first)[skip:stop]
            filled += stop - skip
            skip = stop
            if stop == len(first):
                pieces.popleft()
                skip = 0
        self.taken_of_first = skip
        self.session.consumed(self, filled, now)
        return filled


def _is_kept(piece: bytes | memoryview) -> bool:
    if isinstance(piece, bytes):
        return True
    message = piece.obj
    part, whole = KEPT_PART_MIN
    return isinstance(message, bytes) and whole * len(piece) >= part * len(message)


__all__ = ["Side", "StreamState"]
