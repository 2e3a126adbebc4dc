"""One authenticated connection: a socket, a Noise session and a Yamux session, driven by trio.

The rule: three tasks live as long as the connection (`run`): one receives, decrypts and hands out;
one finishes sending what the socket did not take at once; one notices a silent peer. All else
happens in the caller's task and without waiting: a payload is framed, encrypted and offered to the
socket in one step, and only when the socket is full do senders queue up, in order.

A peer that breaks a protocol, a reader that lags behind its budget and a socket that breaks end the
connection: every stream raises `StreamReset`, nothing raises out of `run`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias, assert_never

import trio

from p2p.backend.arena import Arena
from p2p.backend.burst import messages, taken
from p2p.backend.heap import give_back_freed
from p2p.backend.intake import Intake
from p2p.backend.stream import SecureStream
from p2p.backend.upgrade import Link
from p2p.backend.wire import Wire
from p2p.connection import HANDLER_GRACE_S, Connection
from p2p.errors import ProtocolViolation, StreamReset
from p2p.identity import PeerId
from p2p.lifetime import note_failure
from p2p.multiaddress import Address
from p2p.network import Buffer, Direction
from p2p.noise.cipher import AESGCM
from p2p.yamux import (
    UNACKNOWLEDGED_MAX,
    Acknowledged,
    Event,
    GoAway,
    GoneAway,
    Readable,
    Session,
    StreamOpened,
    StreamState,
    Writable,
)

BURST_BYTES = 4 * AESGCM.plaintext_bytes_max
"""Payload of one Yamux frame at most, 516 KiB: what other streams wait for, half a millisecond.
Half of it costs a tenth of the speed; rust-libp2p takes 1 MiB."""

SMALL_BYTES = 32 * 1024
"""Up to this many bytes are sealed without a borrowed buffer."""

LINGER_S = 10.0
"""How long the peer of a closed stream may take to end its own direction."""

DRAIN_S = 1.0
"""How long closing waits for bytes that the socket has not taken yet."""

StreamServer: TypeAlias = Callable[["SecureConnection", SecureStream], Awaitable[None]]


class SecureConnection(Connection):
    """A connection that is alive while `run` runs.

    Every method but `run`, `aclose`, `open_stream` and `accept_stream` is synchronous and may be
    called from any task of the same trio loop.
    """

    def __init__(self, link: Link, arena: Arena, *, serve: StreamServer | None = None) -> None:
        """With `serve`, inbound streams are served here; else they wait for `accept_stream`."""
        self.is_initiator = link.is_initiator
        self.session = Session(
            is_initiator=link.is_initiator, bounds=arena.bounds, budget=arena.budget
        )
        self.session.round_trip_s = link.round_trip_s
        self.close_reason = ""
        self.closed = trio.Event()
        self.on_closed: list[Callable[[], None]] = []  # called once each, in order
        self._remote = Address.of_socket(link.sock.getpeername())
        self._link = link
        self._message_bytes_max = link.sealer.cipher.plaintext_bytes_max
        self._sock = link.sock
        self._fd = link.sock.fileno()
        self.wire = Wire(link.sock, link.sealer, arena, on_drained=self.flush, on_broken=self.abort)
        self.intake = Intake(
            link.sock,
            link.opener,
            self.session,
            arena,
            hand_out=self._hand_out,
            flush=self.flush,
        )
        self._arena = arena
        self._serve = serve
        self._is_closed = False
        self._is_draining = False
        self._scope = trio.CancelScope()
        self._handlers: trio.Nursery | None = None
        self._acknowledgement_queue = trio.lowlevel.ParkingLot()
        self._lingering: list[tuple[float, StreamState]] = []
        self._inbound_sender, self._inbound_receiver = trio.open_memory_channel[SecureStream](
            math.inf
        )  # bounded by the session's inbound_streams_max
        arena.connections.add(self)

    @property
    def peer_id(self) -> PeerId:
        return self._link.peer_id

    @property
    def direction(self) -> Direction:
        return Direction.OUTBOUND if self.is_initiator else Direction.INBOUND

    @property
    def remote(self) -> Address:
        return self._remote

    @property
    def is_closed(self) -> bool:
        return self._is_closed or self._is_draining or self.session.gone_away is not None

    @property
    def unread_bytes(self) -> int:
        """Received bytes that no reader has taken yet."""
        return self.session.unread_bytes

    @property
    def heard_at(self) -> float:
        """When the peer was heard last, in trio's time."""
        return self.intake.heard_at

    @property
    def streams(self) -> int:
        """Streams alive in either direction."""
        return len(self.session.streams)

    @property
    def is_wire_busy(self) -> bool:
        """Whether the socket has not taken all that was sent."""
        return self.wire.is_busy

    # Lifetime

    async def run(self) -> None:
        """Drive the connection until it ends, and its handlers until they return or must.

        Cancelled, it resets every stream and closes the socket at once. Raises nothing.
        """
        try:
            async with trio.open_nursery() as handlers:
                self._handlers = handlers
                with self._scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._receive_forever)
                        nursery.start_soon(self.wire.finish_forever)
                        nursery.start_soon(self._watch_forever)
                self.abort("the connection ended")
                handlers.cancel_scope.deadline = trio.current_time() + HANDLER_GRACE_S
        finally:
            self.abort("the connection was cancelled")
            give_back_freed(self.intake.received_bytes)

    async def aclose(self) -> None:
        """Say goodbye, wait up to `DRAIN_S` for the socket to take what was sent, and close.

        Shielded: when it returns or raises the socket is closed.
        """
        if not self._is_closed and not self._is_draining:
            self._is_draining = True
            self.session.go_away(GoAway.NORMAL)
            self.flush()
            if self.is_wire_busy:
                with trio.move_on_after(DRAIN_S) as scope:
                    scope.shield = True
                    await self.wire.wait()
            self.abort("the connection was closed here")
        elif not self._is_closed:
            with trio.CancelScope(shield=True):
                await self.closed.wait()  # another call is at it
        await trio.lowlevel.checkpoint()

    def abort(self, reason: str) -> None:
        """Close the socket and reset every stream now. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self.close_reason = reason
        trio.lowlevel.notify_closing(self._fd)
        self._sock.close()
        self._arena.connections.discard(self)
        for state in self.session.close():
            if isinstance(state.owner, SecureStream):
                state.owner.wake()
        self.wire.close()
        self.intake.close()
        self._inbound_sender.close()
        self._acknowledgement_queue.unpark_all()
        self._scope.cancel()
        self.closed.set()
        for callback in self.on_closed:
            callback()

    # Streams

    async def open_stream(self) -> SecureStream:
        """A new stream; nothing is sent before its first use.

        Waits while the peer has `UNACKNOWLEDGED_MAX` streams to acknowledge.

        Raises:
            StreamReset: the connection is gone, or the peer takes no more streams.
            LimitExceeded: the process has as many streams as it may have.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.session.unacknowledged >= UNACKNOWLEDGED_MAX and not self._is_closed:
            await self._acknowledgement_queue.park()
        if self.is_closed:
            raise StreamReset(self.close_reason or "the connection is closing")
        state = self.session.open(trio.current_time())
        stream = SecureStream(self, state)
        state.owner = stream
        return stream

    async def accept_stream(self) -> SecureStream:
        """The next stream that the peer opened; `StreamReset` once the connection is gone."""
        try:
            return await self._inbound_receiver.receive()
        except trio.EndOfChannel as error:
            raise StreamReset(self.close_reason) from error

    def linger(self, state: StreamState) -> None:
        """Reset `state` after `LINGER_S` if the peer has not ended it by then."""
        self._lingering.append((trio.current_time() + LINGER_S, state))

    # Sending: synchronous, and only while the wire is not busy

    def send_joined(
        self, state: StreamState, segments: Iterable[Buffer], total_bytes: int, *, is_last: bool
    ) -> None:
        """Send some bytes within the send window as one burst, joined before they are cut.

        With `is_last` our direction ends behind them, in a frame of its own: js-libp2p drops the
        content of a frame that ends a stream. The caller sees to the wire (`Wire.send_parts`).
        """
        head = self._take_control() + self.session.data_header(state, total_bytes)
        end = self.session.data_header(state, 0, is_last=True) if is_last else b""
        plaintext = b"".join((head, *segments, end))
        if len(plaintext) <= SMALL_BYTES:
            self.wire.send(plaintext)
        else:
            self.wire.send_parts(messages([memoryview(plaintext)], self._message_bytes_max))

    def send_burst(
        self, state: StreamState, unsent: deque[memoryview], total_bytes: int, *, is_last: bool
    ) -> int:
        """Send the front of `unsent`, as much as window and `BURST_BYTES` allow; returns how much.

        What is sent is taken out of `unsent`, which holds `total_bytes`. Otherwise as
        `send_joined`, but bulk is sealed from where it lies.
        """
        count = min(total_bytes, state.send_window, BURST_BYTES)
        head = self._take_control() + self.session.data_header(state, count)
        pieces = [memoryview(head), *taken(unsent, count)]
        if is_last and count == total_bytes:
            pieces.append(memoryview(self.session.data_header(state, 0, is_last=True)))
        self.wire.send_parts(messages(pieces, self._message_bytes_max))
        return count

    def flush(self) -> None:
        """Send queued control frames, unless the wire is busy: then they follow in turn."""
        if self.session.control and not self.is_wire_busy and not self._is_closed:
            self.wire.send(self._take_control())

    def _take_control(self) -> bytes:
        """Queued control frames; more than one message of them is sent at once."""
        control = self.session.control
        if not control:
            return b""
        while len(control) > self._message_bytes_max:
            self.wire.send(bytes(control[: self._message_bytes_max]))
            del control[: self._message_bytes_max]
        frames = bytes(control)
        control.clear()
        return frames

    # Receiving

    async def _receive_forever(self) -> None:
        try:
            self._hand_out(self.session.receive(self._link.early_plaintext, self.heard_at))
            self.flush()
            await self.intake.run(self._link.early_ciphertext)
            self.abort("the peer closed the connection")
        except trio.ClosedResourceError:
            return
        except OSError as error:
            self.abort(f"the connection broke: {error}")
        except ProtocolViolation as error:
            self._arena.count("connections_closed_for_violation")
            self.session.go_away(GoAway.PROTOCOL_ERROR)
            self.flush()
            self.abort(f"the peer broke the protocol: {error}")

    def _hand_out(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Readable():
                    if isinstance(event.stream.owner, SecureStream):
                        event.stream.owner.wake_receiver()
                case Writable():
                    if isinstance(event.stream.owner, SecureStream):
                        event.stream.owner.wake_sender()
                case StreamOpened():
                    self._take_in(event.stream)
                case Acknowledged():
                    self._acknowledgement_queue.unpark()
                case GoneAway():
                    self._acknowledgement_queue.unpark_all()
                    if not self.session.streams:
                        self.abort("the peer went away")
                case _:
                    assert_never(event)

    def _take_in(self, state: StreamState) -> None:
        stream = SecureStream(self, state)
        state.owner = stream
        if self._serve is not None and self._handlers is not None:
            self._handlers.start_soon(self._serve_guarded, self._serve, stream)
        else:
            self._inbound_sender.send_nowait(stream)

    async def _serve_guarded(self, serve: StreamServer, stream: SecureStream) -> None:
        try:
            await serve(self, stream)
        except BaseException as error:  # noqa: BLE001  (the guard at the root of every handler)
            stream.reset_now()
            cancellation = note_failure(error, self.peer_id, self._arena.count)
            if cancellation is not None:
                if self._handlers is not None and self._handlers.cancel_scope.cancel_called:
                    self._arena.count("handlers_cancelled")
                raise cancellation from None

    # Liveness

    async def _watch_forever(self) -> None:
        """Ping a peer that is silent, and give it up when it stays so; reset what lingers."""
        limits = self._arena.limits
        silence_max_s = limits.keepalive_interval_s + limits.keepalive_timeout_s
        while not self._is_closed:
            now = trio.current_time()
            silent_s = now - self.heard_at
            if silent_s >= silence_max_s:
                self._arena.count("connections_closed_for_silence")
                self.abort(f"the peer was silent for {silent_s:.0f} s")
                return
            if silent_s >= limits.keepalive_interval_s:
                self.session.ping(now)
            self._announce_and_reset_late(now)
            self.flush()
            give_up_at = self.heard_at + silence_max_s
            await trio.sleep_until(min(now + limits.keepalive_interval_s, give_up_at))

    def _announce_and_reset_late(self, now: float) -> None:
        for state in list(self.session.streams.values()):
            if state.is_inbound:
                self.session.announce(state)  # an ACK that no reply has carried yet
        while self._lingering and self._lingering[0][0] <= now:
            self.session.reset(self._lingering.pop(0)[1])
        if self.session.gone_away is not None and not self.session.streams:
            self.abort("the peer went away")


__all__ = ["SecureConnection", "StreamServer"]
