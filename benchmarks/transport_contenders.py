"""The contenders of `benchmarks.transport`: five ways to move bytes between two processes.

The rule: each does the same three things over whatever it recommends itself for bytes — answer an
echo, swallow a payload and acknowledge it, and set up a connection — through its public interface
and with its defaults, except that py-libp2p is kept to Noise.

    tcp          trio.SocketStream                          no encryption, no multiplexing
    tls          trio.SSLStream, TLS 1.3                    no multiplexing
    grpc_aio_tls grpc.aio, TLS, raw bytes: unary calls up to 64 KiB, streams of 64 KiB beyond
    py_libp2p    stock host: TCP, Noise, Yamux              one stream, host.connect
    agora        p2p.open_network                           one stream, network.connect

A gRPC message is limited to 4 MiB by default, and its documentation advises 16 to 64 KiB for the
messages of a stream; sending 16 MiB in one unary call with the limits lifted is faster where both
sides want it, and is measured beside the five as `grpc_aio_tls_unary`.

On streams an exchange is `operation (1 byte) || size (8 bytes) || payload`.
"""

from __future__ import annotations

import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import trio
import trustme

import p2p
from benchmarks.measure import answer_commands, tell, usage

ECHO, SINK = b"E", b"S"
HEADER = struct.Struct(">cQ")
CONCURRENT_BYTES_MIN = 65_537
"""Echoes from this size on are sent and received at the same time, or both sides would wait."""

PROTOCOL = "/benchmark/1"
HOST = "127.0.0.1"
NAME = "localhost"

Receive = Callable[[], Awaitable[bytes | bytearray]]
Send = Callable[[bytes], Awaitable[None]]


class Driver(Protocol):
    """The client side of one contender."""

    async def echo(self, payload: bytes) -> None:
        """Send `payload` and have it back."""
        ...

    async def sink(self, payload: bytes) -> None:
        """Send `payload` and have its arrival acknowledged."""
        ...

    def connect(self) -> Awaitable[Callable[[], Awaitable[None]]]:
        """Set up one more connection, ready for use; the answer takes it down."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """How one contender serves (telling its address) and how it is driven."""

    serve: Callable[[], Awaitable[None]]
    drive: Callable[[dict[str, Any]], AbstractAsyncContextManager[Driver]]
    runs_on: str = "trio"


async def serve_exchanges(receive: Receive, send: Send) -> None:
    """Answer the exchanges of one stream until it ends."""
    data = b""
    while True:
        while len(data) < HEADER.size:
            piece = await receive()
            if not piece:
                return
            data += piece
        operation, size = HEADER.unpack_from(data)
        piece, data = data[HEADER.size :], b""
        remaining = size
        while True:
            remaining -= len(piece)
            if operation == ECHO and piece:
                await send(bytes(piece))
            if not remaining:
                break
            piece = await receive()
        if operation == SINK:
            await send(b"\x01")


class StreamDriver:
    """Drives the exchanges over one stream."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        connect: Callable[[], Awaitable[Callable[[], Awaitable[None]]]],
    ) -> None:
        self._receive = receive
        self._send = send
        self.connect = connect

    async def echo(self, payload: bytes) -> None:
        header = HEADER.pack(ECHO, len(payload))
        if len(payload) < CONCURRENT_BYTES_MIN:
            await self._send(header + payload)
            await self._expect(len(payload))
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_both, header, payload)
            await self._expect(len(payload))

    async def sink(self, payload: bytes) -> None:
        await self._send_both(HEADER.pack(SINK, len(payload)), payload)
        await self._expect(1)

    async def _send_both(self, header: bytes, payload: bytes) -> None:
        await self._send(header)
        await self._send(payload)

    async def _expect(self, count: int) -> None:
        while count:
            piece = await self._receive()
            if not piece:
                raise RuntimeError("the server ended the stream")
            count -= len(piece)


async def report_until_end_of_input() -> None:
    """Tell CPU and memory whenever asked, until the benchmark closes the standard input."""

    async def answer(_: dict[str, Any]) -> dict[str, Any]:
        return dict(usage())

    await answer_commands(answer)


# Raw TCP and TLS


async def _serve_trio_stream(stream: trio.abc.Stream) -> None:
    try:
        await serve_exchanges(stream.receive_some, stream.send_all)
    except trio.BrokenResourceError:
        return  # connections of the connect benchmark end abruptly


def _port_of(listener: Any) -> int:
    port: int = listener.socket.getsockname()[1]
    return port


