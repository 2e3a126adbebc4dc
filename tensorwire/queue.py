"""The stake-weighted queue: who is served next, and who gives way when there is no more room.

Among the first tickets of all flows whose start tag ≤ V, the one with the smallest finish tag goes
next (WF²Q+ with the exact fluid clock of `virtual_time`). Rule: over any backlogged interval each
flow's service lags its share w / Σw by at most one maximal request, whatever the others do.

Policies, each with its test:
- A sender without weight belongs to the floor, one flow with `floor_share_ppm` of the backlogged
  weight, one ticket of each member in turn (`flow`).
- Full: the newest ticket of the flow with the largest occupancy ÷ weight is displaced, where
  occupancy is the larger of its parts of the items and of the bytes; never one within its share,
  never the floor's reserved slots. A newcomer that is itself that flow is refused.
- A cancelled or displaced ticket stays charged to its flow, an expired one does not: it has cost
  nobody anything, and charging it would starve callers whose deadlines are short for their share.
- The floor is not charged for what its members cancel: they would do it to each other for nothing.
- Cost is what the header promises, corrected by measured time within ×4 either way.
The queue has no clock: callers pass `now_ms`. Every operation is amortised O(log flows).

Deviation: the paper weighs by s_j·w_ij; the caller passes s_i·w_ij as `weight` (DECISIONS.md).
"""

from collections.abc import Callable
from heapq import heappop
from itertools import chain
from typing import Any, Generic

from tensorwire.errors import InvariantViolation, LocalProtocolError, QueueRefusal
from tensorwire.flow import FirstInFirstOut, Floor, Flow, Request, Sender, Standing, Ticket
from tensorwire.occupancy import Occupancy
from tensorwire.virtual_time import (
    STALE_ENTRIES_MAX,
    FluidClock,
    enter,
    first_of,
    virtual_cost,
    virtual_work,
)

FLOOR_SHARE_PPM = 20_000  # 2 %: enough to be heard, too little to live on
FLOOR_RESERVED_DIVISOR = 16  # one slot in sixteen cannot be taken from the floor
FLOOR_DRIFT = (7, 8)  # the floor is reweighed when it is off its share by more than this
CORRECTION_MAX = 4  # measured over promised cost, either way: bounds what one outlier can do
RETRY_MS_MIN = 50
RETRY_MS_MAX = 60_000
COST_PER_S = 1_000_000  # assumed until the service has measured
ONE_PPM = 1_000_000
WEIGHT_UNIT = 1 << 10  # of a flow per unit of a caller's weight: room for the floor below 1


