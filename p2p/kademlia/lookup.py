"""An iterative lookup: ask ever nearer peers until the nearest ones alive have answered.

The rule: a lookup ends, whatever strangers answer, after at most `REQUESTS_MAX` requests; it always
asks the nearest peer it may trust next; and when it ends by itself, `closest()` are the nearest
peers that answered (libp2p kad-dht, "Peer routing"; Kademlia, section 2.3).

    poll(now)            ──► contacts to send the request to now
    answered(peer, …)    a peer has answered, naming others
    failed(peer)         a peer could not be reached, or broke off
    stop()               what was looked for has been found

Three defences, against poison:
- a request that stays unanswered for `PATIENCE_S` gives its place among the α to another peer, so
  that dead peers cost patience once and not one time-out each;
- a peer whose suggestions turn out dead is no longer believed: `DISTRUST_FAILURES` of them dead,
  and more than twice as many as alive, and what only such peers have named is asked last of all,
  that is never, as the lookup then ends;
- no more than `SUBNET_ANSWERS_MAX` peers of one subnet are heard.

Deviations: the lookup is seeded with the k nearest known peers rather than α, because some of them
are dead; a peer asked in vain does not hold up the end.
"""

from __future__ import annotations

import bisect
import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from p2p.identity import PeerId
from p2p.kademlia.contact import Contact, Key, distance, subnet_of
from p2p.kademlia.table import BUCKET_SIZE

PARALLEL = 3
"""α of the specification: requests of one lookup that are waited for at the same time."""

PATIENCE_S = 1.0
"""A dial over a 150 ms link takes five round trips; who takes longer may still answer."""

REQUESTS_MAX = 96
"""A full lookup among 10,000 peers with a fifth dead takes about 35; this is only ever reached when
strangers invent peers that answer."""

CANDIDATES_MAX = 320
"""The farthest unasked ones are dropped: sixteen answers of k peers."""

DISTRUST_FAILURES = 4
"""Honest answers name dead peers too, but of k = 20 rarely four in a row."""

SUBNET_ANSWERS_MAX = 4
"""Peers of one /24 heard in one lookup: a fifth of the k nearest."""


class _State(enum.Enum):
    NEW = enum.auto()
    ASKED = enum.auto()
    OVERDUE = enum.auto()
    ANSWERED = enum.auto()
    FAILED = enum.auto()


@dataclass(slots=True)
class _Candidate:
    contact: Contact
    distance: int
    sources: set[PeerId] = field(default_factory=set)  # empty: known here before
    known: bool = False
    state: _State = _State.NEW
    asked_s: float = 0.0


@dataclass(slots=True)
class _Source:
    alive: int = 0
    dead: int = 0

    @property
    def distrusted(self) -> bool:
        return self.dead >= DISTRUST_FAILURES and self.dead > 2 * self.alive


