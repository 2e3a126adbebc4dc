"""The receiving side of a socket: ciphertext into a borrowed buffer, plaintext to the session.

The rule: an idle connection owns no buffer, bulk is decrypted straight to where it belongs, and
while what comes only fills what a reader waits for, the scheduler is left alone: a pass of it costs
as much as opening a message.

In the midst of a flood the socket is waited for until it has `COALESCED_BYTES`, or `COALESCED_S`
have passed: what network cards call interrupt moderation. Whoever sends to a receiver that sleeps
wakes it and does the kernel's work of both, is slower for it, and so finds it asleep again.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from p2p.backend.arena import BUFFER_BYTES, Arena
from p2p.noise.cipher import FRAME_BYTES_MAX
from p2p.noise.frames import BULK_BYTES_MIN, Opener
from p2p.yamux import Event, Session

TURN_BYTES = 1024 * 1024
"""Bytes received that no task has to look at before others run: about half a millisecond."""

FLOOD_BYTES = 64 * 1024
"""What a reader in a flood gets between two waits, at least: a slow link rarely has so much."""

COALESCED_BYTES = 256 * 1024
"""Half a burst: an exchange of 16 MiB takes 0.9 of the time. More leaves the cache, less is lost
in waking."""

COALESCED_S = 0.001
"""The shortest wait of epoll; a flood that has ended costs it once."""


class Intake:
    """Belongs to one connection, which runs it once."""

    def __init__(
        self,
        sock: socket.socket,
        opener: Opener,
        session: Session,
        arena: Arena,
        *,
        hand_out: Callable[[list[Event]], None],
        flush: Callable[[], None],
    ) -> None:
        """`hand_out` takes the session's events, `flush` sends what they have it reply."""
        self.heard_at = trio.current_time()
        self.received_bytes = 0
        self._sock = sock
        self._fd = sock.fileno()
        self._opener = opener
        self._session = session
        self._arena = arena
        self._hand_out = hand_out
        self._flush = flush
        self._is_closed = False
        self._filled_bytes = 0  # that went straight to a reader since we last waited

    def close(self) -> None:
        """Receive no more; the socket is the caller's."""
        self._is_closed = True

    async def run(self, early: bytes) -> None:
        """Receive until the peer ends it, or `close`; `early` has been received already.

        Raises:
            ProtocolViolation: the session must end. OSError, trio.ClosedResourceError: the socket.
        """
        arena = self._arena
        buffer: memoryview | None = None  # kept while a frame is incomplete in it
        start = end = 0
        if early:
            buffer, end = arena.lend(), len(early)
            buffer[:end] = early
            start, _ = self._open(buffer, start, end)
        turn_bytes = 0  # may be received before other tasks run
        try:
            while not self._is_closed:
                if turn_bytes <= 0:
                    if start == end and buffer is not None:
                        arena.take_back(buffer)
                        buffer = None
                    if self._filled_bytes < FLOOD_BYTES:
                        await trio.lowlevel.wait_readable(self._fd)
                    else:
                        await self._wait_in_flood()
                    self._filled_bytes, turn_bytes = 0, TURN_BYTES
                if buffer is None:
                    buffer = arena.lend()
                if start == end:
                    start = end = 0
                elif BUFFER_BYTES - end < FRAME_BYTES_MAX:
                    buffer[: end - start] = buffer[start:end]
                    start, end = 0, end - start
                try:
                    count = self._sock.recv_into(buffer[end:])
                except BlockingIOError:
                    turn_bytes = 0
                    continue
                if count == 0:
                    return
                end += count
                self.received_bytes += count
                start, has_woken = self._open(buffer, start, end)
                turn_bytes = 0 if has_woken else turn_bytes - count
        finally:
            if buffer is not None:
                arena.take_back(buffer)

    async def _wait_in_flood(self) -> None:
        """Wait for a good piece, but not for long, if the reader of the flood wants so much."""
        if self._session.awaited_bytes < 2 * COALESCED_BYTES:
            await trio.lowlevel.wait_readable(self._fd)
            return
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, COALESCED_BYTES)
        try:
            with trio.move_on_after(COALESCED_S):
                await trio.lowlevel.wait_readable(self._fd)
        finally:
            if not self._is_closed:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _open(self, buffer: memoryview, start: int, end: int) -> tuple[int, bool]:
        """Decrypt and hand out all whole frames: (where the rest begins, whether a task cares)."""
        has_woken = False
        opener, opened, session = self._opener, self._arena.opened, self._session
        now = self.heard_at = trio.current_time()
        while not self._is_closed and (count := opener.next_bytes(buffer, start, end)) >= 0:
            # Bulk goes straight to its reader, or into an object that the stream keeps.
            if count < BULK_BYTES_MIN:
                count, start = opener.open(buffer, start, end, opened)
                events = session.receive(opened[:count], now)
            elif (target := session.target(count)) is not None:
                start = opener.open_into(buffer, start, target)
                events = session.filled(count, now)
                self._filled_bytes += count
            else:
                is_body = count <= session.body_bytes
                plaintext, start = opener.open_bytes(buffer, start, count)
                events = session.receive(plaintext if is_body else memoryview(plaintext), now)
            if events:
                self._hand_out(events)
                has_woken = True
        if self._arena.budget.is_overdrawn:
            self._arena.relieve()
        if session.control:
            self._flush()
        return start, has_woken


__all__ = ["Intake"]
