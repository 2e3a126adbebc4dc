"""Bounds that no deployment moves, each reached by whoever could make something grow."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

import p2p
from p2p import peer_file
from p2p.address_book import AddressBook
from p2p.gossipsub.codec import decode_rpc
from p2p.gossipsub.events import SendMessage
from p2p.gossipsub.message import WireMessage, content_id
from p2p.gossipsub.parameters import CONTROL_ENTRIES_MAX, RETRANSMISSIONS_MAX
from p2p.gossipsub.rpc_pb2 import RPC
from p2p.identity import PEER_ID_TEXT_LENGTH_MAX, PEER_IDS_CACHED_MAX, _peer_id_of_bytes
from p2p.kademlia import PROTOCOL, Kind, Message, Record, exchange, providers, records
from p2p.kademlia.dht_pb2 import Message as WireKademlia
from p2p.kademlia.lookup import CANDIDATES_MAX, Lookup
from p2p.kademlia.message import ADDRESS_BYTES_MAX, ADDRESSES_READ_MAX, decode_message
from p2p.kademlia.multihash import provider_key
from p2p.kademlia.providers import ProviderStore
from p2p.kademlia.server import PROVIDERS_NAMED_MAX, Server
from p2p.kademlia.table import REPLACEMENTS_MAX, RoutingTable
from p2p.kademlia.walk import PROBES_PENDING_MAX, Walker
from p2p.memory import open_hub
from p2p.multiaddress import TEXT_LENGTH_MAX, Address
from p2p.switchboard import CONNECTIONS_PER_PEER_MAX
from tests.p2p.gossipsub.harness import Bench
from tests.p2p.kademlia.strategies import contact
from tests.p2p.kademlia.test_stores import store
from tests.p2p.limits.test_kademlia import visited
from tests.p2p.networks import LISTEN, identity, until

LOCAL = contact(10_000)


async def test_connections_per_peer_max() -> None:
    async with open_hub() as hub, AsyncExitStack() as stack:
        server = await stack.enter_async_context(hub.open_switch(identity(1), p2p.Limits()))
        await server.listen(LISTEN)
        refused = 0
        for _ in range(CONNECTIONS_PER_PEER_MAX + 2):  # one identity that runs many times
            again = await stack.enter_async_context(hub.open_switch(identity(2), p2p.Limits()))
            try:
                await again.connect(server.addresses[0])
            except p2p.DialFailed:
                refused += 1
        assert refused == server.counters()["connections_refused"] == 2


def test_retransmissions_max() -> None:
    bench = Bench()
    asker, source = bench.join([1, 2])
    message = WireMessage("votes", b"wanted")
    bench.accept(source, message.data)
    sent = [
        any(
            isinstance(effect, SendMessage) and asker in effect.peers
            for effect in bench.control(asker, iwant=(content_id(message),))
        )
        for _ in range(RETRANSMISSIONS_MAX + 2)
    ]
    assert sent == [True] * RETRANSMISSIONS_MAX + [False] * 2
    assert bench.router.counters["iwant_over_limit"] == 2


def test_control_entries_max() -> None:
    wire = RPC()
    for number in range(CONTROL_ENTRIES_MAX + 9):
        wire.control.graft.add(topicID=b"%d" % number)
        wire.control.prune.add(topicID=b"%d" % number)
    control = decode_rpc(wire.SerializeToString()).control
    assert control is not None
    assert len(control.graft) == len(control.prune) == CONTROL_ENTRIES_MAX


def test_addresses_read_max_and_address_bytes_max() -> None:
    wire, good = WireKademlia(), Address.parse("/ip4/1.2.3.4/tcp/5").to_bytes()
    buried, long = wire.closer_peers.add(), wire.closer_peers.add()
    buried.id, long.id = contact(1).peer_id.to_bytes(), contact(2).peer_id.to_bytes()
    buried.addrs.extend([b"\xff"] * ADDRESSES_READ_MAX + [good])
    long.addrs.extend([b"\x36\xff\x7f" + b"x" * ADDRESS_BYTES_MAX, good])
    [found, other] = decode_message(wire.SerializeToString()).closer
    assert (len(found.addresses), len(other.addresses)) == (0, 1)


def test_replacements_max() -> None:
    table = RoutingTable(LOCAL.peer_id)
    newcomers = (contact(number) for number in range(2000))
    far = [each for each in newcomers if (each.key ^ table.key) >> 255]
    for each in far:
        table.answered(each, 0.0)
    assert [len(bucket.replacements) for bucket in table._buckets.values()] == [REPLACEMENTS_MAX]


def test_announcements_max(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "ANNOUNCEMENTS_MAX", 10)
    kept = ProviderStore(LOCAL.key)
    for number in range(50):
        kept.add(bytes([number % 7]), contact(number), 0.0)
    assert len(kept) <= 10
    assert kept.counts["kademlia_announcements_refused"] > 0


def test_store_bytes_max(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "STORE_BYTES_MAX", 1000)
    kept = store()
    for number in range(30):
        kept.put(Record(key=b"/n/%d" % number, value=b"1" * 95), contact(number).peer_id, 0.0)
    assert len(kept) == 10
    assert kept.counts["kademlia_records_refused"] + kept.counts["kademlia_records_displaced"] == 20


async def test_probes_pending_max() -> None:
    async with open_hub() as hub, hub.open_switch(identity(1), p2p.Limits()) as switch:
        walker = Walker(switch, RoutingTable(switch.peer_id), PROTOCOL)
        for number in range(PROBES_PENDING_MAX + 5):
            walker.probe(contact(number))
        assert len(walker.probing) == PROBES_PENDING_MAX
        assert walker.counts["kademlia_probes_dropped"] == 5


async def test_streams_max(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "STREAMS_MAX", 2)
    async with visited() as (visitors, node), AsyncExitStack() as stack:
        for _ in range(3):
            visitor = (await visitors.new())._switch
            opened = visitor.open_stream(node._switch.peer_id, PROTOCOL)
            stream = await stack.enter_async_context(opened)
            with suppress(p2p.StreamReset):
                await stream.send_all(b"\x40")  # announces a request that does not come
        await until(lambda: node.counters().get("kademlia_streams_refused", 0) >= 1)


def test_providers_named_max() -> None:
    table = RoutingTable(LOCAL.peer_id)
    known, key = ProviderStore(LOCAL.key), provider_key(b"popular")
    for number in range(PROVIDERS_NAMED_MAX + 9):
        known.add(key, contact(number), 0.0)
    server = Server(table=table, providers=known, records=store())
    answer = server.answer(contact(99).peer_id, Message(kind=Kind.GET_PROVIDERS, key=key), 0.0)
    assert answer is not None
    assert len(answer.providers) == PROVIDERS_NAMED_MAX


def test_candidates_max() -> None:
    seeds = [contact(number) for number in range(20)]
    lookup = Lookup(target=contact(20_000).key, local=LOCAL.peer_id, seeds=seeds)
    invented = (contact(number) for number in range(100, 9000))
    most = 0
    while not lookup.done:
        for asked in lookup.poll(0.0):
            lookup.answered(asked.peer_id, [next(invented) for _ in range(20)])
            most = max(most, len(lookup._order))
    assert most == CANDIDATES_MAX
    assert len(lookup._candidates) <= CANDIDATES_MAX


def test_texts_have_lengths() -> None:
    with pytest.raises(p2p.MalformedAddress):
        Address.parse("/dns4/a/tcp/1" + "/" * TEXT_LENGTH_MAX)
    with pytest.raises(p2p.MalformedPeerId, match="characters"):
        p2p.PeerId("1" * (PEER_ID_TEXT_LENGTH_MAX + 1))


def test_peer_ids_cached_max() -> None:
    for number in range(PEER_IDS_CACHED_MAX + 100):
        p2p.PeerId.from_public_key(number.to_bytes(32))
    assert _peer_id_of_bytes.cache_info().currsize == PEER_IDS_CACHED_MAX


def test_file_bytes_max(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = AddressBook(peers_max=10, addresses_per_peer_max=4)
    book.add(contact(1).peer_id, contact(1).addresses)
    path = tmp_path / "peers.json"
    peer_file.save_addresses(path, book)
    monkeypatch.setattr(peer_file, "FILE_BYTES_MAX", path.stat().st_size - 1)
    read = AddressBook(peers_max=10, addresses_per_peer_max=4)
    peer_file.load_addresses(path, read)
    assert read.peers == ()
