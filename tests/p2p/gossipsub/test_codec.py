"""Encoding and decoding of RPCs: round trips, foreign encodings, bounds, and hostile bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from libp2p.pubsub.pb import rpc_pb2 as theirs

from p2p.errors import ProtocolViolation
from p2p.gossipsub.codec import (
    Control,
    FrameReader,
    Rpc,
    decode_rpc,
    encode_control,
    encode_publish,
    encode_rpc,
    encode_varint,
    wrap_control,
)
from p2p.gossipsub.message import WireMessage
from p2p.gossipsub.parameters import (
    BACKOFF_S_MAX,
    CONTROL_BYTES_MAX,
    MESSAGE_ID_BYTES_MAX,
    RPC_FIELDS_MAX,
    SUBSCRIPTIONS_PER_RPC_MAX,
    TOPIC_BYTES_MAX,
)
from tests.p2p.gossipsub.strategies import SCALE, hostile_frames, rpcs


@given(rpc=rpcs)
def test_round_trip(rpc: Rpc) -> None:
    assert decode_rpc(encode_rpc(rpc)) == rpc


@given(rpc=rpcs)
def test_py_libp2p_reads_the_same(rpc: Rpc) -> None:
    foreign = theirs.RPC.FromString(encode_rpc(rpc))
    assert [(s.subscribe, s.topicid) for s in foreign.subscriptions] == list(rpc.subscriptions)
    assert [(m.data, list(m.topicIDs), m.from_id) for m in foreign.publish] == [
        (message.data, [message.topic], message.source) for message in rpc.messages
    ]
    if rpc.control is not None:
        assert [g.topicID for g in foreign.control.graft] == list(rpc.control.graft)
        assert [(p.topicID, p.backoff) for p in foreign.control.prune] == list(rpc.control.prune)
        assert [one for w in foreign.control.iwant for one in w.messageIDs] == list(
            rpc.control.iwant
        )
        assert [one for w in foreign.control.idontwant for one in w.messageIDs] == list(
            rpc.control.idontwant
        )
    assert decode_rpc(foreign.SerializeToString()) == rpc


def test_unknown_fields_are_skipped() -> None:
    foreign = theirs.RPC(senderRecord=b"record")
    foreign.publish.add(data=b"data", topicIDs=["votes"])
    foreign.control.extensions.topicObservation = True
    foreign.control.prune.add(topicID="votes", backoff=60).peers.add(peerID=b"somebody")
    rpc = decode_rpc(foreign.SerializeToString())
    assert rpc.messages == (WireMessage("votes", b"data"),)
    assert rpc.control == Control(prune=(("votes", 60),))


def test_control_entries_concatenate_to_one() -> None:
    first, second = Control(graft=("a",)), Control(prune=(("b", 5),))
    body = wrap_control([encode_control(first), encode_control(second)])
    assert decode_rpc(body).control == Control(graft=("a",), prune=(("b", 5),))
    assert wrap_control([]) == b""


@pytest.mark.parametrize(
    "frame",
    [
        b"\x12",  # a tag without a length
        b"\x12\x05abc",  # a length over the end
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a varint without an end
        b"\x0b",  # a group
        b"\x12\x02\x22\xff",  # a truncated message inside
        b"\x0a\x05\x12\x03\xff\xfe\xfd",  # a topic that is not UTF-8
        b"\x09\x00",  # a fixed64 cut short
        b"\x1a\x03\x0a\x05a",  # a truncated control entry
    ],
)
def test_malformed(frame: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_rpc(frame)


def test_bounds() -> None:
    with pytest.raises(ProtocolViolation, match="entries"):
        decode_rpc(b"\x12\x00" * (RPC_FIELDS_MAX + 1))
    with pytest.raises(ProtocolViolation, match="control"):
        decode_rpc(wrap_control([b"\x12\x00" * CONTROL_BYTES_MAX]))
    with pytest.raises(ProtocolViolation, match="topic"):
        decode_rpc(encode_publish(WireMessage("x" * (TOPIC_BYTES_MAX + 1), b"")))
    many = tuple((True, str(number)) for number in range(SUBSCRIPTIONS_PER_RPC_MAX + 5))
    decoded = decode_rpc(encode_rpc(Rpc(subscriptions=many)))
    assert decoded.subscriptions == many[:SUBSCRIPTIONS_PER_RPC_MAX]
    control = Control(
        iwant=(b"x" * MESSAGE_ID_BYTES_MAX, b"y" * (MESSAGE_ID_BYTES_MAX + 1)),
        prune=(("t", 2**60),),
    )
    kept = decode_rpc(encode_rpc(Rpc(control=control))).control
    assert kept == Control(iwant=(b"x" * MESSAGE_ID_BYTES_MAX,), prune=(("t", BACKOFF_S_MAX),))


def test_frames_are_cut_wherever_the_chunks_end() -> None:
    frames = [b"", b"a", b"b" * 127, b"c" * 128, b"d" * 70_000]
    wire = b"".join(encode_varint(len(frame)) + frame for frame in frames)
    for step in (1, 3, 128, 4096, len(wire)):
        reader, got = FrameReader(70_000), []
        for start in range(0, len(wire), step):
            got += reader.feed(wire[start : start + step])
        assert got == frames


@pytest.mark.parametrize("prefix", [encode_varint(70_001), b"\xff" * 10, b"\xff" * 9 + b"\x7f"])
def test_frames_over_the_bound_are_refused_by_their_prefix(prefix: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        FrameReader(70_000).feed(prefix)


def test_fuzz_decoder() -> None:
    accepted = 0
    for frame in hostile_frames(1, 1000 * SCALE):
        try:
            rpc = decode_rpc(frame)
        except ProtocolViolation:
            continue
        accepted += 1
        assert decode_rpc(encode_rpc(rpc)) == rpc
    assert accepted > 100  # mutations reach beyond the first check


def test_fuzz_frame_reader() -> None:
    for chunk in hostile_frames(2, 1000 * SCALE):
        reader = FrameReader(1000)
        try:
            frames = reader.feed(chunk) + reader.feed(chunk)
        except ProtocolViolation:
            continue
        assert sum(map(len, frames)) <= 2 * len(chunk)
