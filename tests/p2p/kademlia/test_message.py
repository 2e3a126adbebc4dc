"""Messages: what is decoded is bounded and well formed, whatever the bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import ProtocolViolation
from p2p.kademlia import Kind, Message, MessageReader, Record, decode_message
from p2p.kademlia.dht_pb2 import Message as WireMessage
from p2p.kademlia.message import (
    ADDRESSES_MAX,
    KEY_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    PEERS_MAX,
    encode_message,
    frame_message,
)
from p2p.multiaddress import Address
from tests.p2p.kademlia.strategies import SCALE, contact, hostile_bytes, messages, peer


@given(messages)
def test_a_message_reads_back_equal(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


@given(st.lists(messages, max_size=4), st.data())
def test_a_stream_is_cut_into_its_messages_however_it_arrives(
    sent: list[Message], data: st.DataObject
) -> None:
    stream = b"".join(map(frame_message, sent))
    reader = MessageReader()
    received = []
    position = 0
    while position < len(stream):
        size = data.draw(st.integers(1, 200))
        reader.receive_data(stream[position : position + size])
        position += size
        while (message := reader.next_message()) is not None:
            received.append(message)
    assert received == sent
    assert reader.empty


@settings(max_examples=1000 * SCALE)
@given(hostile_bytes)
def test_fuzz_decoding_gives_a_bounded_message_or_a_protocol_violation(data: bytes) -> None:
    try:
        message = decode_message(data)
    except ProtocolViolation:
        return
    assert len(message.closer) <= PEERS_MAX
    assert len(message.providers) <= PEERS_MAX
    for named in (*message.closer, *message.providers):
        assert len(named.addresses) <= ADDRESSES_MAX
        for address in named.addresses:
            assert Address.parse(address).peer_id == named.peer_id
    encode_message(message)


@settings(max_examples=200 * SCALE)
@given(st.lists(st.binary(max_size=64), max_size=8))
def test_fuzz_a_reader_is_never_broken_by_bytes(pieces: list[bytes]) -> None:
    reader = MessageReader()
    try:
        for piece in pieces:
            reader.receive_data(piece)
            while reader.next_message() is not None:
                pass
    except ProtocolViolation:
        pass


def test_the_bytes_are_those_of_the_specification() -> None:
    message = Message(kind=Kind.FIND_NODE, key=b"k", closer=(contact(1),))
    address = bytes.fromhex("040a00000106") + (2).to_bytes(2)
    peer_bytes = b"\x0a\x26" + peer(1).to_bytes() + b"\x12\x08" + address
    assert (
        encode_message(message) == b"\x08\x04\x12\x01k\x42" + bytes([len(peer_bytes)]) + peer_bytes
    )


def test_announcing_a_length_over_the_bound_is_refused_before_the_bytes_come() -> None:
    reader = MessageReader(bytes_max=1000)
    reader.receive_data(b"\xe9\x07")
    with pytest.raises(ProtocolViolation):
        reader.next_message()


def test_a_length_without_end_is_refused() -> None:
    reader = MessageReader()
    reader.receive_data(b"\x80\x80\x80\x80")
    with pytest.raises(ProtocolViolation):
        reader.next_message()


def test_a_message_over_the_bound_and_a_key_over_the_bound_are_refused() -> None:
    with pytest.raises(ProtocolViolation):
        decode_message(bytes(MESSAGE_BYTES_MAX + 1))
    with pytest.raises(ProtocolViolation):
        decode_message(encode_message(Message(kind=Kind.GET_VALUE, key=bytes(KEY_BYTES_MAX + 1))))


def test_hundreds_of_named_peers_and_addresses_become_few() -> None:
    wire = WireMessage()
    for number in range(500):
        named = wire.closer_peers.add()
        named.id = peer(number).to_bytes()
        named.addrs.extend(
            bytes.fromhex("0401020304") + b"\x06" + port.to_bytes(2) for port in range(1, 40)
        )
    decoded = decode_message(wire.SerializeToString())
    assert len(decoded.closer) == PEERS_MAX
    assert all(len(named.addresses) == ADDRESSES_MAX for named in decoded.closer)


def test_an_address_that_names_another_peer_is_left_out() -> None:
    wire = WireMessage()
    named = wire.closer_peers.add()
    named.id = peer(1).to_bytes()
    named.addrs.append(Address.parse(f"/ip4/1.2.3.4/tcp/5/p2p/{peer(2)}").to_bytes())
    named.addrs.append(Address.parse("/ip4/1.2.3.4/tcp/6").to_bytes())
    (decoded,) = decode_message(wire.SerializeToString()).closer
    assert decoded.addresses == (f"/ip4/1.2.3.4/tcp/6/p2p/{peer(1)}",)


def test_a_record_without_a_time_is_a_record() -> None:
    message = Message(kind=Kind.PUT_VALUE, key=b"/n/k", record=Record(key=b"/n/k", value=b""))
    assert decode_message(encode_message(message)) == message
