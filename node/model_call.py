"""One call of the model for a batch of requests: join, run, part, check, sign. In a worker thread.

Rule: nobody sees another's rows. Inputs have been checked before they are joined, outputs are
checked per request, and a receipt speaks of one request only. Nothing is padded: only requests of
one row shape are joined. What callers teach the model is bounded per interval.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import trio

from node.gradient_allowance import GradientAllowance
from node.model import Array, Model
from p2p.identity import PeerId
from tensorwire import (
    Backward,
    Failure,
    FailureCode,
    Gradient,
    Kind,
    Modality,
    Part,
    Receipt,
    RemoteProtocolError,
    RequestHead,
    Result,
    WireTensor,
    exchange_digest,
    receipt_message,
)
from tensorwire.events import Answer, Request, request_parts
from tensorwire.receipt import SHARE_ONE_PPM
from tensorwire.tensor import check_values, gradient_specs, output_shape

_BACKWARD, _GRADIENT, _RESULT = Kind.BACKWARD, Kind.GRADIENT, Kind.RESULT
_TENSOR = Modality.TENSOR

logger = logging.getLogger(__name__)

Ran = tuple[float, list[Answer]]  # the model's seconds, and an answer per request


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A request with its payload, from the queue's side; `done` is set with its `answer`."""

    peer: PeerId
    head: RequestHead
    request: Request
    weight: int
    arrived_s: float
    held_bytes: int  # of its payload and its answer, and what there is beside them
    done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    reset: bool = False  # the peer has gone; nobody wants the answer

    def finish(self, answer: Answer) -> None:
        """Hand the answer to the handler; the first one counts."""
        if self.answer is None:
            self.answer = answer
            self.done.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the server says of one service before it begins; goes into the receipt."""

    number: int
    queue_wait_us: int
    share_ppm: int
    weights_height: int


class ModelCaller:
    """Runs one model; safe to use from several threads where the model is.

    `server` is our own peer id in bytes, `sign` its key (None: no receipts), `context` the chain
    id. `clock` gives seconds, for what callers may teach the model in an interval, and `stopwatch`
    those that a call of the model takes.
    """

    def __init__(
        self,
        model: Model,
        *,
        server: bytes,
        sign: Callable[[bytes], bytes] | None,
        context: bytes,
        clock: Callable[[], float] = time.monotonic,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._server = server
        self._sign = sign
        self._context = context
        self._clock = clock
        self._stopwatch = stopwatch
        self._allowance = GradientAllowance()
        self._allowance_lock = threading.Lock()

    def run(self, jobs: Sequence[Job], services: Sequence[Service]) -> Ran:
        """Run the model, in a worker thread: (its seconds, an answer per job)."""
        began_s = self._stopwatch()
        try:
            outputs = self._outputs(jobs, services)
        except Exception:  # the guard: a user's model may raise anything, callers get INTERNAL
            logger.exception("the model failed on a request of %s", jobs[0].peer)
            failure = Failure(code=FailureCode.INTERNAL, detail="the model failed")
            return self._stopwatch() - began_s, [failure] * len(jobs)
        duration_s = self._stopwatch() - began_s
        answers = [
            self._packed(job, service, output)
            for job, service, output in zip(jobs, services, outputs, strict=True)
        ]
        return duration_s, answers

    def _outputs(
        self, jobs: Sequence[Job], services: Sequence[Service]
    ) -> list[list[tuple[Modality, Array]]]:
        """Per job, the arrays of its answer with their modalities."""
        first = jobs[0].request
        if isinstance(first, Backward):
            train: Callable[..., Sequence[Array]] = self._model.backward  # type: ignore[attr-defined]
            gradient = first.gradient.to_numpy()
            arrays = train(first.parts, gradient, share=self._taken(jobs[0], services[0]))
            modalities = [spec.modality for spec in gradient_specs(jobs[0].head.inputs)]
            return [list(zip(modalities, arrays, strict=True))]
        if len(jobs) == 1:
            parts = tuple(first.parts)
        else:
            columns = zip(*(job.request.parts for job in jobs), strict=True)
            parts = tuple(_joined(column) for column in columns)
        output = self._model.forward(parts)
        rows = sum(job.head.inputs[0].shape[0] for job in jobs)
        steps = output_shape(jobs[0].head.inputs)[1]
        if output.shape != (rows, steps, self._model.dim):
            raise ValueError(f"an output of shape {output.shape} for {(rows, steps)}")
        if len(jobs) == 1:
            return [[(_TENSOR, output)]]
        ends = np.cumsum([job.head.inputs[0].shape[0] for job in jobs])
        return [[(_TENSOR, rows_of_job)] for rows_of_job in np.split(output, ends[:-1], axis=0)]

    def _taken(self, job: Job, service: Service) -> float:
        """How much of a gradient is applied: the sender's share, or what the interval leaves."""
        if job.weight == 0:  # the floor's share buys answers, no say in the model
            return 0.0
        with self._allowance_lock:
            share = service.share_ppm / SHARE_ONE_PPM
            return self._allowance.take(job.peer, share, now_s=self._clock())

    def _packed(self, job: Job, service: Service, arrays: list[tuple[Modality, Array]]) -> Answer:
        """An answer frame's content, checked as the caller will check it, with its receipt."""
        dtype = job.head.reply_dtype
        kind = _GRADIENT if job.head.kind is _BACKWARD else _RESULT
        parts = tuple(
            Part(modality, WireTensor.from_numpy(array, dtype)) for modality, array in arrays
        )
        try:
            for part in parts:
                check_values(part, is_gradient=kind is _GRADIENT)
        except RemoteProtocolError:
            return Failure(code=FailureCode.INTERNAL, detail="the model's output is out of range")
        receipt = self._receipt(job, service, kind, parts)
        if kind is _GRADIENT:
            return Gradient(gradients=parts, receipt=receipt)
        return Result(output=parts[0].tensor, receipt=receipt)

    def _receipt(
        self, job: Job, service: Service, kind: Kind, parts: Sequence[Part]
    ) -> Receipt | None:
        if self._sign is None or not job.head.receipt_wanted:
            return None
        request_id = job.head.request_id
        receipt = Receipt(
            server=self._server,
            client=job.peer.to_bytes(),
            request_digest=exchange_digest(job.head.kind, request_id, request_parts(job.request)),
            result_digest=exchange_digest(kind, request_id, parts),
            service_number=service.number,
            queue_wait_us=service.queue_wait_us,
            share_ppm=service.share_ppm,
            weights_height=service.weights_height,
        )
        message = receipt_message(receipt, context=self._context, request_id=request_id)
        return replace(receipt, signature=self._sign(message))


def row_shapes(head: RequestHead) -> tuple[tuple[Modality, tuple[int, ...]], ...]:
    """What two requests must share to be one model call: all but the batch size and the dtypes."""
    return tuple((spec.modality, spec.shape[1:]) for spec in head.inputs)


def _joined(parts: Sequence[Part]) -> Part:
    """Parts of several requests as one, along the batch."""
    arrays = [part.tensor.to_numpy() for part in parts]
    return Part(parts[0].modality, WireTensor.from_numpy(np.concatenate(arrays, axis=0)))
