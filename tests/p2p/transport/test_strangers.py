"""Sockets of strangers: whatever they do, they are gone in time and an honest dialler gets in."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio
import trio.testing

from p2p.backend.connection import SecureConnection
from p2p.backend.endpoint import Endpoint, listen
from p2p.errors import DialFailed, MalformedAddress, PeerMismatch, PortInUse
from p2p.identity import Identity
from p2p.limits import Limits
from p2p.multiaddress import Address
from p2p.multistream import HEADER, encode_line
from p2p.noise import StaticKey
from p2p.noise.payload_pb2 import NoiseHandshakePayload
from p2p.yamux import WINDOW_BYTES_INITIAL
from p2p.yamux.frame import Flag, Type, encode_header
from tests.p2p.noise.strategies import SCALE
from tests.p2p.transport.pairs import (
    ANYWHERE,
    DIALLER,
    LISTENER,
    Sink,
    connection_pair,
    is_closed_by_peer,
    listening,
    plain_socket,
    receive_exactly,
)

pytestmark = pytest.mark.network

HASTY = Limits(handshake_timeout_s=0.3, dial_timeout_s=5.0)


@contextlib.asynccontextmanager
async def honest(address: Address, identity: Identity = DIALLER) -> AsyncIterator[SecureConnection]:
    """A connection that has just echoed something."""
    connection = await Endpoint(identity, Limits()).dial(address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        stream = await connection.open_stream()
        await stream.send_all(b"anyone there?")
        assert await receive_exactly(stream, 13) == b"anyone there?"
        yield connection
        await connection.aclose()


async def closes(sock: socket.socket) -> bool:
    return await trio.to_thread.run_sync(is_closed_by_peer, sock)


OPENINGS: dict[str, bytes] = {
    "nothing": b"",
    "a web browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "plaintext": encode_line(HEADER) + encode_line("/plaintext/2.0.0"),
    "tls": encode_line(HEADER) + encode_line("/tls/1.0.0"),
    "not text": b"\x13/multistream/1.0.0\n\x03\xff\xfe\n",
    "endless line": b"\xff\xff\xff\xff\x0f" + b"x" * 5000,
    "line of nothing": b"\x00" * 100,
    "half a handshake": encode_line(HEADER) + encode_line("/noise") + b"\x00\x20" + b"k" * 32,
    "empty message": encode_line(HEADER) + encode_line("/noise") + b"\x00\x00",
    "weak key": encode_line(HEADER) + encode_line("/noise") + b"\x00\x20" + bytes(32),
    "huge message": encode_line(HEADER) + encode_line("/noise") + b"\xff\xff" + bytes(60_000),
    "endless proposals": encode_line(HEADER) + encode_line("/x") * 1000,
}


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS.keys())
async def test_whoever_is_no_peer_is_closed_in_time(opening: bytes) -> None:
    async with listening(HASTY) as (transport, address):
        with plain_socket(address) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(opening)
            with trio.fail_after(5):
                assert await closes(sock)
        async with honest(address):
            pass
        assert transport.endpoint.admission.half_open == 0


async def test_fuzz_any_bytes_on_the_socket() -> None:
    rng = random.Random("socket")
    prefix = encode_line(HEADER) + encode_line("/noise")
    async with listening(HASTY) as (transport, address):
        for _ in range(20 * SCALE):
            with plain_socket(address) as sock:
                start = rng.choice((b"", prefix[:20], prefix, prefix + b"\x00\x20" + bytes(31)))
                sock.sendall(start + rng.randbytes(rng.randrange(200)))
            await trio.lowlevel.checkpoint()
        async with honest(address):
            pass
        with trio.fail_after(5):
            while transport.endpoint.admission.half_open:
                await trio.testing.wait_all_tasks_blocked(0.01)


async def test_slowloris_delays_nobody() -> None:
    """More half-open sockets than there are places: the oldest go, an honest dialler comes in."""
    limits = Limits(half_open_max=50)
    async with listening(limits) as (transport, address):
        sockets = []
        for index in range(200):
            sockets.append(plain_socket(address))
            sockets[-1].sendall(encode_line(HEADER)[: index % 19])
            if index % 20 == 0:
                await trio.testing.wait_all_tasks_blocked(0.001)
        with trio.fail_after(2):
            async with honest(address):
                assert transport.endpoint.admission.half_open <= 50
                assert transport.endpoint.admission.evicted >= 149
        for sock in sockets:
            sock.settimeout(0.01)
        assert [is_closed_by_peer(sock) for sock in sockets[:100]].count(True) > 90
        for sock in sockets:
            sock.close()


async def test_one_address_cannot_fill_the_table() -> None:
    limits = Limits(half_open_per_ip_max=5, limit_private_addresses=True)
    async with listening(limits) as (transport, address):
        sockets = [plain_socket(address) for _ in range(12)]
        with trio.fail_after(5):
            while transport.endpoint.admission.evicted < 7:
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert transport.endpoint.admission.half_open == 5
        for sock in sockets:
            sock.settimeout(0.2)
        assert [await closes(sock) for sock in sockets].count(True) == 7
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize(
    "limits",
    [
        Limits(connections_per_ip_max=2, limit_private_addresses=True),
        Limits(connections_max=3, peers_low=1, peers_high=2),  # of which one is for our dials
    ],
    ids=["per address", "in total"],
)
async def test_finished_connections_are_capped(limits: Limits) -> None:
    async with listening(limits) as (transport, address):
        with trio.fail_after(5):
            async with honest(address), honest(address, Identity(bytes(31) + b"\x21")):
                third = await Endpoint(Identity.generate(), Limits()).dial(address)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(third.run)
                    await third.closed.wait()
            while transport.endpoint.admission.established:
                await trio.testing.wait_all_tasks_blocked(0.001)
            async with honest(address):
                pass
        assert transport.counters()["connections_refused"] == 1


async def test_a_port_in_use_is_an_error() -> None:
    with listen(ANYWHERE) as sock:
        taken = Address.of_socket(sock.getsockname())
        with pytest.raises(PortInUse):
            listen(taken)
        async with listening() as (transport, _):
            before = transport.listening
            with pytest.raises(PortInUse):
                await transport.listen([ANYWHERE, taken])
            assert transport.listening == before
    with socket.socket() as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(("127.0.0.1", 0))
        shared.listen()
        with pytest.raises(PortInUse):
            listen(Address.of_socket(shared.getsockname()))


async def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(MalformedAddress):
        listen(Address.parse("/ip4/192.0.2.1/tcp/0"))
    with pytest.raises(MalformedAddress):
        listen(Address.parse("/dns4/localhost/tcp/0"))


async def test_dialling_somebody_else_is_a_mismatch() -> None:
    async with listening() as (_, address):
        with pytest.raises(PeerMismatch):
            await Endpoint(DIALLER, Limits()).dial(address.with_peer(DIALLER.peer_id))


async def test_dialling_nobody_fails() -> None:
    with listen(ANYWHERE) as sock:
        nowhere = Address.of_socket(sock.getsockname())
    with pytest.raises(DialFailed):
        await Endpoint(DIALLER, Limits()).dial(nowhere)


async def test_dialling_a_server_that_never_answers_ends_in_time() -> None:
    with listen(ANYWHERE) as sock:
        address = Address.of_socket(sock.getsockname())
        with trio.fail_after(3), pytest.raises(DialFailed, match="in time"):
            await Endpoint(DIALLER, HASTY).dial(address)


async def test_an_impostor_is_refused_by_either_side() -> None:
    """A static key that its claimed identity has not signed."""
    key = StaticKey.certify(DIALLER)
    payload = NoiseHandshakePayload()
    payload.ParseFromString(key.payload)
    payload.identity_key = b"\x08\x01\x12\x20" + LISTENER.public_key
    impostor = Endpoint(DIALLER, Limits())
    impostor._static = replace(key, payload=payload.SerializeToString())
    async with listening() as (transport, address):
        try:
            connection = await impostor.dial(address)  # our side is done before theirs refuses
        except DialFailed:
            return
        with trio.fail_after(5):
            await connection.run()
        assert transport.endpoint.admission.established == 0


VIOLATIONS: dict[str, bytes] = {
    "overrun window": encode_header(Type.DATA, 0, 1, WINDOW_BYTES_INITIAL + 1),
    "oversize frame": encode_header(Type.DATA, 0, 1, 2**32 - 1),
    "unknown type": encode_header(9, 0, 0, 0),
    "opened twice": encode_header(Type.WINDOW_UPDATE, Flag.SYN, 1, 0),
    "replies never read": encode_header(Type.PING, Flag.SYN, 0, 1) * 500_000,
}


async def push(connection: SecureConnection, frames: bytes) -> None:
    """Write Yamux frames past our own session, until all are written or the peer has closed."""
    for start in range(0, len(frames), 48_000):
        data = connection.wire._sealer.seal(frames[start : start + 48_000])
        while data:
            try:
                data = data[connection._sock.send(data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(connection._fd)
            except ConnectionError:
                return


@pytest.mark.parametrize("frames", VIOLATIONS.values(), ids=VIOLATIONS.keys())
async def test_a_peer_that_breaks_the_rules_loses_its_connection(frames: bytes) -> None:
    sink = Sink()
    async with listening(sink=sink) as (transport, address):
        stranger = await Endpoint(DIALLER, Limits()).dial(address)  # never runs: it reads nothing
        with trio.fail_after(10):
            await push(stranger, encode_header(Type.WINDOW_UPDATE, Flag.SYN, 1, 0) + frames)
            while not sink.gone:
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert transport.counters()["connections_closed_for_violation"] == 1
        assert transport.endpoint.arena.budget.streams == 0
        stranger.abort("the test is over")


async def test_a_broken_message_loses_the_connection() -> None:
    sink = Sink()
    async with listening(sink=sink) as (transport, address):
        stranger = await Endpoint(DIALLER, Limits()).dial(address)
        stranger._sock.send(b"\x00\x20" + bytes(32))
        with trio.fail_after(5):
            while not sink.gone:
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert transport.counters()["connections_closed_for_violation"] == 1
        stranger.abort("the test is over")


async def test_a_silent_peer_is_given_up() -> None:
    limits = Limits(keepalive_interval_s=0.1, keepalive_timeout_s=0.2)
    sink = Sink()
    async with listening(limits, sink) as (transport, address):
        frozen = await Endpoint(DIALLER, Limits()).dial(address)  # and never runs
        with trio.fail_after(5):
            while not sink.gone:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert transport.counters()["connections_closed_for_silence"] == 1
        frozen.abort("the test is over")


async def test_a_peer_that_answers_pings_is_kept() -> None:
    limits = Limits(keepalive_interval_s=0.02, keepalive_timeout_s=0.5)
    async with connection_pair(limits) as (near, far):
        with trio.move_on_after(1.2):
            await near.closed.wait()
        assert not near.closed.is_set()
        assert not far.closed.is_set()
        assert near.session.round_trip_s < 0.5


async def test_unread_memory_is_bounded_over_all_connections() -> None:
    """Over the process's budget the connection with the most unread bytes is closed."""
    limits = Limits(process_buffer_bytes_max=300_000)
    sink = Sink()

    class Deaf(Sink):
        async def stream_opened(self, connection: object, stream: object) -> None:
            await trio.sleep_forever()

    sink = Deaf()
    async with listening(limits, sink) as (transport, address), trio.open_nursery() as nursery:
        peers = []
        for index, size in enumerate((200_000, 90_000, 50_000)):
            connection = await Endpoint(Identity(bytes([index] * 32)), Limits()).dial(address)
            nursery.start_soon(connection.run)
            stream = await connection.open_stream()
            await stream.send_all(bytes(size))
            peers.append(connection)
        with trio.fail_after(5):
            await peers[0].closed.wait()
        assert not peers[1].closed.is_set()
        assert not peers[2].closed.is_set()
        assert transport.endpoint.arena.budget.unread_bytes <= 300_000
        nursery.cancel_scope.cancel()


async def test_an_exception_in_a_handler_costs_its_stream_only() -> None:
    sink = Sink(failure=RuntimeError("a bug"))
    async with listening(sink=sink) as (transport, address):
        connection = await Endpoint(DIALLER, Limits()).dial(address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            stream = await connection.open_stream()
            await stream.send_all(b"x")
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            sink.failure = None
            stream = await connection.open_stream()
            await stream.send_all(b"still there")
            assert await stream.receive_some() == b"still there"
            assert transport.counters()["handlers_failed"] == 1
            await connection.aclose()
