"""Connections and streams over real loopback sockets, and what they leave behind."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio

from p2p.backend.connection import SecureConnection
from p2p.backend.endpoint import Endpoint, listen
from p2p.backend.stream import SecureStream
from p2p.backend.tcp import TcpTransport, open_transport
from p2p.connection import Connection, RawStream
from p2p.identity import Identity
from p2p.limits import Limits
from p2p.multiaddress import Address

DIALLER = Identity(bytes(31) + b"\x11")
LISTENER = Identity(bytes(31) + b"\x12")
ANYWHERE = Address.parse("/ip4/127.0.0.1/tcp/0")


@dataclass
class Sink:
    """A switch that echoes every stream and remembers what it was told."""

    alive: list[Connection] = field(default_factory=list)
    gone: list[Connection] = field(default_factory=list)
    failure: Exception | None = None  # raised by the handler

    def connected(self, connection: Connection) -> None:
        self.alive.append(connection)

    def disconnected(self, connection: Connection) -> None:
        self.alive.remove(connection)
        self.gone.append(connection)

    async def stream_opened(self, connection: Connection, stream: RawStream) -> None:
        if self.failure is not None:
            raise self.failure
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                await stream.send_all(data)
            await stream.aclose()


@asynccontextmanager
async def listening(
    limits: Limits | None = None, sink: Sink | None = None
) -> AsyncIterator[tuple[TcpTransport, Address]]:
    """A transport that listens as `LISTENER`, and its full address."""
    async with open_transport(LISTENER, limits or Limits(), sink or Sink()) as transport:
        await transport.listen([ANYWHERE])
        yield transport, transport.listening[0].with_peer(LISTENER.peer_id)


@asynccontextmanager
async def connection_pair(
    limits: Limits | None = None,
) -> AsyncIterator[tuple[SecureConnection, SecureConnection]]:
    """Both ends of one connection, running; inbound streams wait for `accept_stream`."""
    dialler, listener = (
        Endpoint(DIALLER, limits or Limits()),
        Endpoint(LISTENER, limits or Limits()),
    )
    sock = listen(ANYWHERE)
    address = Address.of_socket(sock.getsockname()).with_peer(LISTENER.peer_id)
    accepted_send, accepted = trio.open_memory_channel[SecureConnection](1)

    async def handle(connection: SecureConnection) -> None:
        await accepted_send.send(connection)
        await connection.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept_forever, sock, handle)
        dialled = await dialler.dial(address)
        nursery.start_soon(dialled.run)
        yield dialled, await accepted.receive()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stream_pair(
    limits: Limits | None = None,
) -> AsyncIterator[tuple[SecureStream, SecureStream]]:
    """Both ends of one stream; the first byte has opened it."""
    async with connection_pair(limits) as (near, far):
        ours = await near.open_stream()
        await ours.send_all(b".")
        theirs = await far.accept_stream()
        assert await theirs.receive_some() == b"."
        yield ours, theirs


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """`count` bytes, or fewer when the stream ends."""
    received = bytearray()
    while len(received) < count and (data := await stream.receive_some()):
        received += data
    return bytes(received)


def plain_socket(address: Address) -> socket.socket:
    """A connected TCP socket that has said nothing; blocking, with a deadline."""
    return socket.create_connection((address.host, address.port), timeout=5)


def is_closed_by_peer(sock: socket.socket) -> bool:
    """Read to the end: whether the other side closes within the socket's deadline."""
    try:
        while sock.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))
