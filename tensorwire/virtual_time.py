"""Virtual time: how far an ideal fluid server, serving all flows at once, would have come.

    dV/dwork = 1 / Σ weight of the flows that are backlogged in the fluid system   (GPS)

Rule: all quantities are integers in units of 1/`VIRTUAL_SCALE` of cost per weight; the remainder of
every division is carried, so that no work is ever lost or invented. A flow is backlogged in the
fluid until V reaches the finish of its last charge, which may be before or after its last item has
really been served. Amortised O(log flows) per charge (Bennett and Zhang, "WF²Q", 1996; the clock is
the exact one of WF²Q, the `jump` is that of WF²Q+).
"""

from collections.abc import Mapping
from heapq import heappop, heappush, heapreplace
from typing import Protocol, TypeVar

VIRTUAL_SCALE = 1 << 96  # stake × weight stays below 2^80, so that a cost of 1 is never nothing
STALE_ENTRIES_MAX = 64  # a heap is rebuilt when it has more than twice its flows and this many
NUMBER_BITS = 64  # a heap entry is one integer, tag << NUMBER_BITS | number of its owner:
NUMBER_MASK = (1 << NUMBER_BITS) - 1  # compared in one step, and half of a tuple's memory


class Keyed(Protocol):
    """What a heap of integers speaks of."""

    key: int | None
    number: int


Owner = TypeVar("Owner", bound=Keyed)


class Fluid:
    """One flow's place in the fluid system."""

    __slots__ = ("finish", "key", "number", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.finish = 0  # virtual time at which everything charged to the flow is done
        self.key: int | None = None  # its valid heap entry; None: not backlogged
        self.number = 0  # while it is backlogged


def virtual_cost(cost: int, weight: int) -> int:
    """The virtual time that `cost` takes at `weight`; rounded up, so that it is never 0."""
    return -(-cost * VIRTUAL_SCALE // weight)


def virtual_work(virtual: int, weight: int) -> int:
    """The work that flows of `weight` receive in a stretch of virtual time."""
    return virtual * weight // VIRTUAL_SCALE


def enter(heap: list[int], owner: Keyed, tag: int, owners: Mapping[int, Keyed]) -> None:
    """Enter one of `owners`, by number, with a tag; its other entries in any heap are stale now."""
    owner.key = key = tag << NUMBER_BITS | owner.number
    heappush(heap, key)
    if len(heap) > 2 * len(owners) + STALE_ENTRIES_MAX:
        found = ((key, owners.get(key & NUMBER_MASK)) for key in heap)
        # Sorted, a list is a heap.
        heap[:] = sorted({key for key, owner in found if owner is not None and owner.key == key})


def first_of(heap: list[int], owners: Mapping[int, Owner]) -> Owner | None:
    """The owner of the least valid entry, which is then at the top; None: there is none."""
    while heap:
        owner = owners.get(heap[0] & NUMBER_MASK)
        if owner is not None and owner.key == heap[0]:
            return owner
        heappop(heap)
    return None


class FluidClock:
    """The virtual time V of a set of flows with weights that come, are charged, and go."""

    def __init__(self) -> None:
        self.now = 0
        self.weight = 0  # of the flows that are backlogged in the fluid
        self._credit = 0  # work × VIRTUAL_SCALE done but not yet turned into time; may be negative
        self._departures: list[int] = []  # heap of entries by finish
        self._backlogged: dict[int, Fluid] = {}  # by number
        self._numbers = 0

    def charge(self, fluid: Fluid, virtual: int) -> None:
        """Add work that takes `virtual` time at its weight to what the fluid owes this flow."""
        if fluid.key is None:
            fluid.finish = max(fluid.finish, self.now) + virtual
            self.weight += fluid.weight
            self._numbers = fluid.number = self._numbers + 1
            self._backlogged[fluid.number] = fluid
            enter(self._departures, fluid, fluid.finish, self._backlogged)
        else:
            # The heap entry grows stale; it is renewed when V reaches it.
            fluid.finish += virtual

    def refund(self, fluid: Fluid, virtual: int) -> None:
        """Take back such work of a flow, as far as the fluid has not served it yet."""
        if fluid.key is None:
            return
        fluid.finish -= virtual
        if fluid.finish > self.now:
            enter(self._departures, fluid, fluid.finish, self._backlogged)
        else:
            self.leave(fluid)

    def leave(self, fluid: Fluid) -> None:
        """Take a flow out, whatever the fluid still owes it."""
        fluid.finish = min(fluid.finish, self.now)
        if fluid.key is not None:
            self._depart(fluid)

    def reweigh(self, fluid: Fluid, weight: int) -> None:
        """Change a flow's weight; what the fluid owes it stays the same amount of work."""
        if fluid.key is not None:
            self.weight += weight - fluid.weight
            fluid.finish = self.rescaled(fluid.finish, fluid.weight, weight)
            enter(self._departures, fluid, fluid.finish, self._backlogged)
        fluid.weight = weight

    def rescaled(self, tag: int, weight: int, new_weight: int) -> int:
        """`tag` moved so that its distance from now is the same work at another weight."""
        return self.now + -(-(tag - self.now) * weight // new_weight)

    def advance(self, work: int) -> None:
        """`work` has been done by the real server (negative: less than was said before)."""
        credit = self._credit + work * VIRTUAL_SCALE
        while credit > 0 and self._departures:
            key = self._departures[0] >> NUMBER_BITS
            needed = (key - self.now) * self.weight
            if needed > credit:
                passed, credit = divmod(credit, self.weight)
                self.now += passed
                break
            credit -= needed
            self.now = key
            self._depart_first()
        if not self._departures:
            credit = min(credit, 0)  # an idle server earns nothing
        self._credit = credit

    def jump(self, now: int) -> None:
        """Set V forward because nobody with work is eligible before `now` (WF²Q+)."""
        self.now = max(self.now, now)
        self._credit = min(self._credit, 0)
        while self._departures and self._departures[0] >> NUMBER_BITS <= self.now:
            self._depart_first()

    def _depart(self, fluid: Fluid) -> None:
        fluid.key = None
        self.weight -= fluid.weight
        del self._backlogged[fluid.number]

    def _depart_first(self) -> None:
        """Drop, renew or honour the first entry of the heap."""
        key = self._departures[0]
        fluid = self._backlogged.get(key & NUMBER_MASK)
        if fluid is None or fluid.key != key:  # gone already, or superseded
            heappop(self._departures)
        elif fluid.finish > key >> NUMBER_BITS:  # charged since: not yet
            fluid.key = key = fluid.finish << NUMBER_BITS | fluid.number
            heapreplace(self._departures, key)
        else:
            heappop(self._departures)
            self._depart(fluid)
