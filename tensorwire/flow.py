"""Flows: who waits in which line, and the tags of the first in each.

    start  = max(finish of the flow's previous item, V at the item's arrival)
    finish = start + cost / weight                                        (WF²Q+, virtual time)

Rule: a sender with weight is a flow of its own, first in first out; all senders without weight
together are one flow, the floor, so that a fresh identity divides what the others without weight
have and takes nothing from anybody else. Inside the floor every sender has one ticket in turn.
"""

from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum, auto, unique
from heapq import heapify, heappop, heappush
from typing import Any, Generic, Protocol, TypeVar

from tensorwire.errors import InvariantViolation
from tensorwire.virtual_time import STALE_ENTRIES_MAX, Fluid

Request = TypeVar("Request")
Sender = str | bytes


@unique
class Standing(Enum):
    """Where a ticket is."""

    WAITING = auto()
    TAKEN = auto()
    CANCELLED = auto()
    DISPLACED = auto()
    EXPIRED = auto()


_WAITING = Standing.WAITING


class Ticket(Generic[Request]):
    """One request in the queue; `finish` and `start` are virtual times, set when it is first."""

    __slots__ = (
        "after",
        "arrived",
        "before",
        "cost",
        "deadline_ms",
        "finish",
        "flow",
        "key",
        "number",
        "payload_bytes",
        "request",
        "sender",
        "standing",
        "start",
    )

    def __init__(
        self,
        sender: Sender,
        request: Request,
        *,
        cost: int,
        payload_bytes: int,
        deadline_ms: int | None,
    ) -> None:
        self.sender = sender
        self.request = request
        self.cost = cost
        self.payload_bytes = payload_bytes
        self.deadline_ms = deadline_ms
        self.number = 0  # of arrival: breaks ties
        self.arrived = 0  # virtual time of arrival
        self.start = 0
        self.finish = 0
        self.key: int | None = None  # its valid heap entry, of a first ticket
        self.standing = _WAITING
        self.flow: Flow | None = None
        self.before: Ticket[Any] | None = None  # its neighbours in the line of one sender
        self.after: Ticket[Any] | None = None


class Line(Protocol):
    """The order inside one flow; the flow's first ticket has already left it."""

    def put(self, ticket: Ticket[Any]) -> None:
        """Add a ticket."""

    def take(self) -> Ticket[Any] | None:
        """Remove and return the next one."""

    def discard(self, ticket: Ticket[Any], *, charged: bool) -> None:
        """Remove a ticket from wherever it stands."""

    def of(self, sender: Sender) -> Iterator[Ticket[Any]]:
        """The tickets of one sender, oldest first."""

    def newest(self) -> Ticket[Any] | None:
        """The ticket to displace first."""


class Flow:
    """A backlog with a weight: the first ticket with its tags, and the line behind it."""

    __slots__ = (
        "bytes",
        "debt",
        "finish",
        "first",
        "fluid",
        "is_floor",
        "items",
        "line",
        "peak",
        "peak_by_weight",
    )

    def __init__(self, weight: int, line: Line, *, is_floor: bool = False) -> None:
        self.fluid = Fluid(weight)
        self.line = line
        self.is_floor = is_floor
        self.first: Ticket[Any] | None = None
        self.finish = 0  # virtual finish of what was last taken or charged
        self.debt = 0  # virtual time charged since the first ticket got its tags
        self.items = 0
        self.bytes = 0
        self.peak = -1  # occupancy of its entry in the heap of the largest; -1: it has none
        self.peak_by_weight = -1

    @property
    def weight(self) -> int:
        """The flow's weight."""
        return self.fluid.weight

    def newest(self) -> Ticket[Any]:
        """The ticket that gives way first; a flow that is asked has one."""
        ticket = self.line.newest() or self.first
        if ticket is None:
            raise InvariantViolation("an empty flow has nothing to displace")
        return ticket


