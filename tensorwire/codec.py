"""Header bytes to checked values and back.

Rule: decoding is the only way from a peer's bytes to a `Header`, and everything that can be known
without the payload has been checked when it returns, in the order of the specification: known
enums, rank, dimensions, byte length, total. Nothing is allocated for the payload here.
"""

from typing import NamedTuple, assert_never

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
    """The protobuf bytes of a header."""
    message = wire_pb2.Header(
        kind=int(header.kind),  # type: ignore[arg-type]
        request_id=header.request_id,
        remaining_ms=header.remaining_ms,
        payload_digest=header.payload_digest,
        receipt_wanted=header.receipt_wanted,
    )
    for spec in header.parts:
        message.parts.add(
            modality=int(spec.modality),
            dtype=int(spec.dtype),
            shape=spec.shape,
            payload_bytes=spec.payload_bytes,
        )
    if header.kind in _REPLY_DTYPES:
        message.reply_dtype = int(header.reply_dtype)  # type: ignore[assignment]
    if header.receipt is not None:
        _encode_receipt(header.receipt, message.receipt)
    if header.failure is not None:
        message.failure.code = int(header.failure.code)  # type: ignore[assignment]
        message.failure.detail = header.failure.detail
        message.failure.retry_after_ms = header.failure.retry_after_ms
        message.failure.position = header.failure.position
    return message.SerializeToString()


def decode_header(data: bytes, limits: Limits) -> Header:
    """A checked header; raises `RemoteProtocolError` with the code a FAILURE frame would carry."""
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
