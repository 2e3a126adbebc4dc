"""The mesh of each topic: who is grafted, who is pruned, and for how long (v1.0, v1.1).

The rule: after a heartbeat the mesh of a joined topic holds between D_lo and D_hi peers with a
score of at least zero, of whom D_out were dialled by us, as far as such peers are connected and not
in backoff.

Deviations:
- A peer that subscribes while our mesh is below D is grafted at once, not at the next heartbeat.
- A backoff that the peer itself asked for (its PRUNE) keeps us from grafting it, but the peer may
  lift it by a GRAFT, and it ends with the connection: a peer that left a topic or restarted is
  meshed again without a fault. Only a GRAFT within a backoff that *we* set is misbehaviour.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from p2p.gossipsub.neighbours import Drafts, Neighbour, Neighbours
from p2p.gossipsub.parameters import (
    BACKOFFS_PER_TOPIC_MAX,
    FANOUT_TOPICS_MAX,
    MeshParameters,
)
from p2p.gossipsub.score import Scoreboard
from p2p.identity import PeerId


@dataclass(frozen=True, slots=True)
class _Backoff:
    until: float
    since: float
    ours: bool  # we pruned the peer; otherwise it pruned us


@dataclass(slots=True)
class _Fanout:
    published_at: float
    peers: dict[PeerId, None] = field(default_factory=dict)


class Mesh:
    """The meshes of the joined topics, their backoffs, and the fanout of the others."""

    def __init__(
        self,
        parameters: MeshParameters,
        neighbours: Neighbours,
        scores: Scoreboard,
        drafts: Drafts,
        rng: random.Random,
        counters: Counter[str],
    ) -> None:
        self._parameters = parameters
        self._neighbours = neighbours
        self._scores = scores
        self._drafts = drafts
        self._rng = rng
        self._counters = counters
        self.members: dict[str, dict[PeerId, None]] = {}
        self._fanout: OrderedDict[str, _Fanout] = OrderedDict()
        self._backoffs: dict[str, OrderedDict[PeerId, _Backoff]] = {}
        self._fresh: list[tuple[PeerId, str]] = []
        self._heartbeats = 0

    def join(self, topic: str, now: float) -> None:
        """JOIN: the fanout becomes the mesh, filled up to D."""
        self.members[topic] = {}
        fanout = self._fanout.pop(topic, None)
        preferred = list(fanout.peers) if fanout is not None else []
        candidates = self._candidates(topic, now)
        kept = [peer for peer in preferred if peer in candidates]
        others = [peer for peer in candidates if peer not in kept]
        missing = max(0, self._parameters.degree - len(kept))
        for peer in kept[: self._parameters.degree] + self._sample(others, missing):
            self._graft(peer, topic, now)

    def leave(self, topic: str, now: float) -> None:
        """LEAVE: prune everybody, with the shorter backoff for unsubscribing."""
        backoff_s = self._parameters.unsubscribe_backoff_s
        for peer in list(self.members[topic]):
            self._prune(peer, topic, now, backoff_s)
        del self.members[topic]

    def fresh_links(self) -> list[tuple[PeerId, str]]:
        """Links made since the last call: both ends begin them by announcing what is recent."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def peer_subscribed(self, peer: PeerId, topic: str, now: float) -> None:
        """A peer joined one of our topics: it is grafted when the mesh lacks peers."""
        members = self.members[topic]
        if len(members) < self._parameters.degree and self._may_graft(peer, topic, now):
            self._graft(peer, topic, now)

    def peer_unsubscribed(self, peer: PeerId, topic: str) -> None:
        """A peer left a topic; no backoff: it may come back."""
        if topic in self.members and peer in self.members[topic]:
            self._remove(peer, topic)
        if topic in self._fanout:
            self._fanout[topic].peers.pop(peer, None)

    def peer_left(self, peer: PeerId) -> None:
        """A peer disconnected; the backoffs that it set end with its connection."""
        for topic, members in self.members.items():
            if peer in members:
                self._remove(peer, topic)
        for fanout in self._fanout.values():
            fanout.peers.pop(peer, None)
        for backoffs in self._backoffs.values():
            backoff = backoffs.get(peer)
            if backoff is not None and not backoff.ours:
                del backoffs[peer]

    def graft_received(self, neighbour: Neighbour, topic: str, now: float) -> None:
        """GRAFT: take the peer into the mesh or answer PRUNE."""
        members = self.members.get(topic)
        # [IGNORE] a topic that is not joined here: an answer would let strangers make us talk
        if members is None:
            self._counters["graft_unknown_topic"] += 1
            return
        peer = neighbour.peer
        # [IGNORE] it is in the mesh
        if peer in members:
            return
        backoff = self._backoff_of(peer, topic, now)
        # [REJECT] the peer comes back before the time we set
        if backoff is not None and backoff.ours:
            self._counters["graft_in_backoff"] += 1
            flood = now - backoff.since < self._parameters.graft_flood_s
            self._scores.misbehaviour(peer, 2.0 if flood else 1.0)
            self._refuse(peer, topic, now)
            return
        # [IGNORE] a peer below zero may not come in, nor one that we did not dial into a full mesh
        full = len(members) >= self._parameters.degree_high and not neighbour.outbound
        if full or self._scores.score(peer) < 0:
            self._refuse(peer, topic, now)
            return
        self._backoffs.get(topic, OrderedDict()).pop(peer, None)
        # A GRAFT says that the peer is subscribed, should its announcement still be on the way.
        self._neighbours.subscribe(neighbour, topic)
        self._add(peer, topic, now)

    def prune_received(self, peer: PeerId, topic: str, backoff_s: int, now: float) -> None:
        """PRUNE: the peer leaves the mesh, and is not grafted before its backoff is over."""
        members = self.members.get(topic)
        if members is None:
            return
        if peer in members:
            self._remove(peer, topic)
        wait_s = backoff_s or self._parameters.prune_backoff_s
        backoff = self._backoff_of(peer, topic, now)
        if backoff is None or not backoff.ours:
            self._set_backoff(peer, topic, now, wait_s, ours=False)

    def fanout(self, topic: str, now: float) -> list[PeerId]:
        """D peers of a topic that is published to but not joined."""
        fanout = self._fanout.get(topic)
        if fanout is None:
            fanout = self._fanout[topic] = _Fanout(now)
            if len(self._fanout) > FANOUT_TOPICS_MAX:
                self._fanout.popitem(last=False)
        self._fanout.move_to_end(topic)
        fanout.published_at = now
        self._fill_fanout(topic, fanout)
        return list(fanout.peers)

    def maintain(self, now: float) -> None:
        """The heartbeat's mesh and fanout maintenance."""
        self._heartbeats += 1
        for topic in self.members:
            self._maintain_topic(topic, now)
        for topic, fanout in list(self._fanout.items()):
            if now - fanout.published_at >= self._parameters.fanout_s:
                del self._fanout[topic]
            else:
                self._fill_fanout(topic, fanout)
        for topic, backoffs in list(self._backoffs.items()):
            for peer in [peer for peer, entry in backoffs.items() if entry.until <= now]:
                del backoffs[peer]
            if not backoffs:
                del self._backoffs[topic]

    def _maintain_topic(self, topic: str, now: float) -> None:
        parameters, members = self._parameters, self.members[topic]
        for peer in [peer for peer in members if self._scores.score(peer) < 0]:
            self._counters["pruned_for_score"] += 1
            self._prune(peer, topic, now, parameters.prune_backoff_s)
        if len(members) < parameters.degree_low:
            missing = parameters.degree - len(members)
            for peer in self._sample(self._candidates(topic, now), missing):
                self._graft(peer, topic, now)
        elif len(members) > parameters.degree_high:
            kept = self._survivors(topic)
            for peer in [peer for peer in members if peer not in kept]:
                self._prune(peer, topic, now, parameters.prune_backoff_s)
        if len(members) >= parameters.degree_low:
            missing = parameters.degree_out - sum(map(self._is_outbound, members))
            outbound = [peer for peer in self._candidates(topic, now) if self._is_outbound(peer)]
            for peer in self._sample(outbound, max(0, missing)):
                self._graft(peer, topic, now)
        if self._heartbeats % parameters.opportunistic_heartbeats == 0 and len(members) > 1:
            self._graft_opportunistically(topic, now)

    def _survivors(self, topic: str) -> set[PeerId]:
        """Whom to keep of a mesh that is too large: the best, some at random, D_out of our own."""
        parameters = self._parameters
        members = list(self.members[topic])
        self._rng.shuffle(members)
        members.sort(key=self._scores.score, reverse=True)  # stable: ties stay shuffled
        best, rest = members[: parameters.degree_score], members[parameters.degree_score :]
        self._rng.shuffle(rest)
        kept = best + rest[: parameters.degree - len(best)]
        dropped = rest[parameters.degree - len(best) :]
        missing = parameters.degree_out - sum(map(self._is_outbound, kept))
        for peer in dropped:
            if missing > 0 and self._is_outbound(peer):
                inbound = [index for index, one in enumerate(kept) if not self._is_outbound(one)]
                kept[inbound[-1]] = peer
                missing -= 1
        return set(kept)

    def _graft_opportunistically(self, topic: str, now: float) -> None:
        median = statistics.median(map(self._scores.score, self.members[topic]))
        if median >= self._scores.scoring.opportunistic_threshold:
            return
        better = [
            peer for peer in self._candidates(topic, now) if self._scores.score(peer) > median
        ]
        for peer in self._sample(better, self._parameters.opportunistic_peers):
            self._counters["grafted_opportunistically"] += 1
            self._graft(peer, topic, now)

    def _fill_fanout(self, topic: str, fanout: _Fanout) -> None:
        threshold = self._scores.scoring.publish_threshold
        missing = self._parameters.degree - len(fanout.peers)
        candidates = [
            peer
            for peer in self._neighbours.in_topic(topic)
            if peer not in fanout.peers and self._scores.score(peer) >= threshold
        ]
        fanout.peers.update(dict.fromkeys(self._sample(candidates, max(0, missing))))

    def _candidates(self, topic: str, now: float) -> list[PeerId]:
        members = self.members[topic]
        return [
            peer
            for peer in self._neighbours.in_topic(topic)
            if peer not in members and self._may_graft(peer, topic, now)
        ]

    def _may_graft(self, peer: PeerId, topic: str, now: float) -> bool:
        return (
            peer not in self.members[topic]
            and self._backoff_of(peer, topic, now) is None
            and self._scores.score(peer) >= 0
        )

    def _backoff_of(self, peer: PeerId, topic: str, now: float) -> _Backoff | None:
        backoffs = self._backoffs.get(topic)
        backoff = backoffs.get(peer) if backoffs is not None else None
        if backoff is None:
            return None
        # The other side clears its table at its heartbeat: wait one more for a backoff of theirs.
        slack_s = 0.0 if backoff.ours else self._parameters.heartbeat_s
        return backoff if now < backoff.until + slack_s else None

    def _set_backoff(
        self, peer: PeerId, topic: str, now: float, backoff_s: float, *, ours: bool
    ) -> None:
        backoffs = self._backoffs.setdefault(topic, OrderedDict())
        backoffs[peer] = _Backoff(now + backoff_s, now, ours)
        if len(backoffs) > BACKOFFS_PER_TOPIC_MAX:
            backoffs.popitem(last=False)

    def _refuse(self, peer: PeerId, topic: str, now: float) -> None:
        backoff_s = self._parameters.prune_backoff_s
        self._drafts.prune(peer, topic, backoff_s)
        self._set_backoff(peer, topic, now, backoff_s, ours=True)

    def _graft(self, peer: PeerId, topic: str, now: float) -> None:
        self._drafts.graft(peer, topic)
        self._add(peer, topic, now)

    def _prune(self, peer: PeerId, topic: str, now: float, backoff_s: float) -> None:
        self._drafts.prune(peer, topic, backoff_s)
        self._remove(peer, topic)
        self._set_backoff(peer, topic, now, backoff_s, ours=True)

    def _add(self, peer: PeerId, topic: str, now: float) -> None:
        self.members[topic][peer] = None
        self._scores.graft(peer, topic, now)
        self._fresh.append((peer, topic))

    def _remove(self, peer: PeerId, topic: str) -> None:
        del self.members[topic][peer]
        self._scores.prune(peer, topic)

    def _is_outbound(self, peer: PeerId) -> bool:
        return self._neighbours.by_peer[peer].outbound

    def _sample(self, peers: list[PeerId], count: int) -> list[PeerId]:
        return self._rng.sample(peers, min(count, len(peers)))
