"""The hot path under ill luck: senders that are cancelled, sockets that fill, readers that change.

One end is ours; the other is a socket that speaks Noise and Yamux frame by frame as a test says, so
that it can stop reading, cut frames anywhere, and lie.
"""

from __future__ import annotations

import random
import socket
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from p2p.backend.arena import Arena
from p2p.backend.connection import BURST_BYTES, DRAIN_S, SecureConnection, StreamServer
from p2p.backend.endpoint import listen
from p2p.backend.stream import JOINED_BYTES, SecureStream
from p2p.backend.switch import open_switch
from p2p.backend.upgrade import Link
from p2p.errors import StreamClosed, StreamReset
from p2p.limits import Limits
from p2p.multistream import HEADER, encode_line, propose_optimistically
from p2p.network import Stream
from p2p.noise import Opener, Sealer
from p2p.noise.cipher import AESGCM, CHACHAPOLY, Cipher
from p2p.switchboard import Switchboard
from p2p.yamux import GoAway, Side
from p2p.yamux.frame import HEADER_BYTES, Flag, Type, decode_header, encode_header
from tests.p2p.networks import receive_all, until
from tests.p2p.transport.pairs import ANYWHERE, DIALLER, LISTENER, receive_exactly, stream_pair

pytestmark = pytest.mark.network

DATA, UPDATE, PING, GO_AWAY = Type
SYN, ACK, FIN, RST = Flag
OUT, IN = bytes(31) + b"\x01", bytes(31) + b"\x02"
PROTOCOL = "/hot/1"
PROPOSAL = encode_line(HEADER) + encode_line(PROTOCOL)
SOCKET_BYTES = 64 * 1024  # of each buffer: soon full

Frame = tuple[int, int, int, bytes | int]
"""Type, flags, stream id, and the payload or value."""


@dataclass
class Peer:
    """The other end of a connection, in the hands of a test."""

    sock: trio.socket.SocketType
    sealer: Sealer
    opener: Opener
    ciphertext: bytearray = field(default_factory=bytearray)
    plaintext: bytearray = field(default_factory=bytearray)
    message_sizes: list[int] = field(default_factory=list)

    async def send(self, *messages: bytes) -> None:
        """Send each as one Noise message, all in one piece."""
        await self.send_raw(b"".join(map(self.sealer.seal, messages)))

    async def send_raw(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self.sock.send(view) :]

    async def receive(self) -> bool:
        """Take what comes next; False at the end."""
        try:
            data = await self.sock.recv(1 << 20)
        except ConnectionResetError:
            return False
        self.ciphertext += data
        buffer, start = memoryview(self.ciphertext), 0
        while (count := self.opener.next_bytes(buffer, start, len(buffer))) >= 0:
            opened, start = self.opener.open_bytes(buffer, start, count)
            self.message_sizes.append(count)
            self.plaintext += opened
        del buffer
        del self.ciphertext[:start]
        return bool(data)

    async def frame(self) -> Frame:
        """The next Yamux frame."""
        while True:
            if len(self.plaintext) >= HEADER_BYTES:
                _, kind, flags, stream_id, length = decode_header(self.plaintext, 0)
                end = HEADER_BYTES + (length if kind == DATA else 0)
                if len(self.plaintext) >= end:
                    payload = bytes(self.plaintext[HEADER_BYTES:end])
                    del self.plaintext[:end]
                    return kind, flags, stream_id, payload if kind == DATA else length
            assert await self.receive(), "the connection has ended"

    async def payloads(self, sizes: dict[int, int]) -> dict[int, bytes]:
        """What comes on some streams, until each has sent its number of bytes."""
        received: dict[int, bytes] = defaultdict(bytes)
        while any(len(received[stream_id]) < size for stream_id, size in sizes.items()):
            _, _, stream_id, payload = await self.frame()
            if isinstance(payload, bytes):
                received[stream_id] += payload
        return {stream_id: received[stream_id] for stream_id in sizes}


