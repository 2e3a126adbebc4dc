"""Peers, contacts, messages and hostile bytes for the tests of the DHT."""

import hashlib
import os

from hypothesis import strategies as st

from p2p.identity import PeerId
from p2p.kademlia import Contact, Kind, Message, Record
from p2p.kademlia.dht_pb2 import Message as WireMessage

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
"""100 gives the full case counts."""


def peer(number: int) -> PeerId:
    """A peer id of its own for every number; its place in the key space is as good as random."""
    return PeerId.from_public_key(hashlib.sha256(number.to_bytes(8)).digest())


def contact(number: int, ip: str = "10.0.0.1") -> Contact:
    """The contact of `peer(number)`, at one address."""
    peer_id = peer(number)
    return Contact(
        peer_id=peer_id,
        addresses=(f"/ip4/{ip}/tcp/{1 + number % 65_535}/p2p/{peer_id}",),
    )


def public(number: int) -> Contact:
    """A contact in a public subnet of its own."""
    return contact(number, f"{11 + number // 65_536 % 80}.{number // 256 % 256}.{number % 256}.1")


contacts = st.integers(0, 500).map(contact)
kinds = st.sampled_from(list(Kind))
records = st.builds(
    Record,
    key=st.binary(max_size=64),
    value=st.binary(max_size=256),
    time_received=st.sampled_from(["", "2026-01-02T03:04:05.000006Z"]),
)
messages = st.builds(
    Message,
    kind=kinds,
    key=st.binary(max_size=80),
    record=st.none() | records,
    closer=st.lists(contacts, max_size=20).map(tuple),
    providers=st.lists(contacts, max_size=20).map(tuple),
)

peer_bytes = st.integers(0, 9).map(lambda number: peer(number).to_bytes())


@st.composite
def hostile_wire_messages(draw: st.DrawFn) -> bytes:
    """Protobuf that parses but breaks every other rule, or nearly parses."""
    wire = WireMessage()
    wire.type = draw(st.integers(-(2**31), 2**31 - 1))  # type: ignore[assignment]
    wire.key = draw(st.binary(max_size=40) | st.just(peer(1).to_bytes()))
    if draw(st.booleans()):
        wire.record.key = draw(st.sampled_from([wire.key, b"/pk/x", b"\xff"]))
        wire.record.value = draw(st.binary(max_size=64))
    for field in (wire.closer_peers, wire.provider_peers):
        for _ in range(draw(st.integers(0, 3))):
            named = field.add()
            named.id = draw(
                st.binary(max_size=40) | st.integers(0, 9).map(lambda n: peer(n).to_bytes())
            )
            named.addrs.extend(draw(st.lists(st.binary(max_size=24), max_size=3)))
    data = bytearray(wire.SerializeToString())
    for _ in range(draw(st.integers(0, 3))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


hostile_bytes = st.binary(max_size=128) | hostile_wire_messages()
