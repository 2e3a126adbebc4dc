"""Nothing is left behind: cancel anywhere, and no task, socket or loan of a buffer remains."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from p2p.backend.connection import SecureConnection
from p2p.backend.endpoint import Endpoint, listen
from p2p.backend.switch import open_switch
from p2p.backend.tcp import open_transport
from p2p.connection import Connection, RawStream
from p2p.errors import LimitExceeded, NetworkClosed, NetworkError
from p2p.limits import Limits
from p2p.multiaddress import Address
from p2p.yamux import WINDOW_BYTES_INITIAL
from tests.p2p.transport.pairs import (
    ANYWHERE,
    DIALLER,
    LISTENER,
    Sink,
    connection_pair,
    listening,
    open_files,
    receive_exactly,
    stream_pair,
)

pytestmark = pytest.mark.network


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when the run has made a given number of task steps."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def use_everything() -> None:
    """Listen, dial, echo a little and a lot, half-close, reset, close."""
    async with listening() as (_, address):
        connection = await Endpoint(DIALLER, Limits()).dial(address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            stream = await connection.open_stream()
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            nursery.start_soon(stream.send_all, bytes(400_000))
            await receive_exactly(stream, 400_000)
            await stream.send_eof()
            assert await stream.receive_some() == b""
            other = await connection.open_stream()
            await other.send_all(b"y")
            await other.reset()
            await stream.aclose()
            await connection.aclose()


async def test_cancelling_at_every_checkpoint_leaves_nothing() -> None:
    tasks, files = trio.lowlevel.current_statistics().tasks_living, open_files()
    step, is_finished = 0, False
    while not is_finished:
        step += 1
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                with trio.fail_after(10):
                    await use_everything()
            except* (NetworkError, trio.BrokenResourceError):
                pass  # a part of the scenario saw the cancellation of another as a loss
            finally:
                trio.lowlevel.remove_instrument(instrument)
        is_finished = not scope.cancelled_caught and instrument.left > 0
        assert trio.lowlevel.current_statistics().tasks_living == tasks, f"at step {step}"
        assert open_files() == files, f"at step {step}"
    assert step > 50


async def test_a_transport_that_was_left_takes_nothing_in() -> None:
    """Nobody would run a connection that is finished then, or accept on a listener."""
    files = open_files()
    async with listening() as (_, address):
        sink = Sink()
        async with open_transport(DIALLER, Limits(), sink) as transport:
            pass
        with pytest.raises(LimitExceeded):
            await transport.dial(address)
        assert not sink.alive
        assert not transport.endpoint.arena.connections
        with pytest.raises(NetworkClosed):
            await transport.listen([ANYWHERE])
        assert not transport.listening
    assert open_files() == files


async def test_a_closed_switch_listens_nowhere() -> None:
    files = open_files()
    async with open_switch(DIALLER, Limits()) as switch:
        pass
    with pytest.raises(NetworkClosed):
        await switch.listen([str(ANYWHERE)])
    assert open_files() == files
    assert not switch.listening


async def test_a_dial_that_outlives_its_transport_leaves_nothing() -> None:
    """Left in the middle of the handshake, by somebody else than the dialling task."""
    sink = Sink()
    with listen(ANYWHERE) as listener:
        address = Address.of_socket(listener.getsockname()).with_peer(LISTENER.peer_id)
        async with trio.open_nursery() as nursery:
            async with open_transport(DIALLER, Limits(), sink) as transport:

                async def dial() -> None:
                    with pytest.raises(LimitExceeded):
                        await transport.dial(address)

                nursery.start_soon(dial)
                await trio.lowlevel.wait_readable(listener.fileno())
            server = Endpoint(LISTENER, Limits())
            async with trio.open_nursery() as serving:
                serving.start_soon(server.accept_forever, listener, SecureConnection.run)
                with trio.fail_after(5):
                    while nursery.child_tasks:
                        await trio.testing.wait_all_tasks_blocked(0.001)
                serving.cancel_scope.cancel()
    assert not sink.alive
    assert not transport.endpoint.arena.connections


async def test_buffers_come_back_and_sums_return_to_zero() -> None:
    sink = Sink()
    async with listening(sink=sink) as (transport, address):
        arena = transport.endpoint.arena
        async with trio.open_nursery() as nursery:
            near = Endpoint(DIALLER, Limits())
            connection = await near.dial(address)
            nursery.start_soon(connection.run)
            streams = [await connection.open_stream() for _ in range(5)]
            for stream in streams:
                nursery.start_soon(stream.send_all, bytes(300_000))
            for stream in streams:
                await receive_exactly(stream, 300_000)
            connection.abort("in the middle of it")
        with trio.fail_after(5):
            while not sink.gone:
                await trio.testing.wait_all_tasks_blocked(0.001)
        for each in (arena, near.arena):
            assert each.budget.streams == each.budget.unread_bytes == 0
            assert each.budget.granted_bytes == 0
            assert not each.connections
            lent = [id(buffer.obj) for buffer in each._spare]
            assert len(lent) == len(set(lent)), "a buffer was given back twice"


async def test_an_idle_connection_owns_no_buffer() -> None:
    async with stream_pair() as (ours, theirs):
        await ours.send_all(bytes(WINDOW_BYTES_INITIAL - 1))
        await receive_exactly(theirs, WINDOW_BYTES_INITIAL - 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert ours.connection.wire._loan is None
        assert len(theirs.connection._arena._spare) >= 1


async def test_a_goodbye_lets_what_was_sent_arrive() -> None:
    async with connection_pair() as (near, far):
        stream = await near.open_stream()
        payload = bytes(range(256)) * 1000
        await stream.send_all(payload)
        theirs = await far.accept_stream()
        await near.aclose()
        assert near.is_closed
        assert await receive_exactly_despite_reset(theirs, len(payload)) == payload
        with trio.fail_after(5):
            await far.closed.wait()


async def receive_exactly_despite_reset(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    received = b""
    while len(received) < count:
        received += await stream.receive_some()
    return received


async def test_closing_twice_and_from_a_handler() -> None:
    async with connection_pair() as (near, far), trio.open_nursery() as nursery:
        nursery.start_soon(near.aclose)
        nursery.start_soon(near.aclose)
        await far.closed.wait()
        await far.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await far.accept_stream()


async def test_a_handler_does_not_outlive_its_connection_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p2p.backend.connection.HANDLER_GRACE_S", 0.05)
    begun, cancelled = trio.open_memory_channel[None](2), trio.open_memory_channel[bool](2)

    class Waiting(Sink):
        async def stream_opened(self, connection: Connection, stream: RawStream) -> None:
            begun[0].send_nowait(None)
            try:
                await trio.sleep_forever()
            finally:
                cancelled[0].send_nowait(connection.is_closed)

    async with listening(sink=Waiting()) as (_, address), trio.open_nursery() as nursery:
        connection = await Endpoint(DIALLER, Limits()).dial(address)
        nursery.start_soon(connection.run)
        await (await connection.open_stream()).send_all(b"x")
        await begun[1].receive()
        await (await connection.open_stream()).send_all(b"its handler begins when all is over")
        connection.abort("lost")
        with trio.fail_after(5):
            assert await cancelled[1].receive()
            assert await cancelled[1].receive()


async def test_opening_waits_while_too_many_are_unacknowledged() -> None:
    async with connection_pair() as (near, far):
        streams = [await near.open_stream() for _ in range(256)]
        with trio.move_on_after(0.05) as scope:
            await near.open_stream()
        assert scope.cancelled_caught
        await streams[0].send_all(b"x")
        theirs = await far.accept_stream()
        await theirs.send_all(b"y")
        with trio.fail_after(5):
            await near.open_stream()
