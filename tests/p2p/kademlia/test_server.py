"""The server: what it answers, whose word it takes, and that no request breaks it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import InvalidRecord, ProtocolViolation
from p2p.identity import PeerId
from p2p.kademlia import Contact, Kind, Message, Record, RoutingTable, decode_message
from p2p.kademlia.message import MESSAGE_BYTES_MAX, encode_message
from p2p.kademlia.multihash import provider_key
from p2p.kademlia.providers import ProviderStore
from p2p.kademlia.records import RecordStore, Validators
from p2p.kademlia.server import PROVIDER_KEY_BYTES_MAX, Server
from p2p.kademlia.table import nearest
from tests.p2p.kademlia.strategies import SCALE, contact, hostile_bytes, messages, peer, public
from tests.p2p.kademlia.test_stores import Newest, record

LOCAL = peer(10_000)
KEY = provider_key(b"what is provided")


class Node:
    """A server and what it knows."""

    def __init__(self) -> None:
        self.table = RoutingTable(LOCAL)
        self.providers = ProviderStore(self.table.key)
        self.records = RecordStore(self.table.key, Validators({"n": Newest()}))
        self.clients: dict[PeerId, tuple[str, ...]] = {}
        self.server = Server(
            table=self.table,
            providers=self.providers,
            records=self.records,
            addresses_of=lambda peer_id: self.clients.get(peer_id, ()),
        )
        for number in range(60):
            self.table.answered(contact(number), 0.0)

    def ask(self, kind: Kind, key: bytes = b"", *, sender: int = 500, **rest: object) -> Message:
        request = Message(kind=kind, key=key, **rest)  # type: ignore[arg-type]
        answer = self.server.answer(peer(sender), request, 0.0)
        assert answer is not None
        return answer


def test_find_node_names_the_closest_but_not_who_asks() -> None:
    node = Node()
    inside = next(iter(node.table))
    sender = next(n for n in range(60) if peer(n) == inside.peer_id)
    answer = node.ask(Kind.FIND_NODE, inside.peer_id.to_bytes(), sender=sender)
    others = [c for c in node.table if c != inside]
    assert list(answer.closer) == nearest(others, inside.key, 20)


def test_find_node_names_a_known_target_first_even_a_client() -> None:
    node = Node()
    client = contact(700)
    assert node.ask(Kind.FIND_NODE, client.peer_id.to_bytes()).closer[0] != client
    node.clients[client.peer_id] = client.addresses
    answer = node.ask(Kind.FIND_NODE, client.peer_id.to_bytes())
    assert answer.closer[0] == client
    assert len(answer.closer) == 20


def test_find_node_names_the_node_itself() -> None:
    node = Node()
    own = Contact(peer_id=LOCAL, addresses=(f"/ip4/127.0.0.1/tcp/1/p2p/{LOCAL}",))
    node.clients[LOCAL] = own.addresses
    assert node.ask(Kind.FIND_NODE, LOCAL.to_bytes()).closer[0] == own


def test_announcing_oneself_is_remembered_and_answers_carry_both_lists() -> None:
    node = Node()
    announcement = Message(kind=Kind.ADD_PROVIDER, key=KEY, providers=(contact(500), contact(501)))
    assert node.server.answer(peer(500), announcement, 0.0) is None
    answer = node.ask(Kind.GET_PROVIDERS, KEY, sender=502)
    assert answer.providers == (contact(500),), "not 501, who did not say so itself"
    assert len(answer.closer) == 20
    assert node.ask(Kind.GET_PROVIDERS, KEY, sender=500).providers == ()


def test_announcing_somebody_else_is_refused() -> None:
    node = Node()
    spoofed = Message(kind=Kind.ADD_PROVIDER, key=KEY, providers=(contact(501),))
    with pytest.raises(ProtocolViolation):
        node.server.answer(peer(500), spoofed, 0.0)
    assert node.ask(Kind.GET_PROVIDERS, KEY).providers == ()


@pytest.mark.parametrize("key", [b"", bytes(PROVIDER_KEY_BYTES_MAX + 1)])
@pytest.mark.parametrize("kind", [Kind.ADD_PROVIDER, Kind.GET_PROVIDERS])
def test_provider_keys_have_bounds(kind: Kind, key: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        Node().ask(kind, key, providers=(contact(500),))


def test_a_valid_record_is_stored_echoed_and_found() -> None:
    node = Node()
    put = record(1, 7)
    assert node.ask(Kind.PUT_VALUE, put.key, record=put).record == put
    found = node.ask(Kind.GET_VALUE, put.key).record
    assert found is not None
    assert found.value == b"7"
    assert node.ask(Kind.GET_VALUE, b"/n/2").record is None
    with pytest.raises(InvalidRecord, match="better"):
        node.ask(Kind.PUT_VALUE, put.key, record=record(1, 6))


@pytest.mark.parametrize(
    "sent", [None, record(2, 1), record(1, b"bad"), Record(key=b"", value=b"")]
)
def test_a_record_that_is_missing_misplaced_or_invalid_is_refused(sent: Record | None) -> None:
    with pytest.raises((ProtocolViolation, InvalidRecord)):
        Node().ask(Kind.PUT_VALUE, b"/n/1", record=sent)


def test_a_ping_is_a_ping() -> None:
    assert Node().ask(Kind.PING) == Message(kind=Kind.PING)


def test_the_largest_answer_fits_the_bound_of_a_message() -> None:
    node = Node()
    node.table = table = RoutingTable(LOCAL)
    for number in range(60):
        peer_id = peer(number)
        name = "a" * 249 + ".org"
        addresses = tuple(f"/dns/{name}/tcp/{port}/p2p/{peer_id}" for port in range(10, 20))
        table.answered(Contact(peer_id=peer_id, addresses=addresses), 0.0)
        node.providers.add(KEY, Contact(peer_id=peer_id, addresses=addresses), 0.0)
    node.server = Server(table=table, providers=node.providers, records=node.records)
    answer = node.ask(Kind.GET_PROVIDERS, KEY)
    assert len(answer.closer) == len(answer.providers) == 20
    assert len(encode_message(answer)) < MESSAGE_BYTES_MAX


NODE = Node()


@settings(max_examples=1000 * SCALE)
@given(hostile_bytes | messages.map(encode_message), st.integers(0, 100))
def test_fuzz_requests_are_answered_within_bounds_or_refused(data: bytes, sender: int) -> None:
    known = len(NODE.table)
    try:
        answer = NODE.server.answer(peer(sender), decode_message(data), 0.0)
    except (ProtocolViolation, InvalidRecord):
        answer = None
    if answer is not None:
        assert len(answer.closer) <= 20
        assert len(answer.providers) <= 20
        assert decode_message(encode_message(answer)) == answer
    assert len(NODE.table) == known, "being asked teaches the table nothing"


def test_a_flood_of_announcements_stays_within_the_bounds() -> None:
    node = Node()
    for number in range(300):
        sybil = public(number + 10_000_000)
        for key in range(3):
            message = Message(kind=Kind.ADD_PROVIDER, key=bytes([key + 1]), providers=(sybil,))
            node.server.answer(sybil.peer_id, message, 0.0)
    assert len(node.providers) == 3 * 128
