"""A stream over real sockets keeps trio's contract: order, ends, back-pressure, cancellation."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing

from p2p.backend.connection import BURST_BYTES, SMALL_BYTES
from p2p.backend.stream import JOINED_BYTES, SecureStream
from p2p.connection import RawStream
from p2p.errors import StreamClosed, StreamReset
from p2p.limits import Limits
from p2p.noise.cipher import AESGCM, CHACHAPOLY
from p2p.yamux import WINDOW_BYTES_INITIAL, Side
from tests.p2p.transport.pairs import connection_pair, receive_exactly, stream_pair

pytestmark = pytest.mark.network


class Obedient(RawStream):
    """Ours, with a scheduler pass in every call as trio's suite demands; see `TURN_BYTES`."""

    def __init__(self, stream: SecureStream) -> None:
        self.stream = stream

    async def send_all(self, data: Any) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        await self.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        await self.stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def reset(self) -> None:
        await self.stream.reset()

    async def wait_ended(self) -> None:
        await self.stream.wait_ended()


async def test_trios_own_contract() -> None:
    async with connection_pair() as (near, far):

        async def new_pair() -> tuple[Obedient, Obedient]:
            ours = await near.open_stream()
            await ours.send_all(b".")
            theirs = await far.accept_stream()
            assert await theirs.receive_some() == b"."
            return Obedient(ours), Obedient(theirs)

        async def clogged_pair() -> tuple[Obedient, Obedient]:
            ours, theirs = await new_pair()
            while ours.stream.state.send_window or theirs.stream.state.send_window:
                for one in (ours.stream, theirs.stream):  # an acknowledgement brings credit too
                    await one.send_all(bytes(one.state.send_window))
                await trio.testing.wait_all_tasks_blocked(0.01)
            return ours, theirs

        await trio.testing.check_half_closeable_stream(new_pair, clogged_pair)