async def serve_tcp() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, _serve_trio_stream, 0)
        tell(address={"port": _port_of(listeners[0])})
        await report_until_end_of_input()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def drive_tcp(address: dict[str, Any]) -> AsyncIterator[Driver]:
    async def connect() -> Callable[[], Awaitable[None]]:
        return (await trio.open_tcp_stream(HOST, address["port"])).aclose

    async with await trio.open_tcp_stream(HOST, address["port"]) as stream:
        yield StreamDriver(stream.receive_some, stream.send_all, connect)


async def serve_tls() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    authority.issue_cert(NAME).configure_cert(context)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_ssl_over_tcp, _serve_trio_stream, 0, context)
        port = _port_of(listeners[0].transport_listener)
        tell(address={"port": port, "authority": authority.cert_pem.bytes().decode()})
        await report_until_end_of_input()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def drive_tls(address: dict[str, Any]) -> AsyncIterator[Driver]:
    context = ssl.create_default_context(cadata=address["authority"])

    async def open_stream() -> Any:
        plain = await trio.open_tcp_stream(HOST, address["port"])
        stream = trio.SSLStream(plain, context, server_hostname=NAME)
        await stream.do_handshake()
        return stream

    async def connect() -> Callable[[], Awaitable[None]]:
        close: Callable[[], Awaitable[None]] = (await open_stream()).transport_stream.aclose
        return close

    stream = await open_stream()
    yield StreamDriver(stream.receive_some, stream.send_all, connect)
    await stream.transport_stream.aclose()


# gRPC


_GRPC_MESSAGE_BYTES = 65_536
_GRPC_LIMITS_LIFTED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


async def serve_grpc() -> None:
    import asyncio

    import grpc

    async def echo(request: bytes, _: Any) -> bytes:
        return request

    async def sink(_: bytes, __: Any) -> bytes:
        return b"\x01"

    async def echo_stream(messages: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message

    async def sink_stream(messages: AsyncIterator[bytes], _: Any) -> bytes:
        async for _message in messages:
            pass
        return b"\x01"

    authority = trustme.CA()
    certificate = authority.issue_cert(NAME)
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    server = grpc.aio.server(options=_GRPC_LIMITS_LIFTED)
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Sink": grpc.unary_unary_rpc_method_handler(sink),
        "EchoStream": grpc.stream_stream_rpc_method_handler(echo_stream),
        "SinkStream": grpc.stream_unary_rpc_method_handler(sink_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("b.B", methods),))
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    port = server.add_secure_port(f"{HOST}:0", credentials)
    await server.start()
    tell(address={"port": port, "authority": authority.cert_pem.bytes().decode()})
    while await asyncio.to_thread(sys.stdin.readline):
        tell(**usage())
    await server.stop(None)


class GrpcDriver:
    """Calls over one channel; unary ones up to `unary_bytes_max`."""

    def __init__(self, open_channel: Callable[[], Any], unary_bytes_max: float) -> None:
        self._unary_bytes_max = unary_bytes_max
        self._open_channel = open_channel
        self.channel = open_channel()
        self._echo = self.channel.unary_unary("/b.B/Echo")
        self._sink = self.channel.unary_unary("/b.B/Sink")
        self._echo_stream = self.channel.stream_stream("/b.B/EchoStream")
        self._sink_stream = self.channel.stream_unary("/b.B/SinkStream")

    async def echo(self, payload: bytes) -> None:
        received = 0
        if len(payload) <= self._unary_bytes_max:
            received = len(await self._echo(payload))
        else:
            async for message in self._echo_stream(_messages(payload)):
                received += len(message)
        if received != len(payload):
            raise RuntimeError("the echo is cut short")

    async def sink(self, payload: bytes) -> None:
        if len(payload) <= self._unary_bytes_max:
            await self._sink(payload)
        else:
            await self._sink_stream(_messages(payload))

    async def connect(self) -> Callable[[], Awaitable[None]]:
        channel = self._open_channel()
        await channel.channel_ready()
        close: Callable[[], Awaitable[None]] = channel.close
        return close


async def _messages(payload: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(payload), _GRPC_MESSAGE_BYTES):
        yield payload[start : start + _GRPC_MESSAGE_BYTES]


def drive_grpc(address: dict[str, Any]) -> AbstractAsyncContextManager[Driver]:
    return _drive_grpc(address, _GRPC_MESSAGE_BYTES)


def drive_grpc_unary(address: dict[str, Any]) -> AbstractAsyncContextManager[Driver]:
    return _drive_grpc(address, float("inf"))


