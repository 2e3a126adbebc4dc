"""Remembering bodies changes nothing: every header is read and written as if for the first time."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorwire import FailureCode, Limits, RemoteProtocolError, wire_pb2
from tensorwire.codec import (
    REMEMBERED_BODIES_MAX,
    REMEMBERED_BYTES_MAX,
    Header,
    _decode,
    _decode_body,
    decode_header,
    encode_header,
)
from tests.tensorwire.strategies import SCALE, lying_headers

ID = bytes(range(16))
LIMITS = Limits()
PART = {"modality": 4, "dtype": 1, "shape": [2, 3, 4], "payload_bytes": 96}


def encoded(**fields: object) -> bytes:
    return wire_pb2.Header(**fields).SerializeToString()  # type: ignore[arg-type]


def outcome(decode: object, data: bytes, limits: Limits = LIMITS) -> Header | FailureCode:
    try:
        return decode(data, limits)  # type: ignore[operator, no-any-return]
    except RemoteProtocolError as error:
        return error.code


KINDS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 200])
FIELDS = st.sampled_from(  # what may stand behind a front, again, out of order, or saying nothing
    [
        encoded(parts=[PART]),
        encoded(parts=[PART | {"payload_bytes": 95}]),
        encoded(parts=[PART | {"shape": [2, 3]}]),
        encoded(parts=[PART], reply_dtype=3),
        encoded(reply_dtype=2),
        encoded(receipt_wanted=True),
        encoded(payload_digest=bytes(32)),
        encoded(failure={"code": 8}),
        encoded(kind=1),
        encoded(kind=3),
        encoded(request_id=bytes(16)),
        encoded(request_id=bytes(15)),
        encoded(remaining_ms=7),
        b"\x18\x00",  # remaining_ms = 0, written out
        b"\x18\x85\x00",  # 5 in more bytes than it needs
        b"\x18\xff\xff\xff\x7f",
        b"\x18\x80\x80\x80\x80\x08",  # 2^31: five bytes
        b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # 2^64 - 1
        b"\x08\x81\x00",  # kind = 1 in two bytes
        b"\x38\x00",  # receipt_wanted = False, written out
        b"\x78\x01",  # a field that is not ours
        b"\x00",
        b"\xff",
    ]
)


@settings(max_examples=1_000 * SCALE, deadline=None)
@given(KINDS, st.integers(0, 2**32 - 1), st.lists(FIELDS, max_size=6))
@example(1, 2**28 - 1, [encoded(parts=[PART])])
@example(1, 2**28, [encoded(parts=[PART])])
@example(3, 0, [encoded(parts=[PART]), b"\x18\x00"])
def test_a_remembered_body_is_read_as_a_new_one(
    kind: int, remaining_ms: int, fields: list[bytes]
) -> None:
    data = encoded(kind=kind, request_id=ID, remaining_ms=remaining_ms) + b"".join(fields)
    expected = outcome(_decode, data)
    assert outcome(decode_header, data) == expected
    assert outcome(decode_header, data) == expected
    other = encoded(kind=kind, request_id=bytes(16), remaining_ms=1) + b"".join(fields)
    assert outcome(decode_header, other) == outcome(_decode, other)


@settings(max_examples=1_000 * SCALE, deadline=None)
@given(lying_headers())
def test_lies_are_read_as_they_are(data: bytes) -> None:
    for _ in range(2):
        assert outcome(decode_header, data) == outcome(_decode, data)


def test_other_limits_judge_a_remembered_body_anew() -> None:
    data = encoded(kind=1, request_id=ID, remaining_ms=9, parts=[PART])
    assert isinstance(outcome(decode_header, data), Header)
    assert outcome(decode_header, data, Limits(dim_max=3)) is FailureCode.BAD_SHAPE


def test_what_is_unique_or_long_is_not_remembered() -> None:
    _decode_body.cache_clear()
    peers = {"server": bytes(38), "client": bytes(38), "signature": bytes(64)}
    receipt = {"request_digest": bytes(32), "result_digest": bytes(32), **peers}
    for fields in (
        {"kind": 3, "parts": [PART], "receipt": receipt},
        {"kind": 1, "parts": [PART] * 13},
    ):
        data = encoded(request_id=ID, **fields)
        assert len(data) > 20 + REMEMBERED_BYTES_MAX
        outcome(decode_header, data)
    for fields in (
        {"kind": 5, "failure": {"code": 8, "retry_after_ms": 77}},
        {"kind": 1, "parts": [PART], "payload_digest": bytes(32)},
    ):
        data = encoded(request_id=ID, **fields)
        assert isinstance(outcome(decode_header, data), Header)
    assert _decode_body.cache_info().currsize == 0


def test_a_peer_cannot_make_us_remember_more_than_the_bound() -> None:
    for steps in range(1, REMEMBERED_BODIES_MAX + 50):
        part = {"modality": 1, "dtype": 4, "shape": [1, steps], "payload_bytes": 8 * steps}
        decode_header(encoded(kind=1, request_id=ID, parts=[part]), LIMITS)
    assert _decode_body.cache_info().currsize == REMEMBERED_BODIES_MAX


@settings(max_examples=300 * SCALE, deadline=None)
@given(lying_headers())
def test_headers_are_written_in_the_order_of_their_fields(data: bytes) -> None:
    try:
        header = _decode(data, LIMITS)
    except RemoteProtocolError:
        return
    again = encode_header(header)
    assert _decode(again, LIMITS) == header
    assert wire_pb2.Header.FromString(again).SerializeToString() == again
