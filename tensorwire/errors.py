"""Errors of the tensor protocol, sorted by whose fault they are.

    TensorwireError
    ├── LocalProtocolError        ours: the caller used an exchange out of order
    ├── RemoteProtocolError       theirs: bytes or values against the protocol (.code, .detail)
    ├── RemoteFailure             theirs: the peer answered with a FAILURE frame (.code, .detail)
    │   ├── Overloaded            BUSY: the queue is full (.retry_after_ms, .position)
    │   ├── DeadlineExpired       DEADLINE: the peer dropped the request before it began
    │   └── BackwardRefused       BACKWARD_REFUSED: the peer takes no gradients from us
    ├── QueueRefusal              the queue did not take an item; becomes BUSY (.retry_after_ms)
    └── InvariantViolation        impossible: a fault in this package; ends the node

Rule: what a peer can cause is typed and cheap; only an `InvariantViolation` may end a process.
"""

from enum import IntEnum, unique

DETAIL_CHARS_MAX = 200  # a detail is one line for a person; it also bounds a FAILURE header


@unique
class FailureCode(IntEnum):
    """Why a request was not served; the numbers are those of `wire.proto`."""

    MALFORMED = 1
    VERSION = 2
    BAD_SHAPE = 3
    BAD_DTYPE = 4
    BAD_VALUE = 5
    TOO_LARGE = 6
    UNKNOWN_MODALITY = 7
    BUSY = 8
    DEADLINE = 9
    BACKWARD_REFUSED = 10
    INTERNAL = 11


class TensorwireError(Exception):
    """Root of every error that this package raises."""


class LocalProtocolError(TensorwireError):
    """This side used the protocol out of order; nothing was sent."""


class RemoteProtocolError(TensorwireError):
    """The peer broke the protocol; `code` is what a FAILURE frame tells it."""

    def __init__(self, code: FailureCode, detail: str) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail[:DETAIL_CHARS_MAX]


class RemoteFailure(TensorwireError):
    """The peer answered the request with a FAILURE frame."""

    def __init__(
        self, code: FailureCode, detail: str, *, retry_after_ms: int = 0, position: int = 0
    ) -> None:
        super().__init__(f"{code.name}: {detail}" if detail else code.name)
        self.code = code
        self.detail = detail
        self.retry_after_ms = retry_after_ms
        self.position = position


class Overloaded(RemoteFailure):
    """The peer's queue is full; ask again after `retry_after_ms`."""


class DeadlineExpired(RemoteFailure):
    """The request's time was over before the peer began to work on it."""


class BackwardRefused(RemoteFailure):
    """The peer does not let us train its model."""


class QueueRefusal(TensorwireError):
    """The queue refused an item; `position` is the number of items waiting."""

    def __init__(self, reason: str, *, retry_after_ms: int, position: int) -> None:
        super().__init__(reason)
        self.retry_after_ms = retry_after_ms
        self.position = position


class InvariantViolation(TensorwireError):
    """A state that cannot be: a programming fault in this package."""


def failure_error(
    code: FailureCode, detail: str, *, retry_after_ms: int = 0, position: int = 0
) -> RemoteFailure:
    """The exception for a FAILURE frame with `code`."""
    kinds: dict[FailureCode, type[RemoteFailure]] = {
        FailureCode.BUSY: Overloaded,
        FailureCode.DEADLINE: DeadlineExpired,
        FailureCode.BACKWARD_REFUSED: BackwardRefused,
    }
    kind = kinds.get(code, RemoteFailure)
    return kind(code, detail, retry_after_ms=retry_after_ms, position=position)
