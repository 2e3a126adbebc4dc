"""Which flow takes the largest part of a full queue for its weight, and so gives way.

    occupancy = max(items / items_max, bytes / bytes_max)        over one integer denominator

Rule: the flow with the largest occupancy ÷ weight is found without a look at the others. Its heap
holds upper bounds: an entry is entered when an occupancy grows, and corrected only when it comes to
the top; so a queue that is never full pays one comparison per push.
"""

from heapq import heapify, heappop, heappush, heapreplace

from tensorwire.flow import Flow
from tensorwire.virtual_time import STALE_ENTRIES_MAX, virtual_cost


class Occupancy:
    """The flows by occupancy ÷ weight; the floor's first `floor_reserved` items do not count."""

    def __init__(self, *, items_max: int, bytes_max: int, floor_reserved: int) -> None:
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._floor_reserved = floor_reserved
        self._heap: list[tuple[int, int, Flow]] = []
        self._entries = 0
        self._known = 0  # flows with a valid entry

    def of(self, flow: Flow, *, more_items: int = 0, more_bytes: int = 0) -> int:
        """A flow's occupancy, over items_max × bytes_max."""
        return max(
            (flow.items + more_items) * self._bytes_max,
            (flow.bytes + more_bytes) * self._items_max,
        )

    def is_over_share(self, flow: Flow, occupancy: int, total_weight: int) -> bool:
        """Whether a flow takes more than its weight's part of a queue of `total_weight`."""
        if flow.is_floor:
            return flow.items > self._floor_reserved
        return occupancy * total_weight > flow.fluid.weight * self._items_max * self._bytes_max

    def grew(self, flow: Flow) -> None:
        """The flow has more items or bytes than before, or less weight."""
        occupancy = self.of(flow)
        if occupancy > flow.peak:
            self._enter(flow, occupancy)

    def reweighed(self, flow: Flow) -> None:
        """The flow has another weight: its entry speaks no more."""
        if flow.items:
            self._enter(flow, self.of(flow))

    def largest(self) -> Flow | None:
        """The flow with the largest occupancy ÷ weight; None when only protected ones are left."""
        heap = self._heap
        while heap:
            key, _, flow = heap[0]
            if -key != flow.peak_by_weight:
                heappop(heap)
                continue
            occupancy = self.of(flow)
            if not flow.items or (flow.is_floor and flow.items <= self._floor_reserved):
                heappop(heap)
                flow.peak = flow.peak_by_weight = -1  # its next push enters it again
                self._known -= 1
            elif occupancy < flow.peak:
                flow.peak = occupancy
                flow.peak_by_weight = virtual_cost(occupancy, flow.fluid.weight)
                self._entries += 1
                heapreplace(heap, (-flow.peak_by_weight, self._entries, flow))
            else:
                return flow
        return None

    def _enter(self, flow: Flow, occupancy: int) -> None:
        self._known += flow.peak < 0
        flow.peak = occupancy
        flow.peak_by_weight = virtual_cost(occupancy, flow.fluid.weight)
        self._entries += 1
        heappush(self._heap, (-flow.peak_by_weight, self._entries, flow))
        if len(self._heap) > 2 * self._known + STALE_ENTRIES_MAX:
            valid = (entry for entry in self._heap if -entry[0] == entry[2].peak_by_weight)
            self._heap = list({id(entry[2]): entry for entry in valid}.values())
            heapify(self._heap)
