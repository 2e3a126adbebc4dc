"""Which peers to be connected to: bootstrap first, then whom the address book and the DHT know.

The rule: between `peers_low` and `peers_high`. Below, known peers are dialled, each with a backoff
that doubles and is jittered; above, inbound strangers of no use to gossip are let go, those of the
lowest score first, and of equals the youngest. *Wanted* peers (the bootstrap list, and peers lost
while they were useful) are redialled at least every `redial_wanted_max_s` whatever the level is, so
that one that restarts is back within 10 s. A peer that the program disconnected is left alone until
the program connects to it again.

`PeerPlan` decides and does nothing; `PeerKeeper` is the loop around it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio

from p2p.errors import NetworkError
from p2p.identity import PeerId
from p2p.limits import Limits
from p2p.multiaddress import Address
from p2p.network import Direction, PeerConnected, PeerDisconnected
from p2p.switchboard import Switchboard

REVIEW_INTERVAL_S = 1.0
"""How often the plan is looked at when nothing happens: a redial is at most that late."""

LOST_WANTED_S = 120.0
"""How long a lost useful peer is wanted: time to restart a process or a machine."""

GRACE_S = 20.0
"""A new connection is not let go before: time for identify, gossip grafts and a status exchange."""

STABLE_S = 10.0
"""A connection that broke sooner counts as a failed dial: the peer may be refusing us on purpose,
and must not be redialled every second for ever."""

DIALS_PER_REVIEW_MAX = 8
"""So that a full address book is not dialled at once."""

FAILURES_BEFORE_CEILING_MAX = 16
"""The exponent of the backoff stops there; the ceiling was reached long before."""


@dataclass(slots=True)
class _Candidate:
    """What is remembered of dialling one peer."""

    failures: int = 0
    next_dial_s: float = -math.inf
    wanted_until_s: float = -math.inf


class PeerPlan:
    """The decisions: whom to dial and whom to let go; time is passed in, in seconds."""

    def __init__(self, limits: Limits, bootstrap: Iterable[PeerId], rng: random.Random) -> None:
        self._limits = limits
        self._rng = rng
        self._bootstrap = frozenset(bootstrap)
        self._candidates: dict[PeerId, _Candidate] = {}
        self._dismissed: set[PeerId] = set()

    def connected(self, peer_id: PeerId) -> None:
        """A connection came about; whether it was a success shows by how long it lasts."""
        self._dismissed.discard(peer_id)

    def lost(
        self, peer_id: PeerId, now_s: float, *, lasted_s: float, was_useful: bool = False
    ) -> None:
        """A connection broke: redial soon, unless the peer seems not to want us."""
        candidate = self._candidate(peer_id)
        if lasted_s >= STABLE_S:
            candidate.failures = 0
        if was_useful:
            candidate.wanted_until_s = now_s + LOST_WANTED_S
        self.dial_failed(peer_id, now_s)

    def dial_failed(self, peer_id: PeerId, now_s: float) -> None:
        """Wait twice as long as last time, up to the ceiling of its kind."""
        limits, candidate = self._limits, self._candidate(peer_id)
        doubled = limits.redial_backoff_min_s * 2**candidate.failures
        is_wanted = self._is_wanted(peer_id, now_s)
        ceiling = limits.redial_wanted_max_s if is_wanted else limits.redial_backoff_max_s
        candidate.failures = min(candidate.failures + 1, FAILURES_BEFORE_CEILING_MAX)
        candidate.next_dial_s = now_s + self._jittered(min(doubled, ceiling))

    def dismiss(self, peer_id: PeerId) -> None:
        """The program wants no connection to the peer."""
        self._dismissed.add(peer_id)
        while len(self._dismissed) > self._limits.bans_max:
            self._dismissed.pop()

    def to_dial(
        self, now_s: float, connected: Iterable[PeerId], known: Sequence[PeerId]
    ) -> list[PeerId]:
        """Peers to dial now: wanted ones always, others of `known` while there are too few."""
        present = frozenset(connected)
        self._forget_unknown(known)
        due = [peer for peer in self._bootstrap.union(known) - present if self._is_due(peer, now_s)]
        wanted = sorted(peer for peer in due if self._is_wanted(peer, now_s))
        others = sorted(set(due).difference(wanted))
        self._rng.shuffle(others)
        missing = max(0, self._limits.peers_low - len(present) - len(wanted))
        return [*wanted, *others[:missing]][:DIALS_PER_REVIEW_MAX]

    def to_release(
        self,
        now_s: float,
        connected: Mapping[PeerId, tuple[Direction, float]],
        is_useful: Callable[[PeerId], bool],
        score_of: Callable[[PeerId], float],
    ) -> list[PeerId]:
        """Peers to disconnect: `connected` maps each to who dialled, and when in seconds."""
        excess = len(connected) - self._limits.peers_high
        if excess <= 0:
            return []
        strangers = [
            (score_of(peer_id), -since_s, peer_id)
            for peer_id, (direction, since_s) in connected.items()
            if direction is Direction.INBOUND
            and now_s - since_s > GRACE_S
            and peer_id not in self._bootstrap
            and not is_useful(peer_id)
        ]
        return [peer_id for _, _, peer_id in sorted(strangers)[:excess]]

    def _is_due(self, peer_id: PeerId, now_s: float) -> bool:
        candidate = self._candidates.get(peer_id)
        return peer_id not in self._dismissed and (
            candidate is None or candidate.next_dial_s <= now_s
        )

    def _is_wanted(self, peer_id: PeerId, now_s: float) -> bool:
        if peer_id in self._bootstrap:
            return True
        candidate = self._candidates.get(peer_id)
        return candidate is not None and now_s < candidate.wanted_until_s

    def _candidate(self, peer_id: PeerId) -> _Candidate:
        return self._candidates.setdefault(peer_id, _Candidate())

    def _forget_unknown(self, known: Sequence[PeerId]) -> None:
        """The address book is bounded; what is remembered beside it must be as well."""
        if len(self._candidates) > 2 * self._limits.address_book_peers_max:
            kept = self._bootstrap.union(known)
            self._candidates = {p: c for p, c in self._candidates.items() if p in kept}

    def _jittered(self, delay_s: float) -> float:
        return delay_s * self._rng.uniform(0.5, 1.0)


class PeerKeeper:
    """The loop around a `PeerPlan`: follows peer events, dials, and lets go."""

    def __init__(
        self,
        switch: Switchboard,
        bootstrap: Sequence[Address],
        is_useful: Callable[[PeerId], bool],
        score_of: Callable[[PeerId], float],
        rng: random.Random,
    ) -> None:
        for address in bootstrap:
            if address.peer_id is not None and address.peer_id != switch.peer_id:
                switch.book.confirm(address)
        self._switch = switch
        self._bootstrap = tuple(
            address.peer_id
            for address in bootstrap
            if address.peer_id is not None and address.peer_id != switch.peer_id
        )
        self._bootstrap_addresses = tuple(bootstrap)
        self._plan = PeerPlan(switch.limits, self._bootstrap, rng)
        self._is_useful = is_useful
        self._score_of = score_of
        self._connected: dict[PeerId, tuple[Direction, float]] = {}
        self._useful: set[PeerId] = set()
        self._dialling: set[PeerId] = set()

    def dismiss(self, peer_id: PeerId) -> None:
        """Do not redial the peer until it is connected again by the program or by itself."""
        self._plan.dismiss(peer_id)

    async def run(self) -> None:
        """Keep the number of peers; runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            while True:
                self._review(nursery)
                await trio.sleep(REVIEW_INTERVAL_S)

    async def _follow(self) -> None:
        async with self._switch.watch_peers() as events:
            async for event in events:
                now_s = trio.current_time()
                match event:
                    case PeerConnected():
                        self._connected[event.peer_id] = (event.direction, now_s)
                        self._plan.connected(event.peer_id)
                    case PeerDisconnected():
                        _, since_s = self._connected.pop(event.peer_id, (None, now_s))
                        was_useful = event.peer_id in self._useful
                        self._useful.discard(event.peer_id)
                        self._plan.lost(
                            event.peer_id, now_s, lasted_s=now_s - since_s, was_useful=was_useful
                        )

    def _review(self, nursery: trio.Nursery) -> None:
        now_s = trio.current_time()
        self._useful = {peer_id for peer_id in self._connected if self._is_useful(peer_id)}
        known = [peer for peer in self._switch.book.peers if self._is_candidate(peer)]
        for peer_id in self._plan.to_dial(now_s, self._switch.peers | self._dialling, known):
            self._dialling.add(peer_id)
            nursery.start_soon(self._dial, peer_id)
        excess = self._plan.to_release(
            now_s, self._connected, self._useful.__contains__, self._score_of
        )
        for peer_id in excess:
            self._switch.count("peers_released")
            nursery.start_soon(self._switch.disconnect, peer_id)

    def _is_candidate(self, peer_id: PeerId) -> bool:
        return peer_id != self._switch.peer_id and not self._switch.is_banned(peer_id)

    async def _dial(self, peer_id: PeerId) -> None:
        try:
            for address in self._bootstrap_addresses:
                if address.peer_id == peer_id and not self._switch.book.of(peer_id):
                    self._switch.book.confirm(address)  # forgotten when the book was full
            await self._switch.connect(peer_id)
        except NetworkError:
            self._plan.dial_failed(peer_id, trio.current_time())
        finally:
            self._dialling.discard(peer_id)


__all__ = ["PeerKeeper", "PeerPlan"]
