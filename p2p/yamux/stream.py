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

KEPT_BYTES_MIN = 32_768
"""Pieces from this size on are kept where they lie."""

BESIDE_BYTES_MAX = 4096
"""What else may lie in the message of a piece that is kept: no more than an eighth of it, or what
a peer can make us hold would be a multiple of what is counted."""

TAKE_BYTES = 65_536
"""What `take` joins at most when the caller names no maximum; a larger piece goes out as it is."""


class Side(enum.Enum):
    """Which of its ends a stream has lost, and how."""

    OPEN = "open"
    FINISHED = "finished"  # ended in order
    RESET = "reset"


_OPEN, _FINISHED, _RESET = Side  # Python 3.11 looks up a member by ten times what a name costs
_SYN, _ACK = int(Flag.SYN), int(Flag.ACK)


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
        self.flags_due = _ACK if is_inbound else _SYN  # leave with the next frame
        self.is_acknowledged = is_inbound
        self.send_side = _OPEN
        self.receive_side = _OPEN
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
        if self.send_side is _RESET or self.receive_side is _RESET:
            return False
        return self.send_side is _OPEN or self.receive_side is _OPEN

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left to read and nothing can come."""
        return self.receive_side is not _OPEN and not self.pieces

    def put(self, piece: bytes | memoryview) -> None:
        """Append received bytes (the session has accounted for them).

        What nobody can change is kept where it lies, if it is large; everything else is copied.
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
        if isinstance(piece, memoryview) and not _is_kept(piece):
            piece = bytes(piece)
        self.pieces.append(piece)

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


def _is_kept(piece: memoryview) -> bool:
    if not piece.readonly or len(piece) < KEPT_BYTES_MIN:
        return False
    return memoryview(piece.obj).nbytes - len(piece) <= BESIDE_BYTES_MAX


__all__ = ["Side", "StreamState"]
