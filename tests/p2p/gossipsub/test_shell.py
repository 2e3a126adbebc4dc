"""The gossipsub service over memory streams, on a mock clock."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from p2p.gossipsub import Gossipsub, MessageRefused, content_id, open_gossip
from p2p.gossipsub.message import WireMessage
from p2p.network import Message, Verdict
from tests.p2p.gossipsub.doubles import MemorySwitch

TOPIC = "votes"


@asynccontextmanager
async def network(
    count: int, edges: list[tuple[int, int]] | None = None
) -> AsyncIterator[list[Gossipsub]]:
    """Nodes that are connected in a full mesh, or by `edges`."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        switches = [MemorySwitch(nursery, seed) for seed in range(1, count + 1)]
        services = [
            await stack.enter_async_context(
                open_gossip(switch, identity=switch.identity, rng=random.Random(index))
            )
            for index, switch in enumerate(switches)
        ]
        if edges is None:
            edges = [(a, b) for b in range(count) for a in range(b)]
        for a, b in edges:
            switches[a].join(switches[b])
        yield services
        assert not any(switch.failures for switch in switches)
        nursery.cancel_scope.cancel()


async def test_delivers_to_every_subscriber_once(autojump_clock: trio.testing.MockClock) -> None:
    edges = [(index, index + 1) for index in range(4)]
    async with network(5, edges) as nodes, AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(node.subscribe(TOPIC)) for node in nodes]
        await trio.sleep(3)
        sent = [b"message %d" % index for index in range(50)]
        for data in sent:
            message_id = await nodes[0].publish(TOPIC, data)
            assert message_id == content_id(WireMessage(TOPIC, data))
        await trio.sleep(1)
        for reader in readers:
            received = [(await reader.receive()).data for _ in sent]
            assert sorted(received) == sorted(sent)
            with trio.move_on_after(5):
                pytest.fail(f"twice: {await reader.receive()}")


async def test_a_message_published_before_the_mesh_arrives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with network(2) as (alice, bob):
        async with alice.subscribe(TOPIC), bob.subscribe(TOPIC) as messages:
            await alice.publish(TOPIC, b"early")
            with trio.fail_after(5):
                assert (await messages.receive()).data == b"early"


@pytest.mark.parametrize("as_coroutine", [False, True])
async def test_verdicts(as_coroutine: bool, autojump_clock: trio.testing.MockClock) -> None:
    judged: list[bytes] = []

    def judge(message: Message) -> Verdict:
        judged.append(message.data)
        return Verdict(message.data.decode())

    async def judge_slowly(message: Message) -> Verdict:
        await trio.sleep(0.1)
        return judge(message)

    async with network(3) as (alice, bob, carol):
        async with (
            alice.subscribe(TOPIC),
            bob.subscribe(TOPIC, validate=judge_slowly if as_coroutine else judge) as messages,
            carol.subscribe(TOPIC),
        ):
            await trio.sleep(2)
            for data in (b"ignore", b"reject", b"accept"):
                await alice.publish(TOPIC, data)
            assert (await messages.receive()).data == b"accept"
            await trio.sleep(1)
            assert judged.count(b"accept") == judged.count(b"reject") == 1
            assert bob.score(alice._switch.peer_id) < 0
            with pytest.raises(MessageRefused):
                await bob.publish(TOPIC, b"reject")
