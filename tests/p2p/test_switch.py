"""The parts under the network: negotiation, identify, peer events, the address book, the plan."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import p2p
from p2p import identify
from p2p.address_book import AddressBook
from p2p.connection import HANDLER_GRACE_S, Connection, RawStream
from p2p.identify_pb2 import Identify as IdentifyMessage
from p2p.memory import Weather, open_hub
from p2p.multiaddress import Address
from p2p.multistream import (
    HEADER,
    LineReader,
    NegotiatedStream,
    agreement,
    encode_line,
    meet_optimist,
    propose,
    propose_optimistically,
    respond,
)
from p2p.peer_file import load_addresses, save_addresses
from p2p.peer_watch import PeerWatchers
from p2p.switch import PeerIdentified, Switch, SwitchEvent
from tests.p2p.networks import ECHO, LISTEN, echo, identity, until

LIMITS = p2p.Limits()
PEERS = [identity(number).peer_id for number in range(1, 12)]


class PairedStream(RawStream):
    """Trio's in-memory stream as a raw stream."""

    def __init__(self, inner: trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]):
        self.inner = inner
        self.sent: list[bytes] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def reset(self) -> None:
        await self.inner.aclose()

    async def wait_ended(self) -> None:
        await trio.sleep_forever()


def raw_pair() -> tuple[PairedStream, PairedStream]:
    one, other = trio.testing.memory_stream_pair()
    return PairedStream(one), PairedStream(other)


# multistream-select


@given(st.lists(st.text(max_size=200), max_size=8), st.binary(max_size=50), st.data())
def test_lines_read_back_however_they_are_cut(
    lines: list[str], tail: bytes, data: st.DataObject
) -> None:
    wire = b"".join(map(encode_line, lines)) + tail
    reader, read = LineReader(), []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        reader.feed(wire[:size])
        wire = wire[size:]
        while len(read) < len(lines) and (line := reader.next_line()) is not None:
            read.append(line)
    assert read == lines
    assert reader.take_surplus() == tail


@given(st.binary(max_size=300))
def test_any_bytes_are_lines_or_a_violation(wire: bytes) -> None:
    reader = LineReader()
    reader.feed(wire)
    try:
        while reader.next_line() is not None:
            pass
    except p2p.ProtocolViolation:
        pass


async def negotiated(
    proposals: Sequence[str], served: set[str]
) -> tuple[NegotiatedStream, NegotiatedStream]:
    near, far = raw_pair()
    ends: list[NegotiatedStream] = []

    async def answer() -> None:
        ends.append(await respond(far, PEERS[0], served.__contains__, 16))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        mine = await propose(near, PEERS[1], tuple(proposals))
    return mine, ends[0]


async def test_the_first_served_proposal_is_agreed_on() -> None:
    mine, theirs = await negotiated(["/a", "/b", "/c"], {"/c", "/b"})
    assert (mine.protocol, theirs.protocol) == ("/b", "/b")
    await mine.send_all(b"payload")
    assert await theirs.receive_some() == b"payload"


async def test_an_initiator_may_wait_for_the_header() -> None:
    """As py-libp2p does: header, header, proposal, answer."""
    near, far = raw_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(respond, far, PEERS[0], {"/a"}.__contains__, 16)
        await near.send_all(encode_line(HEADER))
        assert await near.receive_some() == encode_line(HEADER)
        await near.send_all(encode_line("/b"))
        assert await near.receive_some() == encode_line("na")
        await near.send_all(encode_line("/a"))
        assert await near.receive_some() == encode_line("/a")


async def test_optimistic_negotiation_is_one_flight() -> None:
    near, far = raw_pair()
    mine = propose_optimistically(near, PEERS[1], "/a")
    await mine.send_all(b"payload")
    assert near.sent == [encode_line(HEADER) + encode_line("/a") + b"payload"]
    theirs = await respond(far, PEERS[0], {"/a"}.__contains__, 16)
    assert await theirs.receive_some(3) == b"pay"
    assert await theirs.receive_some() == b"load"
    await theirs.send_all(b"answer")
    assert await mine.receive_some() == b"answer"


async def test_the_answer_to_an_optimist_leaves_with_the_first_payload() -> None:
    near, far = raw_pair()
    mine = propose_optimistically(near, PEERS[1], "/a")
    await mine.send_all(b"payload")
    theirs = await respond(far, PEERS[0], {"/a"}.__contains__, 16)
    assert await theirs.receive_some() == b"payload"
    assert far.sent == []
    await theirs.send_last(b"answer")
    assert far.sent == [encode_line(HEADER) + encode_line("/a") + b"answer"]
    assert await mine.receive_some() == b"answer"


