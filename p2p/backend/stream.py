"""One stream of a connection: trio's contract of a half-closeable stream over Yamux state.

The rule: a reader that lags is felt by the writer at the other end and nowhere else: `send_all`
waits for the peer's window without any time limit but the caller's.

Every call is a cancellation point; when nothing has to be waited for, other tasks get their turn
once per `TURN_BYTES`, as a full pass of the scheduler would cost more than most calls.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from p2p.connection import RawStream
from p2p.errors import StreamClosed, StreamReset
from p2p.network import Buffer
from p2p.yamux import Side, StreamState

if TYPE_CHECKING:
    from p2p.backend.connection import SecureConnection

_OPEN, _FINISHED, _RESET = Side

TURN_BYTES = 1024 * 1024
"""Bytes moved without waiting before other tasks run: about a millisecond."""

JOINED_BYTES = 128 * 1024
"""Up to this many bytes are joined before they are cut: a copy costs less than a message."""

TURN_CALLS = 64
"""Calls made without waiting before other tasks run."""


class SecureStream(RawStream):
    """A stream; made by `SecureConnection` only."""

    def __init__(self, connection: SecureConnection, state: StreamState) -> None:
        self.connection = connection
        self.state = state
        self._is_closed = False
        self._receiver: trio.lowlevel.Task | None = None
        self._sender: trio.lowlevel.Task | None = None
        self._end_awaited: trio.Event | None = None
        self._is_receiving = False
        self._is_sending = False
        self._turn_bytes = 0
        self._turn_calls = 0

    @property
    def is_closed(self) -> bool:
        """Whether this side has closed or reset it, or its connection is gone."""
        return self._is_closed or self.state.send_side is _RESET

    @property
    def readable_bytes(self) -> int:
        return self.state.unread_bytes

    async def send_all(self, data: Buffer) -> None:
        """Send `data`; returns once all of it is encrypted and handed to the connection.

        Cancelled or failed, it has sent an unknown part: reset the stream.

        Raises:
            StreamReset: the peer, a limit or the end of the connection ended the stream.
            StreamClosed: after `aclose` or `send_eof`.
            trio.BusyResourceError: another task is sending.
        """
        await self._send((data,), is_last=False)

    async def send_behind(self, first: bytes, data: Buffer) -> None:
        """As `send_all` of both, in one flight."""
        await self._send((first, data), is_last=False)

    async def send_last(self, *segments: Buffer) -> None:
        """As `send_all` of each and `send_eof`, in one flight."""
        await self._send(segments, is_last=True)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the peer's window is open, or the stream has ended."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_sendable()
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._is_sending = True
        try:
            with self._patience():
                await self._wait_sendable()
        finally:
            self._is_sending = False

    async def send_eof(self) -> None:
        """End our direction in order; the peer's bytes still come. Idempotent."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self._is_closed:
            raise StreamClosed("this stream is closed")
        self._end_sending()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes in order, at most `max_bytes`; `b""` at the end of the peer's direction.

        Without `max_bytes` whatever piece is at hand, up to about 128 KiB. A cancelled call has
        taken nothing.

        Raises:
            StreamReset: the stream was ended out of order, and all before it has been read.
            StreamClosed: after `aclose`.
            trio.BusyResourceError: another task is receiving.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be positive")
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._is_receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            data = await self._receive(max_bytes)
        finally:
            self._is_receiving = False
        await self._take_turn(len(data))
        return data

    def receive_nowait(self, max_bytes: int) -> bytes:
        """What is here already, at most `max_bytes`; `b""` where that is nothing."""
        if self._is_closed or self._is_receiving or not self.state.pieces:
            return b""
        return self._taken(max_bytes)

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer`, most of it straight from what is decrypted; errors as `receive_some`.

        Returns its length, or less at the end of the peer's direction. Cancelled or failed, it has
        consumed an unknown part: reset the stream.
        """
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        target = memoryview(buffer).cast("B")
        if target.readonly:  # the connection's task would fail on it, and not we
            raise TypeError("a buffer that cannot be written to")
        self._is_receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            filled = await self._fill(target)
        finally:
            self._is_receiving = False
        await self._take_turn(filled)
        return filled

    async def wait_ended(self) -> None:
        """Wait until both directions have ended, or the stream was reset or its connection lost."""
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._patience():
            while not self.is_closed and self.state.is_alive:
                if self._end_awaited is None:
                    self._end_awaited = trio.Event()
                await self._end_awaited.wait()

    async def aclose(self) -> None:
        """Close both directions: ours in order, the peer's by reading no more. Idempotent.

        The peer is given `LINGER_S` to end its direction; then it sees a reset. Closing is done
        before the checkpoint, so a cancelled call has closed too.
        """
        self._close()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> bool:
        """As `aclose`, without a checkpoint, if both directions have ended in order; whether so."""
        has_ended = self.state.send_side is self.state.receive_side is _FINISHED
        if has_ended:
            self._close()
        return has_ended

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.connection.session.leave(self.state)
            self.wake()
            if self.state.receive_side is _OPEN:
                self.connection.linger(self.state)
            self.connection.flush()

    async def reset(self) -> None:
        """End both directions at once; the peer's calls raise `StreamReset`. Idempotent."""
        self.reset_now()
        await trio.lowlevel.checkpoint()

    def reset_now(self) -> None:
        """As `reset`, without a checkpoint."""
        self._is_closed = True
        self.connection.session.reset(self.state)
        self.wake()
        self.connection.flush()

    def wake(self) -> None:
        """Let waiting calls look at the state again."""
        self.wake_receiver()
        self.wake_sender()

    def wake_receiver(self) -> None:
        """Let a waiting receive look again."""
        if self._end_awaited is not None:
            self._end_awaited.set()
            self._end_awaited = None
        task, self._receiver = self._receiver, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def wake_sender(self) -> None:
        """Let a waiting send look again."""
        task, self._sender = self._sender, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def _send(self, segments: Sequence[Buffer], *, is_last: bool) -> None:
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        segments = [
            each if type(each) is bytes else memoryview(each).cast("B") for each in segments
        ]
        total_bytes = sum(map(len, segments))
        self._is_sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_sendable()
            if not self._leaves_at_once(total_bytes):
                with self._patience():
                    await self._send_bulk(segments, total_bytes, is_last=is_last)
            elif total_bytes:
                self.connection.send_joined(self.state, segments, total_bytes, is_last=is_last)
            if is_last:
                self._end_sending()
            await self._take_turn(total_bytes)
        finally:
            self._is_sending = False
            self.connection.wire.leave()

    def _end_sending(self) -> None:
        """End our direction, if no frame of its last bytes has."""
        if self.state.send_side is _OPEN:
            self.connection.session.finish(self.state)
            self.connection.flush()
        if not self.state.is_alive:
            self.wake()

    def _leaves_at_once(self, total_bytes: int) -> bool:
        """Whether so much can be sent joined, without waiting."""
        fits = total_bytes <= JOINED_BYTES and total_bytes <= self.state.send_window
        return fits and not self.connection.is_wire_busy

    async def _send_bulk(
        self, segments: Sequence[Buffer], total_bytes: int, *, is_last: bool
    ) -> None:
        unsent = deque(memoryview(segment) for segment in segments)
        while total_bytes:
            await self._wait_sendable()
            total_bytes -= self.connection.send_burst(
                self.state, unsent, total_bytes, is_last=is_last
            )

    async def _wait_sendable(self) -> None:
        """Until the window and the wire are open; raises when they never will be."""
        while True:
            self._check_sendable()
            if self.connection.is_wire_busy:
                await self.connection.wire.wait()
            elif self.state.send_window == 0:
                self._sender = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort_send)
            else:
                return
            self._turn_bytes = self._turn_calls = 0

    def _check_sendable(self) -> None:
        if self._is_closed:
            raise StreamClosed("this stream is closed")
        if self.state.send_side is _RESET:
            raise StreamReset(self.connection.close_reason or "the stream was reset")
        if self.state.send_side is _FINISHED:
            raise StreamClosed("the end of this stream has been sent")

    async def _receive(self, max_bytes: int | None) -> bytes:
        state = self.state
        if not state.pieces:
            with self._patience():
                while not state.pieces:
                    if not await self._wait_receivable():
                        return b""
        return self._taken(max_bytes)

    def _taken(self, max_bytes: int | None) -> bytes:
        data = self.state.take(max_bytes, self._read_at())
        if self.connection.session.control:
            self.connection.flush()
        return data

    def _read_at(self) -> float:
        """The time, for the window: asking the clock costs, where nothing more can come."""
        if self.state.receive_side is _OPEN:
            return trio.current_time()
        return self.connection.heard_at

    async def _fill(self, target: memoryview) -> int:
        """Fill `target` with what is here, then let the session write to the rest of it."""
        state, filled = self.state, 0
        if state.pieces:
            filled = state.take_into(target, self._read_at())
            if self.connection.session.control:
                self.connection.flush()
        if filled == len(target):
            return filled
        state.target = target[filled:]
        try:
            with self._patience():
                # Discarding takes the target away too; then the wait raises.
                while state.target is not None or state.is_discarding:
                    if not await self._wait_receivable():
                        return len(target) - len(state.target or b"")
            return len(target)
        finally:
            state.target = None

    async def _wait_receivable(self) -> bool:
        """Wait for a change; False once the peer's direction has ended, raises if out of order."""
        if self._is_closed:
            raise StreamClosed("this stream is closed")
        if self.state.receive_side is _FINISHED:
            return False
        if self.state.receive_side is _RESET:
            raise StreamReset(self.connection.close_reason or "the stream was reset")
        if self.state.flags_due:
            self.connection.session.announce(self.state)
            self.connection.flush()
        self._receiver = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort_receive)
        self._turn_bytes = self._turn_calls = 0
        return True

    async def _take_turn(self, moved_bytes: int) -> None:
        self._turn_bytes += moved_bytes
        self._turn_calls += 1
        if self._turn_bytes >= TURN_BYTES or self._turn_calls >= TURN_CALLS:
            self._turn_bytes = self._turn_calls = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _abort_send(self, _: object) -> trio.lowlevel.Abort:
        self._sender = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _abort_receive(self, _: object) -> trio.lowlevel.Abort:
        self._receiver = None
        return trio.lowlevel.Abort.SUCCEEDED


__all__ = ["SecureStream"]
