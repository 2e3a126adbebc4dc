"""The messages of Kademlia, and the only way from bytes to them and back.

The rule: what has been decoded is within bounds — sizes, counts, well-formed peer ids and addresses
— and what is not well formed raises `ProtocolViolation` and nothing else (libp2p kad-dht, "RPC
messages": protobuf, each message prefixed with its length as a varint).

Deviations: peers whose ids are not Ed25519 keys, and addresses that could not be dialled here, are
left out while decoding; what a message says of connections is neither written nor read.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from google.protobuf.message import DecodeError

from p2p.errors import MalformedAddress, MalformedPeerId, ProtocolViolation
from p2p.identity import PeerId
from p2p.kademlia import dht_pb2
from p2p.kademlia.contact import Contact
from p2p.multiaddress import Address

KEY_BYTES_MAX = 1024
"""Provider keys are multihashes of some 34 bytes, record keys short paths; go-libp2p's are bounded
only by its message size."""

MESSAGE_BYTES_MAX = 256 * 1024
"""Twice 20 peers with 32 addresses of 120 bytes, a record of 16 KiB, and as much again of room."""

PEERS_MAX = 40
"""Twice the replication: a peer needs to name 20, and some name what they are asked for as well."""

ADDRESSES_MAX = 8
"""Kept of one peer: more than one per transport and network is a mistake or an attack."""

ADDRESSES_READ_MAX = 32
"""Looked at to find those: browsers and relays announce many that cannot be dialled here."""

ADDRESS_BYTES_MAX = 320
"""A DNS name of 253 bytes, a port and a peer id."""

LENGTH_BYTES_MAX = 3
"""Varint bytes of a length up to `MESSAGE_BYTES_MAX`."""


class Kind(enum.IntEnum):
    """What a message asks; an answer has the kind of its request."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A value under a key, and when its holder received it (RFC 3339 text, or empty)."""

    key: bytes
    value: bytes
    time_received: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A request or its answer."""

    kind: Kind
    key: bytes = b""
    record: Record | None = None
    closer: tuple[Contact, ...] = ()
    providers: tuple[Contact, ...] = ()


def encode_message(message: Message) -> bytes:
    """The protobuf bytes of a message, without the length before them."""
    wire = dht_pb2.Message(type=message.kind.name, key=message.key)
    if message.record is not None:
        wire.record.key = message.record.key
        wire.record.value = message.record.value
        wire.record.time_received = message.record.time_received
    for contact in message.closer[:PEERS_MAX]:
        _encode_contact(contact, wire.closer_peers.add())
    for contact in message.providers[:PEERS_MAX]:
        _encode_contact(contact, wire.provider_peers.add())
    return wire.SerializeToString()


def decode_message(data: bytes) -> Message:
    """The message in `data`; raises `ProtocolViolation` for anything that is none."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolViolation(f"a Kademlia message of {len(data)} bytes")
    wire = dht_pb2.Message()
    try:
        wire.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolViolation("not a Kademlia message") from error
    try:
        kind = Kind(wire.type)
    except ValueError as error:
        raise ProtocolViolation(f"Kademlia message of unknown type {wire.type}") from error
    if len(wire.key) > KEY_BYTES_MAX or len(wire.record.key) > KEY_BYTES_MAX:
        raise ProtocolViolation("a Kademlia key that is too long")
    record = None
    if wire.HasField("record"):
        record = Record(
            key=wire.record.key,
            value=wire.record.value,
            time_received=wire.record.time_received,
        )
    return Message(
        kind=kind,
        key=wire.key,
        record=record,
        closer=tuple(_decode_contacts(wire.closer_peers)),
        providers=tuple(_decode_contacts(wire.provider_peers)),
    )


def frame_message(message: Message) -> bytes:
    """The message as it goes on a stream: its length as a varint, then its bytes."""
    encoded = encode_message(message)
    return _encode_length(len(encoded)) + encoded


class MessageReader:
    """Cuts the bytes of a stream into messages; holds at most one message and what came with it.

    Call `receive_data` with bytes as they come, and `next_message` until it returns None.
    """

    __slots__ = ("_buffer", "_bytes_max")

    def __init__(self, *, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._bytes_max = bytes_max

    def receive_data(self, data: bytes) -> None:
        """Append what a stream has brought; a caller reads at most 64 KiB between two messages."""
        self._buffer += data

    def next_message(self) -> Message | None:
        """The next whole message, or None until more bytes come.

        Raises:
            ProtocolViolation: a length that is malformed or too large, or a malformed message.
        """
        length, start = self._length()
        if start == 0:
            return None
        if length > self._bytes_max:
            raise ProtocolViolation(f"a Kademlia message of {length} bytes is announced")
        end = start + length
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[start:end])
        del self._buffer[:end]
        return decode_message(data)

    def _length(self) -> tuple[int, int]:
        """The announced length and where the message starts; start 0 while it is incomplete."""
        length = 0
        for position, byte in enumerate(self._buffer[:LENGTH_BYTES_MAX]):
            length |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:
                return length, position + 1
        if len(self._buffer) >= LENGTH_BYTES_MAX:
            raise ProtocolViolation("the length of a Kademlia message is too long")
        return 0, 0

    @property
    def empty(self) -> bool:
        """Whether no part of a message is waiting for its rest."""
        return not self._buffer


def _encode_length(length: int) -> bytes:
    """Unsigned LEB128 (multiformats/unsigned-varint)."""
    encoded = bytearray()
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def _encode_contact(contact: Contact, wire: dht_pb2.Message.Peer) -> None:
    wire.id = contact.peer_id.to_bytes()
    for text in contact.addresses[:ADDRESSES_MAX]:
        with contextlib.suppress(MalformedAddress):
            # Foreign peers expect the address without the id that stands beside it.
            wire.addrs.append(Address.parse(text).with_peer(None).to_bytes())


def _decode_contacts(peers: Iterable[dht_pb2.Message.Peer]) -> Iterable[Contact]:
    for peer in islice(peers, PEERS_MAX):
        try:
            peer_id = PeerId.from_bytes(peer.id)
        except MalformedPeerId:
            continue
        usable = dict.fromkeys(_decode_addresses(peer_id, islice(peer.addrs, ADDRESSES_READ_MAX)))
        yield Contact(peer_id=peer_id, addresses=tuple(islice(usable, ADDRESSES_MAX)))


def _decode_addresses(peer_id: PeerId, encoded: Iterable[bytes]) -> Iterable[str]:
    for data in encoded:
        if len(data) > ADDRESS_BYTES_MAX:
            continue
        try:
            address = Address.from_bytes(data)
        except MalformedAddress:
            continue
        # An address that ends in another peer's id contradicts the id beside it.
        if address.peer_id in (None, peer_id):
            yield str(address.with_peer(peer_id))
