"""The switch: which peers are connected, who serves what, and the guard around every stranger.

The rule: whatever a peer sends ends at most its own stream or connection, and is counted. Handlers
run behind one guard; connections, streams, negotiations, dials, bans and addresses are bounded by
`Limits`. It runs on any `Transport`: sockets (`p2p.backend`) or one process (`p2p.memory`).

Policies: a peer may hold `CONNECTIONS_PER_PEER_MAX` connections (two peers that dial each other at
once end with two) and streams open on the newest. Full of connections, inbound ones are refused
first: `OUTBOUND_SHARE` of the places is kept for our own dials.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import trio

from p2p import identify
from p2p.address_book import AddressBook
from p2p.connection import Connection, RawStream, Transport
from p2p.dialing import Dialer
from p2p.errors import (
    DialFailed,
    LimitExceeded,
    MalformedAddress,
    NetworkClosed,
    NotConnected,
    ProtocolViolation,
)
from p2p.guard import StreamGuard, reset
from p2p.identity import PeerId
from p2p.introduction import Introductions
from p2p.limits import Limits
from p2p.multiaddress import Address
from p2p.multistream import NegotiatedStream, propose, propose_optimistically
from p2p.network import Direction, PeerConnected, PeerDisconnected, Stream, StreamHandler
from p2p.peer_watch import PeerWatchers
from p2p.ping import PING, answer_pings
from p2p.switch import PeerIdentified, SwitchEvent

CONNECTIONS_PER_PEER_MAX = 4
"""Two for a simultaneous dial, and two more while lost ones have not been noticed yet."""

OUTBOUND_SHARE = 0.25
"""Of `connections_max`: so that strangers can never keep us from reaching whom we want."""


class _OpenStream(AbstractAsyncContextManager[Stream]):
    """Opens a stream for a block, which resets it by raising. A class: see `peer_use`."""

    __slots__ = ("_open", "_stream")

    def __init__(self, open_stream: Callable[[], Awaitable[NegotiatedStream]]) -> None:
        self._open = open_stream

    async def __aenter__(self) -> Stream:
        self._stream = await self._open()
        return self._stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            await self._stream.leave()
        else:
            await reset(self._stream)


class Switchboard:
    """A `p2p.switch.Switch` on a transport; opened and closed by `p2p.backend` or `p2p.memory`."""

    def __init__(self, peer_id: PeerId, limits: Limits, nursery: trio.Nursery) -> None:
        self._peer_id = peer_id
        self._limits = limits
        self._nursery = nursery
        self._transport: Transport | None = None
        self._dialer: Dialer | None = None
        self._is_closed = False
        self._connections: dict[PeerId, list[Connection]] = {}
        self._protocols: dict[PeerId, frozenset[str]] = {}
        self._bans: dict[PeerId, float] = {}
        self._watchers = PeerWatchers()
        self._counters: Counter[str] = Counter()
        self.book = AddressBook(
            peers_max=limits.address_book_peers_max,
            addresses_per_peer_max=limits.addresses_per_peer_max,
        )
        self._guard = StreamGuard(limits, self.count)
        self._guard.serve(PING, answer_pings)
        self._introductions = Introductions(
            limits=limits,
            open_stream=functools.partial(self.open_stream, dial=False),
            describe_to=self._describe_to,
            heard=self._heard,
            count=self.count,
        )
        self._guard.serve(identify.IDENTIFY, self._introductions.tell)
        self._guard.serve(identify.IDENTIFY_PUSH, self._introductions.hear)

    # What it is

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def listening(self) -> tuple[Address, ...]:
        """Where the transport listens, as full addresses."""
        if self._transport is None:
            return ()
        return tuple(address.with_peer(self._peer_id) for address in self._transport.listening)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(str(address) for address in self.listening)

    @property
    def peers(self) -> frozenset[PeerId]:
        return frozenset(self._connections)

    def counters(self) -> dict[str, int]:
        below = {} if self._transport is None else self._transport.counters()
        return dict(self._counters + Counter(below))

    def count(self, name: str) -> None:
        """Add one to a counter."""
        self._counters[name] += 1

    def direction_of(self, peer_id: PeerId) -> Direction | None:
        """Who dialled the oldest connection to a peer; None when it is not connected."""
        connections = self._connections.get(peer_id)
        return connections[0].direction if connections else None

    def remote_address_of(self, peer_id: PeerId) -> str | None:
        connections = self._connections.get(peer_id)
        return str(connections[-1].remote) if connections else None

    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        return self._protocols.get(peer_id, frozenset())

    def add_addresses(self, peer_id: PeerId, addresses: Iterable[str]) -> None:
        self.book.add(peer_id, addresses)

    def addresses_of(self, peer_id: PeerId) -> tuple[str, ...]:
        return tuple(str(address) for address in self.book.of(peer_id))

    def watch_peers(self) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[SwitchEvent]]:
        return self._watchers.watch()

    # Connecting

    async def listen(self, addresses: Sequence[str]) -> None:
        """Listen on every address, or on none; `MalformedAddress`, `PortInUse`, `NetworkClosed`."""
        if self._transport is None or self._is_closed:
            raise NetworkClosed
        await self._transport.listen([Address.parse(text) for text in addresses])
        self._nursery.start_soon(self._push_identity)

    async def connect(self, address: str) -> PeerId:
        target = address if isinstance(address, PeerId) else None
        addresses: tuple[Address, ...]
        if target is None:
            parsed = Address.parse(address)
            if parsed.peer_id is None:
                raise MalformedAddress(f"{address!r} does not end in /p2p/ID")
            target, addresses = parsed.peer_id, (parsed,)
        else:
            addresses = self.book.of(target)
        if target == self._peer_id:
            raise MalformedAddress(f"{address!r} is this peer itself")
        if target in self._connections:
            return target
        if not addresses:
            raise NotConnected(f"no address of {target} is known")
        if self._dialer is None or self._is_closed:
            raise NetworkClosed
        self._counters["dials"] += 1
        try:
            await self._dialer.dial(target, addresses, lambda: target in self._connections)
        except DialFailed:
            self._counters["dials_failed"] += 1
            raise
        return target

    async def disconnect(self, peer_id: PeerId) -> None:
        for connection in tuple(self._connections.get(peer_id, ())):
            await connection.aclose()

    def ban(self, peer_id: PeerId, *, duration_s: float | None = None) -> None:
        if self._is_closed:
            return
        duration_s = self._limits.ban_s if duration_s is None else duration_s
        self._bans.pop(peer_id, None)
        self._bans[peer_id] = trio.current_time() + duration_s
        if len(self._bans) > self._limits.bans_max:
            del self._bans[min(self._bans, key=self._bans.__getitem__)]
        self._counters["bans"] += 1
        self._nursery.start_soon(self.disconnect, peer_id)

    def is_banned(self, peer_id: PeerId) -> bool:
        """Whether the peer is refused now."""
        until_s = self._bans.get(peer_id)
        if until_s is None:
            return False
        if trio.current_time() < until_s:
            return True
        del self._bans[peer_id]
        return False

    # Streams

    def open_stream(
        self, peer_id: PeerId, *protocols: str, dial: bool = True
    ) -> AbstractAsyncContextManager[Stream]:
        if not protocols:
            raise ValueError("a stream needs at least one protocol")
        return _OpenStream(functools.partial(self._open_stream, peer_id, protocols, dial=dial))

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._guard.serve(protocol, handler)
        self._nursery.start_soon(self._push_identity)

    def unserve(self, protocol: str) -> None:
        if self._guard.unserve(protocol) and not self._is_closed:
            self._nursery.start_soon(self._push_identity)

    async def _open_stream(
        self, peer_id: PeerId, protocols: tuple[str, ...], *, dial: bool
    ) -> NegotiatedStream:
        if peer_id not in self._connections:
            if not dial:
                raise NotConnected(f"{peer_id} is not connected")
            await self.connect(peer_id)
        raw = await self._newest_connection(peer_id).open_stream()
        known = self._protocols.get(peer_id)
        if known is not None:
            for protocol in protocols:
                if protocol in known:
                    return propose_optimistically(raw, peer_id, protocol)
        try:
            with trio.fail_after(self._limits.negotiation_timeout_s):
                return await propose(raw, peer_id, protocols)
        except trio.TooSlowError as error:
            await reset(raw)
            raise ProtocolViolation("the peer did not negotiate in time") from error
        except BaseException:
            await reset(raw)
            raise

    def _newest_connection(self, peer_id: PeerId) -> Connection:
        for connection in reversed(self._connections.get(peer_id, ())):
            if not connection.is_closed:
                return connection
        raise NotConnected(f"the connection to {peer_id} has just been lost")

    # What the transport tells (ConnectionSink)

    def connected(self, connection: Connection) -> None:
        """Take a finished connection in, or refuse it; see `ConnectionSink`."""
        peer_id = connection.peer_id
        connections = self._connections.get(peer_id, [])
        if self._is_closed:
            raise NetworkClosed
        if self.is_banned(peer_id):
            self._refuse("ban_s", self._limits.ban_s)
        if len(connections) >= CONNECTIONS_PER_PEER_MAX:
            self._refuse("CONNECTIONS_PER_PEER_MAX", CONNECTIONS_PER_PEER_MAX)
        total = sum(len(each) for each in self._connections.values())
        places = self._limits.connections_max
        if connection.direction is Direction.INBOUND:
            places -= int(places * OUTBOUND_SHARE)
        if total >= places:
            self._refuse("connections_max", self._limits.connections_max)
        self._connections[peer_id] = [*connections, connection]
        self._counters[f"connections_{connection.direction.value}"] += 1
        if not connections:
            self._watchers.tell(
                PeerConnected(
                    peer_id=peer_id,
                    direction=connection.direction,
                    address=str(connection.remote),
                )
            )
            self._nursery.start_soon(self._introductions.ask, peer_id)

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection; see `ConnectionSink`."""
        peer_id = connection.peer_id
        remaining = [c for c in self._connections.get(peer_id, ()) if c is not connection]
        if remaining:
            self._connections[peer_id] = remaining
        elif self._connections.pop(peer_id, None) is not None:
            self._protocols.pop(peer_id, None)
            self._watchers.tell(PeerDisconnected(peer_id=peer_id))

    def stream_opened(self, connection: Connection, stream: RawStream) -> Coroutine[Any, Any, None]:
        """Serve one inbound stream; see `ConnectionSink`."""
        return self._guard.serve_stream(connection, stream)

    def _refuse(self, limit: str, value: float) -> None:
        self._counters["connections_refused"] += 1
        raise LimitExceeded(limit, value)

    # identify

    def _heard(self, peer_id: PeerId, said: identify.Identification) -> None:
        if peer_id not in self._connections:
            return
        self._protocols[peer_id] = said.protocols
        addresses = tuple(str(address) for address in said.addresses)
        self.book.add(peer_id, addresses)
        self._watchers.tell(
            PeerIdentified(
                peer_id=peer_id, protocols=said.protocols, addresses=addresses, agent=said.agent
            )
        )

    def _describe_to(self, peer_id: PeerId) -> bytes:
        observed = self._newest_connection(peer_id).remote
        # Our loopback address means something else, or nothing, to a peer that is elsewhere.
        told = [a for a in self.listening if observed.is_loopback or not a.is_loopback]
        return identify.encode(self._peer_id, self._guard.protocols, told, observed)

    async def _push_identity(self) -> None:
        """Tell every connected peer that speaks identify-push what has changed."""
        await self._introductions.push(
            [
                peer_id
                for peer_id, protocols in self._protocols.items()
                if identify.IDENTIFY_PUSH in protocols
            ]
        )

    # Its lifetime

    def attach(self, transport: Transport) -> None:
        """Use `transport` from now on; called once, before anything else."""
        self._transport = transport
        self._dialer = Dialer(transport, self.book, self._limits)

    async def aclose(self) -> None:
        """Close every connection and end every watcher. Idempotent."""
        self._is_closed = True
        async with trio.open_nursery() as nursery:
            for connections in tuple(self._connections.values()):
                for connection in connections:
                    nursery.start_soon(connection.aclose)
        self._watchers.close()


__all__ = ["Switchboard"]
