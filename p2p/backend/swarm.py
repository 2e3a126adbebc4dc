"""Connections by py-libp2p's swarm: TCP, Noise, Yamux, and nothing else offered or accepted."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import multiaddr
import trio
from libp2p import new_swarm
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction as HostDirection
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service

from p2p.connection import Connection, ConnectionSink, RawStream
from p2p.errors import (
    DialFailed,
    LimitExceeded,
    NetworkClosed,
    PeerMismatch,
    PortInUse,
    StreamClosed,
    StreamReset,
)
from p2p.identity import Identity, PeerId
from p2p.limits import Limits
from p2p.multiaddress import Address
from p2p.network import Direction

RECEIVE_BYTES = 65_536


class SwarmStream(RawStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_closed = False
        self._has_sent_eof = False
        self._sending = trio.StrictFIFOLock()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closed or self._has_sent_eof:
            raise StreamClosed
        try:
            if data:
                await self._stream.write(bytes(data))
            else:
                await trio.lowlevel.checkpoint()
        except (BaseLibp2pError, ValueError) as error:
            raise StreamReset(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        if self._is_closed:
            raise StreamClosed
        if not self._has_sent_eof:
            self._has_sent_eof = True
            try:
                await self._stream.close_write()
            except BaseLibp2pError as error:
                raise StreamReset(str(error)) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._is_closed:
            raise StreamClosed
        try:
            return await self._stream.read(max_bytes or RECEIVE_BYTES)
        except StreamEOF:
            return b""
        except (BaseLibp2pError, ValueError) as error:
            raise StreamReset(str(error)) from error

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            try:
                await self._stream.close()
            except BaseLibp2pError:
                pass
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self._is_closed = True
        with trio.move_on_after(1):
            try:
                await self._stream.reset()
            except BaseLibp2pError:
                pass


class SwarmConnection(Connection):
    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._peer_id = PeerId.from_bytes(connection.muxed_conn.peer_id.to_bytes())
        is_inbound = connection.direction is HostDirection.INBOUND
        self._direction = Direction.INBOUND if is_inbound else Direction.OUTBOUND
        name = connection.muxed_conn.secured_conn.get_remote_address() or ("0.0.0.0", 0)
        self._remote = Address.of_socket(name)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def direction(self) -> Direction:
        return self._direction

    @property
    def remote(self) -> Address:
        return self._remote

    @property
    def is_closed(self) -> bool:
        return bool(self.connection.is_closed)

    async def open_stream(self) -> RawStream:
        try:
            return SwarmStream(await self.connection.new_stream())
        except BaseLibp2pError as error:
            raise StreamReset(str(error)) from error

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await self.connection.close()


class SwarmTransport:
    def __init__(self, swarm: Any, sink: ConnectionSink) -> None:
        self._swarm = swarm
        self._sink = sink
        self._connections: dict[Any, SwarmConnection] = {}
        self._nursery: trio.Nursery | None = None
        swarm.set_stream_handler(self._serve)
        swarm.register_notifee(_Notifee(self._adopt, self._lose))

    @property
    def listening(self) -> tuple[Address, ...]:
        return tuple(
            Address.parse(str(address))
            for listener in self._swarm.listeners.values()
            for address in listener.get_addrs()
        )

    async def listen(self, addresses: Sequence[Address]) -> None:
        for address in addresses:
            if address.port:
                await _require_free(address)
        for address in addresses:
            if not await self._swarm.listen(multiaddr.Multiaddr(str(address.with_peer(None)))):
                raise PortInUse(f"cannot listen on {address}")

    async def dial(self, address: Address) -> Connection:
        if address.peer_id is None:
            raise DialFailed("no peer id")
        peer = ID(address.peer_id.to_bytes())
        try:
            connection = await self._swarm.dial_addr(multiaddr.Multiaddr(str(address)), peer)
        except BaseLibp2pError as error:
            cause = error.__cause__
            if "mismatch" in f"{error} {cause}":
                raise PeerMismatch(str(cause)) from error
            raise DialFailed(str(error)) from error
        adopted = self._adopt(connection)
        if adopted is None:
            raise LimitExceeded("connections_max", 0)
        if adopted.peer_id != address.peer_id:
            await adopted.aclose()
            raise PeerMismatch(f"{adopted.peer_id} answered")
        return adopted

    def _adopt(self, connection: Any) -> SwarmConnection | None:
        if connection in self._connections:
            return self._connections[connection]
        if connection.is_closed:
            return None
        adopted = SwarmConnection(connection)
        try:
            self._sink.connected(adopted)
        except (LimitExceeded, NetworkClosed):
            return None
        self._connections[connection] = adopted
        return adopted

    async def _serve(self, stream: INetStream) -> None:
        connection = self._adopt(stream.swarm_conn)  # type: ignore[attr-defined]
        if connection is None:
            await stream.reset()
        else:
            await self._sink.stream_opened(connection, SwarmStream(stream))

    def _lose(self, connection: Any) -> None:
        adopted = self._connections.pop(connection, None)
        if adopted is not None:
            self._sink.disconnected(adopted)


class _Notifee(INotifee):
    def __init__(self, adopt: Callable[[Any], object], lose: Callable[[Any], None]) -> None:
        self._adopt = adopt
        self._lose = lose

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        if self._adopt(conn) is None:
            await conn.close()

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._lose(conn)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def listen(self, network: INetwork, multiaddr: Any) -> None: ...
    async def listen_close(self, network: INetwork, multiaddr: Any) -> None: ...


async def _require_free(address: Address) -> None:
    family = trio.socket.AF_INET6 if ":" in address.host else trio.socket.AF_INET
    with trio.socket.socket(family) as probe:
        probe.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        try:
            await probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            raise PortInUse(f"{address}: {error.strerror}") from error


@asynccontextmanager
async def open_transport(
    identity: Identity, limits: Limits, sink: ConnectionSink
) -> AsyncIterator[SwarmTransport]:
    """A transport that listens nowhere yet; closed with the block."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    key_pair = create_new_key_pair(identity.seed)
    noise_key = create_new_x25519_key_pair().private_key
    swarm = new_swarm(
        key_pair=key_pair,
        sec_opt={NOISE: NoiseTransport(key_pair, noise_privkey=noise_key)},
        muxer_opt={YAMUX: Yamux},  # type: ignore[dict-item]
        retry_config=RetryConfig(max_retries=0),
        connection_config=ConnectionConfig(
            max_connections=limits.connections_max,
            min_connections=0,
            low_watermark=0,
            high_watermark=limits.connections_max,
            auto_connect_interval=1e9,
            inbound_upgrade_timeout=limits.handshake_timeout_s,
            outbound_upgrade_timeout=limits.handshake_timeout_s,
        ),
    )
    async with background_trio_service(swarm):
        await swarm.event_background_nursery_created.wait()
        transport = SwarmTransport(swarm, sink)
        try:
            yield transport
        finally:
            with trio.CancelScope(shield=True):
                await swarm.close()
