"""A Yamux session as a machine: plaintext in, events out; frames to send lie in `control`.

The rule: whatever bytes arrive, `receive` either follows the libp2p Yamux spec (revision r0) or
raises `ProtocolViolation`, and holds no more than its `Bounds` say: windows are enforced, stream
counts are capped by RST, and replies that the peer does not read end the session.

    dialler's streams are odd, listener's even      SYN / ACK travel on the first frame of each side
    FIN ends one direction, RST both                a stream that is forgotten discards what is late

Time comes in as an argument. Frames of data are not built here but by whoever owns the send buffer:
`data_header` accounts for them and gives the header.
"""

from __future__ import annotations

from p2p.errors import InvariantViolation, LimitExceeded, ProtocolViolation
from p2p.yamux.events import Acknowledged, Event, GoneAway, Readable, StreamOpened, Writable
from p2p.yamux.frame import (
    HEADER_BYTES,
    SESSION_ID,
    VERSION,
    Flag,
    GoAway,
    Type,
    decode_header,
    encode_header,
)
from p2p.yamux.stream import Side, StreamState
from p2p.yamux.window import (
    LEARNED_WINDOW_BYTES_MAX,
    WINDOW_BYTES_INITIAL,
    WINDOW_LIMIT,
    Bounds,
    Budget,
)

CONTROL_BYTES_MAX = 64 * 1024
"""Replies waiting to be sent, about 5,400 frames: who causes more and reads none must go."""

UNACKNOWLEDGED_MAX = 256
"""Streams opened and not acknowledged (spec, "ACK backlog & backpressure")."""

ROUND_TRIP_S_ASSUMED = 0.1
"""Until the first ping returns."""

_SYN, _ACK, _FIN, _RST = (int(flag) for flag in Flag)
_DATA, _UPDATE, _PING, _GO_AWAY = (int(kind) for kind in Type)
_OPEN, _FINISHED, _RESET = Side


