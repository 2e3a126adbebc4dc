"""The gossipsub service over memory streams, on a mock clock."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from p2p.errors import LimitExceeded, MessageRefused, NetworkClosed, PayloadTooLarge, StreamReset
from p2p.gossipsub import Gossipsub, content_id, open_gossip
from p2p.gossipsub.codec import encode_publish, encode_varint
from p2p.gossipsub.judging import JUDGE_QUEUE_MAX
from p2p.gossipsub.message import WireMessage
from p2p.gossipsub.parameters import SLICE_MESSAGES
from p2p.limits import Limits
from p2p.network import Message, Overflow, TopicOptions, Verdict
from tests.p2p.gossipsub.doubles import MemorySwitch

TOPIC = "votes"


@asynccontextmanager
async def network(
    count: int, edges: list[tuple[int, int]] | None = None, limits: Limits | None = None
) -> AsyncIterator[list[Gossipsub]]:
    """Nodes that are connected in a full mesh, or by `edges`."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        switches = [MemorySwitch(nursery, seed, limits) for seed in range(1, count + 1)]
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


async def test_validates_once_when_a_message_arrives_twice_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    judged: list[bytes] = []

    async def judge(message: Message) -> Verdict:
        judged.append(message.data)
        await trio.sleep(1)
        return Verdict.ACCEPT

    async with network(4) as nodes, AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(node.subscribe(TOPIC, validate=judge)) for node in nodes
        ]
        await trio.sleep(2)
        await nodes[0].publish(TOPIC, b"once")
        for reader in readers:
            assert (await reader.receive()).data == b"once"
        assert len(judged) == len(nodes)


async def test_ignored_messages_are_fetched_again(autojump_clock: trio.testing.MockClock) -> None:
    parents: set[bytes] = set()

    def judge(message: Message) -> Verdict:
        known = message.data == b"parent" or b"parent" in parents
        if message.data == b"parent":
            parents.add(b"parent")
        return Verdict.ACCEPT if known else Verdict.IGNORE

    async with network(3) as (alice, bob, carol):
        async with (
            alice.subscribe(TOPIC),
            bob.subscribe(TOPIC, validate=judge) as messages,
            carol.subscribe(TOPIC),
        ):
            await trio.sleep(2)
            await alice.publish(TOPIC, b"child")
            await alice.publish(TOPIC, b"parent")
            assert (await messages.receive()).data == b"parent"
            assert bob.score(alice._switch.peer_id) >= 0
            assert bob.counters()["gossip_messages_ignored"] >= 1


async def test_payload_limits(autojump_clock: trio.testing.MockClock) -> None:
    options = TopicOptions(payload_bytes_max=100)
    async with network(2) as (alice, bob):
        async with (
            alice.subscribe(TOPIC, options=TopicOptions(payload_bytes_max=1000)),
            bob.subscribe(TOPIC, options=options) as messages,
        ):
            await trio.sleep(2)
            with pytest.raises(PayloadTooLarge):
                await bob.publish(TOPIC, bytes(101))
            await bob.publish(TOPIC, bytes(100))
            assert (await messages.receive()).data == bytes(100)
            await alice.publish(TOPIC, bytes(101))  # alice's topic allows it, bob's does not
            await trio.sleep(1)
            assert bob.score(alice._switch.peer_id) < 0
            assert bob.counters()["gossip_messages_oversize"] == 1


@pytest.mark.parametrize("overflow", list(Overflow))
async def test_a_reader_that_falls_behind_loses_by_its_policy(
    overflow: Overflow, autojump_clock: trio.testing.MockClock
) -> None:
    options = TopicOptions(backlog_messages_max=10, overflow=overflow)
    async with network(2) as (alice, bob):
        async with (
            alice.subscribe(TOPIC),
            bob.subscribe(TOPIC, options=options) as slow,
            bob.subscribe(TOPIC) as quick,
        ):
            await trio.sleep(2)
            for number in range(30):
                await alice.publish(TOPIC, b"%d" % number)
                assert (await quick.receive()).data == b"%d" % number
            kept = [int((await slow.receive()).data) for _ in range(10)]
            oldest = overflow is Overflow.DROP_OLDEST
            assert kept == list(range(20, 30) if oldest else range(10))
            assert slow.dropped == 20
            assert quick.dropped == 0
            assert bob.counters()["gossip_subscription_dropped"] == 20


async def test_own_messages_are_judged_and_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def judge(message: Message) -> Verdict:
        assert message.received_from == node._switch.peer_id
        return Verdict(message.data.decode())

    async with network(1) as [node]:
        async with node.subscribe(TOPIC, validate=judge) as messages:
            await node.publish(TOPIC, b"ignore")
            with pytest.raises(MessageRefused):
                await node.publish(TOPIC, b"reject")
            await node.publish(TOPIC, b"accept")
            await node.publish(TOPIC, b"accept")
            assert (await messages.receive()).data == b"accept"
            with pytest.raises(trio.WouldBlock):
                messages._receive.receive_nowait()  # type: ignore[attr-defined]


