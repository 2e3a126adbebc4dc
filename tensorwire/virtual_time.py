"""Virtual time: how far an ideal fluid server, serving all flows at once, would have come.

    dV/dwork = 1 / Σ weight of the flows that are backlogged in the fluid system   (GPS)

Rule: all quantities are integers in units of 1/`VIRTUAL_SCALE` of cost per weight; the remainder of
every division is carried, so that no work is ever lost or invented. A flow is backlogged in the
fluid until V reaches the finish of its last charge, which may be before or after its last item has
really been served. Amortised O(log flows) per charge (Bennett and Zhang, "WF²Q", 1996; the clock is
the exact one of WF²Q, the `jump` is that of WF²Q+).
"""

from heapq import heapify, heappop, heappush, heapreplace

VIRTUAL_SCALE = 1 << 96  # stake × weight stays below 2^80, so that a cost of 1 is never nothing
STALE_ENTRIES_MAX = 64  # a heap is rebuilt when it has more than twice its flows and this many


class Fluid:
    """One flow's place in the fluid system."""

    __slots__ = ("entry", "finish", "key", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.finish = 0  # virtual time at which everything charged to the flow is done
        self.key: int | None = None  # of its valid heap entry; None: not backlogged
        self.entry = 0  # number of that entry


def virtual_cost(cost: int, weight: int) -> int:
    """The virtual time that `cost` takes at `weight`; rounded up, so that it is never 0."""
    return -(-cost * VIRTUAL_SCALE // weight)


def virtual_work(virtual: int, weight: int) -> int:
    """The work that flows of `weight` receive in a stretch of virtual time."""
    return virtual * weight // VIRTUAL_SCALE


class FluidClock:
    """The virtual time V of a set of flows with weights that come, are charged, and go."""

    def __init__(self) -> None:
        self.now = 0
        self.weight = 0  # of the flows that are backlogged in the fluid
        self._credit = 0  # work × VIRTUAL_SCALE done but not yet turned into time; may be negative
        self._departures: list[tuple[int, int, Fluid]] = []
        self._entries = 0  # breaks ties between equal keys
        self._backlogged = 0

    def charge(self, fluid: Fluid, cost: int) -> None:
        """Add `cost` to what the fluid owes this flow."""
        now = self.now
        if fluid.key is None:
            fluid.finish = max(fluid.finish, now) + virtual_cost(cost, fluid.weight)
            self.weight += fluid.weight
            self._backlogged += 1
            self._enter(fluid)
        else:
            # The heap entry grows stale; it is renewed when V reaches it.
            fluid.finish += virtual_cost(cost, fluid.weight)

    def refund(self, fluid: Fluid, cost: int) -> None:
        """Take back `cost` of a flow, as far as the fluid has not served it yet."""
        if fluid.key is None:
            return
        fluid.finish -= virtual_cost(cost, fluid.weight)
        if fluid.finish > self.now:
            self._enter(fluid)
        else:
            self.leave(fluid)

    def leave(self, fluid: Fluid) -> None:
        """Take a flow out, whatever the fluid still owes it."""
        fluid.finish = min(fluid.finish, self.now)
        if fluid.key is not None:
            fluid.key = None
            self.weight -= fluid.weight
            self._backlogged -= 1

    def reweigh(self, fluid: Fluid, weight: int) -> None:
        """Change a flow's weight; what the fluid owes it stays the same amount of work."""
        if fluid.key is not None:
            self.weight += weight - fluid.weight
            fluid.finish = self.rescaled(fluid.finish, fluid.weight, weight)
            self._enter(fluid)
        fluid.weight = weight

    def rescaled(self, tag: int, weight: int, new_weight: int) -> int:
        """`tag` moved so that its distance from now is the same work at another weight."""
        return self.now + -(-(tag - self.now) * weight // new_weight)

    def advance(self, work: int) -> None:
        """`work` has been done by the real server (negative: less than was said before)."""
        credit = self._credit + work * VIRTUAL_SCALE
        while credit > 0 and self._departures:
            key = self._departures[0][0]
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
        while self._departures and self._departures[0][0] <= self.now:
            self._depart_first()

    def _enter(self, fluid: Fluid) -> None:
        fluid.key = fluid.finish
        self._entries = fluid.entry = self._entries + 1
        heappush(self._departures, (fluid.key, self._entries, fluid))
        if len(self._departures) > 2 * self._backlogged + STALE_ENTRIES_MAX:
            self._departures = [
                entry
                for entry in self._departures
                if entry[1] == entry[2].entry and entry[2].key is not None
            ]
            heapify(self._departures)

    def _depart_first(self) -> None:
        """Drop, renew or honour the first entry of the heap."""
        key, entry, fluid = self._departures[0]
        if entry != fluid.entry or fluid.key is None:  # superseded, or gone already
            heappop(self._departures)
        elif fluid.finish > key:  # charged since: not yet
            fluid.key = fluid.finish
            heapreplace(self._departures, (fluid.finish, entry, fluid))
        else:
            heappop(self._departures)
            fluid.key = None
            self.weight -= fluid.weight
            self._backlogged -= 1