class Session:
    """Both directions of one session.

    After any call, send `control` (and clear it); after `receive`, handle its events.
    """

    def __init__(self, *, is_initiator: bool, bounds: Bounds, budget: Budget) -> None:
        self.bounds = bounds
        self.control = bytearray()
        self.round_trip_s = ROUND_TRIP_S_ASSUMED
        self.streams: dict[int, StreamState] = {}
        self.unread_bytes = 0
        self.unacknowledged = 0
        self.inbound_streams = 0
        self.refused_streams = 0
        self.gone_away: int | None = None
        self._budget = budget
        self._granted_bytes = 0
        self._learned_window = WINDOW_BYTES_INITIAL
        self._next_id = 1 if is_initiator else 2
        self._remote_parity = 0 if is_initiator else 1
        self._partial_header = b""
        self.body_bytes = 0  # still to come of the current frame's payload
        self._body_stream: StreamState | None = None  # None: discard it
        self._body_flags = 0
        self._filling: StreamState | None = None  # whose target was written to last
        self._ping_value = 0
        self._pinged_at: float | None = None

    # Receiving

    def receive(self, data: bytes | memoryview, now: float) -> list[Event]:
        """Take the next plaintext, cut anywhere; a writable view may be written to afterwards.

        Raises:
            ProtocolViolation: the session must end, best after `go_away`.
        """
        events: list[Event] = []
        offset, end = 0, len(data)
        while offset < end:
            if self.body_bytes:
                piece = data[offset : offset + self.body_bytes]
                offset += len(piece)
                self._receive_body(piece, events, now)
            elif self._partial_header or end - offset < HEADER_BYTES:
                need = HEADER_BYTES - len(self._partial_header)
                self._partial_header += data[offset : offset + need]
                offset += need
                if len(self._partial_header) == HEADER_BYTES:
                    header, self._partial_header = self._partial_header, b""
                    self._receive_header(*decode_header(header, 0), events, now)
            else:
                self._receive_header(*decode_header(data, offset), events, now)
                offset += HEADER_BYTES
        if len(self.control) > CONTROL_BYTES_MAX:
            raise ProtocolViolation("the peer causes replies and does not read them")
        return events

    def _receive_header(
        self, version: int, kind: int, flags: int, stream_id: int, length: int,
        events: list[Event], now: float,
    ) -> None:  # fmt: skip
        if version != VERSION:
            raise ProtocolViolation(f"Yamux version {version}")
        if kind in (_DATA, _UPDATE):
            stream = self._stream_of(stream_id, flags, events, now)
            if kind == _DATA:
                self._announce_data(stream, flags, length, events)
            elif stream is not None:
                self._credit(stream, length, events)
                self._receive_ends(stream, flags, events)
        elif kind == _PING:
            self._receive_ping(flags, length, now)
        elif kind == _GO_AWAY:
            self.gone_away = length
            events.append(GoneAway(length))
        else:
            raise ProtocolViolation(f"Yamux frame of type {kind}")

    def _stream_of(
        self, stream_id: int, flags: int, events: list[Event], now: float
    ) -> StreamState | None:
        """The stream a frame belongs to; None when it is refused or no longer known."""
        if stream_id == SESSION_ID:
            raise ProtocolViolation("a stream frame for the session itself")
        stream = self.streams.get(stream_id)
        if flags & _SYN:
            return self._accept(stream_id, stream, flags, events, now)
        if stream is not None and flags & _ACK and not stream.is_acknowledged:
            stream.is_acknowledged = True
            self.unacknowledged -= 1
            events.append(Acknowledged())
        return stream

    def _accept(
        self, stream_id: int, known: StreamState | None, flags: int, events: list[Event], now: float
    ) -> StreamState | None:
        if stream_id % 2 != self._remote_parity:
            raise ProtocolViolation("a stream opened with an id of the other side")
        if known is not None:
            raise ProtocolViolation("a stream opened twice")
        if flags & _RST:
            return None
        is_full = self.inbound_streams >= self.bounds.inbound_streams_max
        if is_full or not self._budget.has_streams:
            self.refused_streams += 1
            self.control += encode_header(_UPDATE, _RST, stream_id, 0)
            return None
        stream = StreamState(self, stream_id, is_inbound=True, now=now)
        self.streams[stream_id] = stream
        self.inbound_streams += 1
        self._budget.streams += 1
        events.append(StreamOpened(stream))
        return stream

    def _announce_data(
        self, stream: StreamState | None, flags: int, length: int, events: list[Event]
    ) -> None:
        if stream is None or stream.receive_side is not _OPEN:
            # Late data of a stream that is reset or forgotten here: bounded by any window.
            if length > self.bounds.window_bytes_max:
                raise ProtocolViolation(f"a frame of {length} bytes")
            if stream is not None and length:
                self._abandon(stream, events)  # data after its own FIN
            stream = None
        elif length > stream.receive_window:
            raise ProtocolViolation("the peer overran a receive window")
        else:
            stream.receive_window -= length
            spent = 2 * stream.receive_window
            if stream.flags_due and spent < stream.window_bytes < self._learned_window:
                self.announce(stream)  # who begins with so much waits to send more
        self._body_stream, self.body_bytes, self._body_flags = stream, length, flags
        if length == 0:
            self._finish_body(events)

    def _receive_body(self, piece: bytes | memoryview, events: list[Event], now: float) -> None:
        count = len(piece)
        self.body_bytes -= count
        stream = self._body_stream
        if stream is not None and stream.receive_side is _OPEN:
            if stream.is_discarding:
                if 2 * stream.receive_window < stream.window_bytes:
                    self._abandon(stream, events)  # it goes on sending: tell it that nobody reads
            else:
                if (target := stream.target) is not None:
                    fitting = min(count, len(target))
                    target[:fitting] = piece[:fitting]
                    self._fill(stream, target[fitting:], events, now)
                    piece = piece[fitting:]
                if piece:
                    self._keep(stream, piece, events)
        if self.body_bytes == 0:
            self._finish_body(events)

    def target(self, count: int) -> memoryview | None:
        """Where the next `count` bytes belong, if all are payload that a reader has room for.

        After writing them there, call `filled`; else `receive` takes them as any others.
        """
        stream = self._body_stream
        if stream is None or stream.target is None or len(stream.target) < count:
            return None
        if count > self.body_bytes or stream.receive_side is not _OPEN:
            return None
        return stream.target[:count]

    def filled(self, count: int, now: float) -> list[Event]:
        """The next `count` bytes have been written to what `target` gave."""
        stream = self._body_stream
        if stream is None or stream.target is None:
            raise InvariantViolation("bytes were written to no stream's target")
        events: list[Event] = []
        self.body_bytes -= count
        self._fill(stream, stream.target[count:], events, now)
        if self.body_bytes == 0:
            self._finish_body(events)
        return events

    @property
    def awaited_bytes(self) -> int:
        """What the reader whose target was written to last still waits for."""
        return 0 if self._filling is None else len(self._filling.target or b"")

    def _fill(self, stream: StreamState, rest: memoryview, events: list[Event], now: float) -> None:
        """The stream's target has been written up to `rest`."""
        self._filling = stream
        stream.target = rest or None
        if not rest:
            events.append(Readable(stream))
        self._widen(stream, now)

    def _keep(self, stream: StreamState, piece: bytes | memoryview, events: list[Event]) -> None:
        if not stream.pieces:
            events.append(Readable(stream))
        stream.put(piece)
        count = len(piece)
        stream.unread_bytes += count
        self.unread_bytes += count
        self._budget.unread_bytes += count
        if self.unread_bytes > self.bounds.session_bytes_max:
            self.refused_streams += 1
            self._abandon(stream, events)

    def _finish_body(self, events: list[Event]) -> None:
        stream, self._body_stream = self._body_stream, None
        if stream is not None:
            self._receive_ends(stream, self._body_flags, events)

    def _receive_ends(self, stream: StreamState, flags: int, events: list[Event]) -> None:
        if flags & _RST:
            stream.receive_side = stream.send_side = _RESET
        elif flags & _FIN and stream.receive_side is _OPEN:
            stream.receive_side = _FINISHED
        else:
            return
        events.append(Readable(stream))
        if flags & _RST:
            events.append(Writable(stream))
        self._forget_if_over(stream)

    def _credit(self, stream: StreamState, length: int, events: list[Event]) -> None:
        if stream.send_window + length > WINDOW_LIMIT:
            raise ProtocolViolation("a send window over 4 GiB")
        if stream.send_window == 0 and length:
            events.append(Writable(stream))
        stream.send_window += length

    def _receive_ping(self, flags: int, value: int, now: float) -> None:
        if flags & _SYN:
            self.control += encode_header(_PING, _ACK, SESSION_ID, value)
        elif flags & _ACK and value == self._ping_value and self._pinged_at is not None:
            self.round_trip_s = now - self._pinged_at
            self._pinged_at = None

    # Sending

    def open(self, now: float) -> StreamState:
        """A new stream of ours; nothing is sent before its first frame.

        Raises:
            LimitExceeded: the process has as many streams as it may have.
        """
        if not self._budget.has_streams:
            raise LimitExceeded("streams_total_max", self._budget.streams_max)
        if self._next_id > WINDOW_LIMIT:
            raise ProtocolViolation("the stream ids of this session are used up")
        stream = StreamState(self, self._next_id, is_inbound=False, now=now)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        self.unacknowledged += 1
        self._budget.streams += 1
        return stream

    def data_header(self, stream: StreamState, length: int, *, is_last: bool = False) -> bytes:
        """The header of `length` payload bytes, within the send window; the payload must follow."""
        if length > stream.send_window or stream.send_side is not _OPEN:
            raise InvariantViolation("data beyond the send window, or after the end")
        stream.send_window -= length
        flags = stream.flags_due
        opening = b""
        if flags:
            opening = self._opening_update(stream)
        if not is_last:
            return opening + encode_header(_DATA, 0, stream.stream_id, length)
        stream.send_side = _FINISHED
        header = opening + encode_header(_DATA, _FIN, stream.stream_id, length)
        self._forget_if_over(stream)
        return header

    def announce(self, stream: StreamState) -> None:
        """Queue the SYN or ACK of a stream that has had no reason to send it yet."""
        if stream.flags_due and stream.send_side is not _RESET:
            self.control += self._opening_update(stream)

    def finish(self, stream: StreamState) -> None:
        """Queue the end of our direction; no-op when it has ended."""
        if stream.send_side is _OPEN:
            self.control += self.data_header(stream, 0, is_last=True)

    def reset(self, stream: StreamState) -> None:
        """End both directions at once and drop what is unread; no-op when it is over."""
        if stream.is_alive and not stream.flags_due & _SYN:
            self.control += encode_header(_UPDATE, _RST, stream.stream_id, 0)
        stream.receive_side = stream.send_side = _RESET
        self.discard(stream)
        self._forget_if_over(stream)

    def leave(self, stream: StreamState) -> None:
        """End our direction in order, and read no more.

        A peer that goes on sending is told by a reset once half its window is used: before that
        it may just not have seen our end, and a reset could overtake what we sent.
        """
        self.finish(stream)
        self.discard(stream)
        if stream.receive_side is _OPEN and 2 * stream.receive_window < stream.window_bytes:
            self.reset(stream)

    def discard(self, stream: StreamState) -> None:
        """Drop what is unread and whatever still comes: nobody will read this stream."""
        stream.is_discarding = True
        stream.target = None
        stream.pieces.clear()
        stream.taken_of_first = 0
        self._account_read(stream, stream.unread_bytes)

    def consumed(self, stream: StreamState, count: int, now: float) -> None:
        """The reader took `count` bytes; queues a window update once half a window is due."""
        self._account_read(stream, count)
        self._widen(stream, now)

    def _widen(self, stream: StreamState, now: float) -> None:
        if stream.receive_side is not _OPEN:
            return
        arriving = self.body_bytes if stream is self._body_stream else 0
        due = stream.window_bytes - stream.receive_window - stream.unread_bytes - arriving
        if 2 * due < stream.window_bytes:
            return
        if now - stream.updated_at < 4 * self.round_trip_s:
            grown = self._grow(stream, min(2 * stream.window_bytes, self.bounds.window_bytes_max))
            due += grown
        stream.updated_at = now
        stream.receive_window += due
        flags, stream.flags_due = stream.flags_due, 0
        self.control += encode_header(_UPDATE, flags, stream.stream_id, due)

    def ping(self, now: float) -> None:
        """Queue a ping, unless one is under way; its answer refreshes `round_trip_s`."""
        if self._pinged_at is None:
            self._ping_value = (self._ping_value + 1) & WINDOW_LIMIT
            self._pinged_at = now
            self.control += encode_header(_PING, _SYN, SESSION_ID, self._ping_value)

    def go_away(self, code: GoAway) -> None:
        """Queue the announcement that this session ends."""
        self.control += encode_header(_GO_AWAY, 0, SESSION_ID, code)

    def close(self) -> list[StreamState]:
        """The connection is gone: every living stream is reset; returns them."""
        streams = list(self.streams.values())
        for stream in streams:
            stream.receive_side = stream.send_side = _RESET
            self._forget_if_over(stream)
        self._budget.unread_bytes -= self.unread_bytes
        self.unread_bytes = 0
        self._budget = Budget()  # late readers drain what is left, uncounted
        return streams

    def _opening_update(self, stream: StreamState) -> bytes:
        """SYN or ACK, with what the window exceeds the initial one by from the start."""
        flags, stream.flags_due = stream.flags_due, 0
        grown = 0
        if stream.window_bytes < self._learned_window and stream.receive_side is _OPEN:
            grown = self._grow(stream, self._learned_window)
            stream.receive_window += grown
        return encode_header(_UPDATE, flags, stream.stream_id, grown)

    def _grow(self, stream: StreamState, window_bytes: int) -> int:
        """Raise the window to `window_bytes` if the budgets allow; returns what was added."""
        more = window_bytes - stream.window_bytes
        if more <= 0 or self._granted_bytes + more > self.bounds.session_bytes_max:
            return 0
        if not self._budget.reserve(more):
            return 0
        self._granted_bytes += more
        stream.granted_bytes += more
        stream.window_bytes = window_bytes
        learned = max(self._learned_window, window_bytes)
        self._learned_window = min(learned, LEARNED_WINDOW_BYTES_MAX)
        return more

    def _abandon(self, stream: StreamState, events: list[Event]) -> None:
        self.reset(stream)
        events.append(Readable(stream))
        events.append(Writable(stream))

    def _account_read(self, stream: StreamState, count: int) -> None:
        stream.unread_bytes -= count
        if self.unread_bytes:  # after `close` everything is already given back
            self.unread_bytes -= count
            self._budget.unread_bytes -= count

    def _forget_if_over(self, stream: StreamState) -> None:
        if stream.is_alive or self.streams.pop(stream.stream_id, None) is None:
            return
        if stream.is_inbound:
            self.inbound_streams -= 1
        elif not stream.is_acknowledged:
            stream.is_acknowledged = True
            self.unacknowledged -= 1
        self._budget.streams -= 1
        self._granted_bytes -= stream.granted_bytes
        self._budget.release(stream.granted_bytes)
        stream.granted_bytes = 0


__all__ = ["UNACKNOWLEDGED_MAX", "Session"]
