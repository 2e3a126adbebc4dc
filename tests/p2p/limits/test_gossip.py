"""The bounds of gossip are reached, by a neighbour whose own bounds are wider."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

import p2p
from p2p.gossipsub import PROTOCOLS
from p2p.gossipsub.codec import encode_varint
from p2p.gossipsub.judging import JUDGE_QUEUE_MAX
from p2p.memory import open_hub
from p2p.network import Network
from tests.p2p.networks import LISTEN, identity, until

TOPIC = "news"
WIDE = p2p.Limits(topics_max=1000)


@asynccontextmanager
async def pair(**limits: float) -> AsyncIterator[tuple[Network, Network]]:
    """A bounded network, and one that is connected to it with wide bounds."""
    async with (
        open_hub() as hub,
        hub.open_network(identity(1), listen=LISTEN, limits=p2p.Limits(**limits)) as one,  # type: ignore[arg-type]
        hub.open_network(identity(2), limits=WIDE) as other,
    ):
        await other.connect(one.addresses[0])
        yield one, other


async def meet(one: Network, other: Network) -> None:
    """Wait until both know that the other is subscribed."""
    await until(lambda: bool(one.topic_peers(TOPIC)) and bool(other.topic_peers(TOPIC)))


async def test_payload_bytes_max() -> None:
    async with pair(payload_bytes_max=100) as (one, other):
        async with one.subscribe(TOPIC), other.subscribe(TOPIC):
            await meet(one, other)
            with pytest.raises(p2p.PayloadTooLarge):
                await one.publish(TOPIC, bytes(101))
            await other.publish(TOPIC, bytes(101))
            await until(lambda: one.counters().get("gossip_messages_oversize") == 1)


async def test_gossip_rpc_bytes_max() -> None:
    limits = p2p.Limits(gossip_rpc_bytes_max=1000)
    async with (
        open_hub() as hub,
        hub.open_network(identity(1), listen=LISTEN, limits=limits) as one,
        hub.open_switch(identity(2), WIDE) as other,
    ):
        await other.connect(one.addresses[0])
        async with other.open_stream(one.peer_id, PROTOCOLS[0]) as stream:
            await stream.send_all(encode_varint(1001))
            with trio.fail_after(5), pytest.raises(p2p.StreamReset):
                await stream.receive_some()
        assert one.counters()["gossip_violations"] == 1


async def test_topics_max() -> None:
    async with pair(topics_max=2) as (one, _), one.subscribe("a"), one.subscribe("b"):
        with pytest.raises(p2p.LimitExceeded, match="topics_max"):
            async with one.subscribe("c"):
                raise AssertionError("it was joined")


async def test_topics_per_peer_max() -> None:
    async with pair(topics_per_peer_max=3) as (one, other), AsyncExitStack() as stack:
        topics = [f"topic {number}" for number in range(5)]
        for topic in topics:
            await stack.enter_async_context(other.subscribe(topic))
        await until(lambda: one.counters().get("gossip_subscriptions_over_limit", 0) >= 2)
        assert sum(bool(one.topic_peers(topic)) for topic in topics) == 3


async def test_validations_concurrent_max() -> None:
    running = most = 0
    gate = trio.Event()

    async def judge(message: p2p.Message) -> p2p.Verdict:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return p2p.Verdict.ACCEPT

    async with pair(validations_concurrent_max=3) as (one, other):
        async with one.subscribe(TOPIC, validate=judge), other.subscribe(TOPIC):
            await meet(one, other)
            for number in range(3 + JUDGE_QUEUE_MAX + 200):
                await other.publish(TOPIC, b"%d" % number)
            await until(lambda: one.counters().get("gossip_judge_queue_full", 0) > 0)
            gate.set()
            await until(lambda: one.counters().get("gossip_messages_accepted", 0) > JUDGE_QUEUE_MAX)
            assert most == 3
