"""The transport of the switch on our own sockets: TCP, Noise and Yamux, and no host below.

The rule: it implements `p2p.connection.Transport`; when `open_transport` is left, by any path, no
socket, listener or task remains.

Deviations: p2p.md keeps py-libp2p's swarm between switch and transport. The switch does by itself
all that the swarm would (dialling, negotiation, identify), so here nothing of libp2p is imported;
`p2p.backend.transport` carries the same connections into a swarm for plain py-libp2p programs.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from p2p.backend.connection import SecureConnection
from p2p.backend.endpoint import Endpoint, listen
from p2p.backend.interfaces import dialable
from p2p.connection import Connection, ConnectionSink
from p2p.errors import DialFailed, HandshakeFailed, LimitExceeded, NetworkClosed
from p2p.identity import Identity
from p2p.lifetime import open_background
from p2p.limits import Limits
from p2p.multiaddress import Address


class TcpTransport:
    """A `p2p.connection.Transport`; made by `open_transport`."""

    def __init__(
        self, identity: Identity, limits: Limits, sink: ConnectionSink, nursery: trio.Nursery
    ) -> None:
        self.endpoint = Endpoint(identity, limits, serve=sink.stream_opened)
        self._sink = sink
        self._nursery = nursery
        self._listening: list[Address] = []
        self.is_closed = False  # nobody would run a connection or a listener any more

    @property
    def listening(self) -> tuple[Address, ...]:
        return tuple(self._listening)

    def counters(self) -> dict[str, int]:
        """What was counted below the switch, by name."""
        return dict(self.endpoint.arena.counters)

    async def listen(self, addresses: Sequence[Address]) -> None:
        """Listen on every address, or on none.

        Raises:
            PortInUse, MalformedAddress: one of them fails.
            NetworkClosed: the transport has been left.
        """
        if self.is_closed:
            raise NetworkClosed
        listeners: list[socket.socket] = []
        try:
            listeners.extend(listen(address) for address in addresses)
        except BaseException:
            for listener in listeners:
                listener.close()
            raise
        for listener in listeners:
            self._listening += dialable(Address.of_socket(listener.getsockname()))
            self._nursery.start_soon(self.endpoint.accept_forever, listener, self._handle)
        await trio.lowlevel.checkpoint()

    async def dial(self, address: Address) -> Connection:
        """Connect to the peer that `address` names; the sink has been told when this returns.

        Raises:
            DialFailed, PeerMismatch, LimitExceeded: there is no connection, and no task is left.
        """
        if address.peer_id is None:
            raise DialFailed(f"{address} names no peer")
        connection = await self.endpoint.dial(address)
        try:
            if self.is_closed:  # while it was being dialled
                raise NetworkClosed
            self._sink.connected(connection)
        except (LimitExceeded, NetworkClosed) as error:
            connection.abort(str(error))
            raise LimitExceeded("connections_max", self.endpoint.limits.connections_max) from error
        # Before the task starts: the connection may be closed in the same turn of the loop.
        connection.on_closed.append(lambda: self._sink.disconnected(connection))
        self._nursery.start_soon(connection.run)
        return connection

    async def _handle(self, connection: SecureConnection) -> None:
        """Inbound: the endpoint closes the connection when this returns."""
        if connection.peer_id == self.endpoint.identity.peer_id:
            raise HandshakeFailed("this is ourselves")
        try:
            self._sink.connected(connection)
        except NetworkClosed as error:
            raise LimitExceeded("connections_max", 0) from error
        connection.on_closed.append(lambda: self._sink.disconnected(connection))
        await connection.run()


@asynccontextmanager
async def open_transport(
    identity: Identity, limits: Limits, sink: ConnectionSink
) -> AsyncIterator[TcpTransport]:
    """A transport that listens nowhere yet; its connections say goodbye when the block ends."""
    async with open_background() as nursery:
        transport = TcpTransport(identity, limits, sink, nursery)
        try:
            yield transport
        finally:
            transport.is_closed = True
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as closing:
                    for connection in tuple(transport.endpoint.arena.connections):
                        closing.start_soon(connection.aclose)


__all__ = ["TcpTransport", "open_transport"]
