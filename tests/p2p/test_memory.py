"""The network in one process: its weather, its partitions, and that chance is seeded."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import p2p
from p2p.memory import MemoryHub, Weather, open_hub
from p2p.memory.stream import LINGER_S, WINDOW_BYTES
from p2p.memory.wire import RETRANSMISSION_TIMEOUT_S, Wire
from p2p.network import Network, Stream
from tests.p2p.networks import ECHO, LISTEN, echo, identity, receive_all, until

ALICE, BOB, CAROL = (identity(number).peer_id for number in (1, 2, 3))


async def echo_time_s(client: Network, server: p2p.PeerId) -> float:
    """How long one echo takes on a stream that is open and negotiated."""
    async with client.open_stream(server, ECHO) as stream:
        await stream.send_all(b"a")
        await stream.receive_some()
        start_s = trio.current_time()
        await stream.send_all(b"b")
        assert await stream.receive_some() == b"b"
        return trio.current_time() - start_s


async def connected(hub: MemoryHub, server: Network, client: Network) -> None:
    await server.serve(ECHO, echo)
    await client.connect(server.addresses[0])


async def test_latency_is_what_was_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    weather = Weather(latency_min_s=0.1, latency_max_s=0.1)
    async with open_hub(weather=weather) as hub:
        async with (
            hub.open_network(identity(1), listen=LISTEN) as server,
            hub.open_network(identity(2), listen=LISTEN) as client,
        ):
            start_s = trio.current_time()
            await connected(hub, server, client)
            assert trio.current_time() - start_s == pytest.approx(0.2)
            assert await echo_time_s(client, server.peer_id) == pytest.approx(0.2)
            assert await p2p.ping(client, server.peer_id) == pytest.approx(0.2, abs=0.001)


async def test_loss_delays_and_keeps_the_order(autojump_clock: trio.testing.MockClock) -> None:
    async with open_hub(seed=3, weather=Weather(loss=0.3)) as hub:
        async with (
            hub.open_network(identity(1), listen=LISTEN) as server,
            hub.open_network(identity(2), listen=LISTEN) as client,
        ):
            await connected(hub, server, client)
            start_s = trio.current_time()
            async with client.open_stream(server.peer_id, ECHO) as stream:
                for number in range(50):
                    await stream.send_all(b"%02d" % number)
                await stream.send_eof()
                received = await receive_all(stream)
            assert received == b"".join(b"%02d" % number for number in range(50))
            assert trio.current_time() - start_s >= RETRANSMISSION_TIMEOUT_S


async def test_the_same_seed_draws_the_same_weather(autojump_clock: trio.testing.MockClock) -> None:
    async def arrivals(seed: int) -> list[float]:
        wire = Wire(Weather(latency_max_s=1.0, loss=0.2), seed)
        start_s, times = trio.current_time(), []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.run)
            for _ in range(20):
                wire.send(ALICE, BOB, lambda: times.append(trio.current_time() - start_s))
            await until(lambda: len(times) == 20, timeout_s=1000)
            nursery.cancel_scope.cancel()
        return [round(time, 9) for time in times]

    first = await arrivals(1)
    assert first == sorted(first), "a lane keeps its order"
    assert first == await arrivals(1)
    assert first != await arrivals(2)


async def test_a_short_partition_only_delays(autojump_clock: trio.testing.MockClock) -> None:
    async with open_hub() as hub:
        async with (
            hub.open_network(identity(1), listen=LISTEN) as server,
            hub.open_network(identity(2), listen=LISTEN) as client,
        ):
            await connected(hub, server, client)
            async with client.open_stream(server.peer_id, ECHO) as stream:
                await stream.send_all(b"before ")
                hub.partition([ALICE], [BOB])
                await stream.send_all(b"during ")
                with trio.move_on_after(5) as scope:
                    while True:
                        assert await stream.receive_some() in (b"before ", b"")
                assert scope.cancelled_caught
                hub.heal()
                await stream.send_all(b"after")
                await stream.send_eof()
                assert (await receive_all(stream)).endswith(b"during after")
            assert client.peers == {server.peer_id}


async def test_partitions_separate_only_their_groups(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_hub() as hub:
        async with (
            hub.open_network(identity(1), listen=LISTEN) as alice,
            hub.open_network(identity(2), bootstrap=alice.addresses) as bob,
            hub.open_network(identity(3), bootstrap=alice.addresses) as carol,
        ):
            await until(lambda: alice.peers == {BOB, CAROL})
            hub.partition([ALICE, BOB], [CAROL])
            await until(lambda: not carol.peers, timeout_s=20)
            assert alice.peers == {BOB}
            assert bob.peers == {ALICE}
            with pytest.raises(p2p.DialFailed):
                await carol.connect(alice.addresses[0])
            hub.heal()
            await until(lambda: carol.peers >= {ALICE}, timeout_s=10)


async def test_gossip_crosses_bad_weather(autojump_clock: trio.testing.MockClock) -> None:
    weather = Weather(latency_min_s=0.02, latency_max_s=0.2, loss=0.05)
    async with open_hub(seed=5, weather=weather) as hub:
        async with hub.open_network(identity(1), listen=LISTEN) as first, _Crowd() as crowd:
            for number in range(2, 9):
                await crowd.enter(
                    hub.open_network(identity(number), listen=LISTEN, bootstrap=first.addresses)
                )
            everyone = [first, *crowd.networks]
            await crowd.subscribe(everyone, "news")
            await until(lambda: all(n.topic_peers("news") for n in everyone), timeout_s=60)
            await trio.sleep(5)
            for number in range(20):
                await everyone[number % 8].publish("news", b"%d" % number)
            await until(lambda: all(len(got) == 20 for got in crowd.received), timeout_s=60)


class _Crowd:
    """Networks and subscriptions that live as long as the block."""

    def __init__(self) -> None:
        self._stack = trio.open_nursery()
        self.networks: list[Network] = []
        self.received: list[list[bytes]] = []

    async def __aenter__(self) -> _Crowd:
        self._nursery = await self._stack.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._nursery.cancel_scope.cancel()
        await self._stack.__aexit__(*error)  # type: ignore[arg-type]

    async def enter(self, opening: object) -> None:
        self.networks.append(await self._nursery.start(self._hold, opening))

    async def _hold(self, opening: object, *, task_status: trio.TaskStatus[Network]) -> None:
        async with opening as network:  # type: ignore[attr-defined]
            task_status.started(network)
            await trio.sleep_forever()

    async def subscribe(self, networks: list[Network], topic: str) -> None:
        for network in networks:
            got: list[bytes] = []
            self.received.append(got)
            await self._nursery.start(self._read, network, topic, got)

    async def _read(
        self, network: Network, topic: str, got: list[bytes], *, task_status: trio.TaskStatus[None]
    ) -> None:
        async with network.subscribe(topic) as messages:
            task_status.started()
            async for message in messages:
                got.append(message.data)  # noqa: PERF401


async def test_the_window_is_exact() -> None:
    async def deaf(stream: Stream) -> None:
        await trio.sleep_forever()

    async with open_hub() as hub:
        async with (
            hub.open_network(identity(1), listen=LISTEN) as server,
            hub.open_network(identity(2)) as client,
        ):
            await server.serve("/deaf/1", deaf)
            await client.connect(server.addresses[0])
            await until(lambda: client.peer_id in server.peers)
            async with client.open_stream(server.peer_id, "/deaf/1") as stream:
                await stream.send_all(bytes(WINDOW_BYTES - 100))
                with trio.move_on_after(0.1) as scope:
                    await stream.send_all(bytes(200))
                assert scope.cancelled_caught


async def test_a_closed_reader_ends_its_writer_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def leave(stream: Stream) -> None:
        await stream.receive_some()

    async with open_hub() as hub:
        async with (
            hub.open_network(identity(1), listen=LISTEN) as server,
            hub.open_network(identity(2)) as client,
        ):
            await server.serve("/leave/1", leave)
            await client.connect(server.addresses[0])
            async with client.open_stream(server.peer_id, "/leave/1") as stream:
                start_s = trio.current_time()
                with pytest.raises(p2p.StreamReset):
                    await _send_forever(stream)
                assert trio.current_time() - start_s == pytest.approx(LINGER_S, abs=1)


async def _send_forever(stream: Stream) -> None:
    while True:
        await stream.send_all(bytes(10_000))
        await trio.sleep(0.1)


@pytest.mark.parametrize(
    "bad", [{"loss": 1.0}, {"loss": -0.1}, {"latency_min_s": 1.0}, {"latency_min_s": -1.0}]
)
def test_impossible_weather(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no network"):
        Weather(**bad)
