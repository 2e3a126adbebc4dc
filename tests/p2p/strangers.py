"""Those who do not keep to the rules: one function per kind of misbehaviour, against any address.

Each returns when it has done what it can; what the node made of it is for the test to see.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

import p2p
from p2p.backend.connection import SecureConnection
from p2p.backend.endpoint import Endpoint
from p2p.gossipsub import PROTOCOLS as MESHSUB
from p2p.identify import IDENTIFY, IDENTIFY_PUSH
from p2p.kademlia import PROTOCOL as KADEMLIA
from p2p.multiaddress import Address
from p2p.multistream import HEADER, encode_line
from p2p.noise.payload_pb2 import NoiseHandshakePayload
from p2p.ping import PING
from p2p.yamux.frame import Flag, Type, encode_header
from tests.p2p.networks import ECHO
from tests.p2p.victim import DEAF


@dataclass(frozen=True)
class Target:
    """Whom to attack, from where, and how hard."""

    address: Address
    rng: random.Random
    size: int  # inputs of a fuzzer; other attacks derive their numbers from it
    source: str = "127.0.0.1"

    @property
    def place(self) -> tuple[str, int]:
        """For a socket."""
        return (self.address.host, self.address.port)


Attack = Callable[[Target], Awaitable[None]]


async def tcp(target: Target) -> trio.SocketStream:
    """A bare TCP connection."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        await sock.bind((target.source, 0))
        await sock.connect(target.place)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


