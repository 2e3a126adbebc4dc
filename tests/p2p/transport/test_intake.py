"""In a flood the socket is waited for until it has a good piece, and never for long."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
import trio.testing

from p2p.backend.connection import BURST_BYTES, SecureConnection
from p2p.backend.intake import COALESCED_BYTES
from p2p.backend.stream import SecureStream
from p2p.errors import StreamReset
from tests.p2p.networks import until
from tests.p2p.transport.pairs import connection_pair, receive_exactly, stream_pair

pytestmark = pytest.mark.network

MUCH = 8 * COALESCED_BYTES


class Recorded:
    """A socket that notes what it is told to wait for."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lows: list[int] = []

    def setsockopt(self, level: int, name: int, value: int) -> None:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        self.lows.append(value)
        self.sock.setsockopt(level, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.fixture
def every_byte_is_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.backend.intake.FLOOD_BYTES", 1)


def recorded(connection: SecureConnection) -> Recorded:
    sock = Recorded(connection._sock)
    connection.intake._sock = sock  # type: ignore[assignment]
    return sock


async def missing(stream: SecureStream, count: int) -> None:
    """Wait until the reader of `stream` waits for `count` bytes more."""
    await until(lambda: len(stream.state.target or b"") == count)


@pytest.mark.usefixtures("every_byte_is_a_flood")
async def test_a_flood_that_pauses_is_read_all_the_same() -> None:
    """Less than a good piece comes, then a byte, then the rest; the socket is as before."""
    async with stream_pair() as (near, far), trio.open_nursery() as nursery:
        sock = recorded(far.connection)
        buffer = bytearray(MUCH)
        filled: list[int] = []

        async def read() -> None:
            filled.append(await far.receive_into(buffer))

        await near.send_all(b"x")
        nursery.start_soon(read)
        await missing(far, MUCH - 1)
        for size in (BURST_BYTES, 1, BURST_BYTES, 70_000):
            left = len(far.state.target or b"")
            await near.send_all(bytes(size))
            await missing(far, left - size)
        assert COALESCED_BYTES in sock.lows
        await near.send_all(bytes(len(far.state.target or b"")))
        await until(lambda: filled == [MUCH])
        assert sock.lows[-1] == 1
        assert sock.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


async def test_what_goes_to_others_is_no_flood() -> None:
    """A reader waits for much, in vain; what another takes as it comes is not held up for that."""
    async with stream_pair() as (near, far), trio.open_nursery() as nursery:
        sock = recorded(far.connection)
        nursery.start_soon(far.receive_into, bytearray(MUCH))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await near.send_all(b"x")
        await missing(far, MUCH - 1)
        ours = await near.connection.open_stream()
        await ours.send_all(b".")
        theirs = await far.connection.accept_stream()
        nursery.start_soon(ours.send_last, bytes(MUCH))
        assert len(await receive_exactly(theirs, MUCH + 1)) == MUCH + 1
        assert sock.lows == []
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("every_byte_is_a_flood")
async def test_a_reader_of_little_is_told_of_every_byte() -> None:
    async with stream_pair() as (near, far), trio.open_nursery() as nursery:
        sock = recorded(far.connection)
        nursery.start_soon(far.receive_into, bytearray(2 * COALESCED_BYTES))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await near.send_all(b"x")
        await missing(far, 2 * COALESCED_BYTES - 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert sock.lows == []
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("every_byte_is_a_flood")
async def test_a_connection_ends_while_its_socket_waits_for_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p2p.backend.intake.COALESCED_S", 60)
    async with connection_pair() as (near, far), trio.open_nursery() as nursery:
        sock = recorded(far)
        ours = await near.open_stream()
        await ours.send_all(b"x")
        theirs = await far.accept_stream()

        async def read() -> None:
            with pytest.raises(StreamReset):
                await theirs.receive_into(bytearray(MUCH))

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await ours.send_all(bytes(BURST_BYTES))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert sock.lows[-1] == COALESCED_BYTES
        far.abort("while it waits")
