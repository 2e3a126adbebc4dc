"""Message ids, signatures, and what the rules of a topic allow."""

from __future__ import annotations

import dataclasses

import blake3
import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2 as theirs
from libp2p.pubsub.validators import signature_validator

from p2p.gossipsub.codec import decode_rpc
from p2p.gossipsub.message import (
    SIGNING_PREFIX,
    SignaturePolicy,
    WireMessage,
    author_of,
    content_id,
    encode_message,
    is_signed_by,
    origin_id,
    sign_message,
)
from p2p.gossipsub.topic import Fault, TopicRules
from p2p.identity import Identity

IDENTITY = Identity(bytes(range(32)))
SIGNED = sign_message("t", b"data", IDENTITY, 7)


def test_content_id() -> None:
    message = WireMessage("déjà", b"data")
    topic = "déjà".encode()
    expected = blake3.blake3(len(topic).to_bytes(2, "big") + topic + b"data").digest()[:20]
    assert content_id(message) == expected
    assert content_id(dataclasses.replace(message, source=b"x")) == expected
    assert content_id(WireMessage("dé", "jà".encode() + b"data")) != expected


def test_py_libp2p_verifies_our_signature() -> None:
    foreign = theirs.Message.FromString(encode_message(SIGNED))
    assert foreign.from_id == IDENTITY.peer_id.to_bytes()
    assert signature_validator(foreign)
    foreign.data = b"other"
    assert not signature_validator(foreign)


def test_we_verify_the_signature_of_py_libp2p() -> None:
    pair = create_new_key_pair()
    foreign = theirs.Message(data=b"data", topicIDs=["t"], seqno=bytes(8))
    public = pair.public_key
    foreign.from_id = ID.from_pubkey(public).to_bytes()
    foreign.signature = pair.private_key.sign(SIGNING_PREFIX + foreign.SerializeToString())
    foreign.key = public.serialize()
    rpc = decode_rpc(theirs.RPC(publish=[foreign]).SerializeToString())
    rules = TopicRules(signatures=SignaturePolicy.STRICT_SIGN)
    assert rules.fault_of(rpc.messages[0]) is None
    assert rules.id_of(rpc.messages[0]) == foreign.from_id + foreign.seqno


def test_signature_covers_every_field() -> None:
    author = author_of(SIGNED)
    assert author == IDENTITY.peer_id
    assert is_signed_by(SIGNED, author)
    other = Identity(bytes(32))
    for forged in (
        dataclasses.replace(SIGNED, data=b"other"),
        dataclasses.replace(SIGNED, topic="u"),
        dataclasses.replace(SIGNED, seqno=bytes(8)),
        dataclasses.replace(SIGNED, seqno=b"short"),
        dataclasses.replace(SIGNED, key=b"\x08\x01\x12\x20" + other.public_key),
        dataclasses.replace(SIGNED, signature=bytes(64)),
        dataclasses.replace(SIGNED, signature=b"\x01"),
    ):
        assert not is_signed_by(forged, author)
    assert not is_signed_by(SIGNED, other.peer_id)


@pytest.mark.parametrize("field", ["source", "seqno", "signature", "key"])
def test_strict_no_sign_allows_no_field(field: str) -> None:
    message = dataclasses.replace(WireMessage("t", b"data"), **{field: b"x"})
    assert TopicRules().fault_of(message) is Fault.SIGNATURE
    lax = TopicRules(signatures=SignaturePolicy.LAX_NO_SIGN)
    assert lax.fault_of(message) is None
    assert lax.to_forward(message) == WireMessage("t", b"data")


@pytest.mark.parametrize("field", ["source", "seqno", "signature"])
def test_strict_sign_wants_every_field(field: str) -> None:
    rules = TopicRules(signatures=SignaturePolicy.STRICT_SIGN)
    assert rules.fault_of(SIGNED) is None
    assert rules.id_of(SIGNED) == origin_id(SIGNED)
    assert rules.fault_of(dataclasses.replace(SIGNED, **{field: b""})) is Fault.SIGNATURE


def test_an_author_of_another_key_type_is_not_at_fault() -> None:
    rules = TopicRules(signatures=SignaturePolicy.STRICT_SIGN)
    rsa = dataclasses.replace(SIGNED, source=b"\x12\x20" + bytes(32))
    assert rules.fault_of(rsa) is Fault.UNKNOWN_AUTHOR


def test_oversize_comes_before_all_else() -> None:
    rules = TopicRules(payload_bytes_max=3, signatures=SignaturePolicy.STRICT_SIGN)
    assert rules.fault_of(WireMessage("t", b"four")) is Fault.OVERSIZE
    assert TopicRules(payload_bytes_max=3).fault_of(WireMessage("t", b"one")) is None
    with pytest.raises(ValueError, match="positive"):
        TopicRules(payload_bytes_max=0)
