"""What a program sets of gossipsub when it opens a network arrives in the mesh, on both wires."""

from __future__ import annotations

import hashlib

import pytest

import p2p
from p2p.gossipsub import MeshParameters, PeerScoring, TopicRules, TopicScoring
from p2p.gossipsub.message import WireMessage
from tests.p2p.networks import World, on_both, until

TOPIC = "news"


def digest(message: WireMessage) -> bytes:
    """Another message id than the default."""
    return hashlib.sha256(message.data).digest()


@on_both
async def test_options_reach_the_mesh(world: World) -> None:
    options = p2p.GossipOptions(
        mesh=MeshParameters(degree=4, degree_low=2, degree_out=1, heartbeat_s=0.1),
        scoring=PeerScoring(graylist_threshold=-50),
        topics={
            TOPIC: TopicRules(
                payload_bytes_max=100,
                message_id=digest,
                scoring=TopicScoring(invalid_weight=-100.0),
            )
        },
    )

    def judge(message: p2p.Message) -> p2p.Verdict:
        return p2p.Verdict.REJECT if message.data == b"bad" else p2p.Verdict.ACCEPT

    one, two = await world.enter(1, gossip=options), await world.enter(2, gossip=options)
    await two.connect(one.addresses[0])
    async with one.subscribe(TOPIC, validate=judge), two.subscribe(TOPIC) as messages:
        await until(lambda: bool(one.topic_peers(TOPIC)) and bool(two.topic_peers(TOPIC)))
        assert await one.publish(TOPIC, b"good") == hashlib.sha256(b"good").digest()
        assert (await messages.receive()).message_id == hashlib.sha256(b"good").digest()
        with pytest.raises(p2p.PayloadTooLarge):
            await one.publish(TOPIC, bytes(101))
        with pytest.raises(p2p.MessageRefused):
            await one.publish(TOPIC, b"bad")
        await two.publish(TOPIC, b"bad")
        gossip = one._gossip  # type: ignore[attr-defined]
        await until(lambda: gossip.score(two.peer_id) <= -50)  # by one message: -100 of its own
        await until(lambda: "gossip_messages_rejected" in one.counters())
    assert gossip._router.parameters is options.mesh
