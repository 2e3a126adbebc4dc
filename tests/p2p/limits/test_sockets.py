"""The bounds of sockets, handshakes and buffers are reached, from several addresses of loopback."""

from __future__ import annotations

import functools
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import pytest
import trio

import p2p
from p2p.backend.connection import SecureConnection
from p2p.backend.endpoint import Endpoint
from p2p.backend.switch import open_switch
from p2p.multiaddress import Address
from p2p.multistream import HEADER, encode_line
from p2p.switchboard import CONNECTIONS_PER_PEER_MAX, Switchboard
from tests.p2p.networks import ECHO, LISTEN, echo, identity, until

pytestmark = pytest.mark.network

KIB = 1024


@asynccontextmanager
async def server(**limits: float) -> AsyncIterator[Switchboard]:
    """A switch that serves echoes, without anything above it that would let peers go."""
    bounds = p2p.Limits(limit_private_addresses=True, **limits)  # type: ignore[arg-type]
    async with open_switch(identity(1), bounds) as switch:
        await switch.listen(LISTEN)
        switch.serve(ECHO, echo)
        yield switch


@contextmanager
def half_open(switch: Switchboard, source: str) -> Iterator[socket.socket]:
    """A socket from that address that says nothing."""
    address = switch.listening[0]
    with socket.create_connection((address.host, address.port), 5, (source, 0)) as sock:
        yield sock


async def dial(
    stack: AsyncExitStack, switch: Switchboard, source: str, who: p2p.Identity | None = None
) -> SecureConnection:
    """A finished connection from that address, reading until the test ends; by default each is of
    a peer of its own."""
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    with pytest.MonkeyPatch.context() as patch:
        from_there = functools.partial(trio.open_tcp_stream, local_address=source)
        patch.setattr(trio, "open_tcp_stream", from_there)
        connection = await Endpoint(who or p2p.Identity.generate(), p2p.Limits()).dial(
            Address.parse(switch.addresses[0])
        )
    nursery.start_soon(connection.run)
    return connection


def count(switch: Switchboard, name: str) -> int:
    """A counter that may not have begun."""
    return switch.counters().get(name, 0)


async def test_connections_max() -> None:
    async with server(connections_max=4, peers_low=1, peers_high=4) as switch:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await dial(stack, switch, "127.0.0.2")
            await until(lambda: len(switch.peers) == 3)
            fourth = await dial(stack, switch, "127.0.0.3")
            await until(fourth.closed.is_set)
            assert count(switch, "connections_refused") == 1
            assert len(switch.peers) == 3, "a quarter of the places is for our own dials"
        await until(lambda: not switch.peers)


async def test_connections_per_ip_max() -> None:
    async with server(connections_per_ip_max=2) as switch, AsyncExitStack() as stack:
        for _ in range(2):
            await dial(stack, switch, "127.0.0.2")
        await until(lambda: len(switch.peers) == 2)
        third = await dial(stack, switch, "127.0.0.2")
        await until(third.closed.is_set)
        assert count(switch, "connections_refused") == 1
        await dial(stack, switch, "127.0.0.3")
        await until(lambda: len(switch.peers) == 3)


async def test_whom_the_switch_refuses_is_counted_once() -> None:
    """The endpoint has a place for them; that they are not wanted is the switch's to say."""
    async with server() as switch, AsyncExitStack() as stack:
        for _ in range(CONNECTIONS_PER_PEER_MAX):
            await dial(stack, switch, "127.0.0.2", identity(2))
        await until(lambda: count(switch, "connections_inbound") == CONNECTIONS_PER_PEER_MAX)
        one_more = await dial(stack, switch, "127.0.0.2", identity(2))
        await until(one_more.closed.is_set)
        assert count(switch, "connections_refused") == 1
        switch.ban(identity(3).peer_id)
        banned = await dial(stack, switch, "127.0.0.3", identity(3))
        await until(banned.closed.is_set)
        assert count(switch, "connections_refused") == 2


@pytest.mark.parametrize("counted", [False, True])
async def test_limit_private_addresses(counted: bool) -> None:
    limits = p2p.Limits(connections_per_ip_max=1, limit_private_addresses=counted)
    async with open_switch(identity(1), limits) as switch, AsyncExitStack() as stack:
        await switch.listen(LISTEN)
        for _ in range(2):
            connection = await dial(stack, switch, "127.0.0.2")
        if counted:
            await until(connection.closed.is_set)
            assert count(switch, "connections_refused") == 1
        else:
            await until(lambda: len(switch.peers) == 2)


async def test_half_open_max() -> None:
    async with server(half_open_max=3) as switch, AsyncExitStack() as stack:
        for number in range(5):
            stack.enter_context(half_open(switch, f"127.0.0.{2 + number}"))
        await until(lambda: count(switch, "handshakes_dropped") == 2)
        await dial(stack, switch, "127.0.0.9")
        await until(lambda: len(switch.peers) == 1)
        assert count(switch, "handshakes_dropped") == 3, "the oldest made room for it"


