"""A switch of memory streams for the gossipsub shell: no sockets, no handshakes, no clocks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio
import trio.testing

from p2p.errors import NotConnected, ProtocolUnsupported, StreamReset
from p2p.identity import Identity, PeerId
from p2p.limits import Limits
from p2p.network import Direction, PeerConnected, PeerDisconnected, Stream, StreamHandler
from p2p.switch import SwitchEvent


class MemoryStream(Stream):
    """One end of a `trio.testing` memory stream pair."""

    def __init__(self, inner: trio.StapledStream, peer_id: PeerId, protocol: str) -> None:
        self._inner = inner
        self._peer_id = peer_id
        self._protocol = protocol

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    async def send_all(self, data: bytes) -> None:
        try:
            await self._inner.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise StreamReset("gone") from error

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return bytes(await self._inner.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise StreamReset("gone") from error

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def reset(self) -> None:
        await trio.aclose_forcefully(self._inner)

    async def wait_ended(self) -> None:
        await trio.sleep_forever()


class MemorySwitch:
    """A `p2p.switch.Switch` whose connections are made by `join`."""

    def __init__(self, nursery: trio.Nursery, seed: int, limits: Limits | None = None) -> None:
        self.identity = Identity(seed.to_bytes(32, "big"))
        self.peer_id = self.identity.peer_id
        self.limits = limits or Limits()
        self.addresses: tuple[str, ...] = ()
        self.failures: list[BaseException] = []
        self._nursery = nursery
        self._handlers: dict[str, StreamHandler] = {}
        self._others: dict[PeerId, MemorySwitch] = {}
        self._watchers: list[trio.MemorySendChannel[SwitchEvent]] = []
        self._streams: list[tuple[PeerId, MemoryStream]] = []

    @property
    def peers(self) -> frozenset[PeerId]:
        return frozenset(self._others)

    def join(self, other: MemorySwitch) -> None:
        """Connect two switches; this one dials."""
        self._arrive(other, Direction.OUTBOUND)
        other._arrive(self, Direction.INBOUND)

    async def disconnect(self, peer_id: PeerId) -> None:
        other = self._others.get(peer_id)
        if other is not None:
            await self._depart(peer_id)
            await other._depart(self.peer_id)

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    def unserve(self, protocol: str) -> None:
        self._handlers.pop(protocol, None)

    @asynccontextmanager
    async def open_stream(
        self, peer_id: PeerId, *protocols: str, dial: bool = True
    ) -> AsyncIterator[Stream]:
        other = self._others.get(peer_id)
        if other is None:
            raise NotConnected(peer_id)
        await trio.lowlevel.checkpoint()
        known = [protocol for protocol in protocols if protocol in other._handlers]
        if not known:
            raise ProtocolUnsupported(protocols)
        ours, theirs = trio.testing.lockstep_stream_pair()
        stream = MemoryStream(ours, peer_id, known[0])
        remote = MemoryStream(theirs, self.peer_id, known[0])
        self._streams.append((peer_id, stream))
        other._streams.append((self.peer_id, remote))
        other._nursery.start_soon(other._run, known[0], remote)
        try:
            yield stream
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()

    @asynccontextmanager
    async def watch_peers(self) -> AsyncIterator[trio.MemoryReceiveChannel[SwitchEvent]]:
        send, receive = trio.open_memory_channel[SwitchEvent](1000)
        for peer_id in self._others:
            send.send_nowait(_connected(peer_id, Direction.INBOUND))
        self._watchers.append(send)
        try:
            yield receive
        finally:
            self._watchers.remove(send)
            send.close()

    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        return frozenset()

    def remote_address_of(self, peer_id: PeerId) -> str | None:
        return "/ip4/127.0.0.1/tcp/1" if peer_id in self._others else None

    async def connect(self, address: str) -> PeerId:
        raise NotImplementedError

    def ban(self, peer_id: PeerId, *, duration_s: float | None = None) -> None:
        raise NotImplementedError

    def add_addresses(self, peer_id: PeerId, addresses: Iterable[str]) -> None:
        raise NotImplementedError

    def addresses_of(self, peer_id: PeerId) -> tuple[str, ...]:
        return ()

    def counters(self) -> dict[str, int]:
        return {}

    def _arrive(self, other: MemorySwitch, direction: Direction) -> None:
        self._others[other.peer_id] = other
        for watcher in self._watchers:
            watcher.send_nowait(_connected(other.peer_id, direction))

    async def _depart(self, peer_id: PeerId) -> None:
        del self._others[peer_id]
        for owner, stream in self._streams:
            if owner == peer_id:
                await stream.reset()
        for watcher in self._watchers:
            watcher.send_nowait(PeerDisconnected(peer_id=peer_id))

    async def _run(self, protocol: str, stream: MemoryStream) -> None:
        try:
            await self._handlers[protocol](stream)
        except Exception as error:  # noqa: BLE001 - the guard that a real switch has
            self.failures.append(error)
            await stream.reset()


def _connected(peer_id: PeerId, direction: Direction) -> PeerConnected:
    return PeerConnected(peer_id=peer_id, direction=direction, address="/ip4/127.0.0.1/tcp/1")
