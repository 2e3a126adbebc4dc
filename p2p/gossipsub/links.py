"""The streams to and from each peer: one task that writes, one handler that reads.

The rule: streams are one-way, as libp2p pubsub has it (libp2p/specs pubsub/README.md, "Stream
management"): we write on the stream that we opened and read from the one that the peer opened. A
new stream of a peer replaces its old one; ours is opened anew while the peer stays connected. A
peer is in the router while either stream lives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

import trio

from p2p.errors import NetworkError, NotConnected, ProtocolUnsupported, ProtocolViolation
from p2p.gossipsub.codec import FrameReader, Rpc, decode_rpc
from p2p.gossipsub.events import (
    Event,
    FrameReceived,
    PeerJoined,
    PeerLeft,
    RpcReceived,
    StreamViolated,
)
from p2p.gossipsub.judging import Judges
from p2p.gossipsub.outbox import Outbox
from p2p.gossipsub.parameters import PARTIAL_BYTES_MAX, PROTOCOLS, SLICE_MESSAGES
from p2p.identity import PeerId
from p2p.network import Direction, PeerConnected, PeerDisconnected, Stream
from p2p.switch import PeerIdentified, Switch

READ_BYTES = 256 * 1024
"""Asked of a stream at a time: two of the largest RPCs that we write ourselves."""

REOPEN_MIN_S, REOPEN_MAX_S = 0.2, 30.0
"""Wait before our stream to a peer that is still connected is opened anew; doubles each time."""

REOPEN_GOOD_S = 10.0
"""A stream that lived this long was good: the wait begins again at its minimum."""


@dataclass(slots=True)
class Link:
    """One connected peer, as the shell sees it."""

    peer: PeerId
    outbox: Outbox
    outbound: bool = False
    wake: trio.Event = field(default_factory=trio.Event)  # something waits in the outbox
    room: trio.Event = field(default_factory=trio.Event)  # something was taken out of it
    identified: trio.Event = field(default_factory=trio.Event)  # it has told what it speaks
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    reading: Stream | None = None
    writing: bool = False
    slow: bool = False  # let `publish` wait in vain; not waited for until it has caught up


class Links:
    """All links; `dispatch` gets the events for the router."""

    def __init__(
        self,
        switch: Switch,
        nursery: trio.Nursery,
        judges: Judges,
        dispatch: Callable[[Event], None],
        is_graylisted: Callable[[PeerId], bool],
    ) -> None:
        self._is_graylisted = is_graylisted
        self._partial: OrderedDict[Stream, int] = OrderedDict()  # bytes held; the oldest first
        self._partial_bytes = 0
        self._switch = switch
        self._nursery = nursery
        self._judges = judges
        self._dispatch = dispatch
        self._by_peer: dict[PeerId, Link] = {}

    def get(self, peer: PeerId) -> Link | None:
        """The link to a peer, if there is one."""
        return self._by_peer.get(peer)

    def close(self) -> None:
        """Forget every link; the tasks end with their nursery, the streams with the tasks."""
        for link in list(self._by_peer.values()):
            self._drop(link)

    async def watch(self) -> None:
        """Follow the peers of the switch, for ever."""
        async with self._switch.watch_peers() as events:
            async for event in events:
                match event:
                    case PeerConnected():
                        link = self._open(event.peer_id)
                        link.outbound = event.direction is Direction.OUTBOUND
                    case PeerIdentified():
                        if (known := self._by_peer.get(event.peer_id)) is not None:
                            known.identified.set()
                            known.identified = trio.Event()
                    case PeerDisconnected():
                        if (gone := self._by_peer.get(event.peer_id)) is not None:
                            self._drop(gone)
                    case _:
                        assert_never(event)

    async def listen(self, stream: Stream) -> None:
        """Read what a peer sends on the stream that it opened, until it ends.

        Raises:
            ProtocolViolation: the framing is broken; the switch resets the stream.
        """
        link = self._open(stream.peer_id)
        replaced, link.reading = link.reading, stream
        self._join(link, stream.protocol)
        try:
            if replaced is not None:
                await replaced.reset()
            await self._read(stream)
        except ProtocolViolation:
            self._dispatch(StreamViolated(stream.peer_id))
            raise
        finally:
            if link.reading is stream:
                link.reading = None
                if not link.writing and self._by_peer.get(link.peer) is link:
                    self._dispatch(PeerLeft(link.peer))

    async def _read(self, stream: Stream) -> None:
        reader = FrameReader(self._switch.limits.gossip_rpc_bytes_max)
        try:
            while data := await stream.receive_some(READ_BYTES):
                frames = reader.feed(data)
                if reader.partial_bytes or stream in self._partial:
                    await self._account(stream, reader.partial_bytes, progress=bool(frames))
                for frame in frames:
                    await self._take(stream.peer_id, frame)
        finally:
            self._partial_bytes -= self._partial.pop(stream, 0)

    async def _account(self, stream: Stream, partial_bytes: int, *, progress: bool) -> None:
        """Count an incomplete RPC; over the bound, reset the stream of the oldest one."""
        self._partial_bytes += partial_bytes - self._partial.get(stream, 0)
        if progress or not partial_bytes:
            self._partial.pop(stream, None)
        if partial_bytes:
            self._partial[stream] = partial_bytes  # keeps its place while it makes no progress
        while self._partial_bytes > PARTIAL_BYTES_MAX:
            oldest, held = self._partial.popitem(last=False)
            self._partial_bytes -= held
            await oldest.reset()

    async def _take(self, peer: PeerId, frame: bytes) -> None:
        """Give one RPC to the router, in slices when it holds many messages."""
        if self._is_graylisted(peer):
            self._dispatch(FrameReceived(peer, frame))  # counted and dropped, not decoded
            return
        try:
            rpc = decode_rpc(frame)
        except ProtocolViolation:
            self._dispatch(StreamViolated(peer))
            return
        messages = rpc.messages
        if len(messages) > SLICE_MESSAGES:
            self._dispatch(RpcReceived(peer, Rpc(subscriptions=rpc.subscriptions)))
            for start in range(0, len(messages), SLICE_MESSAGES):
                batch = messages[start : start + SLICE_MESSAGES]
                self._dispatch(RpcReceived(peer, Rpc(messages=batch)))
                await self._breathe()
            rpc = Rpc(control=rpc.control)
        self._dispatch(RpcReceived(peer, rpc))
        if self._judges.is_congested:
            await self._breathe()

    async def _breathe(self) -> None:
        """Let other tasks run, and judges catch up."""
        if self._judges.is_congested:
            await self._judges.wait_for_room()
        else:
            await trio.lowlevel.checkpoint()

    def _open(self, peer: PeerId) -> Link:
        link = self._by_peer.get(peer)
        if link is None:
            outbox = Outbox(self._switch.limits.outbound_rpcs_max)
            link = self._by_peer[peer] = Link(peer, outbox)
            self._nursery.start_soon(self._speak, link)
        return link

    def _join(self, link: Link, protocol: str) -> None:
        address = self._switch.remote_address_of(link.peer) or ""
        self._dispatch(PeerJoined(link.peer, protocol, link.outbound, address))

    def _drop(self, link: Link) -> None:
        if self._by_peer.get(link.peer) is not link:
            return
        del self._by_peer[link.peer]
        link.scope.cancel()
        link.room.set()
        self._dispatch(PeerLeft(link.peer))

    async def _speak(self, link: Link) -> None:
        """Keep a stream to the peer open and write to it what its outbox holds."""
        wait_s = REOPEN_MIN_S
        with link.scope:
            while True:
                opened_at = trio.current_time()
                identified = link.identified
                try:
                    await self._write(link)
                except ProtocolUnsupported:
                    await identified.wait()  # it may say later that it has learnt the protocol
                    continue
                except NotConnected:
                    break
                except NetworkError:
                    pass  # reset by the peer, or refused by a limit: tried again below
                if trio.current_time() - opened_at >= REOPEN_GOOD_S:
                    wait_s = REOPEN_MIN_S
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, REOPEN_MAX_S)
        self._drop(link)

    async def _write(self, link: Link) -> None:
        async with self._switch.open_stream(link.peer, *PROTOCOLS, dial=False) as stream:
            link.writing = True
            try:
                self._join(link, stream.protocol)  # the peer is told our topics again
                while True:
                    await link.wake.wait()
                    link.wake = trio.Event()
                    while frame := link.outbox.take():
                        link.room.set()
                        link.room = trio.Event()
                        link.slow = link.slow and not link.outbox.is_half_empty
                        await stream.send_all(frame)
            finally:
                link.writing = False
                link.outbox.clear()
                if link.reading is None and self._by_peer.get(link.peer) is link:
                    self._dispatch(PeerLeft(link.peer))
