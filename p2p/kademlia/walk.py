"""Walking the network: one request, the same request to many, and the lookups made of requests.

The rule: the routing table hears how every request went, whoever made it and for whatever reason;
what is our own fault is not held against a peer; and an address that a stranger names is tried, not
believed. `lookup` says whom to ask next; this file asks.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from p2p.errors import (
    LimitExceeded,
    MalformedAddress,
    NetworkClosed,
    NetworkError,
    ProtocolUnsupported,
    ProtocolViolation,
)
from p2p.identity import PeerId
from p2p.kademlia.contact import Contact, Key
from p2p.kademlia.exchange import exchange
from p2p.kademlia.lookup import Lookup
from p2p.kademlia.message import Kind, Message
from p2p.kademlia.table import RoutingTable
from p2p.switch import Switch

PUTS_CONCURRENT_MAX = 8
"""Of one put or provide: its peers are known, so more than α may be asked at once."""

PROBES_PENDING_MAX = 64
"""Peers waiting to be asked whether they are alive; full: newcomers are dropped, others come."""

Ask = Callable[[Contact], Awaitable[Iterable[Contact]]]
"""Asks one peer and returns whom it named; `NetworkError` when it did not answer."""


class Walker:
    """Asks peers on behalf of one DHT node, and keeps its routing table true."""

    def __init__(self, switch: Switch, table: RoutingTable, protocol: str) -> None:
        self.table = table
        self.protocol = protocol
        self.populated = trio.Event()
        self.counts: Counter[str] = Counter()
        self.probing: set[PeerId] = set()
        self._switch = switch
        self._limits = switch.limits
        self._probes_in, self._probes_out = trio.open_memory_channel[Contact](PROBES_PENDING_MAX)

    def lookup(self, target: Key, *, without: PeerId | None = None) -> Lookup:
        """A lookup from what is known now; to be given to `walk`."""
        self.counts["kademlia_lookups"] += 1
        return Lookup(
            target=target,
            local=self._switch.peer_id,
            seeds=self.table.closest(target, self.table.bucket_size, without=without),
            limit_private_addresses=self._limits.limit_private_addresses,
        )

    async def walk(self, lookup: Lookup, ask: Ask) -> None:
        """Drive a lookup to its end; peers that are overdue then are suspects."""
        signal, changed = trio.open_memory_channel[None](1)

        async def one(contact: Contact) -> None:
            try:
                lookup.answered(contact.peer_id, await ask(contact))
            except (NetworkError, trio.TooSlowError):
                lookup.failed(contact.peer_id)
            with contextlib.suppress(trio.WouldBlock):
                signal.send_nowait(None)

        with trio.move_on_after(self._limits.lookup_timeout_s) as scope:
            async with trio.open_nursery() as nursery:
                while True:
                    for contact in lookup.poll(trio.current_time()):
                        nursery.start_soon(one, contact)
                    if lookup.done:
                        break
                    with trio.move_on_at(lookup.wake_s or float("inf")):
                        await changed.receive()
                nursery.cancel_scope.cancel()
        lookup.stop()
        self.counts["kademlia_requests"] += lookup.requests
        self.counts["kademlia_lookups_late"] += scope.cancelled_caught
        for peer_id in lookup.unanswered():
            self.table.failed(peer_id)

    async def request(self, contact: Contact, request: Message) -> Message:
        """Ask one peer and let the table know how it went."""
        self.remember(contact)
        try:
            answer = await exchange(
                self._switch,
                contact.peer_id,
                self.protocol,
                request,
                timeout_s=self._limits.lookup_request_timeout_s,
            )
        except (LimitExceeded, NetworkClosed):
            raise  # our own fault, not the peer's
        except ProtocolUnsupported:
            self.table.remove(contact.peer_id)
            raise
        except (NetworkError, trio.TooSlowError) as error:
            self.counts["kademlia_requests_late"] += isinstance(error, trio.TooSlowError)
            self.table.failed(contact.peer_id)
            raise
        self._answered(contact)
        return answer if answer is not None else Message(kind=request.kind)

    async def tell(self, message: Message, contacts: Sequence[Contact]) -> int:
        """Send the same message to all contacts; how many took it."""
        places = trio.CapacityLimiter(PUTS_CONCURRENT_MAX)
        taken = 0

        async def one(contact: Contact) -> None:
            nonlocal taken
            async with places:
                with contextlib.suppress(NetworkError, trio.TooSlowError):
                    answer = await self.request(contact, message)
                    if message.record is not None and (
                        answer.record is None or answer.record.value != message.record.value
                    ):
                        raise ProtocolViolation("PUT_VALUE answered by another value")
                    taken += 1

        async with trio.open_nursery() as nursery:
            for contact in contacts:
                nursery.start_soon(one, contact)
        return taken

    async def reach(self, peer_id: PeerId, addresses: Sequence[str]) -> bool:
        """Whether there is a connection to the peer, or one can be made by these addresses."""
        self.remember(Contact(peer_id=peer_id, addresses=tuple(addresses)))
        if peer_id in self._switch.peers:
            return True
        try:
            with trio.fail_after(self._limits.lookup_request_timeout_s):
                await self._switch.connect(peer_id)
        except (NetworkError, trio.TooSlowError):
            return False
        return True

    def remember(self, contact: Contact) -> None:
        """Put what a stranger says of addresses into the book; the malformed are left out."""
        with contextlib.suppress(MalformedAddress):
            self._switch.add_addresses(contact.peer_id, contact.addresses)

    def probe(self, contact: Contact) -> None:
        """Ask a peer soon whether it is alive and serves; dropped when too many wait."""
        if contact.peer_id in self.probing or contact.peer_id == self._switch.peer_id:
            return
        try:
            self._probes_in.send_nowait(contact)
        except trio.WouldBlock:
            self.counts["kademlia_probes_dropped"] += 1
        else:
            self.probing.add(contact.peer_id)

    async def serve_probes(self) -> None:
        """Ask the waiting peers, one after another, for our own neighbours."""
        name = self._switch.peer_id.to_bytes()
        async for contact in self._probes_out:
            with contextlib.suppress(NetworkError, trio.TooSlowError):
                await self.request(contact, Message(kind=Kind.FIND_NODE, key=name))
            self.probing.discard(contact.peer_id)

    def _answered(self, contact: Contact) -> None:
        addresses = contact.addresses or self._switch.addresses_of(contact.peer_id)
        challenged = self.table.answered(
            Contact(peer_id=contact.peer_id, addresses=addresses),
            trio.current_time(),
            observed=self._switch.remote_address_of(contact.peer_id),
        )
        if len(self.table):
            self.populated.set()
        if challenged is not None:
            self.probe(challenged)
