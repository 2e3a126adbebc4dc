"""The routing table: its bounds, who enters and who leaves."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2p.kademlia import Contact, RoutingTable, key_of
from p2p.kademlia.contact import common_prefix_bits, subnet_of
from p2p.kademlia.table import (
    CHALLENGE_AFTER_S,
    FAILURES_MAX,
    SUBNET_BUCKET_MAX,
    SUBNET_TABLE_MAX,
    load_contacts,
    nearest,
)
from tests.p2p.kademlia.strategies import SCALE, contact, peer, public

LOCAL = peer(10_000)


def far(count: int, *, start: int = 0) -> list[Contact]:
    """Contacts of the farthest bucket (no common bit with LOCAL), each in its own subnet."""
    key = key_of(LOCAL.to_bytes())
    found: list[Contact] = []
    number = start
    while len(found) < count:
        candidate = contact(number)
        if common_prefix_bits(candidate.key, key) == 0:
            found.append(candidate)
        number += 1
    return found


def test_only_who_answers_enters_and_who_fails_twice_leaves() -> None:
    table = RoutingTable(LOCAL)
    table.answered(contact(1), 0.0)
    assert peer(1) in table
    table.failed(peer(1))
    assert peer(1) in table
    table.failed(peer(1))
    assert peer(1) not in table
    table.failed(peer(2))
    assert len(table) == 0


def test_a_suspect_is_named_to_nobody_while_others_are_known() -> None:
    table = RoutingTable(LOCAL)
    for number in range(4):
        table.answered(contact(number), 0.0)
    table.failed(peer(2))
    assert {c.peer_id for c in table.closest(contact(2).key, 3)} == {peer(0), peer(1), peer(3)}
    assert peer(2) in {c.peer_id for c in table.closest(contact(2).key, 4)}


def test_a_full_bucket_keeps_its_old_peers_while_they_live() -> None:
    table = RoutingTable(LOCAL)
    *old, newcomer = far(21)
    for number, known in enumerate(old):
        assert table.answered(known, float(number)) is None
    later_s = 20 + CHALLENGE_AFTER_S
    challenged = table.answered(newcomer, later_s)
    assert challenged == old[0]
    assert newcomer.peer_id not in table
    assert table.answered(newcomer, later_s) is None, "one challenge at a time"
    table.answered(old[0], later_s)  # it lives
    assert newcomer.peer_id not in table
    assert table.answered(newcomer, later_s) == old[1]
    table.failed(old[1].peer_id)  # it is dead
    assert old[1].peer_id not in table
    assert newcomer.peer_id in table


def test_a_fresh_bucket_is_not_challenged_for_every_newcomer() -> None:
    table = RoutingTable(LOCAL)
    *old, newcomer = far(21)
    for known in old:
        table.answered(known, 0.0)
    assert table.answered(newcomer, 1.0) is None


def test_a_suspect_gives_its_place_to_a_newcomer_at_once() -> None:
    table = RoutingTable(LOCAL)
    *old, newcomer = far(21)
    for known in old:
        table.answered(known, 0.0)
    table.failed(old[5].peer_id)
    table.answered(newcomer, 0.0)
    assert newcomer.peer_id in table
    assert old[5].peer_id not in table


def test_one_subnet_gets_few_places_and_private_addresses_are_exempt() -> None:
    sybils = [contact(number, f"8.8.8.{number % 256}") for number in range(400)]
    table = RoutingTable(LOCAL)
    for sybil in sybils:
        table.answered(sybil, 0.0)
    assert 0 < len(table) <= SUBNET_TABLE_MAX
    exempt = RoutingTable(LOCAL)
    limited = RoutingTable(LOCAL, limit_private_addresses=True)
    for number in range(400):
        exempt.answered(contact(number), 0.0)
        limited.answered(contact(number), 0.0)
    assert len(exempt) > 5 * SUBNET_TABLE_MAX
    assert len(limited) <= SUBNET_TABLE_MAX


def test_the_subnet_is_where_a_peer_answers_from_not_what_it_says() -> None:
    table = RoutingTable(LOCAL)
    for number in range(100):
        table.answered(public(number), 0.0, observed="/ip4/9.9.9.9/tcp/1")
    assert len(table) <= SUBNET_TABLE_MAX


def test_moving_to_a_full_subnet_loses_the_place() -> None:
    table = RoutingTable(LOCAL)
    a, b, c = (far(3)[n] for n in range(3))
    for known in (a, b):
        table.answered(known, 0.0, observed="/ip4/9.9.9.9/tcp/1")
    table.answered(c, 0.0, observed="/ip4/7.7.7.7/tcp/1")
    table.answered(c, 0.0, observed="/ip4/9.9.9.9/tcp/1")
    assert c.peer_id not in table


def test_stale_lists_suspects_first_then_the_longest_silent() -> None:
    table = RoutingTable(LOCAL)
    for number in range(5):
        table.answered(contact(number), float(number))
    table.failed(peer(4))
    stale = [c.peer_id for c in table.stale(102.0, older_than_s=100.0)]
    assert stale == [peer(4), peer(0), peer(1), peer(2)]


def test_a_saved_table_is_read_back_as_contacts() -> None:
    table = RoutingTable(LOCAL)
    for number in range(200):
        table.answered(contact(number), float(number))
    table.failed(next(iter(table)).peer_id)
    loaded = load_contacts(table.save())
    assert len(loaded) == min(128, len(table) - 1)
    assert all(table.contact_of(c.peer_id) == c for c in loaded)


class TableMachine(RuleBasedStateMachine):
    """Any order of answers and failures keeps every bound and the buckets' meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RoutingTable(LOCAL, bucket_size=4)
        self.now_s = 0.0
        self.answered: set[object] = set()
        self.failures: Counter[object] = Counter()

    @rule(number=st.integers(0, 60), crowd=st.integers(0, 3))
    def answer(self, number: int, crowd: int) -> None:
        observed = f"/ip4/9.9.{crowd}.9/tcp/1" if crowd else None
        challenged = self.table.answered(contact(number), self.now_s, observed=observed)
        self.answered.add(peer(number))
        self.failures[peer(number)] = 0
        assert challenged is None or challenged.peer_id in self.table

    @rule(number=st.integers(0, 60))
    def fail(self, number: int) -> None:
        self.table.failed(peer(number))
        self.failures[peer(number)] += 1

    @rule(number=st.integers(0, 60))
    def remove(self, number: int) -> None:
        self.table.remove(peer(number))
        assert peer(number) not in self.table

    @rule(seconds=st.floats(0, 200))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(number=st.integers(0, 60))
    def own_answer_changes_nothing(self, number: int) -> None:
        before = len(self.table)
        self.table.answered(Contact(peer_id=LOCAL), self.now_s)
        assert len(self.table) == before

    @invariant()
    def buckets_are_bounded_and_hold_their_own(self) -> None:
        assert all(size <= 4 for size in self.table.buckets().values())
        placed = Counter(common_prefix_bits(c.key, self.table.key) for c in self.table)
        assert placed == Counter({b: n for b, n in self.table.buckets().items() if n})

    @invariant()
    def only_who_answered_is_in_and_who_failed_enough_is_out(self) -> None:
        for known in self.table:
            assert known.peer_id in self.answered
            assert self.failures[known.peer_id] < FAILURES_MAX

    @invariant()
    def subnets_are_bounded_and_counted(self) -> None:
        entries = [e for b in self.table._buckets.values() for e in b.entries.values()]
        counted = Counter(e.subnet for e in entries if e.subnet)
        assert counted == self.table._subnets
        for bucket in self.table._buckets.values():
            crowd = Counter(e.subnet for e in bucket.entries.values() if e.subnet)
            assert all(count <= SUBNET_BUCKET_MAX for count in crowd.values())

    @invariant()
    def closest_is_what_sorting_gives(self) -> None:
        target = contact(77).key
        suspects = {
            e.contact
            for b in self.table._buckets.values()
            for e in b.entries.values()
            if e.failures
        }
        healthy = [c for c in self.table if c not in suspects]
        if len(healthy) >= 3:
            assert self.table.closest(target, 3) == nearest(healthy, target, 3)


TestTableStateful = TableMachine.TestCase
TestTableStateful.settings = settings(max_examples=30 * SCALE, stateful_step_count=40)


def test_subnets_of_addresses() -> None:
    assert subnet_of("/ip4/8.8.8.8/tcp/1") == "8.8.8.0/24"
    assert subnet_of("/ip6/2600::1/tcp/1") == "2600::/48"
    for exempt in (
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/10.1.2.3/tcp/1",
        "/dns/example.org/tcp/1",
        "",
        "/",
    ):
        assert subnet_of(exempt) is None
    assert subnet_of("/ip4/127.0.0.1/tcp/1", count_private=True) == "127.0.0.0/24"
    assert subnet_of("/ip4/nonsense/tcp/1") is None
