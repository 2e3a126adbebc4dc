"""One request and its answer over a stream; and the serving of a stream's requests.

The rule: a request ends within its time, whatever the peer does; a stranger's stream costs at most
one message of memory and `IDLE_TIMEOUT_S` of patience; a peer that asks too fast waits for its own
requests, nobody else's (libp2p kad-dht, "RPC messages": several requests may follow one another on
a stream).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import trio

from p2p.errors import (
    InvalidRecord,
    ProtocolViolation,
    StreamError,
)
from p2p.identity import PeerId
from p2p.kademlia.message import Kind, Message, MessageReader, frame_message
from p2p.kademlia.server import Server
from p2p.network import Stream
from p2p.switch import Switch

REQUEST_BYTES_MAX = 64 * 1024
"""A record of 16 KiB, or a provider with its addresses, several times over."""

READ_BYTES = 16 * 1024
"""Per read: an answer of 20 peers is 2 to 6 KiB."""

IDLE_TIMEOUT_S = 30.0
"""Between two requests on one stream; peers that reuse streams ask more often."""

WRITE_TIMEOUT_S = 10.0
"""For an answer of a few KiB to leave: who does not read it does not want it."""

STREAMS_PER_PEER_MAX = 16
"""Of one peer served at once: several lookups of α requests each."""

STREAMS_MAX = 512
"""Served at once; each holds at most a request, 64 KiB: 32 MiB in all."""

REQUESTS_PER_S_MAX = 50.0
"""Of one peer, sustained: a lookup asks one peer once; 50 of them cost 2 % of a core."""

REQUESTS_BURST_MAX = 100
"""Answered at once before the pace applies: a node that publishes its keys."""


async def exchange(
    switch: Switch, peer_id: PeerId, protocol: str, request: Message, *, timeout_s: float
) -> Message | None:
    """Send `request` to a peer, dialling if need be; its answer, or None where there is none.

    Cancelled, it resets its stream.

    Raises:
        NetworkError: the peer could not be reached, broke off, or answered something else.
        trio.TooSlowError: it did not do so within `timeout_s`.
    """
    with trio.fail_after(timeout_s):
        async with switch.open_stream(peer_id, protocol) as stream:
            await stream.send_all(frame_message(request))
            if request.kind is Kind.ADD_PROVIDER:
                await stream.send_eof()
                # Nothing is to be said; the end of the stream tells that the peer has read it.
                await stream.receive_some(READ_BYTES)
                return None
            answer = await _receive(stream, MessageReader())
            if answer is None:
                raise ProtocolViolation("the stream ended before the answer")
            if answer.kind is not request.kind:
                raise ProtocolViolation(f"{request.kind.name} answered by {answer.kind.name}")
            return answer


class Service:
    """Answers the requests that come on streams, each peer at its pace."""

    def __init__(
        self,
        server: Server,
        *,
        clock: Callable[[], float],
        observed: Callable[[PeerId], str | None],
    ) -> None:
        self._server = server
        self._clock = clock
        self._observed = observed
        self._streams: Counter[PeerId] = Counter()
        self._paces: dict[PeerId, float] = {}
        self.counts: Counter[str] = Counter()

    async def handle(self, stream: Stream) -> None:
        """Serve one stream until the peer ends it, is idle, or breaks a rule (then it is reset)."""
        peer_id = stream.peer_id
        if self._streams[peer_id] >= STREAMS_PER_PEER_MAX or self._streams.total() >= STREAMS_MAX:
            self.counts["kademlia_streams_refused"] += 1
            await stream.reset()
            return
        self._streams[peer_id] += 1
        try:
            await self._serve(stream)
        except StreamError:
            self.counts["kademlia_streams_broken"] += 1
        except (ProtocolViolation, InvalidRecord):
            self.counts["kademlia_requests_refused"] += 1
            await stream.reset()
        finally:
            self._streams[peer_id] -= 1
            if not self._streams[peer_id]:
                del self._streams[peer_id]

    def forget(self, peer_id: PeerId) -> None:
        """The peer has gone; its pace need not be remembered."""
        self._paces.pop(peer_id, None)

    async def _serve(self, stream: Stream) -> None:
        reader = MessageReader(bytes_max=REQUEST_BYTES_MAX)
        while True:
            request = None
            with trio.move_on_after(IDLE_TIMEOUT_S) as idle:
                request = await _receive(stream, reader)
            if request is None:
                if idle.cancelled_caught and not reader.empty:
                    raise ProtocolViolation("a request that was not finished in time")
                return
            await self._keep_pace(stream.peer_id)
            self.counts[f"kademlia_served_{request.kind.name.lower()}"] += 1
            answer = self._server.answer(
                stream.peer_id, request, self._clock(), observed=self._observed(stream.peer_id)
            )
            if answer is None:
                continue
            with trio.move_on_after(WRITE_TIMEOUT_S) as writing:
                await stream.send_all(frame_message(answer))
            if writing.cancelled_caught:
                raise ProtocolViolation("an answer that was not read in time")

    async def _keep_pace(self, peer_id: PeerId) -> None:
        """Wait until the peer's share allows its next request (generic cell rate algorithm)."""
        now_s = trio.current_time()
        due_s = max(self._paces.get(peer_id, now_s), now_s) + 1 / REQUESTS_PER_S_MAX
        self._paces[peer_id] = due_s
        ahead_s = due_s - now_s - REQUESTS_BURST_MAX / REQUESTS_PER_S_MAX
        if ahead_s > 0:
            await trio.sleep(ahead_s)


async def _receive(stream: Stream, reader: MessageReader) -> Message | None:
    """The next message of a stream, or None when it ends between two messages."""
    while True:
        message = reader.next_message()
        if message is not None:
            return message
        data = await stream.receive_some(READ_BYTES)
        if not data:
            if reader.empty:
                return None
            raise ProtocolViolation("the stream ended within a message")
        reader.receive_data(bytes(data))
