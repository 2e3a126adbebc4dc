"""Lifetimes: whatever happens, nothing of a network is left; and peers that die are noticed."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

import p2p
from p2p.memory import open_hub
from p2p.network import Network
from p2p.stack import StackedNetwork
from tests.p2p.kademlia.test_stores import Newest
from tests.p2p.networks import (
    ECHO,
    LISTEN,
    SCALE,
    echo,
    identity,
    on_both,
    open_world,
    receive_all,
    until,
)

STEPS_MAX = 2000
RECORD = b"/n/record"
NOTICED_S_MAX = 20.0
REJOINED_S_MAX = 10.0


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when the current task is about to run for the n-th time."""

    def __init__(self, step: int) -> None:
        self.scope = trio.CancelScope()
        self._task = trio.lowlevel.current_task()
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self.scope.cancel()

    @property
    def has_fired(self) -> bool:
        """Whether the scenario was long enough."""
        return self._left <= 0


async def cancelled_everywhere(scenario: Callable[[], Awaitable[None]], stride: int = 1) -> int:
    """Run `scenario` again and again, cancelled one step later each time; returns the steps."""
    await scenario()  # what is only made once is made now
    tasks, files = living_tasks(), open_files()
    for step in range(1, STEPS_MAX, stride):
        instrument = CancelAt(step)
        trio.lowlevel.add_instrument(instrument)
        try:
            with instrument.scope:
                await scenario()
        finally:
            trio.lowlevel.remove_instrument(instrument)
        assert living_tasks() == tasks, f"a task is left when cancelled at step {step}"
        assert open_files() == files, f"a socket is left when cancelled at step {step}"
        if not instrument.has_fired:
            return step
    raise AssertionError("the scenario never ends")


def living_tasks() -> int:
    """Tasks of this run."""
    return trio.lowlevel.current_statistics().tasks_living


def open_files() -> list[str]:
    """What this process has open, sockets and all."""
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors())


def _descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        found.append(fd)
    return found


@pytest.mark.parametrize("kind", ["memory", "backend"])
async def test_cancelled_at_every_checkpoint(kind: str) -> None:
    """Open two networks, connect, speak, gossip, announce and close, cancelled at each await."""
    port = free_port()

    async def scenario() -> None:
        async with open_world(kind) as world:
            listen = (f"/ip4/127.0.0.1/tcp/{port}",)
            async with world.open(1, listen=listen) as server, world.open(2) as client:
                await server.serve(ECHO, echo)
                await client.connect(server.addresses[0])
                async with client.open_stream(server.peer_id, ECHO) as stream:
                    await stream.send_all(b"hello")
                    assert await stream.receive_some() == b"hello"
                    await stream.send_eof()
                    await receive_all(stream)
                async with client.subscribe("topic"), server.subscribe("topic"):
                    await client.publish("topic", b"news")
                await client.provide(b"key")
                await client.disconnect(server.peer_id)

    stride = 1 if SCALE > 1 else 3
    assert await cancelled_everywhere(scenario, stride) > 20
    with socket.create_server(("127.0.0.1", port)):
        pass  # nobody listens any more


async def put_and_get(network: Network) -> None:
    """Keep a record with the DHT, as soon as somebody serves it."""
    while True:
        try:
            await network.put_record(RECORD, b"1")
            break
        except p2p.LookupFailed:
            await trio.sleep(0.01)
    assert await network.get_record(RECORD) == b"1"


@pytest.mark.parametrize("kind", ["memory", "backend"])
async def test_every_call_cancelled_at_every_checkpoint(kind: str) -> None:
    """What waits for others: events, messages, judges, pings, lookups, records, failed dials."""

    async def judge(message: p2p.Message) -> p2p.Verdict:
        await trio.lowlevel.checkpoint()
        return p2p.Verdict.ACCEPT

    async def scenario() -> None:
        judges = {"n": Newest()}
        async with (
            open_world(kind) as world,
            world.open(1, record_validators=judges) as server,
            world.open(2, record_validators=judges, bootstrap=server.addresses) as client,
            client.watch_peers() as events,
        ):
            assert isinstance(await events.receive(), p2p.PeerConnected)
            await p2p.ping(client, server.peer_id)
            async with client.subscribe("topic", validate=judge) as messages:
                await client.publish("topic", b"news")
                await messages.receive()
            await put_and_get(client)
            await client.provide(b"key")
            assert await server.find_providers(b"key") == [client.peer_id]
            await client.find_peer(server.peer_id)
            await client.serve("/other/1", echo)
            with pytest.raises(p2p.ProtocolUnsupported):
                async with client.open_stream(server.peer_id, "/other/1") as stream:
                    await stream.receive_some()
            await client.unserve("/other/1")
            with pytest.raises(p2p.DialFailed):
                await client.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{identity(9).peer_id}")
            server.ban(client.peer_id)
            assert isinstance(await events.receive(), p2p.PeerDisconnected)

    stride = 1 if SCALE > 1 else 5
    assert await cancelled_everywhere(scenario, stride) > 20