@asynccontextmanager
async def scripted(
    *,
    cipher: Cipher = AESGCM,
    serve: StreamServer | None = None,
    early_plaintext: bytes = b"",
) -> AsyncIterator[tuple[SecureConnection, Peer]]:
    """Our running connection, as the initiator, and the peer at its other end."""
    ours = socket.socket()
    with listen(ANYWHERE) as listener:
        for each in (ours, listener):  # before they are connected: then TCP keeps to it
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        listener.setblocking(True)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    link = Link(
        sock=ours,
        sealer=Sealer(OUT, cipher),
        opener=Opener(IN, cipher),
        peer_id=LISTENER.peer_id,
        is_initiator=True,
        round_trip_s=0.001,
        early_ciphertext=b"",
        early_plaintext=early_plaintext,
    )
    connection = SecureConnection(link, Arena(Limits()), serve=serve)
    with trio.socket.from_stdlib_socket(theirs) as sock, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            yield connection, Peer(sock, Sealer(IN, cipher), Opener(OUT, cipher))
            nursery.cancel_scope.cancel()
    assert connection.wire._loan is None
    spare = [id(buffer.obj) for buffer in connection._arena._spare]
    assert len(spare) == len(set(spare)), "a buffer was given back twice"
    assert connection._arena.budget.unread_bytes == 0


async def opened(connection: SecureConnection) -> SecureStream:
    """A stream whose peer has given it all the window that a test may want."""
    stream = await connection.open_stream()
    stream.state.send_window = 1 << 30
    return stream


async def clog(connection: SecureConnection) -> None:
    """Send on a stream of its own until the socket is full, and leave most of a burst behind."""
    stream = await opened(connection)
    while not connection.is_wire_busy:
        while not connection.is_wire_busy:
            await stream.send_all(bytes(BURST_BYTES))
        await trio.testing.wait_all_tasks_blocked(0.01)


