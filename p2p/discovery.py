"""Which peers to be connected to: bootstrap first, then whom the address book and the DHT know.

The rule: between `peers_low` and `peers_high`. Below, known peers are dialled, each with a backoff
that doubles and is jittered; above, strangers are let go: those that are in no mesh here and that
the program does not need (`peer_use`), the lowest score first, of equals whoever dialled us, then
the longest idle. When places for connections grow scarce, however few peers hold them, strangers
make room at once, hoarders first, so that a share of the places is always free: who only sits here
cannot keep a newcomer out, and a newcomer goes last.

*Wanted* peers (the bootstrap list, and peers lost while they were in a mesh) are redialled at least
every `redial_wanted_max_s` whatever the level is, so that one that restarts is back within 10 s. A
peer that the program disconnected is left alone until the program connects to it again.

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
from p2p.peer_use import PeerUses
from p2p.switchboard import OUTBOUND_SHARE, Switchboard

REVIEW_INTERVAL_S = 1.0
"""How often the plan is looked at when nothing happens: a redial is at most that late."""

LOST_WANTED_S = 120.0
"""How long a lost useful peer is wanted: time to restart a process or a machine."""

GRACE_S = 20.0
"""A new connection is not let go before: time for identify, gossip grafts and a status exchange."""

RELEASE_INTERVAL_MIN_S = 0.05
"""How often strangers make room at most, so that a flood of connections costs little."""

FREE_SHARE = 0.125
"""Of the places for inbound connections, kept free; taken anew every 0.05 s they let in 960 a
second, more than can shake hands here."""

HOARD_MIN = 3
"""Connections of one peer that make it a hoarder: a simultaneous dial leaves two."""

STABLE_S = 10.0
"""A connection that broke sooner counts as a failed dial: the peer may be refusing us on purpose,
and must not be redialled every second for ever."""

DIALS_PER_REVIEW_MAX = 8
"""So that a full address book is not dialled at once."""

FAILURES_BEFORE_CEILING_MAX = 16
"""The exponent of the backoff stops there; the ceiling was reached long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What speaks for keeping one connected peer."""

    direction: Direction  # who dialled
    since_s: float
    idle_s: float  # when it last had a stream with the program, or else connected
    connections: int = 1
    is_needed: bool = False  # in a mesh here, or needed by the program
    score: float = 0.0  # of gossip


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
        self._places = limits.connections_max - int(limits.connections_max * OUTBOUND_SHARE)
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

    def is_crowded(self, connections: int) -> bool:
        """Whether that many connections leave too few places free for newcomers."""
        return connections > self._places - max(1, int(self._places * FREE_SHARE))

    def to_release(self, now_s: float, connected: Mapping[PeerId, Standing]) -> list[PeerId]:
        """Peers to disconnect, the one that is missed least first."""
        peers = len(connected)
        connections = sum(standing.connections for standing in connected.values())
        released: list[PeerId] = []
        for peer_id in sorted(connected, key=lambda peer: _worth(peer, connected[peer])):
            standing = connected[peer_id]
            if standing.is_needed or peer_id in self._bootstrap:
                continue
            is_new = now_s - standing.since_s <= GRACE_S
            if self.is_crowded(connections) or (peers > self._limits.peers_high and not is_new):
                released.append(peer_id)
                peers -= 1
                connections -= standing.connections
        return released

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


def _worth(peer_id: PeerId, standing: Standing) -> tuple[float, bool, bool, float, PeerId]:
    """What the peer is worth beside others of no need; the least is let go first."""
    return (
        standing.score,
        standing.connections < HOARD_MIN,
        standing.direction is Direction.OUTBOUND,  # whom we chose is harder to have planted
        standing.idle_s,
        peer_id,
    )


class PeerKeeper:
    """The loop around a `PeerPlan`: follows peer events, dials, and lets go."""

    def __init__(
        self,
        switch: Switchboard,
        bootstrap: Sequence[Address],
        uses: PeerUses,
        is_meshed: Callable[[PeerId], bool],
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
        self._uses = uses
        self._is_meshed = is_meshed
        self._score_of = score_of
        self._connected: dict[PeerId, tuple[Direction, float]] = {}
        self._meshed: set[PeerId] = set()
        self._dialling: set[PeerId] = set()
        self._releasing: set[PeerId] = set()
        self._crowding = trio.Event()

    def dismiss(self, peer_id: PeerId) -> None:
        """Do not redial the peer until it is connected again by the program or by itself."""
        self._plan.dismiss(peer_id)

    async def run(self) -> None:
        """Keep the number of peers; runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._release_forever, nursery)
            while True:
                self._dial_due(nursery)
                await trio.sleep(REVIEW_INTERVAL_S)

    async def _release_forever(self, nursery: trio.Nursery) -> None:
        while True:
            self._release(nursery)
            await trio.sleep(RELEASE_INTERVAL_MIN_S)
            with trio.move_on_after(REVIEW_INTERVAL_S):
                await self._crowding.wait()
            self._crowding = trio.Event()

    async def _follow(self) -> None:
        async with self._switch.watch_peers() as events:
            async for event in events:
                now_s = trio.current_time()
                match event:
                    case PeerConnected():
                        self._connected[event.peer_id] = (event.direction, now_s)
                        self._plan.connected(event.peer_id)
                        held = sum(map(self._connections_to, self._connected))
                        if self._plan.is_crowded(held):
                            self._crowding.set()
                    case PeerDisconnected():
                        _, since_s = self._connected.pop(event.peer_id, (None, now_s))
                        was_useful = event.peer_id in self._meshed
                        self._meshed.discard(event.peer_id)
                        self._releasing.discard(event.peer_id)
                        self._plan.lost(
                            event.peer_id, now_s, lasted_s=now_s - since_s, was_useful=was_useful
                        )

    def _dial_due(self, nursery: trio.Nursery) -> None:
        known = [peer for peer in self._switch.book.peers if self._is_candidate(peer)]
        present = self._switch.peers | self._dialling
        for peer_id in self._plan.to_dial(trio.current_time(), present, known):
            self._dialling.add(peer_id)
            nursery.start_soon(self._dial, peer_id)

    def _release(self, nursery: trio.Nursery) -> None:
        now_s = trio.current_time()
        self._meshed = {peer_id for peer_id in self._connected if self._is_meshed(peer_id)}
        self._uses.keep(self._switch.peers)
        for peer_id in self._plan.to_release(now_s, self._standings(now_s)):
            self._switch.count("peers_released")
            self._releasing.add(peer_id)
            nursery.start_soon(self._switch.disconnect, peer_id)

    def _standings(self, now_s: float) -> dict[PeerId, Standing]:
        return {
            peer_id: Standing(
                direction=direction,
                since_s=since_s,
                connections=self._connections_to(peer_id),
                is_needed=peer_id in self._meshed or self._uses.is_needed(peer_id, now_s),
                score=self._score_of(peer_id),
                idle_s=max(since_s, self._uses.active_s(peer_id, now_s)),
            )
            for peer_id, (direction, since_s) in self._connected.items()
            if peer_id not in self._releasing
        }

    def _connections_to(self, peer_id: PeerId) -> int:
        return len(self._switch._connections.get(peer_id, ()))

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


__all__ = ["PeerKeeper", "PeerPlan", "Standing"]
