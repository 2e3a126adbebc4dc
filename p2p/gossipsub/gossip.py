"""IHAVE, IWANT and IDONTWANT: what is announced, asked for and declined (v1.0, v1.1, v1.2).

The rule: a peer can make us ask for, keep or send only bounded amounts per heartbeat, and one that
announces a message and does not send it is penalised (P7, "broken promise").
"""

from __future__ import annotations

import random
from collections import Counter

from p2p.gossipsub.cache import MessageCache, SeenCache
from p2p.gossipsub.message import CachedMessage
from p2p.gossipsub.neighbours import Drafts, Neighbour, Neighbours
from p2p.gossipsub.parameters import (
    IDONTWANT_HEARTBEATS,
    IDONTWANT_IDS_MAX,
    IHAVE_IDS_MAX,
    IHAVE_MESSAGES_MAX,
    PROMISES_MAX,
    RETRANSMISSIONS_MAX,
    MeshParameters,
)
from p2p.gossipsub.score import Scoreboard
from p2p.identity import PeerId


class Gossip:
    """Announcements in both directions; the message cache is shared with the router."""

    def __init__(
        self,
        parameters: MeshParameters,
        neighbours: Neighbours,
        scores: Scoreboard,
        drafts: Drafts,
        cache: MessageCache,
        seen: SeenCache,
        rng: random.Random,
        counters: Counter[str],
    ) -> None:
        self._parameters = parameters
        self._neighbours = neighbours
        self._scores = scores
        self._drafts = drafts
        self._cache = cache
        self._seen = seen
        self._rng = rng
        self._counters = counters
        self._promises: dict[bytes, dict[PeerId, float]] = {}  # id: who promised, until when

    def announce_recent(self, peer: PeerId, topic: str) -> None:
        """IHAVE of everything recent to one peer: a new mesh link begins with it.

        Deviation: the specification announces only to peers outside the mesh, so that a message
        published just before a link came up would never cross it.
        """
        ids = self._cache.gossip_ids(topic)
        if ids and self._hears_gossip(peer):
            self._drafts.ihave(peer, topic, ids[:IHAVE_IDS_MAX])

    def emit(self, topic: str, excluded: dict[PeerId, None]) -> None:
        """The heartbeat's IHAVE to some subscribers that are not in the mesh."""
        ids = self._cache.gossip_ids(topic)
        if not ids:
            return
        peers = [
            peer
            for peer in self._neighbours.in_topic(topic)
            if peer not in excluded and self._hears_gossip(peer)
        ]
        share = int(len(peers) * self._parameters.gossip_factor)
        count = min(len(peers), max(self._parameters.degree_lazy, share))
        for peer in self._rng.sample(peers, count):
            # A different sample for each peer: together they learn of more than the cap.
            if len(ids) > IHAVE_IDS_MAX:
                self._drafts.ihave(peer, topic, self._rng.sample(ids, IHAVE_IDS_MAX))
            else:
                self._drafts.ihave(peer, topic, ids)

    def ihave_received(
        self, neighbour: Neighbour, topic: str, ids: tuple[bytes, ...], now: float
    ) -> None:
        """IHAVE of a joined topic: ask for what is new, and follow one of the ids."""
        # [IGNORE] the peer's score is too low for its gossip to be believed
        if not self._hears_gossip(neighbour.peer):
            self._counters["ihave_low_score"] += 1
            return
        # [IGNORE] more announcements than a heartbeat can need
        neighbour.ihave_received += 1
        if neighbour.ihave_received > IHAVE_MESSAGES_MAX:
            self._counters["ihave_over_limit"] += 1
            return
        room = IHAVE_IDS_MAX - neighbour.ids_requested
        wanted = list(dict.fromkeys(one for one in ids if one not in self._seen))
        if len(wanted) > room:
            self._counters["ihave_ids_over_limit"] += len(wanted) - room
            self._rng.shuffle(wanted)
            del wanted[room:]
        if not wanted:
            return
        neighbour.ids_requested += len(wanted)
        self._drafts.iwant(neighbour.peer, wanted)
        if len(self._promises) < PROMISES_MAX:
            followed = self._rng.choice(wanted)
            deadline = now + self._parameters.promise_s
            self._promises.setdefault(followed, {}).setdefault(neighbour.peer, deadline)

    def iwant_received(self, neighbour: Neighbour, ids: tuple[bytes, ...]) -> list[CachedMessage]:
        """IWANT: the messages to send."""
        # [IGNORE] the peer's score is too low
        if not self._hears_gossip(neighbour.peer):
            self._counters["iwant_low_score"] += 1
            return []
        messages = []
        for message_id in dict.fromkeys(ids):
            message = self._cache.get(message_id)
            if message is None or message_id in neighbour.unwanted:
                continue
            # [IGNORE] sent to this peer often enough
            if self._cache.times_sent(message_id, neighbour.peer) > RETRANSMISSIONS_MAX:
                self._counters["iwant_over_limit"] += 1
                continue
            messages.append(message)
        return messages

    def idontwant_received(self, neighbour: Neighbour, ids: tuple[bytes, ...]) -> None:
        """IDONTWANT: do not forward these to the peer for the next heartbeats."""
        for message_id in ids:
            # [IGNORE] more ids than a heartbeat can need
            if neighbour.unwanted_received >= IDONTWANT_IDS_MAX:
                self._counters["idontwant_over_limit"] += 1
                return
            neighbour.unwanted_received += 1
            neighbour.unwanted[message_id] = IDONTWANT_HEARTBEATS

    def arrived(self, message_id: bytes) -> None:
        """A message came, from whomever: the promises to send it are kept."""
        self._promises.pop(message_id, None)

    def penalise_broken_promises(self, now: float) -> None:
        """Score down who announced a message and has not sent it in time."""
        for message_id, promises in list(self._promises.items()):
            for peer in [peer for peer, deadline in promises.items() if deadline <= now]:
                del promises[peer]
                self._counters["promises_broken"] += 1
                self._scores.misbehaviour(peer)
            if not promises:
                del self._promises[message_id]

    def heartbeat(self) -> None:
        """Pay what is owed, begin new counts, shift the cache."""
        for neighbour in self._neighbours.by_peer.values():
            self._pay(neighbour)
            neighbour.ihave_received = neighbour.ids_requested = neighbour.unwanted_received = 0
            if neighbour.unwanted:
                neighbour.unwanted = {
                    message_id: left - 1
                    for message_id, left in neighbour.unwanted.items()
                    if left > 1
                }
        self._cache.shift()

    def _pay(self, neighbour: Neighbour) -> None:
        owed, neighbour.owed = neighbour.owed, {}
        for message_id, topic in owed.items():
            if self._cache.get(message_id) is not None:
                self._drafts.ihave(neighbour.peer, topic, [message_id])

    def _hears_gossip(self, peer: PeerId) -> bool:
        return self._scores.score(peer) >= self._scores.scoring.gossip_threshold
