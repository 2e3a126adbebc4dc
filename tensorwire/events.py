"""What an exchange speaks of: requests and answers as values, and the head of a request.

Rule: `Forward`, `Backward`, `Result`, `Gradient` and `Failure` are both what one side sends and
what the other receives, so that a value crosses the wire unchanged; `RequestHead` exists only at
the server, before the payload is read, for the decision to admit it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import NamedTuple, assert_never

from tensorwire.errors import (
    DETAIL_CHARS_MAX,
    FailureCode,
    LocalProtocolError,
    RemoteFailure,
    failure_error,
)
from tensorwire.receipt import Receipt
from tensorwire.tensor import DType, Modality, Part, PartSpec, WireTensor

_TENSOR = Modality.TENSOR

REMAINING_MS = 10_000  # of a request whose caller names no deadline


@unique
class Kind(IntEnum):
    """What a frame is; the numbers are those of `wire.proto`."""

    FORWARD = 1
    BACKWARD = 2
    RESULT = 3
    GRADIENT = 4
    FAILURE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Ask for `[bs, seq, dim]` of `parts`; seq is the sum over the parts."""

    parts: Sequence[Part]
    remaining_ms: int = REMAINING_MS  # time left for the whole exchange
    reply_dtype: DType = DType.FLOAT32
    receipt_wanted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward:
    """Send the gradient of the output of `parts`, `[bs, seq, dim]` float32 or bfloat16."""

    parts: Sequence[Part]
    gradient: WireTensor
    remaining_ms: int = REMAINING_MS
    reply_dtype: DType = DType.FLOAT32
    receipt_wanted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer to a `Forward`: `output` is `[bs, seq, dim]` float."""

    output: WireTensor
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """The answer to a `Backward`: the input gradient of every part but TEXT, in order."""

    gradients: Sequence[Part]
    receipt: Receipt | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "gradients", tuple(self.gradients))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The answer to anything that was not served; `retry_after_ms` and `position` with BUSY."""

    code: FailureCode
    detail: str = ""
    retry_after_ms: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", self.detail[:DETAIL_CHARS_MAX])

    def error(self) -> RemoteFailure:
        """The exception that tells a caller of this failure."""
        return failure_error(
            self.code, self.detail, retry_after_ms=self.retry_after_ms, position=self.position
        )


class RequestHead(NamedTuple):
    """A checked request header whose payload has not been read: admit it or refuse it."""

    kind: Kind
    request_id: bytes
    remaining_ms: int
    inputs: tuple[PartSpec, ...]
    gradient: PartSpec | None
    reply_dtype: DType
    receipt_wanted: bool
    payload_bytes: int


Request = Forward | Backward
Answer = Result | Gradient | Failure
ClientEvent = Result | Gradient | Failure
ServerEvent = RequestHead | Forward | Backward


def request_parts(request: Request) -> tuple[Part, ...]:
    """Every part that crosses the wire, in order: the inputs, then a BACKWARD's gradient."""
    if isinstance(request, Backward):
        return (*request.parts, Part(_TENSOR, request.gradient))
    return tuple(request.parts)


def answer_parts(answer: Answer) -> tuple[Part, ...]:
    """Every part of an answer that crosses the wire, in order."""
    match answer:
        case Result():
            return (Part(_TENSOR, answer.output),)
        case Gradient():
            return tuple(answer.gradients)
        case Failure():
            return ()
        case _:  # pragma: no cover
            assert_never(answer)


def kind_of(message: Request | Answer) -> Kind:
    """The frame kind of a message."""
    return _KINDS[type(message)]


def require_request_id(request_id: bytes) -> bytes:
    """`request_id` where it has the 16 bytes of one, else `LocalProtocolError`."""
    if len(request_id) != REQUEST_ID_BYTES:
        raise LocalProtocolError(f"a request id has {REQUEST_ID_BYTES} bytes")
    return request_id


_KINDS: dict[type[Request | Answer], Kind] = {
    Forward: Kind.FORWARD,
    Backward: Kind.BACKWARD,
    Result: Kind.RESULT,
    Gradient: Kind.GRADIENT,
    Failure: Kind.FAILURE,
}

REQUEST_ID_BYTES = 16  # random: two requests of one caller never share a receipt