class StakeQueue(Generic[Request]):
    """Requests of many senders in weighted fair order.

    `items_max` and `bytes_max` bound the whole queue, `per_sender_max` the tickets of one sender.
    """

    def __init__(
        self,
        *,
        items_max: int,
        bytes_max: int,
        per_sender_max: int,
        floor_share_ppm: int = FLOOR_SHARE_PPM,
    ) -> None:
        if min(items_max, bytes_max, per_sender_max) < 1 or not 0 < floor_share_ppm < ONE_PPM:
            raise LocalProtocolError("the bounds of a queue are positive")
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._per_sender_max = per_sender_max
        self._floor_share_ppm = floor_share_ppm
        self._occupancy = Occupancy(
            items_max=items_max,
            bytes_max=bytes_max,
            floor_reserved=max(1, items_max // FLOOR_RESERVED_DIVISOR),
        )
        self._clock = FluidClock()
        self._floor = Flow(1, Floor(), is_floor=True)
        self._flows: dict[Sender, Flow] = {}
        self._flows_sweep = STALE_ENTRIES_MAX
        self._firsts: dict[int, Ticket[Any]] = {}  # of all flows, by number
        self._waiting: list[int] = []  # heap of entries (`virtual_time`) by start, after V
        self._eligible: list[int] = []  # heap of entries by finish, start ≤ V
        self._floor_held: dict[Sender, int] = {}  # tickets of each sender at the floor
        self._weight = 0  # of the flows with tickets, without the floor
        self._bytes = 0
        self._items = 0
        self._numbers = 0
        self._dropped: list[Ticket[Request]] = []
        self.cost_per_s = COST_PER_S  # the service's measured rate, for retry-after

    def __len__(self) -> int:
        return self._items

    @property
    def bytes(self) -> int:
        """Bytes of the waiting tickets."""
        return self._bytes

    @property
    def senders(self) -> dict[Sender, int]:
        """Tickets waiting per sender (a copy)."""
        return self._floor_held | {
            who: flow.items for who, flow in self._flows.items() if flow.items
        }

    def push(
        self,
        sender: Sender,
        request: Request,
        *,
        weight: int,
        cost: int,
        payload_bytes: int = 0,
        deadline_ms: int | None = None,
    ) -> Ticket[Request]:
        """Queue a request; raises `QueueRefusal` when it is the one to give way.

        `weight` is s_i·w_ij of this moment (0: the floor), `cost` in any unit that is proportional
        to service time. Tickets displaced by it are then in `dropped()`.
        """
        if cost < 1 or payload_bytes < 0 or weight < 0:
            raise LocalProtocolError("cost is positive, payload_bytes and weight are not negative")
        flow = self._flows.get(sender)
        if flow is None or flow.fluid.weight != weight * WEIGHT_UNIT:
            flow = self._flow_of(sender, weight * WEIGHT_UNIT)
        if flow.items >= self._per_sender_max:
            self._check_sender(flow, sender)
        if self._items >= self._items_max or self._bytes + payload_bytes > self._bytes_max:
            self._make_room(flow, sender, payload_bytes)
        ticket = Ticket(
            sender, request, cost=cost, payload_bytes=payload_bytes, deadline_ms=deadline_ms
        )
        self._numbers = ticket.number = self._numbers + 1
        self._admit(flow, ticket)
        return ticket

    def check(self, sender: Sender, *, weight: int, payload_bytes: int = 0) -> None:
        """Raise the `QueueRefusal` that `push` would raise now; displaces nobody."""
        flow = self._flow_of(sender, weight * WEIGHT_UNIT)
        self._check_sender(flow, sender)
        if self._is_full(payload_bytes):
            newcomer, total_weight = self._check_newcomer(flow, payload_bytes)
            if self._victim(flow, sender, newcomer, total_weight) is None:
                raise self._refusal(flow, "the queue is full and this peer has its share")

    def pop(
        self, now_ms: int | None = None, *, accept: Callable[[Request], bool] | None = None
    ) -> Ticket[Request] | None:
        """The next ticket in fair order, or None when there is none.

        Tickets whose deadline has passed at `now_ms` go to `dropped()` instead. With `accept`, None
        also where the next ticket is not accepted: it stays the next (no overtaking in a batch).
        """
        while (ticket := self._next()) is not None:
            deadline_ms = ticket.deadline_ms
            if deadline_ms is not None and now_ms is not None and deadline_ms <= now_ms:
                self._remove(ticket, Standing.EXPIRED)
                self._dropped.append(ticket)
                continue
            if accept is not None and not accept(ticket.request):
                return None
            heappop(self._eligible)
            ticket.standing = Standing.TAKEN
            flow = _flow(ticket)
            self._uncount(flow, ticket)
            self._clock.advance(ticket.cost)
            self._leave_first(flow, ticket, ticket.finish)
            return ticket
        return None

    def cancel(self, ticket: Ticket[Request], *, expired: bool = False) -> bool:
        """Take a ticket out; False where it was not waiting. It stays charged unless `expired`."""
        if waits := ticket.standing is Standing.WAITING:
            self._remove(ticket, Standing.EXPIRED if expired else Standing.CANCELLED)
        return waits

    def dropped(self) -> list[Ticket[Request]]:
        """Tickets displaced or expired since the last call; each needs its answer."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def correct(self, ticket: Ticket[Request], measured_cost: int) -> None:
        """Charge a served ticket's measured cost instead of its promised one, within ×4."""
        bounded = min(
            max(measured_cost, ticket.cost // CORRECTION_MAX), ticket.cost * CORRECTION_MAX
        )
        difference = bounded - ticket.cost
        flow = _flow(ticket)
        if not difference:
            return
        if not flow.is_floor:
            # A flow that had gone idle and was forgotten must not escape what it still owes.
            flow = self._flows.setdefault(ticket.sender, flow)
        virtual = virtual_cost(difference, flow.weight)
        if difference > 0:
            self._clock.charge(flow.fluid, virtual)
        else:
            self._clock.refund(flow.fluid, virtual_cost(-difference, flow.weight))
        self._owe(flow, virtual)
        self._clock.advance(difference)

    def reweigh(self, sender: Sender, weight: int) -> None:
        """The ledger gives `sender` another weight; what waits keeps its amount of work, only."""
        self._reweigh(sender, weight * WEIGHT_UNIT)

    def share_ppm(self, sender: Sender, weight: int) -> int:
        """The share that `sender` has at `weight` beside all waiting flows, in parts per million.

        For weight 0, the floor's. A sender that has nothing waiting counts as if it had.
        """
        if weight == 0:
            return self._floor_share_ppm if self._weight else ONE_PPM
        weight *= WEIGHT_UNIT
        flow = self._flows.get(sender)
        total = self._weight + (weight if flow is None or not flow.items else 0)
        available = ONE_PPM - (self._floor_share_ppm if self._floor.items else 0)
        return available * weight // total

    def retry_after_ms(self, sender: Sender) -> int:
        """When a refused sender may ask again: the time its own backlog takes at its share."""
        return self._retry_after_ms(self._flows.get(sender, self._floor))

    def _flow_of(self, sender: Sender, weight: int) -> Flow:
        flow = self._flows.get(sender)
        if flow is None:
            if weight == 0:
                return self._floor
            if sender in self._floor_held:  # it waits at the floor and has weight now
                self._move(sender, weight)
                return self._flows[sender]
            return self._new_flow(sender, weight)
        if weight == flow.fluid.weight:
            return flow
        self._reweigh(sender, weight)
        return self._flows.get(sender, self._floor)

    def _reweigh(self, sender: Sender, weight: int) -> None:
        flow = self._flows.get(sender)
        if flow is not None and weight > 0:
            self._set_weight(flow, weight)
        elif flow is not None or (weight > 0 and sender in self._floor_held):
            self._move(sender, weight)

    def _new_flow(self, sender: Sender, weight: int) -> Flow:
        flow = self._flows[sender] = Flow(weight, FirstInFirstOut())
        if len(self._flows) > self._flows_sweep:
            now = self._clock.now
            self._flows = {
                key: kept
                for key, kept in self._flows.items()
                if kept.items or kept.fluid.key is not None or kept.finish > now or kept is flow
            }
            self._flows_sweep = 2 * len(self._flows) + STALE_ENTRIES_MAX
        return flow

    def _move(self, sender: Sender, weight: int) -> None:
        """From the floor to a flow of its own or back; the tickets keep their order."""
        old = self._flows.pop(sender, self._floor)
        first = old.first
        tickets = [first] if first is not None and first.sender == sender else []
        tickets += old.line.of(sender)
        for ticket in tickets:
            self._remove(ticket, Standing.EXPIRED)
        if old is not self._floor:
            self._clock.leave(old.fluid)
        new = self._floor if weight == 0 else self._new_flow(sender, weight)
        for ticket in tickets:
            ticket.standing = Standing.WAITING
            self._admit(new, ticket)

    def _set_weight(self, flow: Flow, weight: int) -> None:
        old = flow.fluid.weight
        if weight == old:
            return
        if flow.items and not flow.is_floor:
            self._weight += weight - old
        flow.finish = self._clock.rescaled(flow.finish, old, weight)
        flow.debt = -(-flow.debt * old // weight)
        self._clock.reweigh(flow.fluid, weight)
        first = flow.first
        if first is not None:
            first.start = self._clock.rescaled(first.start, old, weight)
            first.finish = first.start + virtual_cost(first.cost, weight)
            self._enter(first)
        self._occupancy.reweighed(flow)

    def _refit_floor(self) -> None:
        """Keep the floor's weight at its share of the backlogged weight, within FLOOR_DRIFT."""
        if not self._weight:
            return
        target = max(1, self._weight * self._floor_share_ppm // (ONE_PPM - self._floor_share_ppm))
        weight, (low, high) = self._floor.fluid.weight, FLOOR_DRIFT
        if not low * target <= high * weight <= high * high * target // low:
            self._set_weight(self._floor, target)

    def _admit(self, flow: Flow, ticket: Ticket[Any]) -> None:
        """Count a ticket, charge it to its flow and put it where it belongs."""
        ticket.flow = flow
        ticket.arrived = self._clock.now
        self._items += 1
        self._bytes += ticket.payload_bytes
        flow.items += 1
        flow.bytes += ticket.payload_bytes
        if flow.is_floor:
            self._floor_held[ticket.sender] = self._floor_held.get(ticket.sender, 0) + 1
        elif flow.items == 1:
            self._weight += flow.fluid.weight
        if flow.items == 1 and self._floor.items:
            self._refit_floor()
        virtual = virtual_cost(ticket.cost, flow.fluid.weight)
        self._clock.charge(flow.fluid, virtual)
        if flow.first is None:
            self._set_first(flow, ticket, virtual)
        else:
            flow.line.put(ticket)
        self._occupancy.grew(flow)

    def _uncount(self, flow: Flow, ticket: Ticket[Any]) -> None:
        self._items -= 1
        self._bytes -= ticket.payload_bytes
        flow.items -= 1
        flow.bytes -= ticket.payload_bytes
        if flow.is_floor:
            held = self._floor_held.pop(ticket.sender) - 1
            if held:
                self._floor_held[ticket.sender] = held
        elif not flow.items:
            self._weight -= flow.fluid.weight
            if self._floor.items:
                self._refit_floor()

    def _leave_first(self, flow: Flow, ticket: Ticket[Any], finish: int) -> None:
        """The flow is served or charged until `finish`; the next of its line takes the place."""
        del self._firsts[ticket.number]
        flow.finish = finish + flow.debt
        flow.debt = 0
        flow.first = after = flow.line.take()
        if after is not None:
            self._set_first(flow, after, virtual_cost(after.cost, flow.fluid.weight))

    def _set_first(self, flow: Flow, ticket: Ticket[Any], virtual: int) -> None:
        """Give the flow's first ticket its tags."""
        flow.first = self._firsts[ticket.number] = ticket
        start, arrived = flow.finish, ticket.arrived
        ticket.start = start = start if start > arrived else arrived
        ticket.finish = start + virtual
        self._enter(ticket)

    def _enter(self, ticket: Ticket[Any]) -> None:
        """Put a first ticket into the heap that its start tag belongs to."""
        if ticket.start <= self._clock.now:
            enter(self._eligible, ticket, ticket.finish, self._firsts)
        else:
            enter(self._waiting, ticket, ticket.start, self._firsts)

    def _next(self) -> Ticket[Any] | None:
        """The ticket at the top of the eligible, after those whose time has come joined them."""
        waiting, firsts = self._waiting, self._firsts
        while True:
            now = self._clock.now
            while (ticket := first_of(waiting, firsts)) is not None and ticket.start <= now:
                heappop(waiting)
                enter(self._eligible, ticket, ticket.finish, firsts)
            eligible = first_of(self._eligible, firsts)
            if eligible is not None or ticket is None:
                return eligible
            self._clock.jump(ticket.start)

    def _remove(self, ticket: Ticket[Any], standing: Standing) -> None:
        """Take a waiting ticket out of its flow; the stale heap entries are skipped later."""
        flow = _flow(ticket)
        ticket.standing = standing
        self._uncount(flow, ticket)
        charged = standing is not Standing.EXPIRED and not flow.is_floor
        if not charged:
            self._clock.refund(flow.fluid, virtual_cost(ticket.cost, flow.weight))
        if flow.first is ticket:
            self._leave_first(flow, ticket, ticket.finish if charged else ticket.start)
            return
        flow.line.discard(ticket, charged=standing is not Standing.EXPIRED)
        if charged:
            self._owe(flow, virtual_cost(ticket.cost, flow.fluid.weight))

    def _owe(self, flow: Flow, virtual: int) -> None:
        if flow.first is None:
            flow.finish = max(flow.finish, self._clock.now) + virtual
        else:
            flow.debt += virtual

    def _check_sender(self, flow: Flow, sender: Sender) -> None:
        held = self._floor_held.get(sender, 0) if flow.is_floor else flow.items
        if held >= self._per_sender_max:
            raise self._refusal(flow, f"{self._per_sender_max} requests of this peer wait already")

    def _is_full(self, payload_bytes: int) -> bool:
        return self._items >= self._items_max or self._bytes + payload_bytes > self._bytes_max

    def _check_newcomer(self, flow: Flow, payload_bytes: int) -> tuple[int, int]:
        """(occupancy of `flow` with one more ticket, weight of all flows with it)."""
        if payload_bytes > self._bytes_max:
            raise self._refusal(flow, f"{payload_bytes} bytes are more than the queue holds")
        newcomer = self._occupancy.of(flow, more_items=1, more_bytes=payload_bytes)
        total_weight = self._weight + (0 if flow.items or flow.is_floor else flow.fluid.weight)
        if self._items < self._items_max and self._occupancy.is_over_share(
            flow, newcomer, total_weight
        ):
            # Several tickets may have to go for these bytes, and it might be refused after all.
            raise self._refusal(flow, "the queue's memory is full and this peer has its share")
        return newcomer, total_weight

    def _make_room(self, flow: Flow, sender: Sender, payload_bytes: int) -> None:
        """Displace until one more ticket fits, or raise `QueueRefusal`."""
        newcomer, total_weight = self._check_newcomer(flow, payload_bytes)
        while self._is_full(payload_bytes):
            victim = self._victim(flow, sender, newcomer, total_weight)
            if victim is None:
                raise self._refusal(flow, "the queue is full and this peer has its share")
            self._remove(victim, Standing.DISPLACED)
            self._dropped.append(victim)

    def _victim(
        self, flow: Flow, sender: Sender, newcomer: int, total_weight: int
    ) -> Ticket[Any] | None:
        largest = self._occupancy.largest(chain(self._flows.values(), (self._floor,)))
        if largest is None:
            return None
        occupancy = self._occupancy.of(largest)
        if largest is self._floor and flow is self._floor:
            # Within the floor, only one that would still have more than the newcomer gives way.
            ticket = largest.newest()
            own = self._floor_held.get(sender, 0) + 1
            return ticket if self._floor_held[ticket.sender] > own else None
        if largest is flow or newcomer * largest.fluid.weight > occupancy * flow.fluid.weight:
            return None
        over = self._occupancy.is_over_share(largest, occupancy, total_weight)
        return largest.newest() if over else None

    def _refusal(self, flow: Flow, reason: str) -> QueueRefusal:
        return QueueRefusal(reason, retry_after_ms=self._retry_after_ms(flow), position=self._items)

    def _retry_after_ms(self, flow: Flow) -> int:
        owed = max(flow.fluid.finish, flow.finish) - self._clock.now
        work = virtual_work(owed, self._clock.weight or flow.weight)
        return min(max(work * 1_000 // max(1, self.cost_per_s), RETRY_MS_MIN), RETRY_MS_MAX)


def _flow(ticket: Ticket[Any]) -> Flow:
    if ticket.flow is None:
        raise InvariantViolation("a ticket that was never pushed")
    return ticket.flow
