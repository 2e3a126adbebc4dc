"""What the router knows of each connected peer, and the control that is being drafted for it.

The rule: everything kept per peer is bounded and leaves with the peer; sets of peers are ordered
dicts, because the order of a Python set of strings differs from process to process and the router
must be deterministic.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from p2p.gossipsub.codec import Control
from p2p.gossipsub.events import SendControl
from p2p.gossipsub.parameters import IHAVE_IDS_MAX, MESHSUB_1_2, OWED_IDS_MAX
from p2p.identity import PeerId


@dataclass(slots=True)
class Neighbour:
    """One connected peer; the counts are those since the last heartbeat."""

    peer: PeerId
    protocol: str
    outbound: bool
    topics: dict[str, None] = field(default_factory=dict)
    unwanted: dict[bytes, int] = field(default_factory=dict)  # IDONTWANT id: heartbeats left
    unwanted_received: int = 0
    ihave_received: int = 0
    ids_requested: int = 0
    owed: dict[bytes, str] = field(default_factory=dict)  # id: topic, to be announced

    @property
    def knows_idontwant(self) -> bool:
        """Whether it speaks v1.2."""
        return self.protocol == MESHSUB_1_2


class Neighbours:
    """The connected peers, by id and by topic."""

    def __init__(self, topics_per_peer_max: int, counters: Counter[str]) -> None:
        self._topics_per_peer_max = topics_per_peer_max
        self._counters = counters
        self.by_peer: dict[PeerId, Neighbour] = {}
        self._by_topic: dict[str, dict[PeerId, None]] = {}

    def add(self, peer: PeerId, protocol: str, *, outbound: bool) -> None:
        """A peer came, or opened its stream anew: what it subscribes to is then kept."""
        known = self.by_peer.get(peer)
        if known is None:
            self.by_peer[peer] = Neighbour(peer, protocol, outbound)
        else:
            known.protocol, known.outbound = protocol, outbound

    def remove(self, peer: PeerId) -> None:
        """A peer left; no-op for an unknown one."""
        neighbour = self.by_peer.pop(peer, None)
        if neighbour is not None:
            for topic in list(neighbour.topics):
                self._leave_topic(peer, topic)

    def in_topic(self, topic: str) -> dict[PeerId, None]:
        """The peers subscribed to `topic`; not to be changed."""
        return self._by_topic.get(topic, {})

    def subscribe(self, neighbour: Neighbour, topic: str) -> bool:
        """The peer subscribes; False when it did before or is at its limit (counted)."""
        if topic in neighbour.topics:
            return False
        if len(neighbour.topics) >= self._topics_per_peer_max:
            self._counters["subscriptions_over_limit"] += 1
            return False
        neighbour.topics[topic] = None
        self._by_topic.setdefault(topic, {})[neighbour.peer] = None
        return True

    def unsubscribe(self, neighbour: Neighbour, topic: str) -> bool:
        """The peer unsubscribes; False when it was not subscribed."""
        if topic not in neighbour.topics:
            return False
        del neighbour.topics[topic]
        self._leave_topic(neighbour.peer, topic)
        return True

    def owe(self, peer: PeerId, topic: str, message_id: bytes) -> None:
        """A message did not fit into the peer's queue; announce it at the next heartbeat."""
        neighbour = self.by_peer.get(peer)
        if neighbour is not None and len(neighbour.owed) < OWED_IDS_MAX:
            neighbour.owed[message_id] = topic

    def _leave_topic(self, peer: PeerId, topic: str) -> None:
        members = self._by_topic[topic]
        del members[peer]
        if not members:
            del self._by_topic[topic]


@dataclass(slots=True)
class _Draft:
    ihave: dict[str, list[bytes]] = field(default_factory=dict)
    iwant: list[bytes] = field(default_factory=list)
    graft: dict[str, None] = field(default_factory=dict)
    prune: dict[str, int] = field(default_factory=dict)
    idontwant: list[bytes] = field(default_factory=list)


class Drafts:
    """Control for each peer, gathered while one event is handled and sent as one entry."""

    def __init__(self) -> None:
        self._drafts: dict[PeerId, _Draft] = {}

    def graft(self, peer: PeerId, topic: str) -> None:
        """Ask the peer into our mesh."""
        self._draft(peer).graft[topic] = None

    def prune(self, peer: PeerId, topic: str, backoff_s: float) -> None:
        """Tell the peer that it is not in our mesh and may come back after `backoff_s`."""
        draft = self._draft(peer)
        draft.graft.pop(topic, None)
        draft.prune[topic] = int(backoff_s)

    def ihave(self, peer: PeerId, topic: str, ids: list[bytes]) -> None:
        """Announce messages; over 5,000 ids per topic the rest is left out."""
        announced = self._draft(peer).ihave.setdefault(topic, [])
        announced.extend(ids[: IHAVE_IDS_MAX - len(announced)])

    def iwant(self, peer: PeerId, ids: list[bytes]) -> None:
        """Ask for messages."""
        self._draft(peer).iwant.extend(ids)

    def idontwant(self, peer: PeerId, message_id: bytes) -> None:
        """Tell the peer not to send a message."""
        self._draft(peer).idontwant.append(message_id)

    def take(self) -> list[SendControl]:
        """Everything drafted, as one effect per peer; the drafts are empty afterwards."""
        if not self._drafts:
            return []
        effects = [
            SendControl(
                peer,
                Control(
                    ihave=tuple((topic, tuple(ids)) for topic, ids in draft.ihave.items()),
                    iwant=tuple(draft.iwant),
                    graft=tuple(draft.graft),
                    prune=tuple(draft.prune.items()),
                    idontwant=tuple(draft.idontwant),
                ),
            )
            for peer, draft in self._drafts.items()
        ]
        self._drafts = {}
        return effects

    def _draft(self, peer: PeerId) -> _Draft:
        draft = self._drafts.get(peer)
        if draft is None:
            draft = self._drafts[peer] = _Draft()
        return draft
