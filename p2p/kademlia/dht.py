"""The distributed hash table of a running node: lookups over a switch, and their upkeep.

The rule: it is a shell. Whom to ask next is `lookup`'s decision, who is known `table`'s, what is
answered `server`'s; here are only streams, clocks and tasks. Every task lives in the nursery of
`open_kademlia`, and every answer of a stranger is a hint: addresses are proved by dialling, records
by validators, providers by nobody but the caller (libp2p kad-dht, "DHT operations").
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from p2p.errors import (
    InvalidRecord,
    LimitExceeded,
    LookupFailed,
    MalformedAddress,
    NetworkClosed,
    NetworkError,
    ProtocolUnsupported,
    ProtocolViolation,
)
from p2p.identity import PeerId
from p2p.kademlia.contact import Contact, Key, key_of
from p2p.kademlia.exchange import Service, exchange
from p2p.kademlia.lookup import Lookup
from p2p.kademlia.message import Kind, Message, Record
from p2p.kademlia.multihash import provider_key
from p2p.kademlia.providers import ProviderStore
from p2p.kademlia.records import RecordStore, RecordValidator, Validators
from p2p.kademlia.server import Server
from p2p.kademlia.table import RoutingTable
from p2p.switch import Switch

PROTOCOL = "/agora/kad/1.0.0"

PUTS_CONCURRENT_MAX = 8
"""Of one put or provide: its peers are known, so more than α may be asked at once."""

ANSWERS_AGREEING = 3
"""Answers with providers before a search for several of them may end early: one stranger's list
must not end it."""

GET_QUORUM = 3
"""Holders heard before a record is returned: one holder may be behind."""

TARGET_DIALS_MAX = 8
"""Different answers to where a peer is, tried in one search for it."""

PROBES_PENDING_MAX = 64
"""Peers waiting to be asked whether they are alive; full: newcomers are dropped, others come."""

Ask = Callable[[Contact], Awaitable[Iterable[Contact]]]


class Kademlia:
    """A `ContentRouting` over one switch; made and ended by `open_kademlia`.

    Every lookup stops after `Limits.lookup_timeout_s` with what it has. Cancelling any call leaves
    nothing behind but what peers have already been told.
    """

    def __init__(
        self,
        switch: Switch,
        *,
        protocol: str,
        validators: Mapping[str, RecordValidator] | None,
        clock: Callable[[], float],
    ) -> None:
        limits = switch.limits
        private = limits.limit_private_addresses
        self.protocol = protocol
        self.table = RoutingTable(
            switch.peer_id,
            subnet_table_max=limits.table_peers_per_subnet_max,
            limit_private_addresses=private,
        )
        self._switch = switch
        self._limits = limits
        self._clock = clock
        self._validators = Validators(validators, record_bytes_max=limits.record_bytes_max)
        self._providers = ProviderStore(
            self.table.key,
            keys_max=limits.provider_keys_max,
            per_key_max=limits.providers_per_key_max,
            per_peer_max=limits.provided_keys_per_peer_max,
            limit_private_addresses=private,
        )
        self._records = RecordStore(
            self.table.key, self._validators, records_max=limits.records_max
        )
        self._server = Server(
            table=self.table,
            providers=self._providers,
            records=self._records,
            addresses_of=self._addresses_of,
        )
        self._service = Service(self._server, clock=clock, observed=switch.remote_address_of)
        self.provided: dict[bytes, None] = {}
        self.newly_provided = trio.Event()
        self.populated = trio.Event()
        self._probes_in, self._probes_out = trio.open_memory_channel[Contact](PROBES_PENDING_MAX)
        self._probing: set[PeerId] = set()
        self._counts: Counter[str] = Counter()

    def add_validator(self, namespace: str, validator: RecordValidator) -> None:
        """Judge the records under `/namespace/…` by `validator`; without one they do not exist."""
        self._validators.add(namespace, validator)

    def counters(self) -> dict[str, int]:
        """What has been counted since the start, and the sizes now."""
        return {
            **self._counts,
            **self._service.counts,
            "kademlia_table_peers": len(self.table),
            "kademlia_provider_announcements": len(self._providers),
            "kademlia_records": len(self._records),
        }

    async def provide(self, key: bytes) -> None:
        """Announce that this node has `key`, now and again until the network closes.

        The key goes as it is when it is a multihash, else as its SHA-256 multihash. Returns when
        the closest peers have been told; with nobody to tell, the next announcement will.
        """
        wire_key = provider_key(key)
        if wire_key not in self.provided:
            self.provided[wire_key] = None
            self.newly_provided.set()
        await self.announce(wire_key)

    async def unprovide(self, key: bytes) -> None:
        """Announce `key` no more; what was announced expires by itself."""
        self.provided.pop(provider_key(key), None)

    async def find_providers(self, key: bytes, *, count: int = 20) -> list[PeerId]:
        """Peers that announced `key`, those named by most peers first, at most `count`.

        With `count=1` the first answer that names a provider ends the search. Their addresses are
        then in the address book; the answer is a hint from strangers.
        """
        wire_key = provider_key(key)
        votes: Counter[PeerId] = Counter()
        naming = 0
        own = self._switch.peer_id
        for contact in self._providers.get(wire_key, self._clock(), count=count):
            if contact.peer_id != own:
                votes[contact.peer_id] += 1
        lookup = self._lookup(key_of(wire_key))

        async def ask(contact: Contact) -> Iterable[Contact]:
            nonlocal naming
            answer = await self._request(contact, Message(kind=Kind.GET_PROVIDERS, key=wire_key))
            named = {c.peer_id: c for c in answer.providers if c.peer_id != own}
            for provider in named.values():
                self._remember(provider)
            votes.update(named.keys())
            naming += bool(named)
            if len(votes) >= count and naming >= min(count, ANSWERS_AGREEING):
                lookup.stop()
            return answer.closer

        if len(votes) < count:
            await self._run(lookup, ask)
        return [peer_id for peer_id, _ in votes.most_common(count)]

    async def find_peer(self, peer_id: PeerId) -> tuple[str, ...]:
        """Addresses at which the peer has proved to be, by a connection to it, made if need be.

        Raises:
            LookupFailed: nobody knew an address at which it answered.
        """
        if peer_id == self._switch.peer_id:
            return self._switch.addresses
        if await self._reach(peer_id, ()):
            return self._switch.addresses_of(peer_id)
        name = peer_id.to_bytes()
        lookup = self._lookup(key_of(name), without=peer_id)
        tried: set[str] = set()
        found = False

        async def ask(contact: Contact) -> Iterable[Contact]:
            nonlocal found
            answer = await self._request(contact, Message(kind=Kind.FIND_NODE, key=name))
            for named in answer.closer:
                fresh = [a for a in named.addresses if a not in tried]
                if named.peer_id != peer_id or not fresh or len(tried) >= TARGET_DIALS_MAX:
                    continue
                tried.update(fresh)
                if await self._reach(peer_id, fresh):
                    found = True
                    lookup.stop()
            return [c for c in answer.closer if c.peer_id != peer_id]

        await self._run(lookup, ask)
        if not found:
            raise LookupFailed(f"no address of {peer_id} at which it answers")
        return self._switch.addresses_of(peer_id)

    async def closest_peers(self, name: bytes) -> list[Contact]:
        """The k peers that are nearest to `name` and alive, nearest first."""
        lookup = self._lookup(key_of(name))

        async def ask(contact: Contact) -> Iterable[Contact]:
            return (await self._request(contact, Message(kind=Kind.FIND_NODE, key=name))).closer

        await self._run(lookup, ask)
        return lookup.closest()

    async def put_record(self, key: bytes, value: bytes) -> None:
        """Store a record here and with the k peers closest to its key.

        Raises:
            InvalidRecord: refused here by the validator of the key's namespace, or too large.
            LookupFailed: no peer took it.
        """
        self._validators.validate(key, value)
        record = Record(key=key, value=value)
        self._records.put(record, self._switch.peer_id, self._clock())
        if not await self._put(record, await self.closest_peers(key)):
            raise LookupFailed("no peer took the record")

    async def get_record(self, key: bytes, *, quorum: int = GET_QUORUM) -> bytes:
        """The best valid record among those of `quorum` holders, or of all when there are fewer.

        Holders of worse ones are told. With `quorum=1` the first valid answer ends the search.

        Raises:
            LookupFailed: nobody had a valid one.
        """
        values: dict[PeerId, bytes] = {}
        own = self._records.get(key, self._clock())
        if own is not None:
            values[self._switch.peer_id] = own.value
        lookup = self._lookup(key_of(key))

        async def ask(contact: Contact) -> Iterable[Contact]:
            answer = await self._request(contact, Message(kind=Kind.GET_VALUE, key=key))
            if answer.record is not None and answer.record.key == key:
                with contextlib.suppress(InvalidRecord):
                    self._validators.validate(key, answer.record.value)
                    values[contact.peer_id] = answer.record.value
            if len(values) >= quorum:
                lookup.stop()
            return answer.closer

        if len(values) < quorum:
            await self._run(lookup, ask)
        if not values:
            raise LookupFailed("nobody has a valid record under that key")
        distinct = list(dict.fromkeys(values.values()))
        best = distinct[self._validators.select(key, distinct)]
        outdated = [p for p, value in values.items() if value != best]
        if outdated:
            contacts = [Contact(peer_id=p) for p in outdated if p != self._switch.peer_id]
            await self._put(Record(key=key, value=best), contacts)
        return best

    async def announce(self, wire_key: bytes) -> None:
        """Tell the closest peers that this node provides a key already in its wire form."""
        me = Contact(peer_id=self._switch.peer_id, addresses=self._switch.addresses)
        self._providers.add(wire_key, me, self._clock())
        message = Message(kind=Kind.ADD_PROVIDER, key=wire_key, providers=(me,))
        told = await self._tell(message, await self.closest_peers(wire_key))
        self._counts["kademlia_announced"] += told

    def probe(self, contact: Contact) -> None:
        """Ask a peer soon whether it is alive and serves; dropped when too many wait."""
        if contact.peer_id in self._probing or contact.peer_id == self._switch.peer_id:
            return
        try:
            self._probes_in.send_nowait(contact)
        except trio.WouldBlock:
            self._counts["kademlia_probes_dropped"] += 1
        else:
            self._probing.add(contact.peer_id)

    async def serve_probes(self) -> None:
        """Ask the waiting peers, one after another, for our own neighbours."""
        name = self._switch.peer_id.to_bytes()
        async for contact in self._probes_out:
            with contextlib.suppress(NetworkError, trio.TooSlowError):
                await self._request(contact, Message(kind=Kind.FIND_NODE, key=name))
            self._probing.discard(contact.peer_id)

    def expire(self) -> None:
        """Drop announcements and records that are too old."""
        self._providers.expire(self._clock())
        self._records.expire(self._clock())

    @property
    def service(self) -> Service:
        """The handler of inbound streams."""
        return self._service

    def _lookup(self, target: Key, *, without: PeerId | None = None) -> Lookup:
        self._counts["kademlia_lookups"] += 1
        return Lookup(
            target=target,
            local=self._switch.peer_id,
            seeds=self.table.closest(target, self.table.bucket_size, without=without),
            limit_private_addresses=self._limits.limit_private_addresses,
        )

    async def _run(self, lookup: Lookup, ask: Ask) -> None:
        """Drive a lookup to its end; peers that are overdue then are suspects."""
        signal, changed = trio.open_memory_channel[None](1)

        async def one(contact: Contact) -> None:
            try:
                lookup.answered(contact.peer_id, await ask(contact))
            except (NetworkError, trio.TooSlowError):
                lookup.failed(contact.peer_id)
            with contextlib.suppress(trio.WouldBlock):
                signal.send_nowait(None)

        with trio.move_on_after(self._limits.lookup_timeout_s):
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
        self._counts["kademlia_requests"] += lookup.requests
        for peer_id in lookup.unanswered():
            self.table.failed(peer_id)

    async def _request(self, contact: Contact, request: Message) -> Message:
        """Ask one peer and let the table know how it went."""
        self._remember(contact)
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
        except (NetworkError, trio.TooSlowError):
            self.table.failed(contact.peer_id)
            raise
        self._answered(contact)
        return answer if answer is not None else Message(kind=request.kind)

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

    def _addresses_of(self, peer_id: PeerId) -> tuple[str, ...]:
        if peer_id == self._switch.peer_id:
            return self._switch.addresses
        return self._switch.addresses_of(peer_id)

    def _remember(self, contact: Contact) -> None:
        with contextlib.suppress(MalformedAddress):
            self._switch.add_addresses(contact.peer_id, contact.addresses)

    async def _reach(self, peer_id: PeerId, addresses: Sequence[str]) -> bool:
        if peer_id in self._switch.peers:
            return True
        self._remember(Contact(peer_id=peer_id, addresses=tuple(addresses)))
        try:
            with trio.fail_after(self._limits.lookup_request_timeout_s):
                await self._switch.connect(peer_id)
        except (NetworkError, trio.TooSlowError):
            return False
        return True

    async def _put(self, record: Record, contacts: Sequence[Contact]) -> int:
        return await self._tell(
            Message(kind=Kind.PUT_VALUE, key=record.key, record=record), contacts
        )

    async def _tell(self, message: Message, contacts: Sequence[Contact]) -> int:
        """Send the same message to all contacts; how many took it."""
        places = trio.CapacityLimiter(PUTS_CONCURRENT_MAX)
        taken = 0

        async def one(contact: Contact) -> None:
            nonlocal taken
            async with places:
                with contextlib.suppress(NetworkError, trio.TooSlowError):
                    answer = await self._request(contact, message)
                    if message.record is not None and (
                        answer.record is None or answer.record.value != message.record.value
                    ):
                        raise ProtocolViolation("PUT_VALUE answered by another value")
                    taken += 1

        async with trio.open_nursery() as nursery:
            for contact in contacts:
                nursery.start_soon(one, contact)
        return taken


@asynccontextmanager
async def open_kademlia(
    switch: Switch,
    *,
    protocol: str = PROTOCOL,
    validators: Mapping[str, RecordValidator] | None = None,
    serve: bool = True,
    table_path: Path | None = None,
    clock: Callable[[], float] = time.time,
    rng: random.Random | None = None,
) -> AsyncIterator[Kademlia]:
    """A DHT over `switch` while the block lasts.

    It finds peers by itself among those that the switch connects to and that say they speak
    `protocol`. With `serve=False` it only asks. `table_path` keeps the routing table between runs.
    `clock` gives Unix time (records and announcements outlive processes), `rng` the targets of
    refreshing lookups. Leaving the block, or cancelling it, ends its tasks and stops serving.
    """
    from p2p.kademlia.upkeep import Upkeep  # the upkeep drives a Kademlia

    dht = Kademlia(switch, protocol=protocol, validators=validators, clock=clock)
    upkeep = Upkeep(dht, switch, table_path=table_path, rng=rng or random.Random())
    if serve:
        switch.serve(protocol, dht.service.handle)
    try:
        async with trio.open_nursery() as nursery:
            upkeep.start(nursery)
            try:
                yield dht
            finally:
                nursery.cancel_scope.cancel()
    finally:
        if serve:
            switch.unserve(protocol)
        upkeep.save()
