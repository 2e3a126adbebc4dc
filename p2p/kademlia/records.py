"""Records: small values under keys `/namespace/rest`, and who decides which of them are valid.

The rule: nothing is stored or returned that the validator of its namespace has not accepted, and of
several valid values all honest nodes prefer the same one (libp2p kad-dht, "Entry validation"). A
namespace without a validator has no records here. Full means: the record farthest from us in the
key space goes, or the newcomer when that is farther still.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from p2p.errors import InvalidRecord, MalformedPeerId
from p2p.identity import PEER_ID_BYTES, PeerId
from p2p.kademlia.contact import Key, distance, key_of
from p2p.kademlia.message import KEY_BYTES_MAX, Record

RECORD_BYTES_MAX = 16 * 1024
"""As `Limits.record_bytes_max`: signed pointers, not bodies; IPNS allows 10 KiB."""

RECORDS_MAX = 16_384
"""As `Limits.records_max`."""

STORE_BYTES_MAX = 16 * 1024 * 1024
"""Keys and values together: 1,024 records of the greatest size, or `RECORDS_MAX` of 1 KiB."""

RECORDS_PER_SENDER_MAX = 256
"""Kept of what one peer has put: a quarter, so that one zealous stranger cannot own the store."""

RECORD_LIFETIME_S = 48 * 3600.0
"""Publishers put again every day; go-libp2p keeps records for 48 hours."""


class RecordValidator(Protocol):
    """Judges the records of one namespace: two pure functions of the bytes.

    Whatever else they raise counts as `InvalidRecord`: a stranger's record must not end a lookup.
    """

    def validate(self, key: bytes, value: bytes) -> None:
        """Return if `value` may stand under `key`; raise `InvalidRecord` if not."""
        ...

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        """The index of the best of several valid values; the same on every node."""
        ...


class PublicKeyValidator:
    """Namespace `pk` of the specification: under a peer id, the public key that it stands for."""

    def validate(self, key: bytes, value: bytes) -> None:
        """The value must be the protobuf public key inside the id (identity multihash)."""
        raw = key.removeprefix(b"/pk/")
        try:
            peer_id = PeerId.from_bytes(raw)
        except MalformedPeerId as error:
            raise InvalidRecord("not under an Ed25519 peer id") from error
        if value != raw[-(PEER_ID_BYTES - 2) :]:
            raise InvalidRecord(f"not the public key of {peer_id}")

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        """All valid values are equal."""
        return 0


class Validators:
    """The validators by namespace; the judge of every record that comes or goes."""

    def __init__(
        self,
        validators: Mapping[str, RecordValidator] | None = None,
        *,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        self._record_bytes_max = record_bytes_max
        self._validators: dict[bytes, RecordValidator] = {b"pk": PublicKeyValidator()}
        for namespace, validator in (validators or {}).items():
            self.add(namespace, validator)

    def add(self, namespace: str, validator: RecordValidator) -> None:
        """Judge `/namespace/…` by `validator` from now on; `ValueError` for a name with `/`."""
        if not namespace or "/" in namespace:
            raise ValueError(f"{namespace!r} cannot be a namespace")
        self._validators[namespace.encode()] = validator

    def validate(self, key: bytes, value: bytes) -> None:
        """Raise `InvalidRecord` unless `value` may stand under `key`."""
        if not key or len(key) > KEY_BYTES_MAX:
            raise InvalidRecord(f"a key of {len(key)} bytes")
        if len(value) > self._record_bytes_max:
            raise InvalidRecord(f"{len(value)} bytes of at most {self._record_bytes_max}")
        try:
            self._of(key).validate(key, value)
        except InvalidRecord:
            raise
        except Exception as error:
            raise InvalidRecord(f"its validator raised {error!r}") from error

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        """The index of the best of several valid values under `key`."""
        try:
            chosen = self._of(key).select(key, values)
        except Exception as error:
            raise InvalidRecord(f"its validator raised {error!r}") from error
        if not 0 <= chosen < len(values):
            raise InvalidRecord(f"the validator chose value {chosen} of {len(values)}")
        return chosen

    def _of(self, key: bytes) -> RecordValidator:
        parts = key.split(b"/", 2)
        validator = self._validators.get(parts[1]) if len(parts) == 3 and not parts[0] else None
        if validator is None:
            raise InvalidRecord("no validator for the key's namespace")
        return validator


@dataclass(frozen=True, slots=True)
class _Stored:
    record: Record
    sender: PeerId
    received_s: float


class RecordStore:
    """Valid records by key, for the node at `local`; time in Unix seconds, as the wire wants it."""

    def __init__(
        self,
        local: Key,
        validators: Validators,
        *,
        records_max: int = RECORDS_MAX,
        per_sender_max: int = RECORDS_PER_SENDER_MAX,
    ) -> None:
        self._local = local
        self._validators = validators
        self._records_max = records_max
        self._per_sender_max = per_sender_max
        self._stored: dict[bytes, _Stored] = {}
        self._by_distance: list[tuple[int, bytes]] = []
        self._senders: Counter[PeerId] = Counter()
        self._bytes = 0
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, record: Record, sender: PeerId, now_s: float) -> bool:
        """Keep a record if it is the best known; False when a better one or a bound keeps it out.

        Raises:
            InvalidRecord: its namespace's validator refuses it, or it is too large.
        """
        self._validators.validate(record.key, record.value)
        known = self._alive(record.key, now_s)
        if known is not None and known.record.value != record.value:
            values = [known.record.value, record.value]
            if self._validators.select(record.key, values) == 0:
                return False
        ours = known.sender if known is not None else None
        if sender != ours and self._senders[sender] >= self._per_sender_max:
            self.counts["kademlia_records_refused"] += 1
            return False
        if not self._make_room(record, now_s):
            return False
        self._drop(record.key)
        received = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        kept = Record(key=record.key, value=record.value, time_received=received)
        self._stored[record.key] = _Stored(kept, sender, now_s)
        self._senders[sender] += 1
        self._bytes += _size(kept)
        bisect.insort(self._by_distance, (distance(key_of(record.key), self._local), record.key))
        return True

    def get(self, key: bytes, now_s: float) -> Record | None:
        """The record under `key`, unless it has expired."""
        stored = self._alive(key, now_s)
        return stored.record if stored is not None else None

    def expire(self, now_s: float) -> int:
        """Drop what is too old; returns how many records that were."""
        expired = [
            key
            for key, stored in self._stored.items()
            if stored.received_s <= now_s - RECORD_LIFETIME_S
        ]
        for key in expired:
            self._drop(key)
        return len(expired)

    def _alive(self, key: bytes, now_s: float) -> _Stored | None:
        stored = self._stored.get(key)
        if stored is None or stored.received_s <= now_s - RECORD_LIFETIME_S:
            return None
        return stored

    def _make_room(self, record: Record, now_s: float) -> bool:
        """Drop records farther from us than the new one until it fits; False when it cannot."""
        own_distance = distance(key_of(record.key), self._local)
        known = self._stored.get(record.key)
        replaced_bytes = _size(known.record) if known is not None else 0
        while (
            len(self._stored) - (known is not None) >= self._records_max
            or self._bytes - replaced_bytes + _size(record) > STORE_BYTES_MAX
        ):
            if self.expire(now_s):
                continue
            farthest_distance, farthest = self._by_distance[-1]
            if own_distance >= farthest_distance:
                self.counts["kademlia_records_refused"] += 1
                return False
            self.counts["kademlia_records_displaced"] += 1
            self._drop(farthest)
        return True

    def _drop(self, key: bytes) -> None:
        stored = self._stored.pop(key, None)
        if stored is None:
            return
        self._bytes -= _size(stored.record)
        self._senders[stored.sender] -= 1
        if not self._senders[stored.sender]:
            del self._senders[stored.sender]
        entry = (distance(key_of(key), self._local), key)
        del self._by_distance[bisect.bisect_left(self._by_distance, entry)]


def _size(record: Record) -> int:
    return len(record.key) + len(record.value)
