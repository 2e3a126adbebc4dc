"""The bounds of the DHT are reached, by peers of a node that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
import trio.testing

import p2p
from p2p.kademlia import PROTOCOL, Contact, Kademlia, Kind, Message, Record, open_kademlia
from p2p.kademlia.contact import distance, key_of
from p2p.kademlia.multihash import provider_key
from p2p.memory import MemoryHub, open_hub
from tests.p2p.kademlia.strategies import contact
from tests.p2p.kademlia.test_stores import Newest
from tests.p2p.networks import LISTEN, identity

VALIDATORS = {"n": Newest()}


class Visitors:
    """A bounded node, and peers that ask it for things."""

    def __init__(self, hub: MemoryHub, stack: AsyncExitStack, limits: p2p.Limits) -> None:
        self.hub = hub
        self.stack = stack
        self.limits = limits
        self.opened = 0

    async def open(self, limits: p2p.Limits) -> Kademlia:
        """One more node."""
        self.opened += 1
        enter = self.stack.enter_async_context
        switch = await enter(self.hub.open_switch(identity(self.opened), limits))
        await switch.listen(LISTEN)
        return await enter(open_kademlia(switch, validators=VALIDATORS))

    async def start(self) -> Kademlia:
        """The bounded node."""
        self.node = await self.open(self.limits)
        return self.node

    async def new(self) -> Kademlia:
        """A peer that is connected to it."""
        dht = await self.open(p2p.Limits())
        await dht._switch.connect(self.node._switch.addresses[0])  # type: ignore[attr-defined]
        return dht

    async def ask(self, dht: Kademlia, message: Message) -> None:
        """Send a request to the bounded node; refusals are for its counters."""
        to = Contact(peer_id=self.node._switch.peer_id)
        with suppress(p2p.NetworkError):
            await dht.walker.request(to, message)

    async def announce(self, dht: Kademlia, key: bytes) -> None:
        """Announce a key to the bounded node."""
        me = Contact(peer_id=dht._switch.peer_id, addresses=("/ip4/10.0.0.1/tcp/1",))
        message = Message(kind=Kind.ADD_PROVIDER, key=provider_key(key), providers=(me,))
        await self.ask(dht, message)

    async def put(self, dht: Kademlia, name: int, value: bytes = b"1") -> None:
        """Put a record to the bounded node."""
        record = Record(key=b"/n/%d" % name, value=value)
        await self.ask(dht, Message(kind=Kind.PUT_VALUE, key=record.key, record=record))


@asynccontextmanager
async def visited(**limits: float) -> AsyncIterator[tuple[Visitors, Kademlia]]:
    """A node with those bounds, and who visits it."""
    async with open_hub() as hub, AsyncExitStack() as stack:
        visitors = Visitors(hub, stack, p2p.Limits(**limits))  # type: ignore[arg-type]
        yield visitors, await visitors.start()


async def test_records_max() -> None:
    async with visited(records_max=5) as (visitors, node):
        visitor = await visitors.new()
        for number in range(20):
            await visitors.put(visitor, number)
        counts = node.counters()
        assert counts["kademlia_records"] == 5
        assert counts["kademlia_records_refused"] + counts["kademlia_records_displaced"] == 15
        keys = [b"/n/%d" % number for number in range(20)]
        keys.sort(key=lambda key: distance(key_of(key), node.table.key))
        assert all(node._records.get(key, node._clock()) for key in keys[:5]), "the nearest stay"


async def test_record_bytes_max() -> None:
    async with visited(record_bytes_max=10) as (visitors, node):
        visitor = await visitors.new()
        await visitors.put(visitor, 1, b"1" * 10)
        await visitors.put(visitor, 2, b"1" * 11)
        assert node.counters()["kademlia_records"] == 1
        assert node.counters()["kademlia_requests_refused"] == 1
        with pytest.raises(p2p.InvalidRecord):
            await node.put_record(b"/n/3", b"1" * 11)


async def test_providers_per_key_max() -> None:
    async with visited(providers_per_key_max=2) as (visitors, node):
        for _ in range(4):
            await visitors.announce(await visitors.new(), b"key")
        assert node.counters()["kademlia_provider_announcements"] == 2
        assert node.counters()["kademlia_announcements_refused"] == 2


async def test_provided_keys_per_peer_max() -> None:
    async with visited(provided_keys_per_peer_max=3) as (visitors, node):
        zealous = await visitors.new()
        for number in range(5):
            await visitors.announce(zealous, b"%d" % number)
        assert node.counters()["kademlia_announcements_refused"] == 2
        await visitors.announce(await visitors.new(), b"another's")
        assert node.counters()["kademlia_provider_announcements"] == 4


async def test_provider_keys_max() -> None:
    async with visited(provider_keys_max=5) as (visitors, node):
        visitor = await visitors.new()
        for number in range(20):
            await visitors.announce(visitor, b"%d" % number)
        counts = node.counters()
        full = counts["kademlia_announcements_refused"] + counts["kademlia_announcements_displaced"]
        assert (counts["kademlia_provider_announcements"], full) == (5, 15)


async def test_table_peers_per_subnet_max() -> None:
    async with visited(table_peers_per_subnet_max=3) as (_, node):
        for number in range(100):
            node.table.answered(contact(number, f"8.8.8.{number}"), 0.0)
        assert len(node.table) == 3
        assert node.counters()["kademlia_subnet_full"] == 97


async def be_silent(stream: p2p.Stream) -> None:
    """Take the request and say nothing."""
    await trio.sleep_forever()


async def among_the_silent(visitors: Visitors, node: Kademlia) -> None:
    """Fill the node's table with peers that accept requests and never answer."""
    for number in range(5):
        switch = visitors.hub.open_switch(identity(100 + number), p2p.Limits())
        silent = await visitors.stack.enter_async_context(switch)
        await silent.listen(LISTEN)
        silent.serve(PROTOCOL, be_silent)
        told = Contact(peer_id=silent.peer_id, addresses=silent.addresses)
        node.table.answered(told, trio.current_time())


async def test_lookup_timeout_s(autojump_clock: trio.testing.MockClock) -> None:
    limits = {"lookup_timeout_s": 2.0, "lookup_request_timeout_s": 60.0}
    async with visited(**limits) as (visitors, node):
        await among_the_silent(visitors, node)
        start_s = trio.current_time()
        assert await node.find_providers(b"key") == []
        assert trio.current_time() - start_s == pytest.approx(2.0, abs=0.1)
        assert node.counters()["kademlia_lookups_late"] >= 1


async def test_lookup_request_timeout_s(autojump_clock: trio.testing.MockClock) -> None:
    async with visited(lookup_request_timeout_s=0.5) as (visitors, node):
        await among_the_silent(visitors, node)
        start_s = trio.current_time()
        assert await node.find_providers(b"key") == []
        assert trio.current_time() - start_s < 3
        assert node.counters()["kademlia_requests_late"] >= 5
