"""The sending side of a socket: plaintext is sealed and offered at once; one task sends the rest.

The rule: ciphertext leaves in the order in which it was sealed, as its nonces count. While the
socket has not taken everything the wire is busy, and whoever has more to send waits in turn; so a
connection holds at most one borrowed buffer, and control frames, of what is not sent.

The rest is sent by the first task that waits for it, as it goes on to send, or, where nobody waits,
by a task of the connection's own: being woken by another task costs two passes of the scheduler.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

import trio

from p2p.backend.arena import Arena
from p2p.noise import Sealer


class Wire:
    """Belongs to one connection, which calls `close` once."""

    def __init__(
        self,
        sock: socket.socket,
        sealer: Sealer,
        arena: Arena,
        *,
        on_drained: Callable[[], None],
        on_broken: Callable[[str], None],
    ) -> None:
        """`on_drained` may send more once the socket has taken everything; `on_broken` is told why
        it can send no more, and calls `close`.
        """
        self._sock = sock
        self._fd = sock.fileno()
        self._sealer = sealer
        self._arena = arena
        self._on_drained = on_drained
        self._on_broken = on_broken
        self._is_closed = False
        self._unsent: memoryview | bytes = b""  # ciphertext that the socket has not taken
        self._loan: memoryview | None = None  # the buffer that `_unsent` lies in
        self._is_finishing = False  # a task sends the rest
        self._left = trio.Event()
        self._queue = trio.lowlevel.ParkingLot()

    @property
    def is_busy(self) -> bool:
        """Whether the socket has not taken all that was sent; senders then call `wait`."""
        return bool(self._unsent)

    async def wait(self) -> None:
        """Wait until the socket has taken what was sent, or the wire is closed."""
        if self._is_finishing:
            await self._queue.park()
            return
        await self._finish()
        if self._queue.unpark_all():
            await trio.lowlevel.cancel_shielded_checkpoint()  # they go on together with us

    def send(self, plaintext: bytes) -> None:
        """Send what fits into one Noise message."""
        self._offer(self._sealer.seal(plaintext))
        self.leave()

    def send_parts(self, parts: Iterable[bytes | memoryview]) -> None:
        """Send each part as one Noise message, all together at most `BUFFER_BYTES`.

        The caller goes on to `wait`, or calls `leave` when it does not.
        """
        buffer, end = self._arena.lend(), 0
        for part in parts:
            end += self._sealer.seal_into(part, buffer[end:])
        self._offer(buffer[:end], loan=buffer)

    def leave(self) -> None:
        """The caller does not wait for what the socket has not taken: see to it that it leaves."""
        if self._unsent and not self._is_finishing:
            self._left.set()

    async def finish_forever(self) -> None:
        """Send what is left behind."""
        while not self._is_closed:
            await self._left.wait()
            self._left = trio.Event()
            if not self._is_finishing:
                await self._finish()
                self._queue.unpark_all()

    def close(self) -> None:
        """Forget what is not sent and wake whoever waits; the socket is the caller's."""
        self._is_closed = True
        self._return_loan()
        self._unsent = b""
        self._queue.unpark_all()

    async def _finish(self) -> None:
        """Send until the socket has taken everything; cancelled, leave it to `finish_forever`."""
        self._is_finishing = True
        try:
            while self._unsent:
                await trio.lowlevel.wait_writable(self._fd)
                sent = self._offer_socket(self._unsent)
                if self._is_closed:
                    return  # offering met a broken socket: its number may be another's by now
                self._unsent = self._unsent[sent:]
                if not self._unsent:
                    self._return_loan()
                    self._on_drained()
        except trio.ClosedResourceError:
            return
        finally:
            self._is_finishing = False
            self.leave()

    def _offer(self, ciphertext: bytes | memoryview, *, loan: memoryview | None = None) -> None:
        """Give the socket what it takes; the rest is for `wait` and `finish_forever`."""
        if self._unsent:
            self._unsent = memoryview(bytes(self._unsent) + ciphertext)
            sent = len(ciphertext)
        else:
            sent = self._offer_socket(ciphertext)
        if sent < len(ciphertext) and not self._is_closed:
            self._unsent = memoryview(ciphertext)[sent:]
            self._loan = loan
        elif loan is not None:
            self._arena.take_back(loan)

    def _offer_socket(self, ciphertext: bytes | memoryview) -> int:
        if self._is_closed:
            return 0
        try:
            return self._sock.send(ciphertext)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._on_broken(f"the connection broke: {error}")
            return 0

    def _return_loan(self) -> None:
        loan, self._loan = self._loan, None
        if loan is not None:
            self._arena.take_back(loan)


__all__ = ["Wire"]