@asynccontextmanager
async def secured(
    target: Target, identity: p2p.Identity | None = None
) -> AsyncIterator[SecureConnection]:
    """A finished connection of a peer that nobody knows."""
    endpoint = Endpoint(identity or p2p.Identity(target.rng.randbytes(32)), p2p.Limits())
    connection = await endpoint.dial(target.address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            yield connection
        finally:
            connection.abort("the test is over")
            nursery.cancel_scope.cancel()


def write_frames(connection: SecureConnection, frames: bytes) -> None:
    """Put raw Yamux frames on the wire, whatever our own session thinks of them."""
    connection.session.control += frames
    connection.flush()


async def garbage_on_the_socket(target: Target) -> None:
    """Random bytes, and beginnings of what is expected followed by random bytes."""
    starts = [b"", encode_line(HEADER), encode_line(HEADER) + encode_line("/noise"), b"GET / "]
    for number in range(target.size):
        stream = await tcp(target)
        with contextlib.suppress(trio.BrokenResourceError):
            data = starts[number % len(starts)] + target.rng.randbytes(target.rng.randrange(300))
            await stream.send_all(data)
            if number % 3 == 0:
                await stream.send_eof()
        await trio.aclose_forcefully(stream)


async def other_security(target: Target) -> None:
    """Whoever insists on plaintext, secio or TLS is told `na` and gets no further."""
    for protocol in ("/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"):
        stream = await tcp(target)
        await stream.send_all(encode_line(HEADER) + encode_line(protocol))
        received = b""
        while not received.endswith(encode_line("na")):
            data = await stream.receive_some()
            assert data, f"closed before answering {protocol}: {received!r}"
            received += data
        assert received == encode_line(HEADER) + encode_line("na")
        await trio.aclose_forcefully(stream)


async def impersonation(target: Target) -> None:
    """A static key certified by one identity, presented with the id of another."""
    for number in range(max(1, target.size // 20)):
        mine = p2p.Identity(target.rng.randbytes(32))
        endpoint = Endpoint(mine, p2p.Limits())
        payload = NoiseHandshakePayload.FromString(endpoint._static.payload)
        payload.identity_key = payload.identity_key[:4] + p2p.Identity(bytes(32)).public_key
        if number % 2:
            payload.identity_sig = b""
        endpoint._static = replace(endpoint._static, payload=payload.SerializeToString())
        with contextlib.suppress(p2p.DialFailed):
            connection = await endpoint.dial(target.address)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                await connection.closed.wait()  # our side finished first; the other refuses
                nursery.cancel_scope.cancel()


async def half_open(target: Target) -> None:
    """Sockets that begin a handshake and never go on, in waves of a thousand at full size."""
    with contextlib.ExitStack() as stack:
        for number in range(min(1000, 2 * target.size)):
            with contextlib.suppress(OSError):
                stream = await tcp(target)
                stack.enter_context(stream.socket)
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all([b"", b"\x13", encode_line(HEADER)][number % 3])
        await trio.sleep(1)


async def garbage_in_yamux(target: Target) -> None:
    """Random frames behind a proper handshake: each ends that connection."""
    for _ in range(target.size // 4):
        async with secured(target) as connection:
            frames = b"".join(
                encode_header(
                    target.rng.choice([0, 1, 2, 3, 9]),
                    target.rng.randrange(16),
                    target.rng.randrange(8),
                    target.rng.choice([0, 1, 100, 2**31, 2**32 - 1]),
                )
                + target.rng.randbytes(target.rng.choice([0, 1, 100]))
                for _ in range(target.rng.randrange(1, 8))
            )
            write_frames(connection, frames)
            with trio.move_on_after(0.01):
                await connection.closed.wait()


async def garbage_in_negotiation(target: Target) -> None:
    """Streams that open with anything but proper lines; text that is not UTF-8 among it."""
    async with secured(target) as connection:
        for number in range(target.size):
            stream = await connection.open_stream()
            tail = target.rng.randbytes(target.rng.randrange(1, 60))
            line = bytes([len(tail)]) + tail[:-1] + b"\n"
            await stream.send_all([tail, encode_line(HEADER) + line, line][number % 3])
            stream.reset_now()
            if connection.is_closed:
                return


async def garbage_in_protocols(target: Target) -> None:
    """Every protocol that a node serves, spoken wrongly."""
    served = [*MESHSUB, KADEMLIA, IDENTIFY, IDENTIFY_PUSH, PING, ECHO]
    async with secured(target) as connection:
        for number in range(target.size):
            if connection.is_closed:
                return
            stream = await connection.open_stream()
            proposal = encode_line(HEADER) + encode_line(served[number % len(served)])
            body = target.rng.randbytes(target.rng.randrange(200))
            prefix = bytes([len(body) & 0x7F]) if number % 2 else b""
            with contextlib.suppress(p2p.StreamReset):
                await stream.send_all(proposal + prefix + body)
                await stream.send_eof()
                with trio.move_on_after(0.05):
                    while await stream.receive_some():
                        pass
            stream.reset_now()


async def streams_without_end(target: Target) -> None:
    """Ten thousand streams at full size, opened as fast as the wire takes them, never used."""
    async with secured(target) as connection:
        for number in range(50 * target.size):
            frame = encode_header(Type.WINDOW_UPDATE, Flag.SYN, 2 * number + 1, 0)
            write_frames(connection, frame)
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()
                if connection.closed.is_set():
                    return
        await trio.sleep(0.3)


async def writer_that_ignores_windows(target: Target) -> None:
    """Data far beyond the window of a stream that nobody reads: the connection must end."""
    async with secured(target) as connection:
        proposal = encode_line(HEADER) + encode_line(DEAF)
        write_frames(connection, encode_header(Type.DATA, Flag.SYN, 1, len(proposal)) + proposal)
        piece = encode_header(Type.DATA, 0, 1, 32_768) + bytes(32_768)
        for _ in range(2000):
            write_frames(connection, piece)
            while connection.is_wire_busy and not connection.closed.is_set():  # noqa: ASYNC110
                await trio.sleep(0.001)
            if connection.closed.is_set():
                return
        with trio.fail_after(5):
            await connection.closed.wait()


async def oversize_frame(target: Target) -> None:
    """A frame that announces two gigabytes."""
    async with secured(target) as connection:
        write_frames(connection, encode_header(Type.DATA, Flag.SYN, 1, 2**31) + bytes(100))
        with trio.fail_after(5):
            await connection.closed.wait()


async def reader_that_never_reads(target: Target) -> None:
    """Asks for echoes on many streams and takes none of the answers."""
    async with secured(target) as connection:
        streams = []
        for _ in range(max(100, target.size // 10)):  # as many megabytes: over RSS_GROWTH_MAX_BYTES
            stream = await connection.open_stream()
            streams.append(stream)
            await stream.send_all(encode_line(HEADER) + encode_line(ECHO))
            with trio.move_on_after(0.02), contextlib.suppress(p2p.StreamReset):
                await stream.send_all(bytes(1024 * 1024))
        await trio.sleep(0.3)


async def many_connects(target: Target) -> None:
    """Complete a handshake and leave, ten thousand times at full size."""
    for _ in range(min(10_000, target.size**2 // 200)):
        async with secured(target):
            pass


async def many_identities(target: Target) -> None:
    """Hold as many connections as one is let, each as another peer."""
    async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for _ in range(min(600, 2 * target.size)):
            endpoint = Endpoint(p2p.Identity(target.rng.randbytes(32)), p2p.Limits())
            with contextlib.suppress(p2p.DialFailed):
                connection = await endpoint.dial(target.address)
                stack.callback(connection.abort, "the test is over")
                nursery.start_soon(connection.run)
        await trio.sleep(0.2)
        nursery.cancel_scope.cancel()


ATTACKS: tuple[Attack, ...] = (
    garbage_on_the_socket,
    other_security,
    impersonation,
    half_open,
    garbage_in_yamux,
    garbage_in_negotiation,
    garbage_in_protocols,
    streams_without_end,
    writer_that_ignores_windows,
    oversize_frame,
    reader_that_never_reads,
    many_connects,
    many_identities,
)