def payload_of(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


# Who waits for the socket


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_whoever_waits_behind_another_sender_goes_on(is_cancelled: bool) -> None:
    """The first sends for all; it gives up, or not, and nobody is left waiting."""
    async with scripted() as (connection, peer):
        streams = [await opened(connection) for _ in range(4)]
        payloads = [payload_of(seed, 3_000_000 if seed == 0 else 300_000) for seed in range(4)]
        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()

            async def send_first() -> None:
                with first:
                    await streams[0].send_all(payloads[0])

            nursery.start_soon(send_first)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for stream, payload in zip(streams[1:], payloads[1:], strict=True):
                nursery.start_soon(stream.send_all, payload)
            await trio.testing.wait_all_tasks_blocked(0.01)
            if is_cancelled:
                first.cancel()
                await trio.testing.wait_all_tasks_blocked(0.01)
            expected = {
                stream.state.stream_id: payload
                for stream, payload in zip(streams, payloads, strict=True)
                if not is_cancelled or stream is not streams[0]
            }
            sizes = {stream_id: len(payload) for stream_id, payload in expected.items()}
            assert await peer.payloads(sizes) == expected


async def test_who_only_waits_and_is_cancelled_leaves_the_rest_to_others() -> None:
    """A wait that sends nothing of its own may be what finishes the wire."""
    async with scripted() as (connection, peer):
        waiting, parked = await opened(connection), await opened(connection)
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def fill_and_wait() -> None:
                with scope:
                    while True:
                        await waiting.send_all(bytes(JOINED_BYTES))
                        await waiting.wait_send_all_might_not_block()

            nursery.start_soon(fill_and_wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(parked.send_all, b"behind")
            await trio.testing.wait_all_tasks_blocked(0.01)
            scope.cancel()
            received = await peer.payloads({parked.state.stream_id: 6})
            assert list(received.values()) == [b"behind"]


async def test_what_nobody_waits_for_leaves_all_the_same() -> None:
    """The last sender is done, and replies are due: both leave once the peer reads."""
    async with scripted() as (connection, peer):
        await clog(connection)
        await peer.send(*(encode_header(PING, SYN, 0, value) for value in range(100)))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(connection.session.control) == 100 * HEADER_BYTES
        assert await answers(peer, 100) == list(range(100))


async def test_replies_alone_fill_the_socket_and_leave() -> None:
    async with scripted() as (connection, peer):
        count = 0
        while not connection.is_wire_busy:
            pings = (encode_header(PING, SYN, 0, count + number) for number in range(5_000))
            await peer.send(b"".join(pings))
            count += 5_000
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert await answers(peer, count) == list(range(count))


async def answers(peer: Peer, count: int) -> list[bytes | int]:
    """The values of the next answers to pings."""
    values: list[bytes | int] = []
    while len(values) < count:
        kind, flags, _, value = await peer.frame()
        if (kind, flags) == (PING, ACK):
            values.append(value)
    return values


@pytest.mark.parametrize("is_left", [False, True])
@pytest.mark.parametrize("by", ["us", "the peer", "cancellation"])
async def test_a_connection_that_ends_under_its_senders_wakes_them_all(
    by: str, is_left: bool
) -> None:
    """Also when none of them sends the rest, but the connection's own task (`is_left`)."""
    async with scripted() as (connection, peer):
        if is_left:
            await clog(connection)
        failed: list[int] = []

        async def send(stream: SecureStream) -> None:
            with pytest.raises(StreamReset):
                await stream.send_all(bytes(3_000_000))
            failed.append(stream.state.stream_id)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send, await opened(connection))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert connection.is_wire_busy
            match by:
                case "us":
                    connection.abort("a test")
                case "the peer":
                    peer.sock.close()
                case _:
                    connection._scope.cancel()
        assert len(failed) == 3
        assert not connection.is_wire_busy


@pytest.mark.parametrize("is_ours", [True, False])
async def test_a_stream_that_ends_under_its_sender_holds_up_no_other(is_ours: bool) -> None:
    """The sender that finishes the wire loses its own stream, by the peer or by another task."""
    async with scripted() as (connection, peer):
        first, second = await opened(connection), await opened(connection)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(StreamClosed if is_ours else StreamReset):
                    await first.send_all(bytes(5_000_000))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(second.send_all, b"goes on")
            await trio.testing.wait_all_tasks_blocked(0.01)
            if is_ours:
                first.reset_now()
            else:
                await peer.send(encode_header(UPDATE, RST, first.state.stream_id, 0))
                await trio.testing.wait_all_tasks_blocked(0.01)
            received = await peer.payloads({second.state.stream_id: 7})
            assert list(received.values()) == [b"goes on"]


async def test_senders_take_turns() -> None:
    """Three without an end, and a small one: each gets its part of the wire."""
    async with scripted() as (connection, peer):
        streams = [await opened(connection) for _ in range(3)]
        small = await opened(connection)
        async with trio.open_nursery() as nursery:

            async def send_forever(stream: SecureStream) -> None:
                while True:
                    await stream.send_all(bytes(1_000_000))

            for stream in streams:
                nursery.start_soon(send_forever, stream)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(small.send_all, b"!")
            counts: dict[int, int] = defaultdict(int)
            while sum(counts.values()) < 30_000_000:
                _, _, stream_id, payload = await peer.frame()
                counts[stream_id] += len(payload) if isinstance(payload, bytes) else 0
            nursery.cancel_scope.cancel()
        assert counts[small.state.stream_id] == 1
        assert min(counts[stream.state.stream_id] for stream in streams) > 2_000_000, counts


@pytest.mark.parametrize("seed", range(10))
async def test_whoever_is_not_cancelled_arrives_whole(seed: int) -> None:
    """Many senders on a socket that is always full; any of them may give up or be reset."""
    rng = random.Random(seed)
    async with scripted() as (connection, peer):
        expected: dict[int, bytes] = {}
        given_up: set[int] = set()

        async def send(stream: SecureStream, payload: bytes, scope: trio.CancelScope) -> None:
            with scope, suppress(StreamClosed):
                while payload:
                    size = rng.choice((1, 1_000, 100_000, 1_000_000))
                    await stream.send_all(payload[:size])
                    payload = payload[size:]
                    if rng.random() < 0.3:
                        await stream.wait_send_all_might_not_block()
                await stream.send_last()

        async with trio.open_nursery() as nursery:
            scopes: dict[int, tuple[SecureStream, trio.CancelScope]] = {}
            for _ in range(12):
                stream, scope = await opened(connection), trio.CancelScope()
                stream_id = stream.state.stream_id
                expected[stream_id] = rng.randbytes(rng.choice((10, 200_000, 2_000_000)))
                scopes[stream_id] = stream, scope
                nursery.start_soon(send, stream, expected[stream_id], scope)
            received: dict[int, bytes] = defaultdict(bytes)
            ended: set[int] = set()
            while ended | given_up < expected.keys():
                if len(given_up) < 6 and rng.random() < 0.3:
                    await trio.testing.wait_all_tasks_blocked()
                    stream_id = rng.choice(list(scopes))
                    stream, scope = scopes[stream_id]
                    given_up.add(stream_id)
                    if rng.random() < 0.5:
                        scope.cancel()
                    else:
                        stream.reset_now()
                _, flags, stream_id, payload = await peer.frame()
                if isinstance(payload, bytes):
                    received[stream_id] += payload
                if flags & FIN:
                    ended.add(stream_id)
        for stream_id, payload in expected.items():
            if stream_id in given_up:
                assert payload.startswith(received[stream_id])
            else:
                assert received[stream_id] == payload


async def test_a_goodbye_behind_a_busy_wire() -> None:
    """What was sent before it arrives, and the goodbye is the last."""
    async with scripted() as (connection, peer):
        await clog(connection)
        stream = await opened(connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.aclose)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(StreamReset):
                await connection.open_stream()
            frame = await peer.frame()
            while frame[0] != GO_AWAY:
                frame = await peer.frame()
        assert frame == (GO_AWAY, 0, 0, GoAway.NORMAL)
        while await peer.receive():
            pass
        assert not peer.plaintext
        with pytest.raises(StreamReset):
            await stream.send_all(b"x")


async def test_a_goodbye_to_one_who_does_not_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with scripted() as (connection, _):
        await clog(connection)
        began_s = trio.current_time()
        await connection.aclose()
        assert trio.current_time() - began_s == pytest.approx(DRAIN_S)
        assert connection.closed.is_set()


# What is sent


@pytest.mark.parametrize("cipher", [AESGCM, CHACHAPOLY], ids=lambda cipher: cipher.name)
@pytest.mark.parametrize("size", [0, 1, 16_384, JOINED_BYTES // 8 - 1, 50_000, 1_000_000])
async def test_segments_of_any_kind_arrive_as_they_were(cipher: Cipher, size: int) -> None:
    """Some empty, some not of bytes, one changed after the call; the end is a frame of its own."""
    numbers = array("d", [float(number) for number in range(size // 8)])
    changing = bytearray(payload_of(1, size))
    segments = (b"", b"head", memoryview(b""), memoryview(numbers), b"", changing, b"tail", b"")
    expected = b"".join(bytes(segment) for segment in segments)
    async with scripted(cipher=cipher) as (connection, peer):
        stream = await opened(connection)
        async with trio.open_nursery() as nursery:
            received = b""
            frame: Frame = (0, 0, 0, b"")

            async def read() -> None:
                nonlocal received, frame
                while not frame[1] & FIN:
                    frame = await peer.frame()
                    received += frame[3] if isinstance(frame[3], bytes) else b""

            nursery.start_soon(read)
            await stream.send_last(*segments)
            changing[:] = bytes(size)
            changing += b"may grow again"
            with pytest.raises(StreamClosed):
                await stream.send_all(b"more")
        assert received == expected
        assert frame == (DATA, FIN, stream.state.stream_id, b"")
        assert min(peer.message_sizes) > 0
        assert max(peer.message_sizes) <= cipher.plaintext_bytes_max
        assert stream.state.send_side is Side.FINISHED


async def test_what_cannot_be_sent_or_filled_costs_nothing_but_the_call() -> None:
    async with stream_pair() as (ours, theirs):
        with pytest.raises(TypeError):
            await ours.send_all(memoryview(b"every other byte")[::2])
        for unusable in (memoryview(bytearray(20))[::2], memoryview(bytes(20))):
            with pytest.raises(TypeError):
                await theirs.receive_into(unusable)
        await ours.send_all(b"x")
        assert await theirs.receive_some() == b"x"


# What is received


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_buffer_is_not_filled_by_closing_its_stream(is_reset: bool) -> None:
    async with stream_pair() as (ours, theirs), trio.open_nursery() as nursery:

        async def fill() -> None:
            with pytest.raises(StreamClosed):
                await theirs.receive_into(bytearray(100_000))

        nursery.start_soon(fill)
        await ours.send_all(bytes(50_000))
        await trio.testing.wait_all_tasks_blocked(0.01)
        if is_reset:
            theirs.reset_now()
        else:
            await theirs.aclose()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cipher", [AESGCM, CHACHAPOLY], ids=lambda cipher: cipher.name)
async def test_bytes_are_the_same_however_cut_and_however_read(cipher: Cipher, seed: int) -> None:
    """Frames of any length in messages of any length, read by every call there is, in any order."""
    rng = random.Random(seed)
    expected = rng.randbytes(3_000_000)
    sizes = (1, 12, 13, 4_096, 4_097, 16_383, 16_384, 32_768, 50_000, 65_519, 132_096, 600_000)
    async with scripted(cipher=cipher) as (connection, peer), trio.open_nursery() as nursery:
        stream = await opened(connection)
        stream.state.receive_window = stream.state.window_bytes = 1 << 30
        stream_id = stream.state.stream_id

        async def send() -> None:
            frames, offset = bytearray(), 0
            while offset < len(expected):
                piece = expected[offset : offset + rng.choice(sizes)]
                offset += len(piece)
                frames += encode_header(DATA, 0, stream_id, len(piece)) + piece
                if rng.random() < 0.2:  # for a stream that is not known any more
                    frames += encode_header(DATA, 0, 99, 20_000) + bytes(20_000)
            frames += encode_header(DATA, FIN, stream_id, 0)
            while frames:
                size = min(rng.choice(sizes), cipher.plaintext_bytes_max)
                await peer.send(bytes(frames[:size]))
                del frames[:size]

        nursery.start_soon(send)
        received, has_ended = bytearray(), False
        while not has_ended:
            match rng.randrange(4):
                case 0:
                    data = await stream.receive_some(rng.choice((None, *sizes)))
                    has_ended = not data
                    received += data
                case 1:
                    buffer = bytearray(rng.choice(sizes))
                    count = await stream.receive_into(buffer)
                    has_ended = count < len(buffer)
                    received += buffer[:count]
                case 2:
                    received += stream.receive_nowait(rng.choice(sizes))
                case _:
                    with trio.CancelScope() as scope:
                        scope.cancel()
                        await stream.receive_some()
        assert received == expected
        assert connection.unread_bytes == 0


async def test_a_forged_message_ends_what_it_was_to_fill() -> None:
    """One whole message has filled a part, the next is opened to the rest and is not authentic."""
    async with scripted() as (connection, peer), trio.open_nursery() as nursery:
        stream = await opened(connection)

        async def fill() -> None:
            with pytest.raises(StreamReset):
                await stream.receive_into(bytearray(200_000))

        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked(0.01)
        header = encode_header(DATA, 0, stream.state.stream_id, 200_000)
        await peer.send(header, bytes(100_000))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert stream.state.target is not None
        assert len(stream.state.target) == 100_000
        forged = bytearray(peer.sealer.seal(bytes(50_000)))
        forged[-1] ^= 1
        await peer.send_raw(bytes(forged))
        await connection.closed.wait()
        assert connection._arena.counters == {"connections_closed_for_violation": 1}


async def test_nothing_is_handed_out_behind_the_end() -> None:
    """The peer goes away and opens a stream in one breath: nobody could serve it."""
    served: list[SecureStream] = []

    async def serve(_: SecureConnection, stream: SecureStream) -> None:
        served.append(stream)
        await stream.receive_some()

    async with scripted(serve=serve) as (connection, peer):
        goodbye = encode_header(GO_AWAY, 0, 0, GoAway.NORMAL)
        opening = encode_header(DATA, SYN, 2, 20_000) + bytes(20_000)  # bulk: opened by itself
        await peer.send(goodbye, opening)
        await connection.closed.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not served
        assert connection.streams == 0


async def test_early_frames_are_answered_at_once() -> None:
    """Behind the muxer's negotiation, in the same message; the order of our tasks is chance."""
    for _ in range(10):
        async with scripted(early_plaintext=encode_header(PING, SYN, 0, 7)) as (_, peer):
            with trio.fail_after(2):
                assert await peer.frame() == (PING, ACK, 0, 7)


async def test_whoever_closes_second_waits_for_the_first() -> None:
    async with scripted() as (connection, _), trio.open_nursery() as nursery:
        await clog(connection)
        nursery.start_soon(connection.aclose)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not connection.closed.is_set()  # the first lets the socket drain
        await connection.aclose()
        assert connection.closed.is_set()


# Negotiation


async def test_a_proposal_outlives_the_cancelled_call_that_would_have_sent_it() -> None:
    async with scripted() as (connection, peer):
        await clog(connection)
        raw = await opened(connection)
        stream = propose_optimistically(raw, connection.peer_id, PROTOCOL)
        for _ in range(2):
            with trio.move_on_after(0.01):
                await stream.receive_some()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            received = await peer.payloads({raw.state.stream_id: len(PROPOSAL)})
            assert list(received.values()) == [PROPOSAL]
            nursery.cancel_scope.cancel()


async def test_a_reader_that_sends_a_proposal_is_no_second_sender() -> None:
    """It waits for the wire with it; whoever sends meanwhile goes behind."""
    async with scripted() as (connection, peer):
        await clog(connection)
        raw = await opened(connection)
        stream = propose_optimistically(raw, connection.peer_id, PROTOCOL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(stream.send_last, b"payload")
            await trio.testing.wait_all_tasks_blocked(0.01)
            expected = PROPOSAL + b"payload"
            received = await peer.payloads({raw.state.stream_id: len(expected)})
            assert list(received.values()) == [expected]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("received", [PROPOSAL[:1], encode_line(HEADER), PROPOSAL[:-3]])
async def test_who_names_no_protocol_is_counted_and_ended(received: bytes) -> None:
    """Also when a part of it came with the stream."""
    async with served(negotiation_timeout_s=0.2) as (server, client):
        stream = await client._newest_connection(server.peer_id).open_stream()
        await stream.send_all(received)
        await until(lambda: sum(server._guard._negotiating.values()) == 1)
        with pytest.raises(StreamReset):
            await receive_exactly(stream, 1000)
        assert not server._guard._negotiating
        assert server.counters()["streams_violating"] == 1


async def test_who_names_one_at_once_is_not_counted_and_has_all_the_time() -> None:
    """Header, proposal and payload in one flight, the rest after the negotiation's deadline."""
    async with served(negotiation_timeout_s=0.05, negotiations_per_connection_max=1) as (
        server,
        client,
    ):
        connection = client._newest_connection(server.peer_id)
        streams = [await connection.open_stream() for _ in range(3)]
        for stream in streams:
            await stream.send_all(PROPOSAL + b"first")
        await until(lambda: server._guard.streams == 3)
        began_s = trio.current_time()
        await until(lambda: trio.current_time() > began_s + 0.1)
        assert not server._guard._negotiating
        for stream in streams:
            await stream.send_last(b"second")
            answer = await receive_exactly(stream, 1000)
            assert answer == PROPOSAL + b"firstsecond"
        assert "streams_violating" not in server.counters()


@asynccontextmanager
async def served(**limits: float) -> AsyncIterator[tuple[Switchboard, Switchboard]]:
    """A switch that answers `PROTOCOL` once all has come, and one that is connected to it."""

    async def answer(stream: Stream) -> None:
        await stream.send_last(await receive_all(stream))

    async with (
        open_switch(LISTENER, Limits(**limits)) as server,  # type: ignore[arg-type]
        open_switch(DIALLER, Limits()) as client,
    ):
        await server.listen([str(ANYWHERE)])
        server.serve(PROTOCOL, answer)
        await client.connect(server.addresses[0])
        await until(lambda: bool(client.protocols_of(server.peer_id)))
        await until(lambda: bool(server.protocols_of(client.peer_id)))
        await until(lambda: not server._guard._negotiating and not server._guard.streams)
        yield server, client
