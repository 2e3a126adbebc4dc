"""Gossip with stock py-libp2p over real sockets, both ways: in the mesh, and by IHAVE/IWANT only.

The second is forced by degrees of zero on both sides. (py-libp2p does not announce to peers that
have refused its GRAFT, so that refusing alone would not do.)
"""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub, get_peer_and_seqno_msg_id
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from p2p.backend.switch import open_switch
from p2p.gossipsub import (
    Gossipsub,
    MeshParameters,
    SignaturePolicy,
    TopicRules,
    content_id,
    open_gossip,
)
from p2p.gossipsub.message import WireMessage
from p2p.identity import Identity, PeerId
from p2p.limits import Limits

pytestmark = pytest.mark.network

TOPIC = "interop"
TIMEOUT_S = 20
NO_MESH = MeshParameters(degree=0, degree_low=0, degree_high=0, degree_out=0, flood_publish=False)


@dataclass
class Pair:
    """Our node and a stock one, connected; the stock one dialled."""

    ours: Gossipsub
    theirs: Pubsub
    router: GossipSub
    subscription: Any
    their_id: PeerId


@asynccontextmanager
async def pair(*, signed: bool, parameters: MeshParameters | None = None) -> AsyncIterator[Pair]:
    identity = Identity.generate()
    policy = SignaturePolicy.STRICT_SIGN if signed else SignaturePolicy.LAX_NO_SIGN
    router = GossipSub(
        protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11],
        degree=0 if parameters is NO_MESH else 8,
        degree_low=0 if parameters is NO_MESH else 6,
        degree_high=12,
        heartbeat_interval=1,
    )
    host = new_host(key_pair=create_new_key_pair())
    by_content = lambda m: content_id(WireMessage(m.topicIDs[0], m.data))  # noqa: E731
    pubsub = Pubsub(
        host,
        router,
        strict_signing=signed,
        msg_id_constructor=get_peer_and_seqno_msg_id if signed else by_content,
    )
    async with (
        open_switch(identity, Limits()) as switch,
        open_gossip(
            switch,
            identity=identity,
            parameters=parameters,
            topic_rules={TOPIC: TopicRules(signatures=policy)},
            rng=random.Random(1),
        ) as gossip,
        host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        background_trio_service(router),
        background_trio_service(pubsub),
    ):
        await switch.listen(["/ip4/127.0.0.1/tcp/0"])
        await pubsub.wait_until_ready()
        subscription = await pubsub.subscribe(TOPIC)
        with trio.fail_after(TIMEOUT_S):
            await host.connect(info_from_p2p_addr(Multiaddr(switch.addresses[0])))
            yield Pair(gossip, pubsub, router, subscription, PeerId(str(host.get_id())))


@pytest.fixture(autouse=True)
def collect_what_the_stock_host_leaves_open() -> Iterator[None]:
    """py-libp2p does not close its sockets; their warnings belong to it and not to a later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def until(condition: Any) -> None:
    """Poll a foreign implementation, which has no event to wait for."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.02)


@pytest.mark.parametrize("signed", [True, False])
async def test_in_the_mesh(signed: bool) -> None:
    async with pair(signed=signed) as both, both.ours.subscribe(TOPIC) as messages:
        await until(lambda: both.ours.mesh_peers(TOPIC) and both.router.mesh.get(TOPIC))
        for number in range(10):
            await both.theirs.publish(TOPIC, b"theirs %d" % number)
            message = await messages.receive()
            assert message.data == b"theirs %d" % number
            assert message.received_from == both.their_id
            assert (message.source is not None) == signed
        for number in range(10):
            await both.ours.publish(TOPIC, b"ours %d" % number)
            assert (await messages.receive()).data == b"ours %d" % number
            while not (message := await both.subscription.get()).data.startswith(b"ours"):
                pass
            assert message.data == b"ours %d" % number
        assert both.ours.score(both.their_id) >= 0


async def test_by_ihave_and_iwant_only() -> None:
    async with pair(signed=True, parameters=NO_MESH) as both:
        async with both.ours.subscribe(TOPIC) as messages:
            await until(lambda: both.ours.topic_peers(TOPIC))
            await until(lambda: both.theirs.peer_topics.get(TOPIC))
            assert not both.ours.mesh_peers(TOPIC)
            assert not both.router.mesh[TOPIC]
            await both.ours.publish(TOPIC, b"ours")
            assert (await messages.receive()).data == b"ours"
            assert (await both.subscription.get()).data == b"ours"
            await both.theirs.publish(TOPIC, b"theirs")
            assert (await messages.receive()).data == b"theirs"
            assert not both.ours.mesh_peers(TOPIC)
            assert both.ours.score(both.their_id) >= 0
            assert both.ours.counters().get("gossip_promises_broken", 0) == 0
