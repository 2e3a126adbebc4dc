"""identify 1.0: what a peer says of itself — protocols, addresses, agent (libp2p specs/identify).

The rule: everything in it is a claim; it is bounded, and each part that cannot be read is left out
without spoiling the rest. The one thing checked is the public key: it must be the one that the
handshake proved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from p2p.errors import MalformedAddress, ProtocolViolation
from p2p.identify_pb2 import Identify as IdentifyMessage
from p2p.identity import PeerId
from p2p.limits import Limits
from p2p.multiaddress import Address

IDENTIFY = "/ipfs/id/1.0.0"
IDENTIFY_PUSH = "/ipfs/id/push/1.0.0"
PROTOCOL_VERSION = "agora/1"
AGENT = "agora-node"
AGENT_LENGTH_MAX = 128
"""Shown to people; a longer one is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identification:
    """What one peer says of itself."""

    protocols: frozenset[str]
    addresses: tuple[Address, ...]
    agent: str


def encode(
    peer_id: PeerId, protocols: Iterable[str], addresses: Iterable[Address], observed: Address
) -> bytes:
    """The length-delimited message that describes us to a peer seen at `observed`."""
    message = IdentifyMessage(
        public_key=_encoded_key(peer_id),
        listen_addrs=[address.with_peer(None).to_bytes() for address in addresses],
        protocols=sorted(protocols),
        observed_addr=observed.with_peer(None).to_bytes(),
        protocol_version=PROTOCOL_VERSION,
        agent_version=AGENT,
    )
    raw = message.SerializeToString()
    return _varint(len(raw)) + raw


def decode(framed: bytes, peer_id: PeerId, limits: Limits) -> Identification:
    """Read the length-delimited message of `peer_id`.

    Raises:
        ProtocolViolation: not the message that its length announces, or another peer's key.
    """
    size, start = _read_varint(framed)
    if len(framed) - start != size:
        raise ProtocolViolation("an identify message that is not as long as it says")
    try:
        message = IdentifyMessage.FromString(framed[start:])
    except DecodeError as error:
        raise ProtocolViolation("an identify message that is not protobuf") from error
    if message.public_key and message.public_key != _encoded_key(peer_id):
        raise ProtocolViolation("an identify message with the key of another peer")
    return Identification(
        protocols=frozenset(
            protocol
            for protocol in message.protocols[: limits.protocols_per_peer_max]
            if len(protocol) <= limits.protocol_id_bytes_max
        ),
        addresses=tuple(_addresses(message.listen_addrs[: limits.addresses_per_peer_max], peer_id)),
        agent=message.agent_version[:AGENT_LENGTH_MAX],
    )


def _addresses(raw_addresses: Iterable[bytes], peer_id: PeerId) -> Iterable[Address]:
    for raw in raw_addresses:
        try:
            address = Address.from_bytes(raw)
        except MalformedAddress:
            continue  # other transports than ours are no fault of the peer
        if address.peer_id in (None, peer_id):
            yield address.with_peer(peer_id)


def _encoded_key(peer_id: PeerId) -> bytes:
    """The protobuf form of the key is what the identity multihash holds."""
    return peer_id.to_bytes()[2:]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(raw: bytes) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(raw[:3]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, index + 1
    raise ProtocolViolation("an identify message without its length")


__all__ = ["IDENTIFY", "IDENTIFY_PUSH", "Identification", "decode", "encode"]
