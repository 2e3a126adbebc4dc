"""Which flow takes the largest part of a full queue for its weight, and so gives way.

    occupancy = max(items / items_max, bytes / bytes_max)        over one integer denominator

Rule: the flow with the largest occupancy ÷ weight is found without a look at the others. The heap
is built when somebody asks and holds upper bounds: an entry is entered when an occupancy grows, and
corrected only when it comes to the top. At twice the entries that there were flows it is dropped
until the next question; so the queue that is never full pays nothing, and the one that is full
pays for each build with the pushes since the last.
"""

from collections.abc import Iterable
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
        self._heap_max = 0  # entries that it may have; 0: it is not built
        self._entries = 0

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
        """The flow has more items or bytes than before."""
        if self._heap_max and (occupancy := self.of(flow)) > flow.peak:
            self._enter(flow, occupancy)

    def reweighed(self, flow: Flow) -> None:
        """The flow has another weight: its entry speaks no more."""
        if self._heap_max and flow.items:
            self._enter(flow, self.of(flow))

    def largest(self, flows: Iterable[Flow]) -> Flow | None:
        """The one of all `flows` with the largest occupancy ÷ weight that is not protected."""
        if not self._heap_max:
            self._build(flows)
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
            elif occupancy < flow.peak:
                heapreplace(heap, self._entry(flow, occupancy))
            else:
                return flow
        return None

    def _build(self, flows: Iterable[Flow]) -> None:
        every = list(flows)
        self._heap = [self._entry(flow, self.of(flow)) for flow in every if flow.items]
        heapify(self._heap)
        self._heap_max = 2 * len(every) + STALE_ENTRIES_MAX

    def _entry(self, flow: Flow, occupancy: int) -> tuple[int, int, Flow]:
        """The one entry of this flow that is valid from now on."""
        flow.peak = occupancy
        flow.peak_by_weight = virtual_cost(occupancy, flow.fluid.weight)
        self._entries += 1
        return -flow.peak_by_weight, self._entries, flow

    def _enter(self, flow: Flow, occupancy: int) -> None:
        heappush(self._heap, self._entry(flow, occupancy))
        if len(self._heap) > self._heap_max:
            for _, _, entered in self._heap:
                entered.peak = entered.peak_by_weight = -1
            self._heap.clear()
            self._heap_max = 0