async def test_a_judge_that_fails_or_hangs_costs_its_message_only(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def judge(message: Message) -> Verdict:
        if message.data == b"raise":
            raise RuntimeError("defect")
        if message.data == b"hang":
            await trio.sleep_forever()
        return "yes" if message.data == b"wrong" else Verdict.ACCEPT  # type: ignore[return-value]

    def careless(message: Message) -> Verdict:
        raise RuntimeError("defect")

    async with network(2) as (alice, bob):
        async with (
            alice.subscribe(TOPIC),
            bob.subscribe(TOPIC, validate=judge) as messages,
            bob.subscribe("careless", validate=careless),
        ):
            await trio.sleep(2)
            await alice.publish("careless", b"x")
            for data in (b"raise", b"hang", b"wrong", b"right"):
                await alice.publish(TOPIC, data)
            assert (await messages.receive()).data == b"right"
            await trio.sleep(60)
            counters = bob.counters()
            assert counters["gossip_judge_failed"] >= 3
            assert counters["gossip_judge_timed_out"] >= 1
            assert bob.score(alice._switch.peer_id) >= 0
            assert "defect" in caplog.text


async def test_judges_run_at_most_as_many_as_allowed_and_drop_when_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    running = most = 0

    async def judge(message: Message) -> Verdict:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(20)
        running -= 1
        return Verdict.ACCEPT

    async with network(2) as (alice, bob):
        async with (
            alice.subscribe(TOPIC),
            bob.subscribe(TOPIC, validate=judge),
            bob.subscribe("other") as others,
        ):
            await trio.sleep(2)
            for number in range(64 + JUDGE_QUEUE_MAX + 200):
                await alice.publish(TOPIC, b"%d" % number)
            await alice.publish("other", b"not silenced")
            with trio.fail_after(10):
                assert (await others.receive()).data == b"not silenced"
            assert most == 64
            assert bob.counters()["gossip_judge_queue_full"] >= 1


async def test_publish_waits_for_a_slow_peer_once_and_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = Limits(outbound_rpcs_max=10)
    async with network(2, limits=limits) as (alice, bob):
        async with alice.subscribe(TOPIC), bob.subscribe(TOPIC) as messages:
            await trio.sleep(2)
            for number in range(200):
                await alice.publish(TOPIC, b"%d" % number)
            received = [int((await messages.receive()).data) for _ in range(200)]
            assert received == list(range(200))
            stalled = alice._links.get(bob._switch.peer_id)
            assert stalled is not None
            writing, stalled.wake = stalled.wake, trio.Event()  # its task no longer wakes
            await trio.testing.wait_all_tasks_blocked()
            before = trio.current_time()
            for number in range(40):
                await alice.publish(TOPIC, b"stalled %d" % number)
                stalled.wake = trio.Event()
            assert 0.9 < trio.current_time() - before < 1.1
            assert alice.counters()["gossip_messages_queue_full"] == 30
            writing.set()
            await trio.sleep(5)
            late = {(await messages.receive()).data for _ in range(40)}
            assert late == {b"stalled %d" % number for number in range(40)}


async def test_topics_are_joined_once_and_left_by_the_last_reader(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with network(2, limits=Limits(topics_max=2)) as (alice, bob):
        name = alice._switch.peer_id
        async with alice.subscribe(TOPIC), alice.subscribe(TOPIC, options=TopicOptions()):
            await trio.sleep(2)
            assert bob.topic_peers(TOPIC) == {name}
            for wrong in (
                alice.subscribe(TOPIC, validate=lambda _: Verdict.ACCEPT),
                alice.subscribe(TOPIC, options=TopicOptions(signed=True)),
                alice.subscribe(""),
                alice.subscribe("x" * 5000),
            ):
                with pytest.raises(ValueError, match=r"topic|subscribed"):
                    await wrong.__aenter__()
            async with alice.subscribe("two"):
                with pytest.raises(LimitExceeded):
                    await alice.subscribe("three").__aenter__()
        await trio.sleep(1)
        assert bob.topic_peers(TOPIC) == frozenset()
        assert alice.mesh_peers(TOPIC) == frozenset()


async def test_signed_topics(autojump_clock: trio.testing.MockClock) -> None:
    options = TopicOptions(signed=True)
    async with network(3, [(0, 1), (1, 2)]) as nodes, AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(node.subscribe(TOPIC, options=options))
            for node in nodes
        ]
        await trio.sleep(2)
        first = await nodes[0].publish(TOPIC, b"same")
        second = await nodes[0].publish(TOPIC, b"same")
        assert first != second
        for reader in readers:
            for message_id in (first, second):
                message = await reader.receive()
                assert message.source == nodes[0]._switch.peer_id
                assert message.message_id == message_id


async def test_closing_ends_subscriptions_and_refuses_calls(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        switch = MemorySwitch(nursery, 1)
        async with AsyncExitStack() as stack:
            async with open_gossip(switch) as gossip:
                messages = await stack.enter_async_context(gossip.subscribe(TOPIC))
                await gossip.publish(TOPIC, b"last")
            assert (await messages.receive()).data == b"last"
            with pytest.raises(trio.EndOfChannel):
                await messages.receive()
            with pytest.raises(NetworkClosed):
                await gossip.publish(TOPIC, b"late")
            with pytest.raises(NetworkClosed):
                await gossip.subscribe(TOPIC).__aenter__()
        assert not switch._handlers


async def test_a_restarted_peer_is_meshed_again_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        stays, restarts = MemorySwitch(nursery, 1), MemorySwitch(nursery, 2)
        async with open_gossip(stays) as gossip, gossip.subscribe(TOPIC) as messages:
            for number in range(3):
                stays.join(restarts)
                async with open_gossip(restarts) as other, other.subscribe(TOPIC):
                    with trio.fail_after(3):
                        await trio.sleep(1.5)
                        assert gossip.mesh_peers(TOPIC)
                        await other.publish(TOPIC, b"%d" % number)
                        assert (await messages.receive()).data == b"%d" % number
                await stays.disconnect(restarts.peer_id)
                await trio.sleep(1)
                assert not gossip.mesh_peers(TOPIC)
            assert gossip.score(restarts.peer_id) >= 0


async def test_a_peer_that_breaks_framing_loses_its_stream_and_its_voice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        honest, hostile = MemorySwitch(nursery, 1), MemorySwitch(nursery, 2)
        honest.join(hostile)
        async with open_gossip(honest) as gossip, gossip.subscribe(TOPIC) as messages:
            await trio.sleep(1)
            for junk in (b"\xff" * 20, b"\x02\x12\xff" * 3):
                async with hostile.open_stream(honest.peer_id, "/meshsub/1.2.0") as stream:
                    await stream.send_all(junk)
                    await trio.sleep(0.5)
            assert len(honest.failures) == 1
            assert gossip.score(hostile.peer_id) < -80
            async with hostile.open_stream(honest.peer_id, "/meshsub/1.2.0") as stream:
                body = encode_publish(WireMessage(TOPIC, b"hello"))
                await stream.send_all(encode_varint(len(body)) + body)
                with trio.move_on_after(1):
                    pytest.fail(f"heard {await messages.receive()}")


async def test_a_new_stream_replaces_the_old_one(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        node, peer = MemorySwitch(nursery, 1), MemorySwitch(nursery, 2)
        node.join(peer)
        async with open_gossip(node) as gossip, gossip.subscribe(TOPIC) as messages:
            async with peer.open_stream(node.peer_id, "/meshsub/1.1.0") as first:
                await trio.sleep(1)
                async with peer.open_stream(node.peer_id, "/meshsub/1.1.0") as second:
                    await trio.sleep(1)
                    with pytest.raises(StreamReset):
                        await first.send_all(b"\x00")
                    body = encode_publish(WireMessage(TOPIC, b"hello"))
                    await second.send_all(encode_varint(len(body)) + body)
                    assert (await messages.receive()).data == b"hello"


async def test_a_large_rpc_is_handled_in_slices_and_ends_at_the_graylist(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        honest, hostile = MemorySwitch(nursery, 1), MemorySwitch(nursery, 2)
        honest.join(hostile)
        judged: list[bytes] = []

        def judge(message: Message) -> Verdict:
            judged.append(message.data)
            return Verdict.REJECT

        async with open_gossip(honest) as gossip, gossip.subscribe(TOPIC, validate=judge):
            await trio.sleep(1)
            rpc = b"".join(encode_publish(WireMessage(TOPIC, b"%d" % n)) for n in range(10_000))
            async with hostile.open_stream(honest.peer_id, "/meshsub/1.2.0") as stream:
                await stream.send_all(encode_varint(len(rpc)) + rpc)
                await trio.sleep(1)
            assert len(judged) == SLICE_MESSAGES
            assert gossip.score(hostile.peer_id) < -80


async def test_incomplete_rpcs_are_bounded_together_and_the_oldest_goes_first(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.gossipsub.links.PARTIAL_BYTES_MAX", 250_000)
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        honest = MemorySwitch(nursery, 1)
        others = [MemorySwitch(nursery, seed) for seed in range(2, 6)]
        for other in others:
            honest.join(other)
        async with open_gossip(honest) as gossip, gossip.subscribe(TOPIC) as messages:
            await trio.sleep(1)
            streams = []
            for other in others:
                stream = await stack.enter_async_context(
                    other.open_stream(honest.peer_id, "/meshsub/1.2.0")
                )
                streams.append(stream)
                data = b"%d" % len(streams) + bytes(89_999)
                body = encode_publish(WireMessage(TOPIC, data))
                wire = encode_varint(len(body)) + body
                await stream.send_all(wire[:-10])
                await trio.sleep(1)
            for stream in streams[:2]:
                with pytest.raises(StreamReset):
                    await stream.send_all(b"x")
            for number, stream in enumerate(streams[2:], start=3):
                body = encode_publish(WireMessage(TOPIC, b"%d" % number + bytes(89_999)))
                await stream.send_all(body[-10:])
                assert (await messages.receive()).data[:1] == b"%d" % number
            assert gossip._links._partial_bytes == 0