async def test_half_open_per_ip_max() -> None:
    async with server(half_open_per_ip_max=2) as switch, AsyncExitStack() as stack:
        other = stack.enter_context(half_open(switch, "127.0.0.3"))
        for _ in range(5):
            stack.enter_context(half_open(switch, "127.0.0.2"))
        await until(lambda: count(switch, "handshakes_dropped") == 3)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)  # open still: only the one address's own were dropped
        await dial(stack, switch, "127.0.0.2")
        await until(lambda: len(switch.peers) == 1)


async def test_handshake_timeout_s() -> None:
    async with server(handshake_timeout_s=0.2) as switch:
        with half_open(switch, "127.0.0.2"):
            start_s = trio.current_time()
            await until(lambda: count(switch, "handshakes_dropped") == 1)
            assert trio.current_time() - start_s < 2


async def test_keepalive_interval_s_and_keepalive_timeout_s() -> None:
    async with server(keepalive_interval_s=0.2, keepalive_timeout_s=0.3) as switch:
        silent = await Endpoint(identity(2), p2p.Limits()).dial(Address.parse(switch.addresses[0]))
        start_s = trio.current_time()
        await until(lambda: count(switch, "connections_closed_for_silence") == 1)
        assert 0.4 < trio.current_time() - start_s < 3
        silent.abort("the test is over")


async def never_read(stream: p2p.Stream) -> None:
    """Take nothing."""
    await trio.sleep_forever()


async def unread(client: Switchboard, switch: Switchboard, size: int, refused: list[int]) -> None:
    """Send to a service that never reads, and note the size when that is refused."""
    try:
        async with client.open_stream(switch.peer_id, "/deaf/1") as stream:
            await stream.send_all(bytes(size))
            await stream.receive_some()
    except p2p.StreamReset:
        refused.append(size)


async def test_window_bytes_max() -> None:
    """A window grows while its reader is quick, and no further; then the sender waits."""
    quickly = 16 * 1024 * KIB

    async def read_quickly_then_never(stream: p2p.Stream) -> None:
        left = quickly
        while left:
            left -= len(await stream.receive_some(left))
        await trio.sleep_forever()

    async with server(window_bytes_max=512 * KIB) as switch, AsyncExitStack() as stack:
        switch.serve("/deaf/1", read_quickly_then_never)
        client = await stack.enter_async_context(open_switch(identity(2), p2p.Limits()))
        await client.connect(switch.addresses[0])
        async with client.open_stream(switch.peer_id, "/deaf/1") as stream:
            await stream.send_all(bytes(quickly))
            ahead = 0
            with trio.move_on_after(0.5):
                while True:
                    await stream.send_all(bytes(KIB))
                    ahead += KIB
            assert 256 * KIB < ahead <= 512 * KIB
            await stream.reset()


async def test_a_sender_that_ignores_the_window_loses_its_connection() -> None:
    async with server() as switch, AsyncExitStack() as stack:
        switch.serve("/deaf/1", never_read)
        stranger = await dial(stack, switch, "127.0.0.2")
        raw = await stranger.open_stream()
        await raw.send_all(encode_line(HEADER) + encode_line("/deaf/1"))
        raw.state.send_window = 2**30
        with pytest.raises(p2p.StreamReset):  # noqa: PT012
            while True:
                await raw.send_all(bytes(64 * KIB))
        assert count(switch, "connections_closed_for_violation") == 1


async def test_connection_buffer_bytes_max() -> None:
    async with server(connection_buffer_bytes_max=300 * KIB) as switch:
        switch.serve("/deaf/1", never_read)
        async with open_switch(identity(2), p2p.Limits()) as client, trio.open_nursery() as nursery:
            await client.connect(switch.addresses[0])
            refused: list[int] = []
            for size in (200 * KIB, 150 * KIB):
                nursery.start_soon(unread, client, switch, size, refused)
                await trio.sleep(0.1)
            await until(lambda: len(refused) == 1)
            assert client.peer_id in switch.peers
            nursery.cancel_scope.cancel()


async def test_process_buffer_bytes_max() -> None:
    async with server(process_buffer_bytes_max=300 * KIB) as switch, AsyncExitStack() as stack:
        switch.serve("/deaf/1", never_read)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        refused: list[int] = []
        for number, size in enumerate((200 * KIB, 90 * KIB, 50 * KIB)):
            opened = open_switch(identity(2 + number), p2p.Limits())
            client = await stack.enter_async_context(opened)
            await client.connect(switch.addresses[0])
            nursery.start_soon(unread, client, switch, size, refused)
        await until(lambda: count(switch, "connections_closed_for_memory") == 1)
        await until(lambda: refused == [200 * KIB])
        assert len(switch.peers) == 2