@asynccontextmanager
async def _drive_grpc(address: dict[str, Any], unary_bytes_max: float) -> AsyncIterator[Driver]:
    import grpc

    credentials = grpc.ssl_channel_credentials(address["authority"].encode())
    # Channels to one target share a connection unless each has a pool of its own.
    options = [
        *_GRPC_LIMITS_LIFTED,
        ("grpc.ssl_target_name_override", NAME),
        ("grpc.use_local_subchannel_pool", 1),
    ]

    def open_channel() -> Any:
        return grpc.aio.secure_channel(f"{HOST}:{address['port']}", credentials, options=options)

    driver = GrpcDriver(open_channel, unary_bytes_max)
    await driver.channel.channel_ready()
    yield driver
    await driver.channel.close()


# Stock py-libp2p


def _new_stock_host() -> Any:
    import logging

    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport

    logging.disable(logging.WARNING)  # it writes a line for every connection that ends
    key_pair = create_new_key_pair()
    noise = Transport(key_pair, noise_privkey=create_new_noise_key_pair().private_key)
    return new_host(key_pair=key_pair, sec_opt={PROTOCOL_ID: noise})


def _stock_receive(stream: Any) -> Receive:
    from libp2p.network.stream.exceptions import StreamError

    async def receive() -> bytes:
        try:
            data: bytes = await stream.read(65_536)
        except StreamError:
            return b""
        return data

    return receive


async def serve_py_libp2p() -> None:
    from multiaddr import Multiaddr

    host = _new_stock_host()

    async def handle(stream: Any) -> None:
        await serve_exchanges(_stock_receive(stream), stream.write)

    host.set_stream_handler(PROTOCOL, handle)
    async with host.run([Multiaddr(f"/ip4/{HOST}/tcp/0")]):
        tell(address={"multiaddr": str(host.get_addrs()[0])})
        await report_until_end_of_input()


@asynccontextmanager
async def drive_py_libp2p(address: dict[str, Any]) -> AsyncIterator[Driver]:
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    peer = info_from_p2p_addr(Multiaddr(address["multiaddr"]))
    host, other = _new_stock_host(), _new_stock_host()

    async def connect() -> Callable[[], Awaitable[None]]:
        await other.connect(peer)

        async def disconnect() -> None:
            await other.disconnect(peer.peer_id)

        return disconnect

    async with host.run([]), other.run([]):
        await host.connect(peer)
        stream = await host.new_stream(peer.peer_id, [PROTOCOL])
        yield StreamDriver(_stock_receive(stream), stream.write, connect)


# Ours


async def serve_agora() -> None:
    async def handle(stream: p2p.Stream) -> None:
        await serve_exchanges(stream.receive_some, stream.send_all)

    identity = p2p.Identity.generate()
    async with p2p.open_network(identity, listen=[f"/ip4/{HOST}/tcp/0"]) as network:
        await network.serve(PROTOCOL, handle)
        tell(address={"multiaddr": network.addresses[0]})
        await report_until_end_of_input()


@asynccontextmanager
async def drive_agora(address: dict[str, Any]) -> AsyncIterator[Driver]:
    async with (
        p2p.open_network(p2p.Identity.generate()) as network,
        p2p.open_network(p2p.Identity.generate()) as other,
    ):

        async def connect() -> Callable[[], Awaitable[None]]:
            peer_id = await other.connect(address["multiaddr"])

            async def disconnect() -> None:
                await other.disconnect(peer_id)

            return disconnect

        peer_id = await network.connect(address["multiaddr"])
        async with network.open_stream(peer_id, PROTOCOL) as stream:
            yield StreamDriver(stream.receive_some, stream.send_all, connect)


CONTENDERS: dict[str, Contender] = {
    "tcp": Contender(serve=serve_tcp, drive=drive_tcp),
    "tls": Contender(serve=serve_tls, drive=drive_tls),
    "grpc_aio_tls": Contender(serve=serve_grpc, drive=drive_grpc, runs_on="asyncio"),
    "py_libp2p": Contender(serve=serve_py_libp2p, drive=drive_py_libp2p),
    "agora": Contender(serve=serve_agora, drive=drive_agora),
}
BESIDE: dict[str, Contender] = {
    "grpc_aio_tls_unary": Contender(serve=serve_grpc, drive=drive_grpc_unary, runs_on="asyncio"),
}
ALL = CONTENDERS | BESIDE

__all__ = ["ALL", "BESIDE", "CONTENDERS", "Contender", "Driver"]
