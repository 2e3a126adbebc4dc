"""Header bytes to checked values and back.

Rule: decoding is the only way from a peer's bytes to a `Header`, and everything that can be known
without the payload has been checked when it returns, in the order of the specification: known
enums, rank, dimensions, byte length, total. Nothing is allocated for the payload here.

What differs from one header to the next is its front: kind, id and remaining time. The body behind
it, the parts and what is wanted of them, repeats as long as somebody asks for the same shapes. So
bodies are remembered: encoded ones by their values, decoded and checked ones by their bytes.
"""

from functools import lru_cache
from typing import Any, NamedTuple, assert_never

from google.protobuf.message import DecodeError

from tensorwire import wire_pb2
from tensorwire.errors import FailureCode, RemoteProtocolError
from tensorwire.events import REQUEST_ID_BYTES, Failure, Kind
from tensorwire.receipt import DIGEST_BYTES, PEER_BYTES_MAX, SIGNATURE_BYTES_MAX, Receipt
from tensorwire.tensor import (
    FLOATS,
    GRADIENT_DTYPES,
    DType,
    Limits,
    Modality,
    PartSpec,
    check_spec,
    check_specs,
    output_shape,
)

_MODALITIES: dict[int, Modality] = {int(member): member for member in Modality}
_DTYPES: dict[int, DType] = {int(member): member for member in DType}
_KINDS: dict[int, Kind] = {int(member): member for member in Kind}
_CODES: dict[int, FailureCode] = {int(member): member for member in FailureCode}
_REPLY_DTYPES = {Kind.FORWARD: FLOATS, Kind.BACKWARD: GRADIENT_DTYPES}

REMEMBERED_BODIES_MAX = 512  # of each direction: shapes in use at a time, of all peers
REMEMBERED_BYTES_MAX = 160  # of a body: eight parts, and no receipt, which is never the same again

_FRONT_FIELDS = 3  # kind, id and remaining time
_KIND_TAG = 1 << 3
_ID_TAG, _ID_AT = bytes([2 << 3 | 2, REQUEST_ID_BYTES]), 4
_REMAINING_TAG = 3 << 3
_REMAINING_BYTES_MAX = 4  # of a time below 2^28 ms, 74 hours
_FRONT_BYTES_MAX = _ID_AT + REQUEST_ID_BYTES + 1 + _REMAINING_BYTES_MAX
_BODY_FIELDS = {"parts", "reply_dtype", "receipt_wanted"}


class Header(NamedTuple):  # made four times an exchange, at a third of a frozen dataclass's cost
    """A frame's header; `parts` says how the payload behind it is divided."""

    kind: Kind
    request_id: bytes
    remaining_ms: int = 0
    parts: tuple[PartSpec, ...] = ()
    payload_digest: bytes = b""
    reply_dtype: DType = DType.FLOAT32
    receipt_wanted: bool = False
    receipt: Receipt | None = None
    failure: Failure | None = None

    @property
    def payload_bytes(self) -> int:
        """Bytes behind this header."""
        return sum(spec.payload_bytes for spec in self.parts)


def encode_header(header: Header) -> bytes:
    """The protobuf bytes of a header, in the order of their field numbers."""
    front = wire_pb2.Header(
        kind=int(header.kind),  # type: ignore[arg-type]
        request_id=header.request_id,
        remaining_ms=header.remaining_ms,
    )
    reply_dtype = header.reply_dtype if header.kind in _REPLY_DTYPES else None
    body = _encode_body(header.parts, header.payload_digest, reply_dtype, header.receipt_wanted)
    encoded = front.SerializeToString() + body
    if header.receipt is not None or header.failure is not None:
        encoded += _encode_outcome(header.receipt, header.failure)
    return encoded


@lru_cache(maxsize=REMEMBERED_BODIES_MAX)
def _encode_body(
    parts: tuple[PartSpec, ...], digest: bytes, reply_dtype: DType | None, receipt_wanted: bool
) -> bytes:
    message = wire_pb2.Header(payload_digest=digest, receipt_wanted=receipt_wanted)
    for spec in parts:
        message.parts.add(
            modality=int(spec.modality),
            dtype=int(spec.dtype),
            shape=spec.shape,
            payload_bytes=spec.payload_bytes,
        )
    if reply_dtype is not None:
        message.reply_dtype = int(reply_dtype)  # type: ignore[assignment]
    return message.SerializeToString()


