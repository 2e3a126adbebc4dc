"""The DHT on real sockets: nodes find each other, keep what they are given, and shrug off liars."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from p2p.backend.switch import open_switch
from p2p.errors import InvalidRecord, LookupFailed, StreamError
from p2p.identity import Identity
from p2p.kademlia import PROTOCOL, Kademlia, Kind, Message, Record, open_kademlia
from p2p.kademlia.exchange import REQUEST_BYTES_MAX, REQUESTS_BURST_MAX, STREAMS_PER_PEER_MAX
from p2p.kademlia.message import MessageReader, frame_message
from p2p.kademlia.multihash import provider_key
from p2p.limits import Limits
from p2p.network import Stream
from p2p.switch import Switch
from p2p.switchboard import Switchboard
from tests.p2p.kademlia.strategies import contact
from tests.p2p.kademlia.test_stores import Newest

pytestmark = pytest.mark.network

LIMITS = Limits(lookup_request_timeout_s=1.5)
"""So that the silent are given up soon; the honest answer on loopback within milliseconds."""


@dataclass
class Node:
    """A switch with a DHT on it."""

    switch: Switchboard
    dht: Kademlia


async def open_node(stack: AsyncExitStack, number: int, **options: object) -> Node:
    """A node that listens on a free port of loopback."""
    switch = await open_stranger(stack, number)
    options = {"validators": {"n": Newest()}, "rng": random.Random(number), **options}
    dht = await stack.enter_async_context(open_kademlia(switch, **options))  # type: ignore[arg-type]
    return Node(switch, dht)


async def open_stranger(stack: AsyncExitStack, number: int) -> Switchboard:
    """A switch alone, for whoever does not play by the rules."""
    identity = Identity(number.to_bytes(32))
    switch = await stack.enter_async_context(open_switch(identity, LIMITS))
    await switch.listen(["/ip4/127.0.0.1/tcp/0"])
    return switch


async def until(reached: Callable[[], bool]) -> None:
    """Wait for what other tasks bring about."""
    with trio.fail_after(30):
        while not reached():  # noqa: ASYNC110 - sockets have no event to wait for
            await trio.sleep(0.005)


@asynccontextmanager
async def network(count: int) -> AsyncIterator[list[Node]]:
    """Nodes that were all told of the first one only, and have found each other."""
    async with AsyncExitStack() as stack:
        nodes = [await open_node(stack, 1 + number) for number in range(count)]
        for node in nodes[1:]:
            await node.switch.connect(nodes[0].switch.addresses[0])
        await until(lambda: len(nodes[0].dht.table) == count - 1)
        for node in nodes:
            await node.dht.closest_peers(node.switch.peer_id.to_bytes())
        await until(lambda: all(len(node.dht.table) == count - 1 for node in nodes))
        yield nodes


async def test_nodes_told_of_one_find_all_and_what_they_have() -> None:
    async with network(6) as nodes:
        await nodes[1].dht.provide(b"key")
        for node in nodes:
            found = await node.dht.find_providers(b"key", count=1)
            assert found == ([] if node is nodes[1] else [nodes[1].switch.peer_id])
        await nodes[2].dht.provide(b"key")
        found = await nodes[5].dht.find_providers(b"key")
        assert set(found) == {nodes[1].switch.peer_id, nodes[2].switch.peer_id}
        assert nodes[5].switch.addresses_of(found[0])
        assert await nodes[3].dht.find_providers(b"nobody has this") == []


async def test_a_peer_is_found_and_reached_by_its_id() -> None:
    async with network(4) as nodes:
        async with AsyncExitStack() as stack:
            late = await open_node(stack, 50)
            await late.switch.connect(nodes[3].switch.addresses[0])
            await until(lambda: late.switch.peer_id in nodes[3].dht.table)
            addresses = await nodes[1].dht.find_peer(late.switch.peer_id)
            assert addresses == late.switch.addresses
            assert late.switch.peer_id in nodes[1].switch.peers
        with pytest.raises(LookupFailed):
            await nodes[1].dht.find_peer(contact(5).peer_id)
        assert await nodes[1].dht.find_peer(nodes[1].switch.peer_id) == nodes[1].switch.addresses


async def test_the_best_record_wins_and_the_outdated_are_told() -> None:
    async with network(4) as nodes:
        await nodes[0].dht.put_record(b"/n/1", b"1")
        assert await nodes[3].dht.get_record(b"/n/1") == b"1"
        now_s = nodes[2].dht._clock()
        nodes[2].dht._records.put(Record(key=b"/n/1", value=b"2"), nodes[2].switch.peer_id, now_s)
        assert await nodes[3].dht.get_record(b"/n/1", quorum=9) == b"2"
        for node in nodes[:3]:
            assert await node.dht.get_record(b"/n/1", quorum=1) == b"2"
        with pytest.raises(LookupFailed):
            await nodes[0].dht.get_record(b"/n/none")
        with pytest.raises(InvalidRecord):
            await nodes[0].dht.put_record(b"/n/1", b"no number")
        with pytest.raises(InvalidRecord):
            await nodes[0].dht.put_record(b"/x/1", b"1")


async def test_alone_nothing_is_found_and_nothing_hangs() -> None:
    async with AsyncExitStack() as stack:
        node = await open_node(stack, 1)
        await node.dht.provide(b"key")
        assert await node.dht.find_providers(b"key") == []
        with pytest.raises(LookupFailed):
            await node.dht.put_record(b"/n/1", b"1")


async def test_the_dead_leave_the_table() -> None:
    async with network(3) as nodes:
        async with AsyncExitStack() as stack:
            mortal = await open_node(stack, 60)
            await mortal.switch.connect(nodes[0].switch.addresses[0])
            await until(lambda: mortal.switch.peer_id in nodes[0].dht.table)
        for _ in range(2):
            await nodes[0].dht.closest_peers(mortal.switch.peer_id.to_bytes())
            await until(lambda: mortal.switch.peer_id not in nodes[0].switch.peers)
            nodes[0].dht.walker.probe(contact(0))
            for stale in nodes[0].dht.table.stale(trio.current_time(), older_than_s=300):
                nodes[0].dht.walker.probe(stale)
            await until(lambda: not nodes[0].dht.walker.probing)
        assert mortal.switch.peer_id not in nodes[0].dht.table
        assert len(nodes[0].dht.table) == 2


async def test_one_that_only_asks_is_in_nobodys_table_and_foreign_dhts_do_not_mix() -> None:
    async with network(2) as nodes, AsyncExitStack() as stack:
        client = await open_node(stack, 70, serve=False)
        foreign = await open_node(stack, 71, protocol="/other/kad/1.0.0")
        for other in (client, foreign):
            await other.switch.connect(nodes[0].switch.addresses[0])
        await nodes[1].dht.provide(b"key")
        await until(lambda: len(client.dht.table) > 0)
        assert await client.dht.find_providers(b"key") == [nodes[1].switch.peer_id]
        assert client.switch.peer_id not in nodes[0].dht.table
        assert foreign.switch.peer_id not in nodes[0].dht.table
        assert len(foreign.dht.table) == 0


async def test_a_saved_table_finds_the_network_without_a_bootstrap(tmp_path: Path) -> None:
    path = tmp_path / "table"
    async with network(3) as nodes:
        async with AsyncExitStack() as stack:
            first = await open_node(stack, 80, table_path=path)
            await first.switch.connect(nodes[0].switch.addresses[0])
            await until(lambda: nodes[0].switch.peer_id in first.dht.table)
        async with AsyncExitStack() as stack:
            again = await open_node(stack, 80, table_path=path)
            await until(lambda: len(again.dht.table) > 0)
    for damaged in (b"", b"\xff" * 100, path.read_bytes()[:50]):
        path.write_bytes(damaged)
        async with AsyncExitStack() as stack:
            await open_node(stack, 80, table_path=path)


Handler = Callable[[Stream], Awaitable[None]]


async def never_answers(stream: Stream) -> None:
    """Reads, and says nothing."""
    while await stream.receive_some(1000):
        pass
    await trio.sleep_forever()


async def answers_without_end(stream: Stream) -> None:
    """A message that goes on and on within the length it announced, then more of them."""
    while True:
        await stream.send_all(frame_message(Message(kind=Kind.PING)) * 1000)


async def announces_too_much(stream: Stream) -> None:
    """A length of 4 GiB."""
    await stream.send_all(b"\xff\xff\xff\xff\x0f" + bytes(100_000))


async def answers_garbage(stream: Stream) -> None:
    """No protobuf at all."""
    await stream.send_all(b"\x05\xff\xff\xff\xff\xff")


async def ends_at_once(stream: Stream) -> None:
    """Nothing, politely."""


async def breaks_off(stream: Stream) -> None:
    """Half an answer."""
    await stream.send_all(b"\x40half")
    await stream.reset()


async def names_the_dead(stream: Stream) -> None:
    """Twenty peers nearer than anybody, all invented, to every question."""
    reader = MessageReader()
    while data := await stream.receive_some(10_000):
        reader.receive_data(bytes(data))
        while (request := reader.next_message()) is not None:
            invented = tuple(contact(number, "127.0.0.1") for number in range(1000, 1040))
            answer = Message(
                kind=request.kind, key=request.key, closer=invented, providers=invented[:2]
            )
            await stream.send_all(frame_message(answer))


LIARS: Sequence[Handler] = (
    never_answers,
    answers_without_end,
    announces_too_much,
    answers_garbage,
    ends_at_once,
    breaks_off,
    names_the_dead,
)


async def test_lookups_succeed_among_servers_of_every_kind_of_malice() -> None:
    async with network(4) as nodes, AsyncExitStack() as stack:
        for number, lie in enumerate(LIARS):
            liar = await open_stranger(stack, 100 + number)
            liar.serve(PROTOCOL, lie)
            for node in nodes:
                await liar.connect(node.switch.addresses[0])
                own = contact(0)
                node.dht.table.answered(
                    type(own)(peer_id=liar.peer_id, addresses=liar.addresses), trio.current_time()
                )
        with trio.fail_after(60):
            await nodes[1].dht.provide(b"key")
            assert nodes[1].switch.peer_id in await nodes[2].dht.find_providers(b"key")
            await nodes[0].dht.put_record(b"/n/1", b"7")
            assert await nodes[3].dht.get_record(b"/n/1") == b"7"


async def test_strangers_bytes_break_streams_and_nothing_else() -> None:
    async with network(2) as nodes, AsyncExitStack() as stack:
        stranger = await open_stranger(stack, 200)
        await stranger.connect(nodes[0].switch.addresses[0])
        node = nodes[0].switch.peer_id
        spoofed = Message(kind=Kind.ADD_PROVIDER, key=provider_key(b"key"), providers=(contact(1),))
        rng = random.Random(1)
        attacks = [
            b"\xff" * 10,
            b"\x05\xff\xff\xff\xff\xff",
            b"\x81\x80\x04" + bytes(100),
            frame_message(spoofed),
            frame_message(Message(kind=Kind.FIND_NODE)),
            frame_message(Message(kind=Kind.PUT_VALUE, key=b"/n/1", record=None)),
            *(rng.randbytes(rng.randrange(1, 200)) for _ in range(100)),
        ]
        assert len(attacks[2]) < REQUEST_BYTES_MAX
        for attack in attacks:
            with pytest.raises(StreamError) if attack in attacks[:6] else suppress(StreamError):
                async with stranger.open_stream(node, PROTOCOL) as stream:
                    await stream.send_all(attack)
                    await stream.send_eof()
                    while await stream.receive_some(1000):
                        pass
        assert nodes[0].dht.counters()["kademlia_requests_refused"] >= 6
        assert await nodes[1].dht.find_providers(b"key") == []
        await nodes[0].dht.provide(b"key")
        assert await nodes[1].dht.find_providers(b"key") == [node]


async def test_one_peer_gets_a_share_of_streams() -> None:
    async with network(2) as nodes, AsyncExitStack() as stack:
        stranger = await open_stranger(stack, 200)
        await stranger.connect(nodes[0].switch.addresses[0])
        open_streams = [
            await stack.enter_async_context(stranger.open_stream(nodes[0].switch.peer_id, PROTOCOL))
            for _ in range(STREAMS_PER_PEER_MAX + 5)
        ]
        for stream in open_streams:
            await stream.send_all(b"\x40")  # announces a request that does not come
        await until(lambda: nodes[0].dht.counters().get("kademlia_streams_refused", 0) == 5)
        await nodes[1].dht.provide(b"key")
        assert nodes[0].dht.counters()["kademlia_provider_announcements"] == 1


async def test_a_peer_that_asks_too_fast_waits_and_others_do_not() -> None:
    async with network(2) as nodes, AsyncExitStack() as stack:
        stranger = await open_stranger(stack, 200)
        await stranger.connect(nodes[0].switch.addresses[0])
        ping = frame_message(Message(kind=Kind.PING))
        async with stranger.open_stream(nodes[0].switch.peer_id, PROTOCOL) as stream:
            await stream.send_all(ping * (REQUESTS_BURST_MAX * 3))
            reader = MessageReader()
            answers = 0
            while answers < REQUESTS_BURST_MAX:
                reader.receive_data(bytes(await stream.receive_some(1000)))
                while reader.next_message() is not None:
                    answers += 1
            await nodes[1].dht.closest_peers(b"anything")
            served = nodes[0].dht.counters()["kademlia_served_ping"]
            assert served <= REQUESTS_BURST_MAX * 2


@pytest.mark.parametrize("moment", range(12))
async def test_cancelling_a_call_at_any_checkpoint_leaves_nothing(moment: int) -> None:
    async with network(3) as nodes:
        before = len(trio.lowlevel.current_task().child_nurseries)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(nodes[0].dht.provide, bytes([moment + 1]))
                for _ in range(moment):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert len(trio.lowlevel.current_task().child_nurseries) == before
        await nodes[1].dht.provide(b"key")
        assert await nodes[0].dht.find_providers(b"key") == [nodes[1].switch.peer_id]


async def test_the_block_ends_and_serves_no_more() -> None:
    async with AsyncExitStack() as stack:
        switch: Switch = await open_stranger(stack, 1)
        for _ in range(2):  # the protocol is free again afterwards
            async with open_kademlia(switch):
                pass