async def test_the_answer_to_an_optimist_leaves_before_more_is_waited_for() -> None:
    near, far = raw_pair()
    mine = propose_optimistically(near, PEERS[1], "/a")
    await mine.send_all(b"one")
    theirs = await respond(far, PEERS[0], {"/a"}.__contains__, 16)
    assert await theirs.receive_some() == b"one"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        assert far.sent == [encode_line(HEADER) + encode_line("/a")]
        await mine.send_all(b"two")


async def test_the_answer_to_a_pessimist_leaves_at_once() -> None:
    near, far = raw_pair()
    await near.send_all(encode_line(HEADER) + encode_line("/a"))
    await respond(far, PEERS[0], {"/a"}.__contains__, 16)
    assert far.sent == [encode_line(HEADER) + encode_line("/a")]


@pytest.mark.parametrize(
    ("flight", "surplus"),
    [
        (agreement("/a") + b"payload", b"payload"),
        (agreement("/a") + b"\x00", b"\x00"),
        (agreement("/a"), None),
        (agreement("/a")[:-1], None),
        (encode_line(HEADER), None),
        (b"", None),
        (agreement("/b") + b"payload", None),
        (encode_line("/a") + encode_line(HEADER) + b"payload", None),
        (encode_line(HEADER) + b"\x04/a\n\n" + b"payload", None),
        (agreement("/" + 200 * "a") + b"payload", None),  # served, but of two bytes of length
    ],
)
async def test_only_a_flight_that_is_sure_is_met(flight: bytes, surplus: bytes | None) -> None:
    served = {agreement(each): each for each in ("/a", "/" + 200 * "a")}
    _, far = raw_pair()
    stream = meet_optimist(far, PEERS[0], served, flight)
    if surplus is None:
        assert stream is None
    else:
        assert stream is not None
        assert stream.protocol == "/a"
        assert await stream.receive_some() == surplus


