"""A whole network in one process: no sockets, seeded weather, partitions, and trio's virtual time.

The rule: it is the product's own network — the same switchboard, gossipsub, Kademlia and peer
keeper — over another transport, and passes the same contract suite as the one on sockets.

    async with open_hub(seed=7, weather=Weather(latency_max_s=0.05)) as hub:
        async with hub.open_network(alice, listen=["/ip4/127.0.0.1/tcp/0"]) as network: ...
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from p2p.connection import HANDLER_GRACE_S, Connection, ConnectionSink
from p2p.errors import DialFailed, LimitExceeded, NetworkClosed, PeerMismatch, PortInUse
from p2p.gossipsub import GossipOptions
from p2p.identity import Identity, PeerId
from p2p.kademlia import RecordValidator
from p2p.lifetime import open_background
from p2p.limits import Limits
from p2p.memory.stream import MemoryConnection, MemoryStream
from p2p.memory.wire import Weather, Wire
from p2p.multiaddress import Address, Host
from p2p.network import Direction, Network
from p2p.stack import bootstrap_addresses, open_stack
from p2p.switchboard import Switchboard

FIRST_FREE_PORT = 49_152
"""Where the ports that nobody asked for by number begin (RFC 6335)."""


class MemoryHub:
    """Where the transports of one process meet; made by `open_hub`."""

    def __init__(self, weather: Weather, seed: int) -> None:
        self._wire = Wire(weather, seed)
        self._seed = seed
        self._listeners: dict[tuple[str, int], MemoryTransport] = {}
        self._transports: set[MemoryTransport] = set()
        self._ports = FIRST_FREE_PORT

    @asynccontextmanager
    async def open_network(
        self,
        identity: Identity,
        *,
        listen: Sequence[str] = (),
        bootstrap: Sequence[str] = (),
        limits: Limits | None = None,
        gossip: GossipOptions | None = None,
        record_validators: Mapping[str, RecordValidator] | None = None,
    ) -> AsyncIterator[Network]:
        """As `p2p.open_network`, in this process; chance is that of the hub's seed."""
        starts = bootstrap_addresses(bootstrap)
        rng = random.Random(f"{self._seed}/{identity.peer_id}")
        async with self.open_switch(identity, limits or Limits()) as switch:
            async with open_stack(
                switch,
                identity,
                bootstrap=starts,
                gossip=gossip,
                record_validators=record_validators,
                rng=rng,
            ) as network:
                await switch.listen(listen)
                yield network

    @asynccontextmanager
    async def open_switch(self, identity: Identity, limits: Limits) -> AsyncIterator[Switchboard]:
        """A switch that does not listen yet; closed with the block."""
        async with open_background() as nursery:
            switch = Switchboard(identity.peer_id, limits, nursery)
            transport = MemoryTransport(self, identity.peer_id, limits, switch, nursery)
            switch.attach(transport)
            self._transports.add(transport)
            try:
                yield switch
            finally:
                self._transports.discard(transport)
                self._listeners = {
                    place: other for place, other in self._listeners.items() if other != transport
                }
                with trio.CancelScope(shield=True):
                    await switch.aclose()

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Cut the network between the groups; peers in no group form one more.

        What is on its way across is held. A connection across that stays cut for the keepalive of
        its `Limits` breaks at both ends; one that is healed before goes on where it was.
        """
        self._wire.partition(groups)
        for transport in self._transports:
            transport.watch_cut_connections()

    def heal(self) -> None:
        """End every partition."""
        self.partition()

    @property
    def wire(self) -> Wire:
        """What carries everything."""
        return self._wire

    def bind(self, address: Address, transport: MemoryTransport) -> Address:
        """Give an address to a transport; port 0 takes a free one.

        Raises:
            PortInUse: another transport has it.
        """
        port = address.port
        while not port or (not address.port and (address.host, port) in self._listeners):
            self._ports, port = self._ports + 1, self._ports
        if (address.host, port) in self._listeners:
            raise PortInUse(f"{address}: another network of this hub listens there")
        self._listeners[address.host, port] = transport
        return Address(kind=address.kind, host=address.host, port=port)

    def unbind(self, address: Address) -> None:
        """Free an address."""
        self._listeners.pop((address.host, address.port), None)

    def listener_at(self, address: Address) -> MemoryTransport | None:
        """Who listens at an address."""
        return self._listeners.get((address.host, address.port))

    def name_of(self, peer_id: PeerId) -> Address:
        """The address that a dialling peer is seen at: one per peer, in 10.0.0.0/8."""
        tail = peer_id.public_key[:3]
        host = f"10.{tail[0]}.{tail[1]}.{tail[2]}"
        return Address(kind=Host.IP4, host=host, port=FIRST_FREE_PORT)


class MemoryTransport:
    """A `Transport` on a hub."""

    def __init__(
        self,
        hub: MemoryHub,
        own: PeerId,
        limits: Limits,
        sink: ConnectionSink,
        nursery: trio.Nursery,
    ) -> None:
        self._hub = hub
        self._own = own
        self._limits = limits
        self._sink = sink
        self._nursery = nursery
        self._listening: list[Address] = []
        self._connections: set[MemoryConnection] = set()
        self._handlers: dict[MemoryConnection, set[trio.CancelScope]] = {}
        self._counters: Counter[str] = Counter()

    @property
    def listening(self) -> tuple[Address, ...]:
        return tuple(self._listening)

    def counters(self) -> dict[str, int]:
        return dict(self._counters)

    async def listen(self, addresses: Sequence[Address]) -> None:
        await trio.lowlevel.checkpoint()
        bound: list[Address] = []
        try:
            bound.extend(self._hub.bind(address, self) for address in addresses)
        except PortInUse:
            for address in bound:
                self._hub.unbind(address)
            raise
        self._listening += bound

    async def dial(self, address: Address) -> Connection:
        await trio.lowlevel.checkpoint()
        target = self._hub.listener_at(address)
        if target is None:
            raise DialFailed("connection refused")
        if target._own != address.peer_id:
            raise PeerMismatch(f"{target._own} answers there")
        near, far = self._pair(target, address)
        answered = trio.Event()
        refusal: list[str] = []

        def arrive() -> None:
            try:
                target._adopt(far)
            except (LimitExceeded, NetworkClosed) as error:
                refusal.append(str(error))
            self._hub.wire.send(target._own, self._own, answered.set)

        self._hub.wire.send(self._own, target._own, arrive)
        try:
            await answered.wait()
            if refusal:
                raise DialFailed(f"refused: {refusal[0]}")
            if near.is_closed:
                raise DialFailed("the connection was lost at once")
            self._adopt(near)
        except BaseException:
            near.send(far.break_off)
            near.break_off()
            raise
        return near

    def watch_cut_connections(self) -> None:
        """Break the connections that are cut now and still are when their keepalive ends."""
        limits, wire = self._limits, self._hub.wire
        end_s = trio.current_time() + limits.keepalive_interval_s + limits.keepalive_timeout_s
        for connection in self._connections:
            if wire.is_cut(self._own, connection.peer_id):
                wire.at(end_s, lambda c=connection: self._break_if_cut(c))  # type: ignore[misc]

    def _break_if_cut(self, connection: MemoryConnection) -> None:
        if self._hub.wire.is_cut(self._own, connection.peer_id):
            connection.break_off()

    def _pair(
        self, target: MemoryTransport, address: Address
    ) -> tuple[MemoryConnection, MemoryConnection]:
        near = self._connection(target._own, Direction.OUTBOUND, address.with_peer(None))
        far = target._connection(self._own, Direction.INBOUND, self._hub.name_of(self._own))
        near.join(far)
        return near, far

    def _connection(self, peer: PeerId, direction: Direction, remote: Address) -> MemoryConnection:
        return MemoryConnection(
            self._hub.wire, self._own, peer, direction, remote, self._serve, self._lose
        )

    def _adopt(self, connection: MemoryConnection) -> None:
        self._sink.connected(connection)
        self._connections.add(connection)

    def _lose(self, connection: MemoryConnection) -> None:
        for scope in self._handlers.get(connection, ()):
            scope.deadline = trio.current_time() + HANDLER_GRACE_S
        if connection in self._connections:
            self._connections.discard(connection)
            self._sink.disconnected(connection)

    def _serve(self, connection: MemoryConnection, stream: MemoryStream) -> None:
        scope = trio.CancelScope()
        self._handlers.setdefault(connection, set()).add(scope)
        self._nursery.start_soon(self._run_handler, connection, stream, scope)

    async def _run_handler(
        self, connection: MemoryConnection, stream: MemoryStream, scope: trio.CancelScope
    ) -> None:
        try:
            with scope:
                await self._sink.stream_opened(connection, stream)
            if scope.cancelled_caught:
                self._counters["handlers_cancelled"] += 1
        finally:
            self._handlers[connection].discard(scope)
            if not self._handlers[connection]:
                del self._handlers[connection]


@asynccontextmanager
async def open_hub(*, seed: int = 0, weather: Weather | None = None) -> AsyncIterator[MemoryHub]:
    """A hub whose wire carries while the block lasts."""
    hub = MemoryHub(weather or Weather(), seed)
    async with open_background() as nursery:
        nursery.start_soon(hub.wire.run)
        yield hub


__all__ = ["MemoryHub", "open_hub"]
