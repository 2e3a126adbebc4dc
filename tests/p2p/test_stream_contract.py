"""What streams do beyond trio's contract, on real sockets and in one process."""

from __future__ import annotations

import math
import random

import pytest
import trio

import p2p
from p2p.network import Network, Stream
from tests.p2p.networks import ECHO, on_both, receive_all

SIZES = [0, 1, 1_000, 16_384, 65_519, 65_520, 131_072, 131_073, 600_000, 3_000_000]


@on_both
@pytest.mark.parametrize("size", SIZES)
async def test_a_request_and_its_end_leave_together(
    pair: tuple[Network, Network], size: int
) -> None:
    server, client = pair
    body = random.Random(size).randbytes(size)

    async def answer(stream: Stream) -> None:
        await stream.send_last(await receive_all(stream))

    await server.serve("/answer/1", answer)
    async with client.open_stream(server.peer_id, "/answer/1") as stream:
        await stream.send_last(body)
        with pytest.raises(p2p.StreamClosed):
            await stream.send_all(b"more")
        assert await receive_all(stream) == body


@on_both
@pytest.mark.parametrize("size", SIZES)
async def test_a_buffer_is_filled(pair: tuple[Network, Network], size: int) -> None:
    """In two pieces, one of which begins with bytes that have arrived and one that has none."""
    server, client = pair
    body = random.Random(size).randbytes(size)
    async with client.open_stream(server.peer_id, ECHO) as stream:
        buffer = bytearray(size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_last, body)
            front = await stream.receive_some(7) if size else b""
            half = max(len(front), size // 2)
            buffer[: len(front)] = front
            view = memoryview(buffer)
            assert await stream.receive_into(view[len(front) : half]) == half - len(front)
            assert await stream.receive_into(view[half:]) == size - half
        assert buffer == body
        assert await stream.receive_into(bytearray(10)) == 0


@on_both
async def test_a_buffer_is_filled_up_to_the_end(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as stream:
        await stream.send_last(b"short")
        buffer = bytearray(100_000)
        assert await stream.receive_into(buffer) == 5
        assert buffer[:6] == b"short\0"


@on_both
async def test_filling_a_buffer_ends_with_a_reset(pair: tuple[Network, Network]) -> None:
    server, client = pair

    async def break_off(stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(bytes(200_000))
        await stream.reset()

    await server.serve("/break/1", break_off)
    async with client.open_stream(server.peer_id, "/break/1") as stream:
        await stream.send_all(b"x")
        with pytest.raises(p2p.StreamReset):
            await stream.receive_into(bytearray(10_000_000))


@on_both
async def test_one_buffer_at_a_time(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_into, bytearray(10))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive_some()
        nursery.cancel_scope.cancel()


@on_both
async def test_a_cancelled_filling_leaves_the_buffer_alone(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as stream:
        buffer = bytearray(200_000)
        with trio.move_on_after(0.05):
            await stream.receive_into(buffer)
        await stream.send_last(b"later")
        assert await receive_all(stream) == b"later"
        assert not any(buffer)


@on_both
async def test_a_reset_behind_an_orderly_end_is_noticed(pair: tuple[Network, Network]) -> None:
    server, client = pair
    ended, noticed = trio.Event(), trio.Event()

    async def handler(stream: Stream) -> None:
        assert await receive_all(stream) == b"request"
        ended.set()
        await stream.wait_ended()
        noticed.set()

    await server.serve("/watch/1", handler)
    async with client.open_stream(server.peer_id, "/watch/1") as stream:
        await stream.send_last(b"request")
        await ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not noticed.is_set()
        await stream.reset()
        await noticed.wait()


@on_both
async def test_both_ends_or_a_lost_connection_end_a_stream(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as one, trio.open_nursery() as nursery:
        nursery.start_soon(one.wait_ended)
        await one.send_last(b"x")
        assert await receive_all(one) == b"x"
    async with client.open_stream(server.peer_id, ECHO) as other, trio.open_nursery() as nursery:
        nursery.start_soon(other.wait_ended)
        await other.send_all(b"x")
        await client.disconnect(server.peer_id)


@on_both
async def test_an_answer_that_is_held_back_leaves_before_waiting(
    pair: tuple[Network, Network],
) -> None:
    """The responder of an optimistic initiator confirms the protocol before it wants more."""
    server, client = pair
    begun = trio.Event()

    async def handler(stream: Stream) -> None:
        assert await stream.receive_some() == b"first"
        begun.set()
        assert await stream.receive_some() == b"second"

    await server.serve("/two/1", handler)
    async with client.open_stream(server.peer_id, "/two/1") as stream:
        await stream.send_all(b"first")
        await begun.wait()
        await stream.send_last(b"second")
        assert await stream.receive_some() == b""


@on_both
async def test_at_its_deadline_a_stream_waits_no_more(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as stream:
        stream.deadline_s = trio.current_time() + 0.05
        for wait in (stream.receive_some, stream.wait_ended):
            with pytest.raises(trio.TooSlowError):
                await wait()
        assert trio.current_time() >= stream.deadline_s
        await stream.send_all(b"sent without waiting")
        with pytest.raises(trio.TooSlowError):
            await stream.receive_into(bytearray(1))
        stream.deadline_s = math.inf
        assert await stream.receive_some() == b"sent without waiting"


@on_both
async def test_what_is_here_is_received_after_the_deadline(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as stream:
        await stream.send_last(b"answer")
        assert await stream.receive_some(1) == b"a"
        stream.deadline_s = -math.inf
        buffer = bytearray(5)
        assert await stream.receive_into(buffer) == 5
        assert buffer == b"nswer"


@on_both
async def test_at_its_deadline_a_sender_waits_no_more(pair: tuple[Network, Network]) -> None:
    server, client = pair

    async def read_nothing(stream: Stream) -> None:
        await trio.sleep_forever()

    await server.serve("/deaf/1", read_nothing)
    async with client.open_stream(server.peer_id, "/deaf/1") as stream:
        stream.deadline_s = trio.current_time() + 0.05
        for send in (stream.send_all, stream.send_last):
            with pytest.raises(trio.TooSlowError):
                await send(bytes(100_000_000))
        with pytest.raises(trio.TooSlowError):
            await stream.wait_send_all_might_not_block()
        await stream.reset()
