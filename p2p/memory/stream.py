"""Connections and streams of a network in one process.

The rule: they behave as those on sockets do: half-close, reset, loss, and back-pressure by a window
that opens again as the reader takes. Each end changes only by its own calls and by what the wire
delivers to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from p2p.connection import Connection, RawStream
from p2p.errors import StreamClosed, StreamReset
from p2p.identity import PeerId
from p2p.memory.wire import Wire
from p2p.multiaddress import Address
from p2p.network import Buffer, Direction

WINDOW_BYTES = 256 * 1024
"""What a sender may be ahead of the reader: the initial window of Yamux."""

SEGMENT_BYTES_MAX = 64 * 1024
"""The largest piece that travels alone."""

LINGER_S = 10.0
"""How long the peer of a closed stream may go on sending into the void before it is reset."""


class MemoryStream(RawStream):
    """One end of a stream; `join` makes the two."""

    def __init__(self, connection: MemoryConnection) -> None:
        self._connection = connection
        self._other: MemoryStream = self  # until joined
        self._pieces: deque[bytes] = deque()
        self._window = WINDOW_BYTES  # what we may still send
        self._has_sent_eof = False
        self._has_received_eof = False
        self._is_reset = False  # by the peer, or with the connection
        self._is_closed = False  # by us
        self._sending = trio.Lock()
        self._is_receiving = False
        self._wakeup = trio.Event()

    def join(self, other: MemoryStream) -> None:
        """Make this the end of `other`, and `other` that of this."""
        self._other, other._other = other, self

    async def send_all(self, data: Buffer) -> None:
        with _Exclusive(self._sending):
            await trio.lowlevel.checkpoint()
            view = memoryview(data).cast("B")
            self._check_sendable()
            with self._patience():
                while view:
                    await self._wait_window()
                    piece = bytes(view[: min(self._window, SEGMENT_BYTES_MAX)])
                    view = view[len(piece) :]
                    self._window -= len(piece)
                    self._tell(lambda end, piece=piece: end._receive(piece))  # type: ignore[misc]

    async def wait_send_all_might_not_block(self) -> None:
        with _Exclusive(self._sending):
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            with self._patience():
                await self._wait_window()

    async def send_eof(self) -> None:
        with _Exclusive(self._sending):
            await trio.lowlevel.checkpoint()
            if self._is_closed:
                raise StreamClosed("this stream is closed")
            self._send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be positive")
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._is_receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            with self._patience():
                piece = await self._take(max_bytes)
        finally:
            self._is_receiving = False
        await trio.lowlevel.cancel_shielded_checkpoint()
        return piece

    async def aclose(self) -> None:
        if not self._is_closed:
            self._send_eof()
            self._is_closed = True
            self._pieces.clear()
            self._wake()
            if not self._has_received_eof and not self._is_reset:
                wire = self._connection.wire
                wire.at(trio.current_time() + LINGER_S, self._reset_unless_finished)
            self._connection.forget(self)
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self.reset_now()
        await trio.lowlevel.checkpoint()

    def reset_now(self) -> None:
        """As `reset`, without a checkpoint."""
        if not self._is_closed:
            self._is_closed = True
            self._pieces.clear()
            self._tell(MemoryStream.break_off)
            self._wake()
            self._connection.forget(self)

    async def wait_ended(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._patience():
            while not self._is_reset and not self._is_closed and not self.is_finished:
                await self._wait()

    def break_off(self) -> None:
        """The peer or the connection has ended it; what arrived before can still be read."""
        self._is_reset = True
        self._connection.forget(self)
        self._wake()

    def _reset_unless_finished(self) -> None:
        if not self._has_received_eof and not self._is_reset:
            self._tell(MemoryStream.break_off)

    async def _take(self, max_bytes: int | None) -> bytes:
        while not self._pieces:
            if self._is_closed:
                raise StreamClosed("this stream is closed")
            if self._has_received_eof:
                return b""
            if self._is_reset:
                raise StreamReset("the stream was reset")
            await self._wait()
        piece = self._pieces.popleft()
        if max_bytes is not None and len(piece) > max_bytes:
            self._pieces.appendleft(piece[max_bytes:])
            piece = piece[:max_bytes]
        self._tell(lambda end: end._open_window(len(piece)))
        return piece

    async def _wait_window(self) -> None:
        while True:
            self._check_sendable()
            if self._window:
                return
            await self._wait()

    def _check_sendable(self) -> None:
        if self._is_closed:
            raise StreamClosed("this stream is closed")
        if self._is_reset:
            raise StreamReset("the stream was reset")
        if self._has_sent_eof:
            raise StreamClosed("the end of this stream has been sent")

    def _send_eof(self) -> None:
        if not self._has_sent_eof and not self._is_reset:
            self._has_sent_eof = True
            self._wake()
            self._tell(MemoryStream._receive_eof)
            self._connection.forget_finished(self)

    @property
    def is_finished(self) -> bool:
        """Whether neither end will send any more."""
        return self._has_sent_eof and self._has_received_eof

    # What the wire delivers

    def _receive(self, piece: bytes) -> None:
        if self._is_closed:
            self._tell(lambda end: end._open_window(len(piece)))  # discarded: nothing waits for it
            return
        self._pieces.append(piece)
        self._wake()

    def _receive_eof(self) -> None:
        self._has_received_eof = True
        self._connection.forget_finished(self)
        self._wake()

    def _open_window(self, count: int) -> None:
        self._window += count
        self._wake()

    def _tell(self, change: Callable[[MemoryStream], None]) -> None:
        other = self._other
        self._connection.send(lambda: None if other._is_reset else change(other))

    async def _wait(self) -> None:
        await self._wakeup.wait()

    def _wake(self) -> None:
        self._wakeup.set()
        self._wakeup = trio.Event()


class MemoryConnection(Connection):
    """One end of a connection; `MemoryTransport` makes the two."""

    def __init__(
        self,
        wire: Wire,
        own: PeerId,
        peer_id: PeerId,
        direction: Direction,
        remote: Address,
        serve: Callable[[MemoryConnection, MemoryStream], None],
        on_closed: Callable[[MemoryConnection], None],
    ) -> None:
        self.wire = wire
        self._own = own
        self._peer_id = peer_id
        self._direction = direction
        self._remote = remote
        self._serve = serve
        self._on_closed = on_closed
        self._other: MemoryConnection = self  # until joined
        self._streams: set[MemoryStream] = set()
        self._is_closed = False

    def join(self, other: MemoryConnection) -> None:
        """Make this the end of `other`, and `other` that of this."""
        self._other, other._other = other, self

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def direction(self) -> Direction:
        return self._direction

    @property
    def remote(self) -> Address:
        return self._remote

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    async def open_stream(self) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        if self._is_closed:
            raise StreamReset("the connection is gone")
        near, far = MemoryStream(self), MemoryStream(self._other)
        near.join(far)
        self._streams.add(near)
        self.send(lambda: self._other._accept(far))
        return near

    async def aclose(self) -> None:
        if not self._is_closed:
            self.send(self._other.break_off)
            self.break_off()
        await trio.lowlevel.checkpoint()

    def send(self, delivery: Callable[[], None]) -> None:
        """Deliver to the other end, in order."""
        self.wire.send(self._own, self._peer_id, delivery)

    def break_off(self) -> None:
        """The connection is gone at this end: reset its streams."""
        if self._is_closed:
            return
        self._is_closed = True
        for stream in tuple(self._streams):
            stream.break_off()
        self._on_closed(self)

    def forget(self, stream: MemoryStream) -> None:
        """The stream has ended here."""
        self._streams.discard(stream)

    def forget_finished(self, stream: MemoryStream) -> None:
        """The stream has ended here if both directions have."""
        if stream.is_finished:
            self._streams.discard(stream)

    def _accept(self, stream: MemoryStream) -> None:
        if self._is_closed:
            stream.break_off()
            return
        self._streams.add(stream)
        self._serve(self, stream)


class _Exclusive:
    """A lock that is never waited for: trio's contract for two senders at once."""

    def __init__(self, lock: trio.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock as error:
            raise trio.BusyResourceError("another task is sending on this stream") from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()


__all__ = ["MemoryConnection", "MemoryStream"]