@pytest.mark.parametrize(
    "size",
    [
        1,
        SMALL_BYTES - 24,
        SMALL_BYTES - 12,
        SMALL_BYTES,
        JOINED_BYTES,
        JOINED_BYTES + 1,
        *(
            cipher.plaintext_bytes_max + more
            for cipher in (CHACHAPOLY, AESGCM)
            for more in (-24, -12, 0, 1)
        ),
        BURST_BYTES - 1,
        BURST_BYTES,
        BURST_BYTES + 1,
        WINDOW_BYTES_INITIAL + 1,
        5_000_000,
    ],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_every_size_arrives_whole(size: int, kind: type[bytes]) -> None:
    payload = random.Random(size).randbytes(size)
    async with stream_pair() as (ours, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, kind(payload))
            assert await receive_exactly(theirs, size) == payload


async def test_both_directions_of_many_streams_at_once() -> None:
    async with connection_pair() as (near, far):
        payloads = [random.Random(seed).randbytes(50_000 + 40_000 * seed) for seed in range(20)]
        echoes: dict[int, bytes] = {}

        async def echo(stream: SecureStream) -> None:
            while data := await stream.receive_some():
                await stream.send_all(data)
            await stream.aclose()

        async def serve() -> None:
            for _ in payloads:
                nursery.start_soon(echo, await far.accept_stream())

        async def ask(index: int) -> None:
            stream = await near.open_stream()
            async with trio.open_nursery() as inner:
                inner.start_soon(send_and_end, stream, payloads[index])
                echoes[index] = await receive_exactly(stream, 2**30)
            await stream.aclose()

        async def send_and_end(stream: SecureStream, payload: bytes) -> None:
            await stream.send_all(payload)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for index in range(len(payloads)):
                nursery.start_soon(ask, index)
        assert [echoes[index] for index in range(len(payloads))] == payloads
        assert near.streams == far.streams == 0
        assert near.session.round_trip_s < 5


async def test_a_slow_reader_holds_the_writer_back_and_loses_nothing() -> None:
    """No time limit anywhere: the writer waits until the reader reads, and memory stays bounded."""
    payload = random.Random(1).randbytes(3_000_000)
    async with stream_pair() as (ours, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, payload)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert ours.state.send_window == 0
            assert theirs.state.unread_bytes == WINDOW_BYTES_INITIAL - 1  # the first is read
            assert await receive_exactly(theirs, len(payload)) == payload


async def test_a_stream_that_nobody_reads_stops_no_other() -> None:
    async with connection_pair() as (near, far), trio.open_nursery() as nursery:
        clogged = await near.open_stream()
        nursery.start_soon(clogged.send_all, bytes(1_000_000))
        await far.accept_stream()
        stream = await near.open_stream()
        await stream.send_all(b"through")
        assert await (await far.accept_stream()).receive_some() == b"through"
        nursery.cancel_scope.cancel()


async def test_half_close() -> None:
    async with stream_pair() as (ours, theirs):
        await ours.send_all(b"request")
        await ours.send_eof()
        await ours.send_eof()
        with pytest.raises(StreamClosed):
            await ours.send_all(b"more")
        assert await receive_exactly(theirs, 100) == b"request"
        assert await theirs.receive_some() == b""
        await theirs.send_all(b"response")
        await theirs.aclose()
        assert await receive_exactly(ours, 100) == b"response"
        assert await ours.receive_some() == b""


async def test_reset_reaches_the_other_side_behind_what_came_before() -> None:
    async with stream_pair() as (ours, theirs):
        await ours.send_all(b"last words")
        await ours.reset()
        assert await theirs.receive_some() == b"last words"
        with pytest.raises(StreamReset):
            await theirs.receive_some()
        with pytest.raises(StreamReset):
            await theirs.send_all(b"?")
        with pytest.raises(StreamClosed):
            await ours.receive_some()


async def test_a_lost_connection_resets_its_streams() -> None:
    async with stream_pair() as (ours, theirs):
        async with trio.open_nursery() as nursery:

            async def wait_for_loss() -> None:
                with pytest.raises(StreamReset):
                    await theirs.receive_some()

            nursery.start_soon(wait_for_loss)
            await trio.testing.wait_all_tasks_blocked()
            ours.connection.abort("a test")
        with pytest.raises(StreamReset):
            await ours.send_all(b"x")
        with pytest.raises(StreamReset):
            await ours.connection.open_stream()


async def test_a_cancelled_receive_takes_nothing() -> None:
    async with stream_pair() as (ours, theirs):
        with trio.CancelScope() as scope:
            scope.cancel()
            await theirs.receive_some()
        with trio.move_on_after(0.01):
            await theirs.receive_some()
        await ours.send_all(b"kept")
        assert await theirs.receive_some() == b"kept"


async def test_two_tasks_cannot_use_one_direction() -> None:
    async with stream_pair() as (ours, _), trio.open_nursery() as nursery:
        nursery.start_soon(ours.receive_some)
        nursery.start_soon(ours.send_all, bytes(1_000_000))
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(trio.BusyResourceError):
            await ours.receive_some()
        with pytest.raises(trio.BusyResourceError):
            await ours.send_all(b"x")
        with pytest.raises(trio.BusyResourceError):
            await ours.send_eof()
        nursery.cancel_scope.cancel()


async def test_closing_without_reading_ends_in_a_reset_after_a_while() -> None:
    """The peer of a closed stream may end in order; if it goes on for ever it is reset."""
    limits = Limits(keepalive_interval_s=0.05, keepalive_timeout_s=5)
    async with connection_pair(limits) as (near, far):
        stream = await near.open_stream()
        await stream.send_all(b"x")
        theirs = await far.accept_stream()
        await theirs.receive_some()
        await theirs.aclose()
        far._lingering[:] = [(trio.current_time(), theirs.state)]  # as if LINGER_S were over
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
            while stream.state.send_side is Side.OPEN:
                await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(StreamReset):
            await stream.send_all(b"x")


async def test_windows_grow_and_are_remembered() -> None:
    async with connection_pair() as (near, far):
        for _ in range(2):
            stream = await near.open_stream()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(8_000_000))
                theirs = await far.accept_stream()
                await receive_exactly(theirs, 8_000_000)
            assert theirs.state.window_bytes > WINDOW_BYTES_INITIAL
            await stream.reset()
            await theirs.reset()
        assert far._arena.budget.granted_bytes == 0
        stream = await near.open_stream()
        await stream.send_all(b"x")
        theirs = await far.accept_stream()
        await theirs.send_all(b"y")
        assert theirs.state.window_bytes > WINDOW_BYTES_INITIAL
        await stream.receive_some()
        assert stream.state.send_window > WINDOW_BYTES_INITIAL - 1
