"""Bytes to RPCs and back (libp2p/specs pubsub/README.md "The RPC"; gossipsub v1.0 to v1.2).

The rule: decoding costs at most in proportion to the frame and ends in an `Rpc` or in
`ProtocolViolation`, whatever the bytes. The outer message is read field by field here, so that the
number of entries is bounded before anything is built; its parts are read by protobuf.

On the wire each RPC is prefixed with its length as an unsigned varint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from p2p.errors import ProtocolViolation
from p2p.gossipsub import rpc_pb2 as pb
from p2p.gossipsub.message import WireMessage, encode_message
from p2p.gossipsub.parameters import (
    BACKOFF_S_MAX,
    CONTROL_BYTES_MAX,
    CONTROL_ENTRIES_MAX,
    IHAVE_MESSAGES_MAX,
    MESSAGE_ID_BYTES_MAX,
    RPC_FIELDS_MAX,
    SUBSCRIPTIONS_PER_RPC_MAX,
    TOPIC_BYTES_MAX,
)

TAG_SUBSCRIPTION = 0x0A  # field 1, length-delimited
TAG_PUBLISH = 0x12  # field 2
TAG_CONTROL = 0x1A  # field 3
VARINT_BYTES_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The control part of one RPC: topics by name, ids as bytes."""

    ihave: tuple[tuple[str, tuple[bytes, ...]], ...] = ()
    iwant: tuple[bytes, ...] = ()
    graft: tuple[str, ...] = ()
    prune: tuple[tuple[str, int], ...] = ()  # topic, backoff in seconds (0: not stated)
    idontwant: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One RPC: subscription changes (joined?, topic), messages and control."""

    subscriptions: tuple[tuple[bool, str], ...] = ()
    messages: tuple[WireMessage, ...] = ()
    control: Control | None = None


def decode_rpc(frame: bytes) -> Rpc:
    """The RPC in `frame` (without its length prefix).

    Entries over the bounds of `parameters` are left out where that is harmless (subscriptions,
    GRAFT, PRUNE, IHAVE) and refused where it is not.

    Raises:
        ProtocolViolation: not an RPC, or too many entries, or a topic that is no short UTF-8 text.
    """
    subscriptions: list[tuple[bool, str]] = []
    messages: list[WireMessage] = []
    control_parts: list[bytes] = []
    try:
        for tag, body in _fields(frame):
            if tag == TAG_PUBLISH:
                messages.append(_decode_message(body))
            elif tag == TAG_SUBSCRIPTION:
                if len(subscriptions) < SUBSCRIPTIONS_PER_RPC_MAX:
                    change = pb.RPC.SubOpts.FromString(body)
                    subscriptions.append((change.subscribe, _topic(change.topicid)))
            elif tag == TAG_CONTROL:
                control_parts.append(body)
        control = _decode_control(b"".join(control_parts)) if control_parts else None
    except DecodeError as error:
        raise ProtocolViolation("not a pubsub RPC") from error
    return Rpc(subscriptions=tuple(subscriptions), messages=tuple(messages), control=control)


def encode_rpc(rpc: Rpc) -> bytes:
    """The bytes of a whole RPC, without the length prefix; the inverse of `decode_rpc`."""
    parts = [encode_subscriptions(rpc.subscriptions)]
    parts.extend(encode_publish(message) for message in rpc.messages)
    if rpc.control is not None:
        parts.append(wrap_control([encode_control(rpc.control)]))
    return b"".join(parts)


def encode_publish(message: WireMessage) -> bytes:
    """One `publish` entry of an RPC: tag, length, message; entries concatenate to an RPC."""
    body = encode_message(message)
    return b"\x12" + encode_varint(len(body)) + body


def encode_subscriptions(changes: Iterable[tuple[bool, str]]) -> bytes:
    """The `subscriptions` entries of an RPC."""
    return pb.RPC(
        subscriptions=[
            pb.RPC.SubOpts(subscribe=joined, topicid=topic.encode()) for joined, topic in changes
        ]
    ).SerializeToString()


def encode_control(control: Control) -> bytes:
    """A bare `ControlMessage`; several of them concatenate to their union (protobuf merging)."""
    encoded = pb.ControlMessage(
        ihave=[
            pb.ControlIHave(topicID=topic.encode(), messageIDs=ids) for topic, ids in control.ihave
        ],
        graft=[pb.ControlGraft(topicID=topic.encode()) for topic in control.graft],
        prune=[
            pb.ControlPrune(topicID=topic.encode(), backoff=backoff_s)
            for topic, backoff_s in control.prune
        ],
    )
    if control.iwant:
        encoded.iwant.add(messageIDs=control.iwant)
    if control.idontwant:
        encoded.idontwant.add(messageIDs=control.idontwant)
    return encoded.SerializeToString()


def wrap_control(parts: Iterable[bytes]) -> bytes:
    """The single `control` entry of an RPC made of encoded control messages; empty for none.

    One entry and not several: js-libp2p lets a later one replace an earlier one.
    """
    body = b"".join(parts)
    return b"\x1a" + encode_varint(len(body)) + body if body else b""


def encode_varint(value: int) -> bytes:
    """An unsigned LEB128 varint."""
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class FrameReader:
    """Cuts a byte stream into frames of at most `frame_bytes_max`; holds one frame at most."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    @property
    def partial_bytes(self) -> int:
        """What is held of a frame that has not arrived whole."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """The frames that `data` completes, in order.

        Raises:
            ProtocolViolation: a length prefix is too long or announces too large a frame.
        """
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        position, end = 0, len(buffer)
        while position < end:
            parsed = _read_varint(buffer, position, end)
            if parsed is None:
                break
            size, start = parsed
            if size > self._frame_bytes_max:
                raise ProtocolViolation(f"a frame of {size} bytes, {self._frame_bytes_max} allowed")
            if start + size > end:
                break
            frames.append(bytes(buffer[start : start + size]))
            position = start + size
        if position:
            del buffer[:position]
        return frames


def _fields(frame: bytes) -> Iterable[tuple[int, bytes]]:
    """The length-delimited fields 1 to 15 of a protobuf message; others are skipped."""
    position, end, count = 0, len(frame), 0
    while position < end:
        count += 1
        if count > RPC_FIELDS_MAX:
            raise ProtocolViolation(f"more than {RPC_FIELDS_MAX} entries in one RPC")
        tag, position = _varint(frame, position, end)
        wire_type = tag & 7
        if wire_type == 2:
            size, position = _varint(frame, position, end)
            if size > end - position:
                raise ProtocolViolation("a field runs over the end of its RPC")
            yield tag, frame[position : position + size]
            position += size
        elif wire_type == 0:
            _, position = _varint(frame, position, end)
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
        else:
            raise ProtocolViolation(f"wire type {wire_type} in an RPC")
    if position != end:
        raise ProtocolViolation("a field runs over the end of its RPC")


def _varint(buffer: bytes, position: int, end: int) -> tuple[int, int]:
    parsed = _read_varint(buffer, position, end)
    if parsed is None:
        raise ProtocolViolation("an RPC ends inside a varint")
    return parsed


def _read_varint(buffer: bytes | bytearray, position: int, end: int) -> tuple[int, int] | None:
    """Value and next position; None when the buffer ends too early."""
    value = shift = 0
    for index in range(position, min(end, position + VARINT_BYTES_MAX)):
        byte = buffer[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    if end - position >= VARINT_BYTES_MAX:
        raise ProtocolViolation("a varint of more than 10 bytes")
    return None


def _decode_message(body: bytes) -> WireMessage:
    decoded = pb.Message.FromString(body)
    return WireMessage(
        _topic(decoded.topic),
        decoded.data,
        getattr(decoded, "from"),
        decoded.seqno,
        decoded.signature,
        decoded.key,
    )


def _decode_control(body: bytes) -> Control:
    if len(body) > CONTROL_BYTES_MAX:
        raise ProtocolViolation(f"{len(body)} bytes of control, {CONTROL_BYTES_MAX} allowed")
    decoded = pb.ControlMessage.FromString(body)
    return Control(
        ihave=tuple(
            (_topic(entry.topicID), _ids(entry.messageIDs))
            for entry in decoded.ihave[: 2 * IHAVE_MESSAGES_MAX]
        ),
        iwant=tuple(
            message_id
            for entry in decoded.iwant[:CONTROL_ENTRIES_MAX]
            for message_id in _ids(entry.messageIDs)
        ),
        graft=tuple(_topic(entry.topicID) for entry in decoded.graft[:CONTROL_ENTRIES_MAX]),
        prune=tuple(
            (_topic(entry.topicID), min(entry.backoff, BACKOFF_S_MAX))
            for entry in decoded.prune[:CONTROL_ENTRIES_MAX]
        ),
        idontwant=tuple(
            message_id
            for entry in decoded.idontwant[:CONTROL_ENTRIES_MAX]
            for message_id in _ids(entry.messageIDs)
        ),
    )


def _ids(ids: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple([message_id for message_id in ids if 0 < len(message_id) <= MESSAGE_ID_BYTES_MAX])


def _topic(raw: bytes) -> str:
    if len(raw) > TOPIC_BYTES_MAX:
        raise ProtocolViolation(f"a topic of {len(raw)} bytes, {TOPIC_BYTES_MAX} allowed")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ProtocolViolation("a topic that is not UTF-8") from error
