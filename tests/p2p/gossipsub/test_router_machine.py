"""A router under any order of events: what must hold after each of them (hypothesis, stateful)."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2p.gossipsub.codec import Control, Rpc
from p2p.gossipsub.events import (
    Deliver,
    Effect,
    Event,
    HeartbeatDue,
    Judge,
    Judged,
    PeerJoined,
    PeerLeft,
    Published,
    RpcReceived,
    SendControl,
    SendMessage,
    SendRefused,
    SendSubscriptions,
    StreamViolated,
    TopicJoined,
    TopicLeft,
)
from p2p.gossipsub.message import WireMessage, content_id
from p2p.gossipsub.parameters import MESHSUB_1_1, MESHSUB_1_2, MeshParameters
from p2p.gossipsub.router import Router
from p2p.gossipsub.topic import TopicRules
from p2p.identity import PeerId
from p2p.network import Verdict
from tests.p2p.gossipsub.strategies import SCALE, peer

TOPICS = ("blocks", "votes")
RULES = TopicRules(payload_bytes_max=3000)
SEEN_S = MeshParameters().seen_s
peers = st.integers(1, 16).map(peer)
topics = st.sampled_from(TOPICS)
payloads = st.integers(0, 30).map(lambda n: (b"%d" % n) * (2500 if n % 10 == 0 else 1))
known_ids = st.builds(lambda t, d: content_id(WireMessage(t, d)), topics, payloads)
id_lists = st.lists(known_ids, max_size=5).map(tuple)


class RouterMachine(RuleBasedStateMachine):
    """Peers come, speak and leave; topics are joined and left; verdicts come in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(peer(0), rng=random.Random(1))
        self.now = 0.0
        self.connected: set[PeerId] = set()
        self.open: dict[bytes, str] = {}  # being judged: topic
        self.accepted: dict[bytes, float] = {}  # when; nothing is accepted twice within `SEEN_S`
        self.sent: set[tuple[PeerId, bytes]] = set()  # forwarded, not asked for by IWANT

    def do(self, event: Event) -> list[Effect]:
        effects = self.router.handle(event, self.now)
        for effect in effects:
            match effect:
                case Judge(message):
                    assert message.message_id not in self.open
                    assert message.message_id not in self.accepted
                    assert len(message.message.data) <= RULES.payload_bytes_max
                    self.open[message.message_id] = message.message.topic
                case Deliver(message):
                    assert message.message_id not in self.accepted
                    assert content_id(message.message) == message.message_id
                    self.accepted[message.message_id] = self.now
                case SendMessage(to, message):
                    assert self.connected >= set(to)
                    assert len(set(to)) == len(to)
                    assert message.received_from not in to or isinstance(event, RpcReceived)
                    if not isinstance(event, RpcReceived):
                        for one in to:
                            assert (one, message.message_id) not in self.sent
                            self.sent.add((one, message.message_id))
                case SendControl(to, control):
                    assert to in self.connected
                    assert control != Control()
                    assert not set(control.graft) & {topic for topic, _ in control.prune}
                case SendSubscriptions(to, changes):
                    assert to in self.connected
                    assert changes
        return effects

    @rule(who=peers, protocol=st.sampled_from([MESHSUB_1_1, MESHSUB_1_2]), outbound=st.booleans())
    def peer_joins(self, who: PeerId, protocol: str, outbound: bool) -> None:
        self.connected.add(who)
        self.do(PeerJoined(who, protocol, outbound, "/ip4/8.8.8.8/tcp/1"))

    @rule(who=peers)
    def peer_leaves(self, who: PeerId) -> None:
        self.connected.discard(who)
        self.do(PeerLeft(who))

    @rule(who=peers, joined=st.booleans(), topic=topics)
    def peer_subscribes(self, who: PeerId, joined: bool, topic: str) -> None:
        self.do(RpcReceived(who, Rpc(subscriptions=((joined, topic),))))

    @rule(who=peers, topic=topics, data=payloads, forged=st.sampled_from([b"", b"", b"", b"x"]))
    def message_arrives(self, who: PeerId, topic: str, data: bytes, forged: bytes) -> None:
        self.do(RpcReceived(who, Rpc(messages=(WireMessage(topic, data, forged),))))

    @rule(
        who=peers,
        control=st.builds(
            Control,
            ihave=st.lists(st.tuples(topics, id_lists), max_size=2).map(tuple),
            iwant=id_lists,
            graft=st.lists(topics, max_size=2).map(tuple),
            prune=st.lists(st.tuples(topics, st.integers(0, 100)), max_size=2).map(tuple),
            idontwant=id_lists,
        ),
    )
    def control_arrives(self, who: PeerId, control: Control) -> None:
        self.do(RpcReceived(who, Rpc(control=control)))

    @precondition(lambda self: self.open)
    @rule(pick=st.integers(0, 1000), verdict=st.sampled_from(list(Verdict)))
    def verdict_comes(self, pick: int, verdict: Verdict) -> None:
        message_id = sorted(self.open)[pick % len(self.open)]
        del self.open[message_id]
        self.do(Judged(message_id, verdict))

    @rule(topic=topics, data=payloads)
    def publish(self, topic: str, data: bytes) -> None:
        message = WireMessage(topic, data)
        message_id = content_id(message)
        self.do(Published(message, RULES))
        assert self.router.has_seen(message_id)
        self.open.pop(message_id, None)
        self.accepted.setdefault(message_id, self.now)

    @rule(topic=topics)
    def join_or_leave(self, topic: str) -> None:
        if topic in self.router.topics:
            self.do(TopicLeft(topic))
        else:
            self.do(TopicJoined(topic, RULES))

    @rule(who=peers, topic=topics, message_id=known_ids)
    def send_is_refused(self, who: PeerId, topic: str, message_id: bytes) -> None:
        self.do(SendRefused(who, topic, message_id))

    @rule(who=peers)
    def framing_breaks(self, who: PeerId) -> None:
        self.do(StreamViolated(who))

    @rule(seconds=st.floats(0.1, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.do(HeartbeatDue())
        self.forget_what_was_seen_long_ago()
        for topic in self.router.topics:
            mesh = self.router.mesh_peers(topic)
            assert len(mesh) <= 12
            assert all(self.router.scores.score(one) >= 0 for one in mesh)

    def forget_what_was_seen_long_ago(self) -> None:
        old = {each for each, at in self.accepted.items() if self.now - at >= SEEN_S}
        self.accepted = {each: at for each, at in self.accepted.items() if each not in old}
        self.sent = {(one, each) for one, each in self.sent if each not in old}

    @invariant()
    def the_mesh_is_of_subscribers(self) -> None:
        for topic in TOPICS:
            mesh, subscribers = self.router.mesh_peers(topic), self.router.topic_peers(topic)
            assert set(mesh) <= set(subscribers) <= self.connected
            assert topic in self.router.topics or not mesh

    @invariant()
    def what_is_open_is_what_is_pending(self) -> None:
        assert set(self.router._pending) == set(self.open)


TestRouterStateful = RouterMachine.TestCase
TestRouterStateful.settings = settings(
    max_examples=30 * SCALE, stateful_step_count=60, deadline=None
)