class Lookup:
    """One search for the peers nearest to `target`; time in seconds of any monotonic clock."""

    def __init__(
        self,
        *,
        target: Key,
        local: PeerId,
        seeds: Iterable[Contact],
        width: int = BUCKET_SIZE,
        parallel: int = PARALLEL,
        limit_private_addresses: bool = False,
    ) -> None:
        self.target = target
        self.requests = 0
        self._local = local
        self._width = width
        self._parallel = parallel
        self._limit_private_addresses = limit_private_addresses
        self._candidates: dict[PeerId, _Candidate] = {}
        self._order: list[tuple[int, PeerId]] = []
        self._sources: dict[PeerId, _Source] = {}
        self._subnets: Counter[str] = Counter()
        self._waiting: dict[PeerId, _Candidate] = {}
        self._answers = 0
        self._overdue = 0
        self._stopped = False
        for contact in seeds:
            self._add(contact, None)

    @property
    def done(self) -> bool:
        """Whether nothing more will be asked, or is worth waiting for."""
        if self._stopped:
            return True
        if self._waiting or self._next() is not None:
            return False
        # With hardly an answer, those who are late are all there is to hope for.
        return not self._overdue or self._answers >= self._parallel

    @property
    def wake_s(self) -> float | None:
        """When `poll` has to be called even if nothing happens."""
        return min((c.asked_s + PATIENCE_S for c in self._waiting.values()), default=None)

    def poll(self, now_s: float) -> list[Contact]:
        """The contacts to be asked now; each must be followed by `answered` or `failed`."""
        for peer_id, candidate in list(self._waiting.items()):
            if now_s >= candidate.asked_s + PATIENCE_S:
                candidate.state = _State.OVERDUE
                self._overdue += 1
                del self._waiting[peer_id]
                self._blame(candidate, +1)
        asked = []
        while not self._stopped and len(self._waiting) < self._parallel:
            found = self._next()
            if found is None:
                break
            found.state = _State.ASKED
            found.asked_s = now_s
            self._waiting[found.contact.peer_id] = found
            self.requests += 1
            asked.append(found.contact)
        return asked

    def answered(self, peer_id: PeerId, closer: Iterable[Contact] = ()) -> None:
        """A peer that was asked has answered and named `closer` peers; the k nearest count."""
        candidate = self._settle(peer_id)
        if candidate is None:
            return
        if candidate.state is _State.OVERDUE:
            self._overdue -= 1
            self._blame(candidate, -1)
        candidate.state = _State.ANSWERED
        self._answers += 1
        for source in candidate.sources:
            self._sources[source].alive += 1
        subnet = self._subnet(candidate.contact)
        if subnet is not None:
            self._subnets[subnet] += 1
        named = sorted(closer, key=lambda contact: distance(contact.key, self.target))
        for contact in named[: self._width]:
            self._add(contact, peer_id)

    def failed(self, peer_id: PeerId) -> None:
        """A peer that was asked could not be reached, or broke off."""
        candidate = self._settle(peer_id)
        if candidate is None:
            return
        if candidate.state is _State.OVERDUE:
            self._overdue -= 1
        else:
            self._blame(candidate, +1)
        candidate.state = _State.FAILED

    def stop(self) -> None:
        """End the lookup: what was looked for has been found, or time is over."""
        self._stopped = True
        self._waiting.clear()

    def closest(self) -> list[Contact]:
        """The nearest peers that have answered, nearest first, at most the width."""
        candidates = (self._candidates[peer_id] for _, peer_id in self._order)
        alive = [c.contact for c in candidates if c.state is _State.ANSWERED]
        return alive[: self._width]

    def unanswered(self) -> list[PeerId]:
        """Peers that were asked and are overdue."""
        return [p for p, c in self._candidates.items() if c.state is _State.OVERDUE]

    def _next(self) -> _Candidate | None:
        """The nearest peer still to be asked, unless the k nearest alive have answered."""
        if self.requests >= REQUESTS_MAX:
            return None
        ahead = 0
        for _, peer_id in self._order:
            candidate = self._candidates[peer_id]
            match candidate.state:
                case _State.NEW:
                    if self._may_ask(candidate):
                        return candidate
                case _State.ANSWERED | _State.ASKED:
                    ahead += 1
                    if ahead >= self._width:
                        return None
                case _State.OVERDUE | _State.FAILED:
                    pass
        return None

    def _may_ask(self, candidate: _Candidate) -> bool:
        subnet = self._subnet(candidate.contact)
        if subnet is not None and self._subnets[subnet] >= SUBNET_ANSWERS_MAX:
            return False
        return candidate.known or any(
            not self._sources[source].distrusted for source in candidate.sources
        )

    def _add(self, contact: Contact, source: PeerId | None) -> None:
        if contact.peer_id == self._local:
            return
        candidate = self._candidates.get(contact.peer_id)
        if candidate is None:
            candidate = _Candidate(contact, distance(contact.key, self.target))
            self._candidates[contact.peer_id] = candidate
            bisect.insort(self._order, (candidate.distance, contact.peer_id))
            if len(self._order) > CANDIDATES_MAX:
                self._forget_farthest()
        elif candidate.state is _State.NEW and not candidate.contact.addresses:
            candidate.contact = contact
        if source is None:
            candidate.known = True
        elif candidate.state is _State.NEW:
            candidate.sources.add(source)
            self._sources.setdefault(source, _Source())

    def _forget_farthest(self) -> None:
        for position in range(len(self._order) - 1, -1, -1):
            peer_id = self._order[position][1]
            if self._candidates[peer_id].state is _State.NEW:
                del self._order[position]
                del self._candidates[peer_id]
                return

    def _settle(self, peer_id: PeerId) -> _Candidate | None:
        """The candidate that a result is awaited from; late and unasked results change nothing."""
        self._waiting.pop(peer_id, None)
        candidate = self._candidates.get(peer_id)
        if candidate is None or candidate.state not in (_State.ASKED, _State.OVERDUE):
            return None
        return candidate

    def _blame(self, candidate: _Candidate, change: int) -> None:
        for source in candidate.sources:
            self._sources[source].dead += change

    def _subnet(self, contact: Contact) -> str | None:
        first = next(iter(contact.addresses), "")
        return subnet_of(first, count_private=self._limit_private_addresses)