async def test_waiting_for_the_negotiation_to_leave_ends_at_the_deadline() -> None:
    """A reader sends it; whoever sends meanwhile waits for that."""
    near, _ = raw_pair()

    async def never(data: object) -> None:
        await trio.sleep_forever()

    near.send_all = never  # type: ignore[method-assign, assignment]
    stream = propose_optimistically(near, PEERS[1], "/a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        stream.deadline_s = trio.current_time() + 0.05
        for call in (stream.send_all(b"x"), stream.send_last(b"x"), stream.send_eof()):
            with pytest.raises(trio.TooSlowError):
                await call
        nursery.cancel_scope.cancel()


async def test_an_expired_stream_closes() -> None:
    near, far = raw_pair()
    stream = propose_optimistically(near, PEERS[1], "/a")
    stream.deadline_s = -math.inf

    async def never(data: object) -> None:
        raise trio.TooSlowError

    near.send_all = never  # type: ignore[method-assign, assignment]
    await stream.aclose()
    assert await far.receive_some() == b""


async def test_optimism_disappointed() -> None:
    near, far = raw_pair()
    mine = propose_optimistically(near, PEERS[1], "/a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_respond_in_vain, far)
        with pytest.raises(p2p.ProtocolUnsupported):
            await mine.receive_some()
        nursery.cancel_scope.cancel()


async def test_a_refusal_that_was_half_read_is_still_one() -> None:
    near, far = raw_pair()
    mine = propose_optimistically(near, PEERS[1], "/a")
    refusal = encode_line(HEADER) + encode_line("na")
    for at in (5, len(refusal) - 2):
        await far.send_all(refusal[:at] if at == 5 else refusal[5:at])
        with trio.move_on_after(0.05) as scope:
            await mine.receive_some()
        assert scope.cancelled_caught
    await far.send_all(refusal[-2:])
    with pytest.raises(p2p.ProtocolUnsupported):
        await mine.receive_some()


async def _respond_in_vain(raw: RawStream) -> None:
    with pytest.raises(p2p.NetworkError):
        await respond(raw, PEERS[0], lambda protocol: False, 16)


@pytest.mark.parametrize(
    "flight",
    [
        b"\x05hello",
        b"\x00",
        b"\xff\xff\x03" + bytes(100),
        encode_line(HEADER) + b"\x04\xff\xfe\xfd\n",
        encode_line("/multistream/2.0.0"),
        encode_line(HEADER) + encode_line("/nope") * 40,
    ],
)
async def test_strange_flights_are_violations(flight: bytes) -> None:
    near, far = raw_pair()
    await near.send_all(flight)
    await near.send_eof()
    with pytest.raises((p2p.ProtocolViolation, p2p.StreamReset)):
        await respond(far, PEERS[0], lambda protocol: False, 16)


# identify


@given(
    st.frozensets(st.text(min_size=1, max_size=40), max_size=20),
    st.lists(st.integers(0, 65_535).map(lambda port: f"/ip4/10.0.0.1/tcp/{port}"), max_size=8),
)
def test_identify_reads_back(protocols: frozenset[str], addresses: list[str]) -> None:
    observed = Address.parse("/ip4/1.2.3.4/tcp/5")
    told = identify.encode(PEERS[0], protocols, map(Address.parse, addresses), observed)
    heard = identify.decode(told, PEERS[0], LIMITS)
    assert heard.protocols == protocols
    assert [str(a.with_peer(None)) for a in heard.addresses] == addresses
    assert all(address.peer_id == PEERS[0] for address in heard.addresses)


@given(st.binary(max_size=400))
def test_identify_takes_any_bytes(framed: bytes) -> None:
    with contextlib.suppress(p2p.ProtocolViolation):
        identify.decode(framed, PEERS[0], LIMITS)


def test_identify_refuses_the_key_of_another() -> None:
    told = identify.encode(PEERS[1], [], [], Address.parse("/ip4/1.2.3.4/tcp/5"))
    with pytest.raises(p2p.ProtocolViolation):
        identify.decode(told, PEERS[0], LIMITS)


def test_identify_leaves_out_what_it_cannot_read() -> None:
    message = IdentifyMessage(
        listen_addrs=[b"\x04\x01", b"", Address.parse("/ip4/1.2.3.4/tcp/5").to_bytes()],
        protocols=["x" * 10_000, "/ok"],
        agent_version="a" * 10_000,
    )
    raw = message.SerializeToString()
    assert len(raw) >= 0x80
    framed = bytes([len(raw) & 0x7F | 0x80, len(raw) >> 7 & 0x7F | 0x80, len(raw) >> 14]) + raw
    heard = identify.decode(framed, PEERS[0], LIMITS)
    assert heard.protocols == {"/ok"}
    assert [str(a.with_peer(None)) for a in heard.addresses] == ["/ip4/1.2.3.4/tcp/5"]
    assert len(heard.agent) <= 128


# Peer events

EVENTS = st.sampled_from(PEERS[:3]).flatmap(
    lambda peer: st.sampled_from(["come", "tell", "go"]).map(lambda verb: (verb, peer))
)


def event_of(verb: str, peer: p2p.PeerId) -> SwitchEvent:
    match verb:
        case "come":
            address = "/ip4/1.1.1.1/tcp/1"
            return p2p.PeerConnected(peer_id=peer, direction=p2p.Direction.INBOUND, address=address)
        case "tell":
            return PeerIdentified(peer_id=peer, protocols=frozenset(), addresses=(), agent="")
        case _:
            return p2p.PeerDisconnected(peer_id=peer)


@given(st.lists(st.one_of(*[EVENTS] * 6, st.just(("read", PEERS[0]))), max_size=60))
def test_a_reader_always_learns_the_present(history: list[tuple[str, p2p.PeerId]]) -> None:
    """Whatever is left out: at the end the reader's view is the truth, and little waited."""

    async def run() -> None:
        watchers = PeerWatchers()
        present: set[p2p.PeerId] = set()
        seen: set[p2p.PeerId] = set()

        def take(event: object) -> None:
            match event:
                case p2p.PeerConnected(peer_id=peer):
                    assert peer not in seen, "it comes only after it went"
                    seen.add(peer)
                case p2p.PeerDisconnected(peer_id=peer):
                    assert peer in seen, "it goes only after it came"
                    seen.discard(peer)
                case PeerIdentified(peer_id=peer):
                    assert peer in seen, "it tells only while it is there"

        async with watchers.watch() as watch:
            for verb, peer in history:
                if verb == "read":
                    with contextlib.suppress(trio.WouldBlock):
                        take(watch.receive_nowait())
                    continue
                if (verb == "come") == (peer in present):
                    continue  # a switch never says so
                (present.add if verb == "come" else present.discard)(peer) if verb != "tell" else 0
                watchers.tell(event_of(verb, peer))
                for pending in watch._pending.values():
                    kinds = [type(waiting) for waiting in pending]
                    assert len(kinds) == len(set(kinds)), "at most one of each kind"
            while True:
                try:
                    take(watch.receive_nowait())
                except trio.WouldBlock:
                    break
            assert seen == present
            async with watchers.watch() as late:
                seen.clear()
                while len(seen) < len(present):
                    take(late.receive_nowait())
            assert seen == present

    trio.run(run)


# The address book


def address_of(peer: p2p.PeerId, port: int) -> str:
    return f"/ip4/10.0.0.1/tcp/{port}/p2p/{peer}"


def test_the_book_is_bounded_and_proof_comes_first() -> None:
    book = AddressBook(peers_max=3, addresses_per_peer_max=2)
    for peer in PEERS[:4]:
        book.add(peer, [address_of(peer, 1), address_of(peer, 2), address_of(peer, 3)])
    assert book.of(PEERS[0]) == (), "touched longest ago"
    assert [a.port for a in book.of(PEERS[1])] == [1, 2]
    book.confirm(Address.parse(address_of(PEERS[1], 9)))
    assert [a.port for a in book.of(PEERS[1])] == [9, 1]
    book.forget(Address.parse(address_of(PEERS[1], 9)))
    assert [a.port for a in book.of(PEERS[1])] == [1]
    with pytest.raises(p2p.MalformedAddress):
        book.add(PEERS[1], [address_of(PEERS[2], 1)])


def test_the_book_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "peers.json"
    book = AddressBook(peers_max=10, addresses_per_peer_max=4)
    book.add(PEERS[0], [address_of(PEERS[0], 1)])
    save_addresses(path, book)
    read = AddressBook(peers_max=10, addresses_per_peer_max=4)
    load_addresses(path, read)
    assert read.of(PEERS[0]) == book.of(PEERS[0])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "[" * 100_000, json.dumps({"x": 1}), json.dumps({str(PEERS[0]): ["nope", 3]})],
)
def test_a_spoilt_book_is_left_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(text)
    book = AddressBook(peers_max=10, addresses_per_peer_max=4)
    load_addresses(path, book)
    load_addresses(tmp_path / "none", book)
    assert book.peers == ()


