"""The exchanges of identify: asking a new peer what it speaks, telling it, and telling of changes.

The rule: nothing waits for an introduction and nothing fails with it. A peer that does not say what
it speaks in `IDENTIFY_TIMEOUT_S` is asked by plain negotiation instead; the counters know.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager

import trio

from p2p import identify
from p2p.errors import NetworkError, ProtocolViolation
from p2p.identity import PeerId
from p2p.limits import Limits
from p2p.network import Stream

IDENTIFY_TIMEOUT_S = 10.0
"""A peer answers within two round trips, unless it does not want to."""

_log = logging.getLogger(__name__)

StreamOpener = Callable[[PeerId, str], AbstractAsyncContextManager[Stream]]


class Introductions:
    """The identify protocols of one switch, which says what is told and takes what is heard."""

    def __init__(
        self,
        *,
        limits: Limits,
        open_stream: StreamOpener,
        describe_to: Callable[[PeerId], bytes],
        heard: Callable[[PeerId, identify.Identification], None],
        count: Callable[[str], None],
    ) -> None:
        self._limits = limits
        self._open_stream = open_stream
        self._describe_to = describe_to
        self._heard = heard
        self._count = count

    async def tell(self, stream: Stream) -> None:
        """Handler of identify: say what we speak."""
        await stream.send_all(self._describe_to(stream.peer_id))

    async def hear(self, stream: Stream) -> None:
        """Handler of identify-push, and the end of `ask`.

        Raises:
            ProtocolViolation: too long, or not an identify message of that peer.
        """
        received = bytearray()
        while data := await stream.receive_some():
            received += data
            if len(received) > self._limits.identify_bytes_max:
                raise ProtocolViolation("an identify message over identify_bytes_max")
        said = identify.decode(bytes(received), stream.peer_id, self._limits)
        self._heard(stream.peer_id, said)

    async def ask(self, peer_id: PeerId) -> None:
        """Hear what a connected peer speaks; never raises but when cancelled."""

        async def ask() -> None:
            async with self._open_stream(peer_id, identify.IDENTIFY) as stream:
                await self.hear(stream)

        await self._attempt("identify", ask)

    async def push(self, peers: Iterable[PeerId]) -> None:
        """Tell peers what has changed with us; never raises but when cancelled."""

        async def push(peer_id: PeerId) -> None:
            async with self._open_stream(peer_id, identify.IDENTIFY_PUSH) as stream:
                await self.tell(stream)

        async with trio.open_nursery() as nursery:
            for peer_id in peers:
                nursery.start_soon(self._attempt, "identify_push", lambda p=peer_id: push(p))

    async def _attempt(self, name: str, exchange: Callable[[], Awaitable[None]]) -> None:
        with trio.move_on_after(IDENTIFY_TIMEOUT_S) as scope:
            try:
                await exchange()
            except NetworkError as error:
                self._count(f"{name}_failed")
                _log.debug("%s: %s", name, error)
        if scope.cancelled_caught:
            self._count(f"{name}_failed")


__all__ = ["Introductions"]
