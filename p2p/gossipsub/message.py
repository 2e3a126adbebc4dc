"""One message on the wire, its id, and its signature.

The rule: an id is a pure function of the message, the same at every node of the topic. On our
topics nothing but topic and data is sent (StrictNoSign), and the id is
`blake3(u16 length of topic || topic || data)[:20]`; on signed topics (StrictSign) the author signs
and the id is `from || seqno`, the default of go-libp2p, js-libp2p and py-libp2p.

Signing follows libp2p/specs pubsub/README.md, "Message Signing": Ed25519 over
`"libp2p-pubsub:" || the message without its signature`. Deviations: the message is signed without
its key too, as go-libp2p, js-libp2p and py-libp2p do; authors whose key is not Ed25519 cannot be
verified here, and their messages are ignored, without penalty for whoever forwards them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import blake3

from p2p.errors import MalformedPeerId
from p2p.gossipsub import rpc_pb2 as pb
from p2p.identity import Identity, PeerId, verify

CONTENT_ID_BYTES = 20
SEQUENCE_BYTES = 8
SIGNING_PREFIX = b"libp2p-pubsub:"
ED25519_KEY_PREFIX = bytes.fromhex("08011220")
"""protobuf PublicKey{Type: Ed25519, Data: 32 bytes} up to the key itself."""


class SignaturePolicy(enum.Enum):
    """Which of `from`, `seqno`, `signature` and `key` a message must or must not carry."""

    STRICT_NO_SIGN = "StrictNoSign"  # none of them; anything else is rejected
    LAX_NO_SIGN = "LaxNoSign"  # none is needed; those of others (py-libp2p) are dropped
    STRICT_SIGN = "StrictSign"  # all of them, and the signature must be good


@dataclass(frozen=True, slots=True)
class WireMessage:
    """A message as it travels; an absent field is empty."""

    topic: str
    data: bytes
    source: bytes = b""  # `from`: the author's peer id, 38 bytes for Ed25519
    seqno: bytes = b""  # u64, big-endian
    signature: bytes = b""
    key: bytes = b""  # only when it cannot be read from `source`


MessageIdFunction: TypeAlias = Callable[[WireMessage], bytes]


@dataclass(frozen=True, slots=True)
class CachedMessage:
    """A message with everything about it that is computed once."""

    message_id: bytes
    message: WireMessage
    encoded: bytes  # its entry in an RPC: tag, length and the protobuf message
    received_from: PeerId  # ourselves for our own


def content_id(message: WireMessage) -> bytes:
    """`blake3(u16 length of topic || topic || data)[:20]`, the length big-endian."""
    topic = message.topic.encode()
    hasher = blake3.blake3(len(topic).to_bytes(2, "big") + topic)
    return hasher.update(message.data).digest(length=CONTENT_ID_BYTES)


def origin_id(message: WireMessage) -> bytes:
    """`from || seqno`: the default id of libp2p pubsub (spec, "Message Identification")."""
    return message.source + message.seqno


def encode_message(message: WireMessage) -> bytes:
    """The protobuf `Message`: fields in ascending order, absent ones left out."""
    return _protobuf_of(message).SerializeToString()


def sign_message(topic: str, data: bytes, identity: Identity, sequence: int) -> WireMessage:
    """A StrictSign message by `identity`; `sequence` must never repeat for one author."""
    unsigned = WireMessage(
        topic=topic,
        data=data,
        source=identity.peer_id.to_bytes(),
        seqno=sequence.to_bytes(SEQUENCE_BYTES, "big"),
    )
    signature = identity.sign(SIGNING_PREFIX + encode_message(unsigned))
    return WireMessage(unsigned.topic, data, unsigned.source, unsigned.seqno, signature)


def author_of(message: WireMessage) -> PeerId | None:
    """The Ed25519 peer named in `from`; None when it names none."""
    try:
        return PeerId.from_bytes(message.source)
    except MalformedPeerId:
        return None


def is_signed_by(message: WireMessage, author: PeerId) -> bool:
    """Whether the signature of a StrictSign message is that of `author`."""
    if len(message.seqno) != SEQUENCE_BYTES:
        return False
    if message.key and message.key != ED25519_KEY_PREFIX + author.public_key:
        return False
    unsigned = WireMessage(message.topic, message.data, message.source, message.seqno)
    signed = SIGNING_PREFIX + encode_message(unsigned)
    return verify(author.public_key, signed, message.signature)


def _protobuf_of(message: WireMessage) -> pb.Message:
    if not message.source and not message.seqno and not message.signature and not message.key:
        return pb.Message(data=message.data, topic=message.topic.encode())
    encoded = pb.Message(data=message.data, topic=message.topic.encode())
    if message.source:
        setattr(encoded, "from", message.source)
    if message.seqno:
        encoded.seqno = message.seqno
    if message.signature:
        encoded.signature = message.signature
    if message.key:
        encoded.key = message.key
    return encoded
