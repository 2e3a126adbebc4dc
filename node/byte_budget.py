"""Bytes that admitted exchanges hold, per peer and in total.

Rule: bytes are taken on a request's header, before its payload is read, and given back when its
answer has left; peers without weight together hold at most a part of the total, so that they cannot
keep peers with weight out.
"""

from collections import Counter
from dataclasses import dataclass

from p2p.identity import PeerId


class BudgetExceeded(Exception):
    """A bound of the budget would be passed; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteBudgetLimits:
    """The bounds: in total, of one peer, and of all peers without weight together."""

    total_bytes_max: int
    per_peer_bytes_max: int
    floor_bytes_max: int


class ByteBudget:
    """The account of one server."""

    def __init__(self, limits: ByteBudgetLimits) -> None:
        self._limits = limits
        self._per_peer: Counter[PeerId] = Counter()
        self._floor_bytes = 0
        self.total_bytes = 0

    def holding(self, peer: PeerId) -> "Holding":
        """An empty holding for one exchange of `peer`."""
        return Holding(self, peer)

    def check(self, peer: PeerId, held_bytes: int, *, floor: bool) -> None:
        """Raise `BudgetExceeded` where `held_bytes` more would pass a bound."""
        limits = self._limits
        if self._per_peer[peer] + held_bytes > limits.per_peer_bytes_max:
            raise BudgetExceeded("this peer's requests hold too many bytes")
        if self.total_bytes + held_bytes > limits.total_bytes_max:
            raise BudgetExceeded("all requests together hold too many bytes")
        if floor and self._floor_bytes + held_bytes > limits.floor_bytes_max:
            raise BudgetExceeded("requests of peers without weight hold too many bytes")

    def change(self, peer: PeerId, change_bytes: int, *, floor: bool) -> None:
        """Add to the account; a peer that holds nothing is forgotten."""
        self.total_bytes += change_bytes
        self._floor_bytes += change_bytes if floor else 0
        self._per_peer[peer] += change_bytes
        if self._per_peer[peer] == 0:
            del self._per_peer[peer]


class Holding:
    """What one exchange holds."""

    def __init__(self, budget: ByteBudget, peer: PeerId) -> None:
        self._budget = budget
        self._peer = peer
        self._floor = False
        self.held_bytes = 0

    def take(self, held_bytes: int, *, floor: bool) -> None:
        """Hold bytes, once; raises `BudgetExceeded`."""
        self._budget.check(self._peer, held_bytes, floor=floor)
        self._floor = floor
        self.held_bytes = held_bytes
        self._budget.change(self._peer, held_bytes, floor=floor)

    def release(self) -> None:
        """Give everything back; idempotent."""
        if self.held_bytes:
            self._budget.change(self._peer, -self.held_bytes, floor=self._floor)
            self.held_bytes = 0
