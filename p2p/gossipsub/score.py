"""Peer scores (gossipsub v1.1, "Peer Scoring"): what we observed of a neighbour, as one number.

    Score(p) = TopicCap(Σ_t w_t · (w1·P1 + w2·P2 + w3·P3 + w3b·P3b + w4·P4)) + w5·P5 + w6·P6 + w7·P7

The rule: a score falls only by what the peer itself did, and a stranger begins at zero. With the
defaults three invalid messages, or six broken promises, graylist a peer; it is heard again about a
minute later, because every counter decays.

Deviations: P3 (too few deliveries in the mesh) has weight 0 until a topic states its rate, because
a quiet topic is no fault. P7 tolerates `misbehaviour_tolerated` counts first, as go-libp2p does:
an honest GRAFT can cross our PRUNE. Addresses are counted per IPv4 address and per IPv6 /64.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field

from p2p.identity import PeerId

DECAYED_TO_ZERO = 0.01
RETAINED_MAX = 4096
"""Scores kept of peers that left; full: the one that left first is forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicScoring:
    """Weights and caps within one topic; decays are per heartbeat."""

    topic_weight: float = 1.0
    mesh_time_weight: float = 0.01  # P1
    mesh_time_quantum_s: float = 1.0
    mesh_time_cap: float = 300.0
    first_deliveries_weight: float = 0.2  # P2
    first_deliveries_decay: float = 0.95
    first_deliveries_cap: float = 50.0
    mesh_deliveries_weight: float = 0.0  # P3: negative to use it
    mesh_deliveries_decay: float = 0.95
    mesh_deliveries_threshold: float = 1.0
    mesh_deliveries_cap: float = 100.0
    mesh_deliveries_activation_s: float = 30.0
    mesh_deliveries_window_s: float = 0.01
    mesh_failure_weight: float = 0.0  # P3b: negative to use it
    mesh_failure_decay: float = 0.95
    invalid_weight: float = -10.0  # P4: of the square
    invalid_decay: float = 0.99

    def __post_init__(self) -> None:
        if max(self.mesh_deliveries_weight, self.mesh_failure_weight, self.invalid_weight) > 0:
            raise ValueError("penalty weights are negative or zero")
        if self.mesh_deliveries_cap < self.mesh_deliveries_threshold:
            raise ValueError("mesh_deliveries_cap < mesh_deliveries_threshold")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerScoring:
    """Weights over all topics, and the thresholds by which the router treats a peer."""

    topic_cap: float = 30.0  # most that all topics together may add
    application_weight: float = 1.0  # P5
    colocation_weight: float = -5.0  # P6: of the square of the surplus
    colocation_threshold: int = 8  # peers of one address that are no surplus
    colocation_of_private: bool = False  # loopback and private addresses count too
    misbehaviour_weight: float = -5.0  # P7: of the square
    misbehaviour_decay: float = 0.98
    misbehaviour_tolerated: float = 2.0
    gossip_threshold: float = -10.0  # below: no IHAVE to it or from it
    publish_threshold: float = -40.0  # below: our own messages are not sent to it
    graylist_threshold: float = -80.0  # below: its RPCs are not read
    opportunistic_threshold: float = 1.0  # a mesh whose median is below looks for better peers
    retain_s: float = 600.0  # a score below zero outlives its connection by this

    def __post_init__(self) -> None:
        if not self.graylist_threshold < self.publish_threshold <= self.gossip_threshold < 0:
            raise ValueError("graylist < publish <= gossip < 0 does not hold")
        if self.opportunistic_threshold < 0:
            raise ValueError("opportunistic_threshold must not be negative")


@dataclass(slots=True)
class _TopicRecord:
    grafted_at: float | None = None  # None: not in our mesh
    mesh_time_s: float = 0.0
    first_deliveries: float = 0.0
    mesh_deliveries: float = 0.0
    mesh_failure: float = 0.0
    invalid: float = 0.0

    def deficit(self, scoring: TopicScoring) -> float:
        """What P3 lacks; 0 outside the mesh and before the activation time."""
        if self.grafted_at is None or self.mesh_time_s <= scoring.mesh_deliveries_activation_s:
            return 0.0
        return max(0.0, scoring.mesh_deliveries_threshold - self.mesh_deliveries)