def _encode_outcome(receipt: Receipt | None, failure: Failure | None) -> bytes:
    message = wire_pb2.Header()
    if receipt is not None:
        _encode_receipt(receipt, message.receipt)
    if failure is not None:
        message.failure.code = int(failure.code)  # type: ignore[assignment]
        message.failure.detail = failure.detail
        message.failure.retry_after_ms = failure.retry_after_ms
        message.failure.position = failure.position
    return message.SerializeToString()


def decode_header(data: bytes, limits: Limits) -> Header:
    """A checked header; raises `RemoteProtocolError` with the code a FAILURE frame would carry."""
    front = _decode_front(data)
    if front is not None:
        kind, request_id, remaining_ms, body_at = front
        if len(data) - body_at <= REMEMBERED_BYTES_MAX:
            try:
                known = _decode_body(kind, data[body_at:], limits)
            except _NotPlain:
                return _decode(data, limits)
            return Header(kind, request_id, remaining_ms, *known)
    return _decode(data, limits)


class _NotPlain(Exception):
    """A body that could say again what a front has said, or holds what is unique."""


@lru_cache(maxsize=REMEMBERED_BODIES_MAX)
def _decode_body(kind: Kind, body: bytes, limits: Limits) -> tuple[Any, ...]:
    """What `decode_header` makes of `body` behind any front of `kind`: the fields of the header.

    Raises `_NotPlain` where that is not sure, and takes no place among what is remembered.
    """
    try:
        message = wire_pb2.Header.FromString(body)
    except DecodeError as error:
        raise _NotPlain from error
    # As we would write it: each field once, in order, none that says nothing.
    is_plain = message.SerializeToString() == body and all(
        field.name in _BODY_FIELDS for field, _ in message.ListFields()
    )
    if not is_plain:
        raise _NotPlain
    front = wire_pb2.Header(kind=int(kind), request_id=bytes(REQUEST_ID_BYTES))  # type: ignore[arg-type]
    return _decode(front.SerializeToString() + body, limits)[_FRONT_FIELDS:]


def _decode_front(data: bytes) -> tuple[Kind, bytes, int, int] | None:
    """(kind, id, remaining time, where the body begins), if they come first and in this order."""
    if len(data) < _FRONT_BYTES_MAX or data[0] != _KIND_TAG or data[2:_ID_AT] != _ID_TAG:
        return None
    kind = _KINDS.get(data[1])
    if kind is None:
        return None
    at, remaining_ms = _ID_AT + REQUEST_ID_BYTES, 0
    request_id = data[_ID_AT:at]
    if data[at] != _REMAINING_TAG:
        return kind, request_id, 0, at
    for shift in range(0, 7 * _REMAINING_BYTES_MAX, 7):
        at += 1
        remaining_ms |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            return kind, request_id, remaining_ms, at + 1
    return None


def _decode(data: bytes, limits: Limits) -> Header:
    message = wire_pb2.Header()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise _malformed("the header is not protobuf") from error
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise _malformed(f"unknown kind {message.kind}")
    request_id, digest, encoded_parts = message.request_id, message.payload_digest, message.parts
    if len(request_id) != REQUEST_ID_BYTES:
        raise _malformed(f"a request id has {REQUEST_ID_BYTES} bytes")
    if len(digest) not in (0, DIGEST_BYTES):
        raise _malformed(f"a digest has {DIGEST_BYTES} bytes")
    # One more than a request's inputs: a BACKWARD carries the gradient too.
    if len(encoded_parts) > limits.parts_max + 1:
        raise _malformed(f"{len(encoded_parts)} parts")
    header = Header(
        kind=kind,
        request_id=request_id,
        remaining_ms=message.remaining_ms,
        parts=tuple(map(_decode_part, encoded_parts)),
        payload_digest=digest,
        reply_dtype=_decode_reply_dtype(kind, message.reply_dtype),
        receipt_wanted=message.receipt_wanted,
        receipt=_decode_receipt(message.receipt) if message.HasField("receipt") else None,
        failure=_decode_failure(message.failure) if message.HasField("failure") else None,
    )
    check_header(header, limits)
    for spec, part in zip(header.parts, encoded_parts, strict=True):
        if part.payload_bytes != spec.payload_bytes:
            detail = f"{part.payload_bytes} bytes announced, the shape has {spec.payload_bytes}"
            raise RemoteProtocolError(FailureCode.BAD_SHAPE, detail)
    return header


