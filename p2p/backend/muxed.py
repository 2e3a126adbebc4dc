"""Our connection and stream under the names that py-libp2p's swarm calls.

The rule: nothing but translation. The swarm drives `MuxedConnection.start` in a task of its own and
takes streams from `accept_stream`; our errors become py-libp2p's, and its `close` of a stream keeps
the meaning it has in py-libp2p's own Yamux: the end of our direction only.
"""

from __future__ import annotations

from types import TracebackType

import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from p2p import noise, yamux
from p2p.backend.connection import SecureConnection
from p2p.backend.stream import SecureStream
from p2p.errors import LimitExceeded, StreamClosed, StreamReset


class MuxedConnection(IMuxedConn):
    """A finished connection, as the swarm's path for QUIC expects one."""

    negotiated_security_protocol = noise.PROTOCOL_ID
    negotiated_muxer_protocol = yamux.PROTOCOL_ID

    def __init__(self, connection: SecureConnection) -> None:
        self.connection = connection
        self.peer_id = ID(connection.peer_id.to_bytes())
        self.event_started = trio.Event()

    @property
    def is_initiator(self) -> bool:
        return self.connection.is_initiator

    @property
    def is_established(self) -> bool:
        return not self.connection.is_closed

    @property
    def is_closed(self) -> bool:
        return self.connection.closed.is_set()

    async def start(self) -> None:
        """Drive the connection until it ends; never raises."""
        self.event_started.set()
        await self.connection.run()

    async def close(self) -> None:
        await self.connection.aclose()

    async def open_stream(self) -> MuxedStream:
        try:
            return MuxedStream(self, await self.connection.open_stream())
        except (StreamReset, LimitExceeded) as error:
            raise MuxedConnUnavailable(str(error)) from error

    async def accept_stream(self) -> MuxedStream:
        try:
            return MuxedStream(self, await self.connection.accept_stream())
        except StreamReset as error:
            raise MuxedConnUnavailable(str(error)) from error

    def get_transport_addresses(self) -> list[Multiaddr]:
        return [Multiaddr(str(self.connection.remote))]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    def get_remote_address(self) -> tuple[str, int]:
        return self.connection.remote.host, self.connection.remote.port


class MuxedStream(IMuxedStream):
    """A stream under py-libp2p's names; `stream` is ours, for whoever knows it."""

    def __init__(self, muxed_conn: MuxedConnection, stream: SecureStream) -> None:
        self.muxed_conn = muxed_conn
        self.stream = stream

    async def read(self, n: int | None = -1) -> bytes:
        """Up to `n` bytes, or what is at hand for None and -1; `MuxedStreamEOF` at the end."""
        if n == 0:
            return b""
        try:
            data = await self.stream.receive_some(None if n is None or n < 0 else n)
        except (StreamReset, StreamClosed) as error:
            raise MuxedStreamReset(str(error)) from error
        if not data:
            raise MuxedStreamEOF("the peer has ended its direction")
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except StreamClosed as error:
            raise MuxedStreamClosed(str(error)) from error
        except StreamReset as error:
            raise MuxedStreamReset(str(error)) from error

    async def close_write(self) -> None:
        try:
            await self.stream.send_eof()
        except (StreamReset, StreamClosed) as error:
            raise MuxedStreamReset(str(error)) from error

    async def close(self) -> None:
        """End our direction; the peer's can still be read."""
        if not self.stream.is_closed:
            await self.close_write()

    async def reset(self) -> None:
        await self.stream.reset()

    def set_deadline(self, ttl: int) -> None:
        """Unsupported here as in py-libp2p's Yamux: use trio's cancel scopes."""
        raise NotImplementedError("use trio.fail_after")

    def get_remote_address(self) -> tuple[str, int]:
        remote = self.stream.connection.remote
        return remote.host, remote.port

    async def __aenter__(self) -> MuxedStream:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()


__all__ = ["MuxedConnection", "MuxedStream"]
