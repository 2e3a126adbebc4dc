"""The DHT in virtual time: patience with the silent, upkeep over hours, in milliseconds."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from p2p.identity import Identity
from p2p.kademlia import open_kademlia
from p2p.kademlia.providers import PROVIDER_LIFETIME_S
from p2p.kademlia.upkeep import ANNOUNCE_MAX_S, STALE_AFTER_S, UPKEEP_INTERVAL_S
from p2p.limits import Limits
from p2p.memory import MemoryHub, Weather, open_hub
from tests.p2p.kademlia.strategies import SCALE
from tests.p2p.kademlia.test_dht import Node
from tests.p2p.kademlia.test_stores import Newest

WEATHER = Weather(latency_min_s=0.01, latency_max_s=0.1)
LISTEN = ("/ip4/127.0.0.1/tcp/0",)


async def open_node(stack: AsyncExitStack, hub: MemoryHub, number: int) -> Node:
    """A node on the hub, whose records and announcements age with trio's clock."""
    identity = Identity(number.to_bytes(32))
    switch = await stack.enter_async_context(hub.open_switch(identity, Limits()))
    dht = await stack.enter_async_context(
        open_kademlia(
            switch,
            validators={"n": Newest()},
            clock=trio.current_time,
            rng=random.Random(number),
        )
    )
    await switch.listen(LISTEN)
    return Node(switch, dht)


@asynccontextmanager
async def network(count: int) -> AsyncIterator[tuple[MemoryHub, list[Node]]]:
    """A hub and nodes that were told of the first one and have had ten seconds."""
    async with open_hub(seed=1, weather=WEATHER) as hub, AsyncExitStack() as stack:
        nodes = [await open_node(stack, hub, 1 + number) for number in range(count)]
        for node in nodes[1:]:
            await node.switch.connect(nodes[0].switch.addresses[0])
        await trio.sleep(10)
        assert all(len(node.dht.table) >= count // 2 for node in nodes)
        yield hub, nodes


async def test_a_quarter_falling_silent_costs_seconds_not_time_outs(
    autojump_clock: MockClock,
) -> None:
    async with network(20) as (hub, nodes):
        silent = [node.switch.peer_id for node in nodes[15:]]
        hub.partition(silent)
        started_s = trio.current_time()
        await nodes[0].dht.put_record(b"/n/1", b"1")
        put_s = trio.current_time() - started_s
        assert put_s < 8, "py-libp2p takes 20 s"
        started_s = trio.current_time()
        assert await nodes[7].dht.get_record(b"/n/1", quorum=1) == b"1"
        assert trio.current_time() - started_s < 2


async def test_the_silent_leave_every_table_and_come_back_when_they_answer(
    autojump_clock: MockClock,
) -> None:
    async with network(8) as (hub, nodes):
        lost = nodes[7]
        hub.partition([lost.switch.peer_id])
        await trio.sleep(STALE_AFTER_S + 8 * UPKEEP_INTERVAL_S)
        assert all(lost.switch.peer_id not in node.dht.table for node in nodes[:7])
        hub.heal()
        await lost.switch.connect(nodes[0].switch.addresses[0])
        await trio.sleep(5)
        assert lost.switch.peer_id in nodes[0].dht.table
        assert await nodes[3].dht.find_peer(lost.switch.peer_id)


async def test_announcements_are_renewed_ever_more_rarely(autojump_clock: MockClock) -> None:
    async with network(2) as (_, nodes):
        await nodes[1].dht.provide(b"key")
        await trio.sleep(3600)
        assert 6 <= nodes[0].dht.counters()["kademlia_served_add_provider"] <= 12
        assert ANNOUNCE_MAX_S < PROVIDER_LIFETIME_S / 1.9


@pytest.mark.skipif(SCALE < 10, reason="two days of a network take a minute")
async def test_announcements_are_renewed_until_taken_back(autojump_clock: MockClock) -> None:
    async with network(3) as (_, nodes):
        await nodes[1].dht.provide(b"key")
        await trio.sleep(1.1 * PROVIDER_LIFETIME_S)
        assert await nodes[2].dht.find_providers(b"key") == [nodes[1].switch.peer_id]
        await nodes[1].dht.unprovide(b"key")
        await trio.sleep(1.1 * PROVIDER_LIFETIME_S)
        assert await nodes[2].dht.find_providers(b"key") == []


async def test_a_key_provided_alone_is_announced_when_others_come(
    autojump_clock: MockClock,
) -> None:
    async with open_hub(seed=1, weather=WEATHER) as hub, AsyncExitStack() as stack:
        first = await open_node(stack, hub, 1)
        await first.dht.provide(b"key")
        second = await open_node(stack, hub, 2)
        await first.switch.connect(second.switch.addresses[0])
        await trio.sleep(60)
        assert second.dht.counters()["kademlia_provider_announcements"] == 1
