"""The gossipsub router: events and times in, effects out; no I/O, no clock, no chance of its own.

The rule: every accepted message is delivered once and forwarded once to each mesh peer that is not
known to have it; a message is judged once even when it arrives from several peers at a time.

A message passes through: topic joined? → id seen or being judged? → rules of the topic (size,
signature) → `Judge` → the verdict:

    ACCEPT   seen, cached, delivered, forwarded to the mesh; its first sender is credited
    IGNORE   forgotten: the next copy is judged again; nobody is penalised
    REJECT   seen as rejected; whoever sent it, before or after, is penalised

Follows libp2p/specs pubsub/gossipsub v1.0 ("Message Processing"), v1.1 and v1.2; the parts are
`mesh` (GRAFT, PRUNE), `gossip` (IHAVE, IWANT, IDONTWANT) and `score`. Peer exchange is off: the
peers in a PRUNE are not read and none are sent; peers come from the DHT.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import assert_never

from p2p.errors import InvariantViolation, ProtocolViolation
from p2p.gossipsub.cache import MessageCache, SeenCache
from p2p.gossipsub.codec import Control, decode_rpc, encode_publish
from p2p.gossipsub.events import (
    Deliver,
    Effect,
    Event,
    FrameReceived,
    HeartbeatDue,
    Judge,
    Judged,
    PeerJoined,
    PeerLeft,
    Published,
    RpcReceived,
    SendMessage,
    SendRefused,
    SendSubscriptions,
    StreamViolated,
    TopicJoined,
    TopicLeft,
)
from p2p.gossipsub.gossip import Gossip
from p2p.gossipsub.mesh import Mesh
from p2p.gossipsub.message import CachedMessage, WireMessage
from p2p.gossipsub.neighbours import Drafts, Neighbour, Neighbours
from p2p.gossipsub.parameters import (
    MESSAGE_ID_BYTES_MAX,
    PENDING_BYTES_MAX,
    PENDING_MAX,
    MeshParameters,
)
from p2p.gossipsub.score import PeerScoring, Scoreboard
from p2p.gossipsub.topic import Fault, TopicRules
from p2p.identity import PeerId
from p2p.network import Verdict

VIOLATION_PENALTY = 5.0
"""P7 counts for bytes that no gossipsub implementation sends: less the two that are tolerated the
first costs 45 points, and the peer hears no more of ours; the second graylists it."""


@dataclass(slots=True)
class _Pending:
    message: CachedMessage
    senders: dict[PeerId, None] = field(default_factory=dict)  # of further copies


class Router:
    """One node's gossipsub. `handle` is its only entry; the rest may be read at any time."""

    def __init__(
        self,
        peer_id: PeerId,
        *,
        rng: random.Random,
        parameters: MeshParameters | None = None,
        scoring: PeerScoring | None = None,
        topics_per_peer_max: int = 256,
    ) -> None:
        self.peer_id = peer_id
        self.parameters = parameters or MeshParameters()
        self.counters: Counter[str] = Counter()
        self.scores = Scoreboard(scoring or PeerScoring())
        self._neighbours = Neighbours(topics_per_peer_max, self.counters)
        self._drafts = Drafts()
        self._seen = SeenCache(self.parameters.seen_s)
        self._cache = MessageCache(self.parameters.history_windows, self.parameters.gossip_windows)
        shared = (self.parameters, self._neighbours, self.scores, self._drafts)
        self._mesh = Mesh(*shared, rng, self.counters)
        self._gossip = Gossip(*shared, self._cache, self._seen, rng, self.counters)
        self._rules: dict[str, TopicRules] = {}
        self._pending: dict[bytes, _Pending] = {}
        self._pending_bytes = 0
        self._out: list[Effect] = []

    @property
    def topics(self) -> frozenset[str]:
        """The joined topics."""
        return frozenset(self._rules)

    def mesh_peers(self, topic: str) -> tuple[PeerId, ...]:
        """The mesh of a topic; empty when it is not joined."""
        return tuple(self._mesh.members.get(topic, ()))

    def topic_peers(self, topic: str) -> tuple[PeerId, ...]:
        """Connected peers subscribed to `topic`."""
        return tuple(self._neighbours.in_topic(topic))

    def publish_targets(self, topic: str) -> list[PeerId]:
        """Whom flood publishing would reach: subscribers at or above the publish threshold."""
        threshold = self.scores.scoring.publish_threshold
        return [
            peer
            for peer in self._neighbours.in_topic(topic)
            if self.scores.score(peer) >= threshold
        ]

    def has_seen(self, message_id: bytes) -> bool:
        """Whether a message was accepted, rejected or published here recently."""
        return message_id in self._seen

    def has_rejected(self, message_id: bytes) -> bool:
        """Whether a message was rejected here recently."""
        return self._seen.was_rejected(message_id)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, never decreasing); what is to be done, in order.

        Each `Judge` must be answered with `Judged` sooner or later; up to 8,192 may be open.
        """
        match event:
            case FrameReceived():
                self._on_frame(event, now)
            case Judged():
                self._on_judged(event, now)
            case Published():
                self._on_published(event, now)
            case RpcReceived():
                self._on_rpc(event, now)
            case SendRefused():
                self._neighbours.owe(event.peer, event.topic, event.message_id)
            case HeartbeatDue():
                self._on_heartbeat(now)
            case PeerJoined():
                self._on_peer_joined(event)
            case PeerLeft():
                self._on_peer_left(event, now)
            case StreamViolated():
                self._violation(event.peer)
            case TopicJoined():
                self._on_topic_joined(event, now)
            case TopicLeft():
                self._on_topic_left(event, now)
            case _:
                assert_never(event)
        for peer, topic in self._mesh.fresh_links():
            self._gossip.announce_recent(peer, topic)
        self._out.extend(self._drafts.take())
        effects, self._out = self._out, []
        return effects

    # Peers and topics

    def _on_peer_joined(self, event: PeerJoined) -> None:
        self._neighbours.add(event.peer, event.protocol, outbound=event.outbound)
        self.scores.add_peer(event.peer, event.address)
        if self._rules:
            changes = tuple((True, topic) for topic in self._rules)
            self._out.append(SendSubscriptions(event.peer, changes))

    def _on_peer_left(self, event: PeerLeft, now: float) -> None:
        self._mesh.peer_left(event.peer)
        self._neighbours.remove(event.peer)
        self.scores.remove_peer(event.peer, now)

    def _on_topic_joined(self, event: TopicJoined, now: float) -> None:
        if event.topic in self._rules:
            raise InvariantViolation(f"{event.topic!r} is joined twice")
        self._rules[event.topic] = event.rules
        self.scores.add_topic(event.topic, event.rules.scoring)
        self._announce(joined=True, topic=event.topic)
        self._mesh.join(event.topic, now)

    def _on_topic_left(self, event: TopicLeft, now: float) -> None:
        del self._rules[event.topic]
        self._announce(joined=False, topic=event.topic)
        self._mesh.leave(event.topic, now)
        self.scores.remove_topic(event.topic)

    def _announce(self, *, joined: bool, topic: str) -> None:
        for peer in self._neighbours.by_peer:
            self._out.append(SendSubscriptions(peer, ((joined, topic),)))

    def _on_heartbeat(self, now: float) -> None:
        self.scores.decay(now)
        self._seen.expire(now)
        self._gossip.penalise_broken_promises(now)  # first: who breaks them leaves the mesh now
        self._mesh.maintain(now)
        for topic, members in self._mesh.members.items():
            self._gossip.emit(topic, members)
        self._gossip.heartbeat()

    # What peers send

    def _on_frame(self, event: FrameReceived, now: float) -> None:
        # [IGNORE] a graylisted peer: its frames are not even decoded
        if self.scores.is_graylisted(event.peer):
            self.counters["frames_graylisted"] += 1
            return
        try:
            rpc = decode_rpc(event.frame)
        except ProtocolViolation:
            # [REJECT] not an RPC
            self._violation(event.peer)
            return
        self._on_rpc(RpcReceived(event.peer, rpc), now)

    def _on_rpc(self, event: RpcReceived, now: float) -> None:
        neighbour = self._neighbours.by_peer.get(event.peer)
        if neighbour is None or self.scores.is_graylisted(event.peer):
            self.counters["frames_graylisted"] += neighbour is not None
            return
        for joined, topic in event.rpc.subscriptions:
            if joined:
                if self._neighbours.subscribe(neighbour, topic) and topic in self._rules:
                    self._mesh.peer_subscribed(event.peer, topic, now)
            elif self._neighbours.unsubscribe(neighbour, topic):
                self._mesh.peer_unsubscribed(event.peer, topic)
        for message in event.rpc.messages:
            self._on_message(event.peer, message, now)
        if event.rpc.control is not None:
            self._on_control(neighbour, event.rpc.control, now)

    def _on_control(self, neighbour: Neighbour, control: Control, now: float) -> None:
        for topic in control.graft:
            self._mesh.graft_received(neighbour, topic, now)
        for topic, backoff_s in control.prune:
            self._mesh.prune_received(neighbour.peer, topic, backoff_s, now)
        for topic, ids in control.ihave:
            # [IGNORE] a topic that is not joined here
            if topic in self._rules:
                unpending = tuple(one for one in ids if one not in self._pending)
                self._gossip.ihave_received(neighbour, topic, unpending, now)
        if control.iwant:
            for message in self._gossip.iwant_received(neighbour, control.iwant):
                self._out.append(SendMessage((neighbour.peer,), message))
        if control.idontwant:
            self._gossip.idontwant_received(neighbour, control.idontwant)

    def _violation(self, peer: PeerId) -> None:
        self.counters["violations"] += 1
        self.scores.misbehaviour(peer, VIOLATION_PENALTY)

    # Messages

    def _on_message(self, peer: PeerId, message: WireMessage, now: float) -> None:
        rules = self._rules.get(message.topic)
        # [IGNORE] a topic that is not joined here
        if rules is None:
            self.counters["messages_unsubscribed"] += 1
            return
        message_id = rules.id_of(message)
        # [IGNORE] seen before; near-first copies and copies of rejected ones count for the score
        if message_id in self._seen:
            self._gossip.arrived(message_id)
            self._on_duplicate(peer, message.topic, message_id, rules, now)
            return
        # [REJECT] against the rules of the topic; not remembered by its id, for a forged copy of
        # an honest message must not keep the honest one out
        if (fault := rules.fault_of(message)) is not None:
            self.counters[f"messages_{fault.name.lower()}"] += 1
            if fault is not Fault.UNKNOWN_AUTHOR:
                self.scores.invalid_message(peer, message.topic)
            return
        self._gossip.arrived(message_id)
        # [IGNORE] being judged at this moment: the verdict will count for this sender too
        if (pending := self._pending.get(message_id)) is not None:
            self.counters["messages_duplicate"] += 1
            pending.senders[peer] = None
            return
        # [IGNORE] more messages are being judged than fit, or an id that no one could ask for
        full = len(self._pending) >= PENDING_MAX or self._pending_bytes >= PENDING_BYTES_MAX
        if full or not 0 < len(message_id) <= MESSAGE_ID_BYTES_MAX:
            self.counters["messages_over_limit"] += 1
            return
        forwarded = rules.to_forward(message)
        cached = CachedMessage(message_id, forwarded, encode_publish(forwarded), peer)
        self._pending[message_id] = _Pending(cached)
        self._pending_bytes += len(cached.encoded)
        if len(message.data) >= self.parameters.idontwant_bytes_min:
            self._decline_copies(cached)
        self._out.append(Judge(cached))

    def _on_duplicate(
        self, peer: PeerId, topic: str, message_id: bytes, rules: TopicRules, now: float
    ) -> None:
        self.counters["messages_duplicate"] += 1
        if self._seen.was_rejected(message_id):
            self.scores.invalid_message(peer, topic)
        elif rules.scoring.mesh_deliveries_weight and (
            now - self._seen.seen_at(message_id) <= rules.scoring.mesh_deliveries_window_s
        ):
            self.scores.near_first_delivery(peer, topic)

    def _decline_copies(self, message: CachedMessage) -> None:
        """IDONTWANT to the mesh at once, before the message is judged (v1.2)."""
        for peer in self._mesh.members[message.message.topic]:
            if peer != message.received_from and self._neighbours.by_peer[peer].knows_idontwant:
                self._drafts.idontwant(peer, message.message_id)

    def _on_judged(self, event: Judged, now: float) -> None:
        pending = self._take_pending(event.message_id)
        if pending is None:
            return  # published here meanwhile
        message, topic = pending.message, pending.message.message.topic
        match event.verdict:
            case Verdict.ACCEPT:
                self.counters["messages_accepted"] += 1
                self.scores.first_delivery(message.received_from, topic)
                for peer in pending.senders:
                    self.scores.near_first_delivery(peer, topic)
                self._accept(message, now)
                self._out.append(Deliver(message))
                self._forward(message, pending.senders)
            case Verdict.IGNORE:
                self.counters["messages_ignored"] += 1
            case Verdict.REJECT:
                self.counters["messages_rejected"] += 1
                self._seen.add(event.message_id, now, rejected=True)
                for peer in (message.received_from, *pending.senders):
                    self.scores.invalid_message(peer, topic)
            case _:
                assert_never(event.verdict)

    def _on_published(self, event: Published, now: float) -> None:
        topic, message_id = event.message.topic, event.rules.id_of(event.message)
        if message_id in self._seen:
            return
        encoded = encode_publish(event.message)
        message = CachedMessage(message_id, event.message, encoded, self.peer_id)
        pending = self._take_pending(message_id)
        self._accept(message, now)
        self.counters["messages_published"] += 1
        if event.deliver and topic in self._rules:
            self._out.append(Deliver(message))
        if self.parameters.flood_publish:
            targets = self.publish_targets(topic)
        elif topic in self._rules:
            targets = list(self._mesh.members[topic])
        else:
            targets = self._mesh.fanout(topic, now)
        known_to = {pending.message.received_from, *pending.senders} if pending is not None else ()
        peers = tuple(peer for peer in targets if self._lacks(peer, message_id, known_to))
        if peers:
            self._out.append(SendMessage(peers, message, own=True))

    def _take_pending(self, message_id: bytes) -> _Pending | None:
        pending = self._pending.pop(message_id, None)
        if pending is not None:
            self._pending_bytes -= len(pending.message.encoded)
        return pending

    def _accept(self, message: CachedMessage, now: float) -> None:
        self._seen.add(message.message_id, now)
        self._cache.put(message)

    def _forward(self, message: CachedMessage, senders: dict[PeerId, None]) -> None:
        topic = message.message.topic
        if topic not in self._rules:
            return  # left while the message was judged
        author = message.message.source
        peers = tuple(
            peer
            for peer in self._mesh.members[topic]
            if peer != message.received_from
            and self._lacks(peer, message.message_id, senders)
            and not (author and peer.to_bytes() == author)
        )
        if peers:
            self._out.append(SendMessage(peers, message))

    def _lacks(
        self,
        peer: PeerId,
        message_id: bytes,
        known_to: dict[PeerId, None] | set[PeerId] | tuple[()],
    ) -> bool:
        """Whether a peer is not known to have a message already."""
        return peer not in known_to and message_id not in self._neighbours.by_peer[peer].unwanted