def check_header(header: Header, limits: Limits) -> None:
    """All rules that a header of its kind must keep; raises `RemoteProtocolError`."""
    parts = header.parts
    match header.kind:
        case Kind.FORWARD:
            payload_bytes = check_specs(parts, limits)
        case Kind.BACKWARD:
            payload_bytes = check_specs(parts[:-1], limits)
            payload_bytes += _check_output_gradient(parts, limits)
        case Kind.RESULT:
            if len(parts) != 1:
                raise _malformed("a result has one part")
            payload_bytes = _check_answer(parts, limits, is_gradient=False)
        case Kind.GRADIENT:
            payload_bytes = _check_answer(parts, limits, is_gradient=True)
        case Kind.FAILURE:
            payload_bytes = 0
            if header.failure is None or parts:
                raise _malformed("a failure has a code and no parts")
        case _:  # pragma: no cover
            assert_never(header.kind)
    if (header.failure is not None) != (header.kind is Kind.FAILURE):
        raise _malformed("only a failure has a failure code")
    if payload_bytes > limits.payload_bytes_max:
        detail = f"{payload_bytes} bytes, {limits.payload_bytes_max} allowed"
        raise RemoteProtocolError(FailureCode.TOO_LARGE, detail)


def _check_output_gradient(parts: tuple[PartSpec, ...], limits: Limits) -> int:
    gradient = parts[-1]
    if gradient.modality is not Modality.TENSOR:
        raise _malformed("the last part of a backward request is the gradient, a TENSOR")
    check_spec(gradient, limits, is_gradient=True)
    expected = output_shape(parts[:-1])
    if gradient.shape[:2] != expected:
        detail = f"a gradient of {gradient.shape[:2]} for an output of {expected}"
        raise RemoteProtocolError(FailureCode.BAD_SHAPE, detail)
    return gradient.payload_bytes


def _check_answer(parts: tuple[PartSpec, ...], limits: Limits, *, is_gradient: bool) -> int:
    for spec in parts:
        if spec.modality is Modality.TEXT:
            raise _malformed("an answer has no TEXT")
        check_spec(spec, limits, is_gradient=is_gradient)
    return sum(spec.payload_bytes for spec in parts)


def _decode_part(part: wire_pb2.Part) -> PartSpec:
    modality = _MODALITIES.get(part.modality)
    if modality is None:
        detail = f"modality {part.modality}"
        raise RemoteProtocolError(FailureCode.UNKNOWN_MODALITY, detail)
    dtype = _DTYPES.get(part.dtype)
    if dtype is None:
        raise RemoteProtocolError(FailureCode.BAD_DTYPE, f"dtype {part.dtype}")
    if part.codec != wire_pb2.RAW:
        raise _malformed(f"unknown codec {part.codec}")
    return PartSpec(modality, dtype, tuple(part.shape))


def _decode_reply_dtype(kind: Kind, number: int) -> DType:
    allowed = _REPLY_DTYPES.get(kind)
    if allowed is None:
        return DType.FLOAT32
    dtype = _DTYPES.get(number or DType.FLOAT32)
    if dtype not in allowed:
        raise RemoteProtocolError(FailureCode.BAD_DTYPE, f"reply dtype {number}")
    return dtype


def _decode_failure(failure: wire_pb2.Failure) -> Failure:
    code = _CODES.get(failure.code)
    if code is None:
        raise _malformed(f"unknown failure code {failure.code}")
    return Failure(
        code=code,
        detail=failure.detail,
        retry_after_ms=failure.retry_after_ms,
        position=failure.position,
    )


def _encode_receipt(receipt: Receipt, message: wire_pb2.Receipt) -> None:
    message.server = receipt.server
    message.client = receipt.client
    message.request_digest = receipt.request_digest
    message.result_digest = receipt.result_digest
    message.service_number = receipt.service_number
    message.queue_wait_us = receipt.queue_wait_us
    message.share_ppm = receipt.share_ppm
    message.weights_height = receipt.weights_height
    message.signature = receipt.signature


def _decode_receipt(message: wire_pb2.Receipt) -> Receipt:
    digests = (message.request_digest, message.result_digest)
    if any(len(digest) != DIGEST_BYTES for digest in digests):
        raise _malformed(f"a digest has {DIGEST_BYTES} bytes")
    if max(len(message.server), len(message.client)) > PEER_BYTES_MAX:
        raise _malformed(f"a peer id has at most {PEER_BYTES_MAX} bytes")
    if len(message.signature) > SIGNATURE_BYTES_MAX:
        raise _malformed(f"a signature has at most {SIGNATURE_BYTES_MAX} bytes")
    return Receipt(
        server=message.server,
        client=message.client,
        request_digest=message.request_digest,
        result_digest=message.result_digest,
        service_number=message.service_number,
        queue_wait_us=message.queue_wait_us,
        share_ppm=message.share_ppm,
        weights_height=message.weights_height,
        signature=message.signature,
    )


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(FailureCode.MALFORMED, detail)