@dataclass(slots=True)
class _PeerRecord:
    address: str = ""
    application: float = 0.0
    misbehaviour: float = 0.0
    topics: dict[str, _TopicRecord] = field(default_factory=dict)
    left_at: float | None = None
    score: float = 0.0
    stale: bool = True


class Scoreboard:
    """The scores of the neighbours and, for a while, of those that left below zero."""

    def __init__(self, scoring: PeerScoring) -> None:
        self.scoring = scoring
        self._topics: dict[str, TopicScoring] = {}
        self._peers: dict[PeerId, _PeerRecord] = {}
        self._retained: OrderedDict[PeerId, None] = OrderedDict()
        self._peers_of: dict[str, set[PeerId]] = {}

    def score(self, peer: PeerId) -> float:
        """The current score; 0 for a peer never seen."""
        record = self._peers.get(peer)
        if record is None:
            return 0.0
        if record.stale:
            record.score = self._compute(record)
            record.stale = False
        return record.score

    def is_graylisted(self, peer: PeerId) -> bool:
        """Whether the peer's RPCs are to be dropped unread."""
        return self.score(peer) < self.scoring.graylist_threshold

    def add_topic(self, topic: str, scoring: TopicScoring) -> None:
        """Count what peers do in `topic` from now on."""
        self._topics[topic] = scoring

    def remove_topic(self, topic: str) -> None:
        """Forget what peers did in `topic`, good and bad."""
        self._topics.pop(topic, None)
        for record in self._peers.values():
            if record.topics.pop(topic, None) is not None:
                record.stale = True

    def add_peer(self, peer: PeerId, address: str) -> None:
        """A peer came; what is remembered of it still counts. `address` is a multiaddr or ""."""
        self._retained.pop(peer, None)
        record = self._peers.setdefault(peer, _PeerRecord())
        record.left_at = None
        self._set_address(peer, record, _colocation_group(address, self.scoring))

    def remove_peer(self, peer: PeerId, now: float) -> None:
        """A peer left: forgotten at once unless its score is below zero."""
        record = self._peers.get(peer)
        if record is None or record.left_at is not None:
            return
        for topic in list(record.topics):
            self.prune(peer, topic)
        bad = self.score(peer) < 0
        self._set_address(peer, record, "")
        if not bad:
            del self._peers[peer]
            return
        record.left_at = now
        self._retained[peer] = None
        if len(self._retained) > RETAINED_MAX:
            oldest, _ = self._retained.popitem(last=False)
            del self._peers[oldest]

    def graft(self, peer: PeerId, topic: str, now: float) -> None:
        """The peer is in our mesh of `topic` from now on."""
        if (record := self._topic_record(peer, topic)) is not None:
            record.grafted_at = now
            record.mesh_time_s = 0.0
            record.mesh_deliveries = 0.0

    def prune(self, peer: PeerId, topic: str) -> None:
        """The peer has left our mesh; a deficit at this moment sticks (P3b)."""
        record = self._topic_record(peer, topic)
        if record is None or record.grafted_at is None:
            return
        record.mesh_failure += record.deficit(self._topics[topic]) ** 2
        record.grafted_at = None
        self._peers[peer].stale = True

    def first_delivery(self, peer: PeerId, topic: str) -> None:
        """The peer was the first to bring a message (P2, P3); shows at the next decay."""
        record = self._topic_record(peer, topic)
        if record is not None:
            cap = self._topics[topic].first_deliveries_cap
            record.first_deliveries = min(record.first_deliveries + 1, cap)
            self._count_mesh_delivery(record, topic)

    def near_first_delivery(self, peer: PeerId, topic: str) -> None:
        """The peer brought a message while it was judged, or just after (P3)."""
        if (record := self._topic_record(peer, topic)) is not None:
            self._count_mesh_delivery(record, topic)

    def invalid_message(self, peer: PeerId, topic: str) -> None:
        """The peer sent a message that its topic rejects (P4)."""
        if (record := self._topic_record(peer, topic)) is not None:
            record.invalid += 1
            self._peers[peer].stale = True

    def misbehaviour(self, peer: PeerId, count: float = 1.0) -> None:
        """The peer broke a rule of the protocol (P7)."""
        if (record := self._peers.get(peer)) is not None:
            record.misbehaviour += count
            record.stale = True

    def set_application_score(self, peer: PeerId, score: float) -> None:
        """What the program thinks of a connected peer (P5); no-op for another."""
        if (record := self._peers.get(peer)) is not None:
            record.application = score
            record.stale = True

    def decay(self, now: float) -> None:
        """Once per heartbeat: counters decay, mesh times grow, retained scores expire."""
        while self._retained:
            oldest = next(iter(self._retained))
            left_at = self._peers[oldest].left_at
            if left_at is not None and now - left_at < self.scoring.retain_s:
                break
            del self._retained[oldest], self._peers[oldest]
        for record in self._peers.values():
            record.misbehaviour = _decayed(record.misbehaviour, self.scoring.misbehaviour_decay)
            for topic, counters in record.topics.items():
                _decay_topic(counters, self._topics[topic], now)
            record.stale = True

    def _topic_record(self, peer: PeerId, topic: str) -> _TopicRecord | None:
        record = self._peers.get(peer)
        if record is None or topic not in self._topics:
            return None
        counters = record.topics.get(topic)
        if counters is None:
            counters = record.topics[topic] = _TopicRecord()
        return counters

    def _count_mesh_delivery(self, record: _TopicRecord, topic: str) -> None:
        if record.grafted_at is not None:
            cap = self._topics[topic].mesh_deliveries_cap
            record.mesh_deliveries = min(record.mesh_deliveries + 1, cap)

    def _compute(self, record: _PeerRecord) -> float:
        scoring = self.scoring
        topics = 0.0
        for topic, counters in record.topics.items():
            weights = self._topics[topic]
            points = (
                weights.first_deliveries_weight * counters.first_deliveries
                + weights.mesh_deliveries_weight * counters.deficit(weights) ** 2
                + weights.mesh_failure_weight * counters.mesh_failure
                + weights.invalid_weight * counters.invalid**2
            )
            if counters.grafted_at is not None:
                quanta = counters.mesh_time_s / weights.mesh_time_quantum_s
                points += weights.mesh_time_weight * min(quanta, weights.mesh_time_cap)
            topics += weights.topic_weight * points
        surplus = max(0, len(self._peers_of.get(record.address, ())) - scoring.colocation_threshold)
        offences = max(0.0, record.misbehaviour - scoring.misbehaviour_tolerated)
        return (
            min(topics, scoring.topic_cap)
            + scoring.application_weight * record.application
            + scoring.colocation_weight * surplus**2
            + scoring.misbehaviour_weight * offences**2
        )

    def _set_address(self, peer: PeerId, record: _PeerRecord, address: str) -> None:
        for group in (record.address, address):
            for neighbour in self._peers_of.get(group, ()):
                self._peers[neighbour].stale = True
        if record.address:
            self._peers_of[record.address].discard(peer)
            if not self._peers_of[record.address]:
                del self._peers_of[record.address]
        record.address = address
        record.stale = True
        if address:
            self._peers_of.setdefault(address, set()).add(peer)


def _decay_topic(counters: _TopicRecord, scoring: TopicScoring, now: float) -> None:
    counters.first_deliveries = _decayed(counters.first_deliveries, scoring.first_deliveries_decay)
    counters.mesh_deliveries = _decayed(counters.mesh_deliveries, scoring.mesh_deliveries_decay)
    counters.mesh_failure = _decayed(counters.mesh_failure, scoring.mesh_failure_decay)
    counters.invalid = _decayed(counters.invalid, scoring.invalid_decay)
    if counters.grafted_at is not None:
        counters.mesh_time_s = now - counters.grafted_at


def _decayed(value: float, factor: float) -> float:
    value *= factor
    return value if value >= DECAYED_TO_ZERO else 0.0


def _colocation_group(address: str, scoring: PeerScoring) -> str:
    """The IPv4 address or IPv6 /64 of a multiaddr; "" when it has none or is exempt."""
    parts = address.split("/")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return ""
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return ""
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global and not scoring.colocation_of_private:
        return ""
    if ip.version == 6:
        return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
    return str(ip)
