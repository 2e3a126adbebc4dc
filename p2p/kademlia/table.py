"""The routing table: who is known, at every distance from here, and who of them is alive.

The rule: only a peer that has answered a request of ours enters; a peer leaves only when it has
failed to answer; and no subnet fills a bucket. So strangers can name whom they like: naming alone
changes nothing here (Kademlia, section 2.2; libp2p kad-dht, "Kademlia routing table").

    answered ──► known: to the tail of its bucket
             ──► room in the bucket and its subnet: enters at the tail
             ──► bucket full: replaces a peer that has failed, else waits as a replacement while the
                 least recently seen peer is challenged: alive, it stays; silent, it is replaced
    failed   ──► once: suspect, named to nobody and probed again; twice: it leaves

Old peers are preferred: the longer one has been there the longer it will stay (section 2.1), and
an attacker cannot flush the table by coming in numbers.

Deviations: all 256 buckets exist from the start (lazily made) instead of being unfolded by
splitting; the peers kept are the same, except that more of the nearest are.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from p2p.identity import PeerId
from p2p.kademlia.contact import Contact, Key, common_prefix_bits, distance, key_of, subnet_of
from p2p.kademlia.message import Kind, Message, decode_message, encode_message

BUCKET_SIZE = 20
"""k of the specification: large enough that all of a bucket rarely dies within an hour."""

REPLACEMENTS_MAX = 8
"""Per bucket; the newest are kept, as the likeliest to be alive when a place is free."""

FAILURES_MAX = 2
"""One lost request may be the network's fault, two in a row are the peer's."""

SUBNET_BUCKET_MAX = 2
"""Peers of one /24 in one bucket: a tenth of it."""

SUBNET_TABLE_MAX = 16
"""Peers of one /24 in the whole table; as `Limits.table_peers_per_subnet_max`."""

CHALLENGE_AFTER_S = 60.0
"""A peer heard of within this time is alive; to challenge it for every newcomer would be spam."""

SAVED_PEERS_MAX = 128
"""Enough to find the network again; loading probes each."""

_SAVED_CHUNK = 20


@dataclass(slots=True)
class Entry:
    """A peer in the table, with what its answers have shown."""

    contact: Contact
    subnet: str | None
    last_seen_s: float
    failures: int = 0
    challenged: bool = False


@dataclass(slots=True)
class Bucket:
    """The peers that share one number of leading bits with us, least recently seen first."""

    entries: dict[PeerId, Entry] = field(default_factory=dict)
    replacements: dict[PeerId, Entry] = field(default_factory=dict)


class RoutingTable:
    """Buckets around the local peer; time is given in seconds of any monotonic clock."""

    def __init__(
        self,
        local: PeerId,
        *,
        bucket_size: int = BUCKET_SIZE,
        subnet_table_max: int = SUBNET_TABLE_MAX,
        limit_private_addresses: bool = False,
    ) -> None:
        self.local = local
        self.key: Key = key_of(local.to_bytes())
        self.bucket_size = bucket_size
        self._subnet_table_max = subnet_table_max
        self._limit_private_addresses = limit_private_addresses
        self._buckets: dict[int, Bucket] = {}
        self._subnets: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(len(bucket.entries) for bucket in self._buckets.values())

    def __contains__(self, peer_id: PeerId) -> bool:
        return self._entry(peer_id) is not None

    def __iter__(self) -> Iterator[Contact]:
        for bucket in self._buckets.values():
            for entry in bucket.entries.values():
                yield entry.contact

    def contact_of(self, peer_id: PeerId) -> Contact | None:
        """The contact of a peer in the table."""
        entry = self._entry(peer_id)
        return entry.contact if entry else None

    def buckets(self) -> dict[int, int]:
        """How many peers there are, by the number of leading bits they share with us."""
        return {bits: len(bucket.entries) for bits, bucket in sorted(self._buckets.items())}

    def closest(self, key: Key, count: int, *, without: PeerId | None = None) -> list[Contact]:
        """The peers nearest to `key`, nearest first; suspects only where too few others are."""
        healthy: list[Entry] = []
        suspects: list[Entry] = []
        for bucket in self._buckets.values():
            for peer_id, entry in bucket.entries.items():
                if peer_id != without:
                    (suspects if entry.failures else healthy).append(entry)
        if len(healthy) < count:
            healthy += suspects
        nearest = heapq.nsmallest(count, healthy, key=lambda entry: entry.contact.key ^ key)
        return [entry.contact for entry in nearest]

    def answered(
        self, contact: Contact, now_s: float, *, observed: str | None = None
    ) -> Contact | None:
        """A peer has answered a request; `observed` is the address its connection comes from.

        Returns a peer that must now be probed, with `answered` or `failed` as the outcome, because
        the newcomer has its place only if that one is dead.
        """
        if contact.peer_id == self.local:
            return None
        bucket = self._bucket(contact.key)
        subnet = self._subnet(contact, observed)
        entry = bucket.entries.pop(contact.peer_id, None)
        if entry is not None:
            self._leave(entry)
            if not contact.addresses:
                contact = entry.contact
        newcomer = Entry(contact=contact, subnet=subnet, last_seen_s=now_s)
        if not self._subnet_has_room(bucket, subnet):
            self.counts["kademlia_subnet_full"] += 1
            return None
        if len(bucket.entries) >= self.bucket_size:
            failed = next((e for e in bucket.entries.values() if e.failures), None)
            if failed is None:
                return self._challenge(bucket, newcomer)
            self._remove(bucket, failed)
        bucket.replacements.pop(contact.peer_id, None)
        self._enter(bucket, newcomer)
        return None

    def failed(self, peer_id: PeerId) -> None:
        """A peer has not answered a request in time, or could not be reached."""
        bucket = self._bucket(key_of(peer_id.to_bytes()))
        bucket.replacements.pop(peer_id, None)
        entry = bucket.entries.get(peer_id)
        if entry is None:
            return
        entry.failures += 1
        if entry.failures >= FAILURES_MAX or bucket.replacements:
            self.remove(peer_id)

    def remove(self, peer_id: PeerId) -> None:
        """Take a peer out; the newest replacement that its subnet allows takes its place."""
        bucket = self._bucket(key_of(peer_id.to_bytes()))
        entry = bucket.entries.get(peer_id)
        if entry is None:
            return
        self._remove(bucket, entry)
        while bucket.replacements:
            _, replacement = bucket.replacements.popitem()
            if self._subnet_has_room(bucket, replacement.subnet):
                self._enter(bucket, replacement)
                return

    def stale(self, now_s: float, *, older_than_s: float) -> list[Contact]:
        """Peers to be probed: suspects, then those not heard of for `older_than_s`."""
        entries = [entry for bucket in self._buckets.values() for entry in bucket.entries.values()]
        suspects = [entry.contact for entry in entries if entry.failures]
        silent = [
            entry
            for entry in entries
            if not entry.failures and entry.last_seen_s <= now_s - older_than_s
        ]
        silent.sort(key=lambda entry: entry.last_seen_s)
        return suspects + [entry.contact for entry in silent]

    def save(self) -> bytes:
        """The most recently seen healthy peers, at most `SAVED_PEERS_MAX`, for `load_contacts`."""
        entries = [
            entry
            for bucket in self._buckets.values()
            for entry in bucket.entries.values()
            if not entry.failures and entry.contact.addresses
        ]
        newest = heapq.nlargest(SAVED_PEERS_MAX, entries, key=lambda entry: entry.last_seen_s)
        contacts = tuple(entry.contact for entry in newest)
        saved = bytearray()
        for start in range(0, len(contacts), _SAVED_CHUNK):
            chunk = contacts[start : start + _SAVED_CHUNK]
            encoded = encode_message(Message(kind=Kind.FIND_NODE, closer=chunk))
            saved += len(encoded).to_bytes(4) + encoded
        return bytes(saved)

    def _entry(self, peer_id: PeerId) -> Entry | None:
        bits = common_prefix_bits(self.key, key_of(peer_id.to_bytes()))
        bucket = self._buckets.get(bits)
        return bucket.entries.get(peer_id) if bucket else None

    def _bucket(self, key: Key) -> Bucket:
        bits = common_prefix_bits(self.key, key)
        bucket = self._buckets.get(bits)
        if bucket is None:
            bucket = self._buckets[bits] = Bucket()
        return bucket

    def _subnet(self, contact: Contact, observed: str | None) -> str | None:
        # Where it answers from, if known: announced addresses could frame somebody else's subnet.
        address = observed or next(iter(contact.addresses), "")
        return subnet_of(address, count_private=self._limit_private_addresses)

    def _subnet_has_room(self, bucket: Bucket, subnet: str | None) -> bool:
        if subnet is None:
            return True
        in_bucket = sum(entry.subnet == subnet for entry in bucket.entries.values())
        return in_bucket < SUBNET_BUCKET_MAX and self._subnets[subnet] < self._subnet_table_max

    def _challenge(self, bucket: Bucket, newcomer: Entry) -> Contact | None:
        bucket.replacements.pop(newcomer.contact.peer_id, None)
        bucket.replacements[newcomer.contact.peer_id] = newcomer
        if len(bucket.replacements) > REPLACEMENTS_MAX:
            del bucket.replacements[next(iter(bucket.replacements))]
        oldest = next(iter(bucket.entries.values()))
        if oldest.challenged or newcomer.last_seen_s - oldest.last_seen_s < CHALLENGE_AFTER_S:
            return None
        oldest.challenged = True
        return oldest.contact

    def _enter(self, bucket: Bucket, entry: Entry) -> None:
        bucket.entries[entry.contact.peer_id] = entry
        if entry.subnet is not None:
            self._subnets[entry.subnet] += 1

    def _remove(self, bucket: Bucket, entry: Entry) -> None:
        del bucket.entries[entry.contact.peer_id]
        self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        if entry.subnet is not None:
            self._subnets[entry.subnet] -= 1
            if not self._subnets[entry.subnet]:
                del self._subnets[entry.subnet]


def load_contacts(saved: bytes) -> list[Contact]:
    """The contacts in what `RoutingTable.save` wrote: hints to be probed, not entries.

    A damaged file gives what could be read of it; it raises `ProtocolViolation` only when its
    messages are malformed.
    """
    contacts: list[Contact] = []
    position = 0
    while position + 4 <= len(saved) and len(contacts) < SAVED_PEERS_MAX:
        length = int.from_bytes(saved[position : position + 4])
        position += 4
        contacts += decode_message(saved[position : position + length]).closer
        position += length
    return contacts[:SAVED_PEERS_MAX]


def nearest(contacts: Iterable[Contact], key: Key, count: int) -> list[Contact]:
    """The `count` contacts nearest to `key`, nearest first."""
    return heapq.nsmallest(count, contacts, key=lambda contact: distance(contact.key, key))