# The switchboard's bounds


async def test_streams_per_connection_are_bounded() -> None:
    limits = p2p.Limits(streams_per_connection_max=5)
    async with (
        open_hub() as hub,
        hub.open_switch(identity(1), limits) as server,
        hub.open_switch(identity(2), p2p.Limits()) as client,
    ):
        assert isinstance(server, Switch)
        await server.listen(LISTEN)
        server.serve(ECHO, echo)
        await client.connect(server.addresses[0])
        await until(lambda: bool(client.protocols_of(server.peer_id)))
        refused = 0
        async with trio.open_nursery() as nursery:

            async def hold() -> None:
                nonlocal refused
                try:
                    async with client.open_stream(server.peer_id, ECHO) as stream:
                        await stream.send_all(b"x")
                        await stream.receive_some()
                        await trio.sleep_forever()
                except p2p.StreamReset:
                    refused += 1

            for _ in range(8):
                nursery.start_soon(hold)
            await until(lambda: refused == 3)
            assert server.counters()["streams_refused"] == 3
            nursery.cancel_scope.cancel()
        await until(lambda: not server._guard._streams)
        async with client.open_stream(server.peer_id, ECHO) as stream:
            await stream.send_all(b"again")
            assert await stream.receive_some() == b"again"


async def test_connections_are_bounded_and_places_kept_for_dials() -> None:
    limits = p2p.Limits(connections_max=4, peers_low=1, peers_high=4)
    async with open_hub() as hub, hub.open_switch(identity(1), limits) as server:
        await server.listen(LISTEN)
        async with trio.open_nursery() as nursery:
            outcomes: list[bool] = []

            async def visit(number: int) -> None:
                async with hub.open_switch(identity(number), p2p.Limits()) as visitor:
                    try:
                        await visitor.connect(server.addresses[0])
                        outcomes.append(True)
                        await trio.sleep_forever()
                    except p2p.DialFailed:
                        outcomes.append(False)

            for number in range(2, 7):
                nursery.start_soon(visit, number)
            await until(lambda: len(outcomes) == 5)
            assert sorted(outcomes) == [False, False, True, True, True]
            async with hub.open_switch(identity(9), p2p.Limits()) as wanted:
                await wanted.listen(LISTEN)
                await server.connect(wanted.addresses[0])
            nursery.cancel_scope.cancel()
    assert server.counters()["connections_refused"] == 2


