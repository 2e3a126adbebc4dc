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
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from p2p.errors import InvalidRecord, LookupFailed
from p2p.identity import PeerId
from p2p.kademlia.contact import Contact, key_of
from p2p.kademlia.exchange import Service
from p2p.kademlia.message import Kind, Message, Record
from p2p.kademlia.multihash import provider_key
from p2p.kademlia.providers import ProviderStore
from p2p.kademlia.records import RecordStore, RecordValidator, Validators
from p2p.kademlia.server import Server
from p2p.kademlia.table import RoutingTable
from p2p.kademlia.upkeep import Upkeep
from p2p.kademlia.walk import Walker
from p2p.switch import Switch

PROTOCOL = "/agora/kad/1.0.0"

ANSWERS_AGREEING = 3
"""Answers with providers before a search for several of them may end early: one stranger's list
must not end it."""

GET_QUORUM = 3
"""Holders heard before a record is returned: one holder may be behind."""

TARGET_DIALS_MAX = 8
"""Different answers to where a peer is, tried in one search for it."""


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
        self.walker = Walker(switch, self.table, protocol)

    def add_validator(self, namespace: str, validator: RecordValidator) -> None:
        """Judge the records under `/namespace/…` by `validator`; without one they do not exist."""
        self._validators.add(namespace, validator)

    def counters(self) -> dict[str, int]:
        """What has been counted since the start, and the sizes now."""
        return {
            **self.walker.counts,
            **self._service.counts,
            **self.table.counts,
            **self._providers.counts,
            **self._records.counts,
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
        lookup = self.walker.lookup(key_of(wire_key))

        async def ask(contact: Contact) -> Iterable[Contact]:
            nonlocal naming
            answer = await self.walker.request(
                contact, Message(kind=Kind.GET_PROVIDERS, key=wire_key)
            )
            named = {c.peer_id: c for c in answer.providers if c.peer_id != own}
            for provider in named.values():
                self.walker.remember(provider)
            votes.update(named.keys())
            naming += bool(named)
            if len(votes) >= count and naming >= min(count, ANSWERS_AGREEING):
                lookup.stop()
            return answer.closer

        if len(votes) < count:
            await self.walker.walk(lookup, ask)
        return [peer_id for peer_id, _ in votes.most_common(count)]

    async def find_peer(self, peer_id: PeerId) -> tuple[str, ...]:
        """Addresses at which the peer has proved to be, by a connection to it, made if need be.

        Raises:
            LookupFailed: nobody knew an address at which it answered.
        """
        if peer_id == self._switch.peer_id:
            return self._switch.addresses
        # Who has dialled us is connected, yet its addresses are known only once it has told them.
        if await self.walker.reach(peer_id, ()) and self._switch.addresses_of(peer_id):
            return self._switch.addresses_of(peer_id)
        name = peer_id.to_bytes()
        lookup = self.walker.lookup(key_of(name), without=peer_id)
        tried: set[str] = set()
        found = False

        async def ask(contact: Contact) -> Iterable[Contact]:
            nonlocal found
            answer = await self.walker.request(contact, Message(kind=Kind.FIND_NODE, key=name))
            for named in answer.closer:
                fresh = [a for a in named.addresses if a not in tried]
                if named.peer_id != peer_id or not fresh or len(tried) >= TARGET_DIALS_MAX:
                    continue
                tried.update(fresh)
                if await self.walker.reach(peer_id, fresh):
                    found = True
                    lookup.stop()
            return [c for c in answer.closer if c.peer_id != peer_id]

        await self.walker.walk(lookup, ask)
        if not found:
            raise LookupFailed(f"no address of {peer_id} at which it answers")
        return self._switch.addresses_of(peer_id)

    async def closest_peers(self, name: bytes) -> list[Contact]:
        """The k peers that are nearest to `name` and alive, nearest first."""
        lookup = self.walker.lookup(key_of(name))

        async def ask(contact: Contact) -> Iterable[Contact]:
            return (
                await self.walker.request(contact, Message(kind=Kind.FIND_NODE, key=name))
            ).closer

        await self.walker.walk(lookup, ask)
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
        put = Message(kind=Kind.PUT_VALUE, key=key, record=record)
        if not await self.walker.tell(put, await self.closest_peers(key)):
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
        lookup = self.walker.lookup(key_of(key))

        async def ask(contact: Contact) -> Iterable[Contact]:
            answer = await self.walker.request(contact, Message(kind=Kind.GET_VALUE, key=key))
            if answer.record is not None and answer.record.key == key:
                with contextlib.suppress(InvalidRecord):
                    self._validators.validate(key, answer.record.value)
                    values[contact.peer_id] = answer.record.value
            if len(values) >= quorum:
                lookup.stop()
            return answer.closer

        if len(values) < quorum:
            await self.walker.walk(lookup, ask)
        if not values:
            raise LookupFailed("nobody has a valid record under that key")
        distinct = list(dict.fromkeys(values.values()))
        best = distinct[self._validators.select(key, distinct)]
        outdated = [p for p, value in values.items() if value != best]
        if outdated:
            contacts = [Contact(peer_id=p) for p in outdated if p != self._switch.peer_id]
            record = Record(key=key, value=best)
            await self.walker.tell(Message(kind=Kind.PUT_VALUE, key=key, record=record), contacts)
        return best

    async def announce(self, wire_key: bytes) -> None:
        """Tell the closest peers that this node provides a key already in its wire form."""
        me = Contact(peer_id=self._switch.peer_id, addresses=self._switch.addresses)
        self._providers.add(wire_key, me, self._clock())
        message = Message(kind=Kind.ADD_PROVIDER, key=wire_key, providers=(me,))
        told = await self.walker.tell(message, await self.closest_peers(wire_key))
        self.walker.counts["kademlia_announced"] += told

    def expire(self) -> None:
        """Drop announcements and records that are too old."""
        self._providers.expire(self._clock())
        self._records.expire(self._clock())

    @property
    def service(self) -> Service:
        """The handler of inbound streams."""
        return self._service

    def _addresses_of(self, peer_id: PeerId) -> tuple[str, ...]:
        if peer_id == self._switch.peer_id:
            return self._switch.addresses
        return self._switch.addresses_of(peer_id)


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
