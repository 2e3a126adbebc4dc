"""Many routers in one process under virtual time: the same machine as on sockets, with a seed.

The rule: everything is a function of the seed and the calls. A simulated node is a `Router`; what
its effects send arrives after the latency of the link, in order, or is lost with its link's
probability. Nothing is encoded: sizes are those of the encodings.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from p2p.gossipsub.codec import Control, Rpc, encode_control, encode_subscriptions
from p2p.gossipsub.events import (
    Deliver,
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
    SendSubscriptions,
    TopicJoined,
)
from p2p.gossipsub.message import WireMessage
from p2p.gossipsub.parameters import MESHSUB_1_2, MeshParameters
from p2p.gossipsub.router import Router
from p2p.gossipsub.score import PeerScoring
from p2p.gossipsub.topic import TopicRules
from p2p.identity import PEER_ID_PREFIX, PeerId
from p2p.network import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkModel:
    """How connections behave: one-way latency drawn once per connection, loss per RPC."""

    latency_min_s: float = 0.04
    latency_max_s: float = 0.10
    loss: float = 0.0  # a real stream loses nothing; this stands for queues that were full


@dataclass(slots=True)
class SimulatedNode:
    """One router with what was observed of it."""

    index: int
    router: Router
    is_alive: bool = True
    links: dict[PeerId, float] = field(default_factory=dict)  # neighbour: latency, seconds
    accepted: dict[bytes, tuple[float, int]] = field(default_factory=dict)  # id: time, hops
    deliveries: dict[bytes, int] = field(default_factory=dict)  # id: times delivered
    copies: int = 0  # messages received, first ones and duplicates
    payload_bytes: int = 0  # of the message entries sent
    control_bytes: int = 0  # of control and subscriptions sent


@dataclass(slots=True)
class _Draft:
    subscriptions: list[tuple[bool, str]] = field(default_factory=list)
    messages: list[WireMessage] = field(default_factory=list)
    control: Control | None = None


Judgement = Callable[[SimulatedNode, WireMessage], Verdict]


class Simulation:
    """A network of `node_count` routers; drive it with `run_until` and `publish`."""

    def __init__(
        self,
        node_count: int,
        *,
        seed: int,
        link: LinkModel | None = None,
        parameters: MeshParameters | None = None,
        scoring: PeerScoring | None = None,
        judge: Judgement | None = None,
    ) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.link = link or LinkModel()
        self.parameters = parameters or MeshParameters()
        self._judge = judge
        self._events: list[tuple[float, int, SimulatedNode, Event]] = []
        self._sequence = 0
        self._rules: dict[str, TopicRules] = {}
        self._hops: dict[tuple[PeerId, bytes], int] = {}
        self.nodes: list[SimulatedNode] = []
        self._by_peer: dict[PeerId, SimulatedNode] = {}
        for index in range(node_count):
            peer_id = PeerId.from_bytes(PEER_ID_PREFIX + self.rng.randbytes(32))
            router = Router(
                peer_id,
                rng=random.Random(self.rng.getrandbits(64)),
                parameters=self.parameters,
                scoring=scoring,
            )
            node = SimulatedNode(index, router)
            self.nodes.append(node)
            self._by_peer[peer_id] = node
            self._schedule(self.rng.random() * self.parameters.heartbeat_s, node, HeartbeatDue())

    def connect(self, dialler: SimulatedNode, listener: SimulatedNode) -> None:
        """Connect two nodes; no-op when they are connected or the same."""
        a, b = dialler.router.peer_id, listener.router.peer_id
        if a == b or b in dialler.links:
            return
        latency_s = self.rng.uniform(self.link.latency_min_s, self.link.latency_max_s)
        dialler.links[b] = listener.links[a] = latency_s
        self.handle(dialler, PeerJoined(b, MESHSUB_1_2, outbound=True))
        self.handle(listener, PeerJoined(a, MESHSUB_1_2))

    def connect_at_random(self, dials: int) -> None:
        """Let every living node dial `dials` others: about twice as many connections each."""
        living = [node for node in self.nodes if node.is_alive]
        for node in living:
            for other in self.rng.sample(living, min(dials, len(living))):
                self.connect(node, other)

    def disconnect(self, one: SimulatedNode, other: SimulatedNode) -> None:
        """Break the connection of two nodes; what is on its way is lost."""
        a, b = one.router.peer_id, other.router.peer_id
        if one.links.pop(b, None) is not None:
            del other.links[a]
            self.handle(one, PeerLeft(b))
            self.handle(other, PeerLeft(a))

    def kill(self, node: SimulatedNode) -> None:
        """A node vanishes with all its connections."""
        for peer in list(node.links):
            self.disconnect(node, self._by_peer[peer])
        node.is_alive = False

    def subscribe(self, node: SimulatedNode, topic: str, rules: TopicRules | None = None) -> None:
        """A node joins a topic."""
        rules = self._rules.setdefault(topic, rules or TopicRules())
        self.handle(node, TopicJoined(topic, rules))

    def publish(self, node: SimulatedNode, topic: str, data: bytes) -> bytes:
        """A node publishes; the message id."""
        rules = self._rules.setdefault(topic, TopicRules())
        message = WireMessage(topic, data)
        message_id = rules.id_of(message)
        self._hops[node.router.peer_id, message_id] = 0
        self.handle(node, Published(message, rules))
        return message_id

    def run_until(self, time_s: float) -> None:
        """Let everything happen that happens before `time_s`."""
        while self._events and self._events[0][0] < time_s:
            self.now, _, node, event = heapq.heappop(self._events)
            if not node.is_alive:
                continue
            if isinstance(event, HeartbeatDue):
                self._schedule(self.now + self.parameters.heartbeat_s, node, event)
            elif isinstance(event, RpcReceived) and event.peer not in node.links:
                continue  # the connection broke while it was on its way
            self.handle(node, event)
        self.now = time_s

    def handle(self, node: SimulatedNode, event: Event) -> None:
        """Give one event to a node and carry out what it says."""
        if isinstance(event, RpcReceived):
            node.copies += len(event.rpc.messages)
        drafts: dict[PeerId, _Draft] = {}
        effects = node.router.handle(event, self.now)
        for effect in effects:  # grows while it is walked
            match effect:
                case Judge(message):
                    verdict = self._judge(node, message.message) if self._judge else Verdict.ACCEPT
                    judged = Judged(message.message_id, verdict)
                    effects.extend(node.router.handle(judged, self.now))
                case Deliver(message):
                    message_id, sender = message.message_id, message.received_from
                    hops = self._hops.get((sender, message_id), 0)
                    if sender != node.router.peer_id:
                        hops += 1
                        self._hops[node.router.peer_id, message_id] = hops
                    node.accepted.setdefault(message_id, (self.now, hops))
                    node.deliveries[message_id] = node.deliveries.get(message_id, 0) + 1
                case SendMessage(peers, message):
                    for peer in peers:
                        drafts.setdefault(peer, _Draft()).messages.append(message.message)
                    node.payload_bytes += len(peers) * len(message.encoded)
                case SendControl(peer, control):
                    node.control_bytes += len(encode_control(control))
                    draft = drafts.setdefault(peer, _Draft())
                    if draft.control is not None:
                        self._send(node, peer, draft)
                        draft = drafts[peer] = _Draft()
                    draft.control = control
                case SendSubscriptions(peer, changes):
                    node.control_bytes += len(encode_subscriptions(changes))
                    drafts.setdefault(peer, _Draft()).subscriptions.extend(changes)
                case _:
                    assert_never(effect)
        for peer, draft in drafts.items():
            self._send(node, peer, draft)

    def _send(self, node: SimulatedNode, peer: PeerId, draft: _Draft) -> None:
        latency_s = node.links.get(peer)
        if latency_s is None or (self.link.loss and self.rng.random() < self.link.loss):
            return
        rpc = Rpc(
            subscriptions=tuple(draft.subscriptions),
            messages=tuple(draft.messages),
            control=draft.control,
        )
        received = RpcReceived(node.router.peer_id, rpc)
        self._schedule(self.now + latency_s, self._by_peer[peer], received)

    def _schedule(self, time_s: float, node: SimulatedNode, event: Event) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (time_s, self._sequence, node, event))