async def test_a_silent_stream_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        open_hub() as hub,
        hub.open_switch(identity(1), p2p.Limits()) as server,
        hub.open_switch(identity(2), p2p.Limits()) as client,
    ):
        await server.listen(LISTEN)
        await client.connect(server.addresses[0])
        raw = await client._newest_connection(server.peer_id).open_stream()
        start_s = trio.current_time()
        with pytest.raises(p2p.StreamReset):
            await raw.receive_some()
        assert trio.current_time() - start_s == pytest.approx(LIMITS.negotiation_timeout_s, abs=0.1)
        assert server.counters()["streams_violating"] == 1


async def test_a_handler_does_not_outlive_its_connection_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended_s: list[float] = []

    async def wait_for_something_else(stream: p2p.Stream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended_s.append(trio.current_time())

    async with (
        open_hub() as hub,
        hub.open_switch(identity(1), p2p.Limits()) as server,
        hub.open_switch(identity(2), p2p.Limits()) as client,
    ):
        await server.listen(LISTEN)
        server.serve("/wait/1", wait_for_something_else)
        await client.connect(server.addresses[0])
        async with client.open_stream(server.peer_id, "/wait/1"):
            await trio.sleep(1)
            lost_s = trio.current_time()
            await client.disconnect(server.peer_id)
        await trio.sleep(HANDLER_GRACE_S + 1)
        assert ended_s == [pytest.approx(lost_s + HANDLER_GRACE_S, abs=0.1)]
        assert not server._guard._streams
        assert not server._guard._negotiating
        assert server.counters()["handlers_cancelled"] == 1


@pytest.mark.parametrize("seed", [6, 11, 20])  # the three arrive before the dialling task runs
async def test_a_connection_that_is_lost_as_it_is_made_is_not_made(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Its handlers end, and nobody believes in it."""
    handlers = 0

    async def wait_for_something_else(stream: p2p.Stream) -> None:
        nonlocal handlers
        handlers += 1
        try:
            await trio.sleep_forever()
        finally:
            handlers -= 1

    async with (
        open_hub(seed=seed, weather=Weather(latency_max_s=1)) as hub,
        hub.open_switch(identity(1), p2p.Limits()) as server,
        hub.open_switch(identity(2), p2p.Limits()) as client,
        trio.open_nursery() as nursery,
    ):
        accept = server.connected

        async def open_and_close(connection: Connection) -> None:
            stream = propose_optimistically(
                await connection.open_stream(), client.peer_id, "/wait/1"
            )
            await stream.send_all(b"payload")
            await connection.aclose()

        def connected(connection: Connection) -> None:
            accept(connection)
            nursery.start_soon(open_and_close, connection)

        server.connected = connected  # type: ignore[method-assign]
        client.serve("/wait/1", wait_for_something_else)
        await server.listen(LISTEN)
        with contextlib.suppress(p2p.NetworkError):
            await client.connect(server.addresses[0])
        await trio.sleep(60)
        assert handlers == 0
        assert not client.peers


async def test_a_protocol_of_too_long_an_id_is_not_served() -> None:
    limits = p2p.Limits(protocol_id_bytes_max=2_000)
    async with open_hub() as hub, hub.open_switch(identity(1), limits) as switch:
        served = set(switch._guard.protocols)
        with pytest.raises(ValueError, match="1501 bytes"):
            switch.serve(1_500 * "a", echo)
        switch.unserve(1_500 * "a")
        assert set(switch._guard.protocols) == served


async def test_bans_are_bounded_and_expire(autojump_clock: trio.testing.MockClock) -> None:
    limits = p2p.Limits(bans_max=2, ban_s=100)
    async with open_hub() as hub, hub.open_switch(identity(1), limits) as switch:
        switch.ban(PEERS[0], duration_s=10)
        switch.ban(PEERS[1])
        switch.ban(PEERS[2])
        assert switch.counters()["bans"] == 3
        assert [switch.is_banned(peer) for peer in PEERS[:3]] == [False, True, True]
        await trio.sleep(101)
        assert not any(map(switch.is_banned, PEERS[:3]))