@on_both
async def test_a_failing_background_is_not_possible_through_a_handler(
    pair: tuple[Network, Network],
) -> None:
    """Errors of every kind in a handler, groups of them included, end their stream only."""
    server, client = pair
    errors: list[BaseException] = [
        KeyError(),
        ExceptionGroup("two", [ValueError(), OSError()]),
        p2p.ProtocolViolation("mine"),
        trio.BrokenResourceError(),
        StopIteration(),
    ]

    async def failing(stream: p2p.Stream) -> None:
        raise errors[(await stream.receive_some())[0]]

    await server.serve("/fail/1", failing)
    for number in range(len(errors)):
        with pytest.raises(p2p.StreamReset):  # noqa: PT012
            async with client.open_stream(server.peer_id, "/fail/1") as stream:
                await stream.send_all(bytes([number]))
                await stream.receive_some()
    assert client.peer_id in server.peers
    assert await p2p.ping(client, server.peer_id) >= 0


async def test_a_dead_peer_is_noticed_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_hub() as hub:
        async with (
            hub.open_network(identity(1), listen=LISTEN) as one,
            hub.open_network(identity(2), bootstrap=one.addresses) as two,
        ):
            await until(lambda: one.peer_id in two.peers)
            async with two.watch_peers() as events:
                assert isinstance(await events.receive(), p2p.PeerConnected)
                hub.partition([one.peer_id], [two.peer_id])
                cut_s = trio.current_time()
                assert await events.receive() == p2p.PeerDisconnected(peer_id=one.peer_id)
                assert trio.current_time() - cut_s <= NOTICED_S_MAX
                hub.heal()
                healed_s = trio.current_time()
                assert isinstance(await events.receive(), p2p.PeerConnected)
                assert trio.current_time() - healed_s <= REJOINED_S_MAX


PEER = """
import sys, trio, p2p
from tests.p2p.networks import echo, identity
async def main(port, *bootstrap):
    limits = p2p.Limits(keepalive_interval_s=0.3, keepalive_timeout_s=0.6)
    listen = [f"/ip4/127.0.0.1/tcp/{port}"]
    async with p2p.open_network(
        identity(7), listen=listen, bootstrap=bootstrap, limits=limits
    ) as network:
        await network.serve("/echo/1", echo)
        async with network.subscribe("news") as messages:
            print(network.addresses[0], flush=True)
            async for message in messages:
                print(message.data.decode(), flush=True)
trio.run(main, *sys.argv[1:])
"""


async def start_peer(nursery: trio.Nursery, port: int) -> tuple[trio.Process, str]:
    """Another process that listens on `port`; returns it with its address."""
    process: trio.Process = await nursery.start(
        lambda task_status: trio.run_process(  # noqa: ASYNC105
            [sys.executable, "-c", PEER, str(port)],
            cwd=Path(__file__).parents[2],
            capture_stdout=False,
            stdout=-1,
            check=False,
            task_status=task_status,
        )
    )
    assert process.stdout is not None
    received = b""
    while not received.endswith(b"\n"):
        received += await process.stdout.receive_some()
    return process, received.decode().strip()


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.network
async def test_a_frozen_process_is_noticed() -> None:
    """SIGSTOP: the kernel still answers for it, only keepalive can tell."""
    limits = p2p.Limits(keepalive_interval_s=0.3, keepalive_timeout_s=0.6)
    defaults = p2p.Limits()
    assert defaults.keepalive_interval_s + defaults.keepalive_timeout_s < NOTICED_S_MAX
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            process, address = await start_peer(nursery, free_port())
            async with p2p.open_network(identity(1), limits=limits) as network:
                peer_id = await network.connect(address)
                async with network.watch_peers() as events:
                    await events.receive()
                    process.send_signal(19)
                    start_s = trio.current_time()
                    try:
                        assert await events.receive() == p2p.PeerDisconnected(peer_id=peer_id)
                        assert trio.current_time() - start_s < 5
                    finally:
                        process.send_signal(18)
                        process.kill()
            nursery.cancel_scope.cancel()


@pytest.mark.network
async def test_a_killed_and_restarted_process_is_meshed_again() -> None:
    """Without a bootstrap list at the restarted peer, and without help from the program here."""
    port = free_port()
    with trio.fail_after(60):
        async with p2p.open_network(identity(1), listen=LISTEN) as network:
            assert isinstance(network, StackedNetwork)
            async with network.subscribe("news"), trio.open_nursery() as nursery:
                process, address = await start_peer(nursery, port)
                peer_id = await network.connect(address)
                await until(lambda: peer_id in network.mesh_peers("news"))
                process.kill()
                await until(lambda: peer_id not in network.peers)
                process, _ = await start_peer(nursery, port)
                start_s = trio.current_time()
                await until(lambda: peer_id in network.mesh_peers("news"))
                await network.publish("news", b"welcome back")
                assert process.stdout is not None
                assert b"welcome back" in await process.stdout.receive_some()
                assert trio.current_time() - start_s <= REJOINED_S_MAX
                process.kill()
                nursery.cancel_scope.cancel()


@pytest.mark.network
async def test_connecting_a_thousand_times_leaves_nothing() -> None:
    """The counters grow; tasks, sockets and peers do not. 10,000 at full scale."""
    async with open_world("backend") as world:
        server, client = await world.enter(1), await world.enter(2)
        await client.connect(server.addresses[0])
        await client.disconnect(server.peer_id)
        await until(lambda: not server.peers)
        await trio.sleep(0.1)
        tasks, files = living_tasks(), len(open_files())
        connects = min(10_000, 300 * SCALE)
        for _ in range(connects):
            await client.connect(server.addresses[0])
            await client.disconnect(server.peer_id)
        await until(lambda: not server.peers and not client.peers)
        await until(lambda: living_tasks() <= tasks and len(open_files()) <= files)
        assert server.counters()["connections_inbound"] > connects
