"""Announcements and records: expiry, caps per key, per peer and in all, and whose word counts."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2p.errors import InvalidRecord
from p2p.kademlia import Record, key_of
from p2p.kademlia.contact import distance
from p2p.kademlia.multihash import provider_key
from p2p.kademlia.providers import PER_SUBNET_MAX, PROVIDER_LIFETIME_S, ProviderStore
from p2p.kademlia.records import RECORD_BYTES_MAX, RECORD_LIFETIME_S, RecordStore, Validators
from tests.p2p.kademlia.strategies import SCALE, contact, peer, public

LOCAL = key_of(b"local")


class Newest:
    """Values are counters; the greatest wins."""

    def validate(self, key: bytes, value: bytes) -> None:
        if not value.isdigit():
            raise InvalidRecord("not a number")

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        return max(range(len(values)), key=lambda n: int(values[n]))


def store(records_max: int = 100, per_sender_max: int = 100) -> RecordStore:
    """A store of numbers under /n/."""
    validators = Validators({"n": Newest()})
    return RecordStore(LOCAL, validators, records_max=records_max, per_sender_max=per_sender_max)


def record(name: int | str, value: int | bytes) -> Record:
    """A record under /n/."""
    data = value if isinstance(value, bytes) else str(value).encode()
    return Record(key=f"/n/{name}".encode(), value=data)


def test_an_announcement_lives_a_day() -> None:
    providers = ProviderStore(LOCAL)
    assert providers.add(b"k", contact(1), 0.0)
    assert providers.add(b"k", contact(2), 10.0)
    assert providers.get(b"k", 20.0, count=9) == [contact(2), contact(1)]
    assert providers.get(b"k", 20.0, count=1) == [contact(2)]
    assert providers.get(b"k", PROVIDER_LIFETIME_S, count=9) == [contact(2)]
    assert providers.expire(PROVIDER_LIFETIME_S) == 1
    assert providers.add(b"k", contact(2), PROVIDER_LIFETIME_S)
    assert providers.get(b"k", PROVIDER_LIFETIME_S + 11, count=9) == [contact(2)]


def test_a_full_key_refuses_newcomers_until_somebody_expires() -> None:
    providers = ProviderStore(LOCAL, per_key_max=3)
    for number in range(3):
        assert providers.add(b"k", contact(number), float(number))
    assert not providers.add(b"k", contact(3), 4.0)
    assert providers.add(b"k", contact(0), 5.0), "who is there may announce again"
    assert providers.add(b"k", contact(3), 1 + PROVIDER_LIFETIME_S)


def test_a_peer_has_a_share_of_keys_and_a_subnet_a_share_of_a_key() -> None:
    providers = ProviderStore(LOCAL, per_peer_max=2)
    assert [providers.add(bytes([n]), contact(1), 0.0) for n in range(1, 4)] == [True, True, False]
    crowd = [providers.add(b"c", contact(n, "8.8.8.8"), 0.0) for n in range(100, 130)]
    assert sum(crowd) == PER_SUBNET_MAX
    assert providers.add(b"c", public(7), 0.0)


def test_a_full_store_keeps_the_keys_nearest_to_us() -> None:
    providers = ProviderStore(LOCAL, keys_max=10)
    keys = [bytes([n]) for n in range(1, 60)]
    for number, key in enumerate(keys):
        providers.add(key, contact(number), 0.0)
    by_distance = sorted(keys, key=lambda key: distance(key_of(key), LOCAL))
    kept = [key for key in keys if providers.get(key, 0.0, count=1)]
    assert sorted(kept) == sorted(by_distance[:10])


def test_the_better_record_stays() -> None:
    records = store()
    assert records.put(record(1, 5), peer(1), 0.0)
    assert not records.put(record(1, 4), peer(2), 1.0)
    assert records.put(record(1, 6), peer(2), 2.0)
    found = records.get(b"/n/1", 3.0)
    assert found is not None
    assert found.value == b"6"
    assert found.time_received == "1970-01-01T00:00:02.000000Z"


def test_putting_the_same_again_renews_it() -> None:
    records = store()
    records.put(record(1, 5), peer(1), 0.0)
    assert records.put(record(1, 5), peer(1), 100.0)
    assert records.get(b"/n/1", RECORD_LIFETIME_S + 50) is not None
    assert records.get(b"/n/1", RECORD_LIFETIME_S + 100) is None
    assert records.expire(RECORD_LIFETIME_S + 100) == 1
    assert len(records) == 0


@pytest.mark.parametrize(
    "bad",
    [
        record(1, b"x"),
        Record(key=b"/other/1", value=b"1"),
        Record(key=b"n/1", value=b"1"),
        Record(key=b"/n", value=b"1"),
        Record(key=b"", value=b"1"),
        Record(key=b"/n/" + bytes(2000), value=b"1"),
        record(1, b"1" * (RECORD_BYTES_MAX + 1)),
        Record(key=b"/pk/" + peer(1).to_bytes(), value=peer(2).to_bytes()[2:]),
        Record(key=b"/pk/nobody", value=b"1"),
    ],
    ids=lambda record: f"{record.key[:8]!r}",
)
def test_invalid_records_are_refused(bad: Record) -> None:
    with pytest.raises(InvalidRecord):
        store().put(bad, peer(1), 0.0)


def test_a_public_key_may_stand_under_its_peer_id() -> None:
    key = Record(key=b"/pk/" + peer(1).to_bytes(), value=peer(1).to_bytes()[2:])
    assert store().put(key, peer(3), 0.0)


def test_one_sender_gets_a_share_and_the_farthest_record_makes_room() -> None:
    records = store(per_sender_max=3)
    taken = [records.put(record(n, 1), peer(1), 0.0) for n in range(5)]
    assert taken == [True, True, True, False, False]
    assert records.put(record(0, 2), peer(1), 0.0), "its own record may be replaced"
    small = store(records_max=5)
    for number in range(40):
        small.put(record(number, 1), peer(number), 0.0)
    keys = sorted(
        (f"/n/{n}".encode() for n in range(40)), key=lambda key: distance(key_of(key), LOCAL)
    )
    assert all(small.get(key, 0.0) for key in keys[:5])
    assert len(small) == 5


def test_a_validator_that_chooses_nothing_is_an_invalid_record() -> None:
    class Broken(Newest):
        def select(self, key: bytes, values: Sequence[bytes]) -> int:
            return 7

    with pytest.raises(InvalidRecord):
        Validators({"n": Broken()}).select(b"/n/1", [b"1", b"2"])


def test_whatever_a_validator_raises_is_an_invalid_record() -> None:
    class Careless:
        def validate(self, key: bytes, value: bytes) -> None:
            int(value)

        def select(self, key: bytes, values: Sequence[bytes]) -> int:
            raise KeyError(key)

    validators = Validators({"n": Careless()})
    validators.validate(b"/n/1", b"1")
    with pytest.raises(InvalidRecord, match="invalid literal"):
        validators.validate(b"/n/1", b"one")
    with pytest.raises(InvalidRecord):
        validators.select(b"/n/1", [b"1", b"2"])


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_namespace_is_one_part_of_a_path(name: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        Validators({name: Newest()})


def test_provider_keys_are_multihashes_or_become_them() -> None:
    digest = hashlib.sha256(b"x").digest()
    assert provider_key(b"x") == b"\x12\x20" + digest
    assert provider_key(provider_key(b"x")) == provider_key(b"x")
    assert provider_key(digest) != b"\x12\x20" + digest
    with pytest.raises(ValueError, match="empty"):
        provider_key(b"")


class StoresMachine(RuleBasedStateMachine):
    """Any announcements and records keep every bound, and the books in order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.providers = ProviderStore(LOCAL, keys_max=6, per_key_max=3, per_peer_max=4)
        self.records = store(records_max=6, per_sender_max=3)

    @rule(key=st.binary(min_size=1, max_size=1), number=st.integers(0, 12))
    def announce(self, key: bytes, number: int) -> None:
        taken = self.providers.add(key, contact(number), self.now_s)
        named = self.providers.get(key, self.now_s, count=9)
        assert (contact(number) in named) == taken

    @rule(name=st.integers(0, 12), value=st.integers(0, 5), number=st.integers(0, 5))
    def put(self, name: int, value: int, number: int) -> None:
        before = self.records.get(f"/n/{name}".encode(), self.now_s)
        taken = self.records.put(record(name, value), peer(number), self.now_s)
        after = self.records.get(f"/n/{name}".encode(), self.now_s)
        if taken:
            assert after is not None
            assert int(after.value) == value
        elif before is not None:
            assert after == before

    @rule(hours=st.floats(0, 30))
    def wait(self, hours: float) -> None:
        self.now_s += hours * 3600

    @rule()
    def expire(self) -> None:
        self.providers.expire(self.now_s)
        self.records.expire(self.now_s)
        keys = self.providers._keys
        assert all(
            announced_s > self.now_s - PROVIDER_LIFETIME_S
            for known in keys.values()
            for announced_s in known.values()
        )

    @invariant()
    def the_books_of_the_announcements_agree(self) -> None:
        store = self.providers
        assert len(store._keys) <= 6
        assert all(0 < len(known) <= 3 for known in store._keys.values())
        assert len(store) == sum(map(len, store._keys.values()))
        assert sorted(key for _, key in store._by_distance) == sorted(store._keys)
        held = Counter(peer_id for known in store._keys.values() for peer_id in known)
        assert held == Counter({p: len(provider.keys) for p, provider in store._peers.items()})
        assert all(count <= 4 for count in held.values())

    @invariant()
    def the_books_of_the_records_agree(self) -> None:
        store = self.records
        assert len(store) <= 6
        assert sorted(key for _, key in store._by_distance) == sorted(store._stored)
        assert Counter(s.sender for s in store._stored.values()) == store._senders
        sizes = [len(s.record.key) + len(s.record.value) for s in store._stored.values()]
        assert store._bytes == sum(sizes)


TestStoresStateful = StoresMachine.TestCase
TestStoresStateful.settings = settings(max_examples=30 * SCALE, stateful_step_count=40)
