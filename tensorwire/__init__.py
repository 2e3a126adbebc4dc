"""The tensor protocol `/agora/tensor/1` and the stake-weighted queue: bytes in, events out.

No I/O, no clock, no torch (but in `torch_bridge`). `node.exchange` moves the bytes.
"""

from tensorwire.errors import (
    BackwardRefused,
    DeadlineExpired,
    FailureCode,
    InvariantViolation,
    LocalProtocolError,
    Overloaded,
    QueueRefusal,
    RemoteFailure,
    RemoteProtocolError,
    TensorwireError,
)
from tensorwire.events import Backward, Failure, Forward, Gradient, Kind, RequestHead, Result
from tensorwire.exchange import ClientExchange, ServerExchange
from tensorwire.queue import StakeQueue
from tensorwire.receipt import Receipt, exchange_digest, receipt_message, verify_receipt
from tensorwire.tensor import DType, Limits, Modality, Part, PartSpec, WireTensor

__all__ = [
    "Backward",
    "BackwardRefused",
    "ClientExchange",
    "DType",
    "DeadlineExpired",
    "Failure",
    "FailureCode",
    "Forward",
    "Gradient",
    "InvariantViolation",
    "Kind",
    "Limits",
    "LocalProtocolError",
    "Modality",
    "Overloaded",
    "Part",
    "PartSpec",
    "QueueRefusal",
    "Receipt",
    "RemoteFailure",
    "RemoteProtocolError",
    "RequestHead",
    "Result",
    "ServerExchange",
    "StakeQueue",
    "TensorwireError",
    "WireTensor",
    "exchange_digest",
    "receipt_message",
    "verify_receipt",
]