class FirstInFirstOut:
    """The line of one sender, linked through its tickets: cancelling leaves no tombstones behind,
    and the many senders of a long queue that have one request each keep no container for it."""

    __slots__ = ("_newest", "_oldest")

    def __init__(self) -> None:
        self._oldest: Ticket[Any] | None = None
        self._newest: Ticket[Any] | None = None

    def put(self, ticket: Ticket[Any]) -> None:
        """Add a ticket at the end."""
        before = ticket.before = self._newest
        if before is None:
            self._oldest = ticket
        else:
            before.after = ticket
        self._newest = ticket

    def take(self) -> Ticket[Any] | None:
        """Remove and return the oldest."""
        ticket = self._oldest
        if ticket is not None:
            self._oldest = after = ticket.after
            if after is None:
                self._newest = None
            else:
                after.before = ticket.after = None
        return ticket

    def of(self, sender: Sender) -> Iterator[Ticket[Any]]:
        """All tickets: every one is of the one sender."""
        ticket = self._oldest
        while ticket is not None:
            yield ticket
            ticket = ticket.after

    def discard(self, ticket: Ticket[Any], *, charged: bool) -> None:
        """Remove a ticket from wherever it stands; the flow itself is charged."""
        before, after = ticket.before, ticket.after
        if before is None:
            self._oldest = after
        else:
            before.after = after
        if after is None:
            self._newest = before
        else:
            after.before = before
        ticket.before = ticket.after = None

    def newest(self) -> Ticket[Any] | None:
        """The ticket that came last."""
        return self._newest


class _Member:
    """One sender without weight."""

    __slots__ = ("peak", "tickets", "turns_owed")

    def __init__(self) -> None:
        self.tickets: OrderedDict[int, Ticket[Any]] = OrderedDict()
        self.turns_owed = 0
        self.peak = 0  # tickets, of its entry in the heap of the largest


class Floor:
    """The line of all senders without weight: one ticket of each in turn, newcomers last.

    A cancelled or displaced ticket costs its member a turn while that member waits for more; beyond
    that nobody is charged, because a new identity costs nothing here.
    """

    def __init__(self) -> None:
        self._ring: OrderedDict[Sender, _Member] = OrderedDict()
        self._largest: list[tuple[int, int, _Member]] = []
        self._entries = 0

    def put(self, ticket: Ticket[Any]) -> None:
        """Add a ticket to its sender's own."""
        member = self._ring.get(ticket.sender)
        if member is None:
            member = self._ring[ticket.sender] = _Member()
        member.tickets[ticket.number] = ticket
        if len(member.tickets) > member.peak:
            self._enter_largest(member)

    def take(self) -> Ticket[Any] | None:
        """The oldest ticket of the member whose turn it is."""
        while self._ring:
            sender, member = next(iter(self._ring.items()))
            if member.turns_owed:
                # Ends: every turn owed was one cancellation.
                member.turns_owed -= 1
                self._ring.move_to_end(sender)
                continue
            _, ticket = member.tickets.popitem(last=False)
            if member.tickets:
                self._ring.move_to_end(sender)
            else:
                del self._ring[sender]
            return ticket
        return None

    def of(self, sender: Sender) -> Iterator[Ticket[Any]]:
        """The tickets of one member, oldest first."""
        member = self._ring.get(sender)
        return iter(() if member is None else member.tickets.values())

    def discard(self, ticket: Ticket[Any], *, charged: bool) -> None:
        """Remove a ticket from wherever it stands; `charged`: for a turn of its member."""
        member = self._ring[ticket.sender]
        del member.tickets[ticket.number]
        if member.tickets:
            member.turns_owed += charged
        else:
            del self._ring[ticket.sender]

    def newest(self) -> Ticket[Any] | None:
        """The newest ticket of the member with the most of them."""
        while self._largest:
            peak, _, member = self._largest[0]
            held = len(member.tickets)
            if held and -peak == member.peak == held:
                return member.tickets[next(reversed(member.tickets))]
            heappop(self._largest)
            if held and -peak == member.peak:
                self._enter_largest(member)
        return None

    def _enter_largest(self, member: _Member) -> None:
        member.peak = len(member.tickets)
        self._entries += 1
        heappush(self._largest, (-member.peak, self._entries, member))
        if len(self._largest) > 2 * len(self._ring) + STALE_ENTRIES_MAX:
            self._largest = [
                entry for entry in self._largest if entry[2].tickets and -entry[0] == entry[2].peak
            ]
            heapify(self._largest)
