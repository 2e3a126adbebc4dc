"""The serving side of `/agora/tensor/1`: one handler per stream, one queue, one model.

    header ─► admit or BUSY ─► payload ─► queue ─► batch in a worker thread ─► answer (and receipt)

Rule: a peer costs nothing but its header until it is admitted; what it may hold after that is
counted in bytes, per peer and in total, until its answer has left. Every stream ends with an answer
frame or a reset, within a deadline. Order of service is the queue's alone, and what the queue
orders is the model itself: a ticket is popped only when a model call is free to run it.

Cancellation: a handler whose stream is reset takes its ticket out of the queue at once; a model
call that has begun runs to its end and its result is dropped. Cancelling `Server.run` answers
nobody and waits for the model calls that are running.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import trio
from numpy.typing import NDArray

from p2p.identity import PeerId
from p2p.network import Network, Stream
from tensorwire import (
    PROTOCOL,
    Backward,
    Failure,
    FailureCode,
    Forward,
    Gradient,
    Kind,
    Limits,
    Modality,
    Part,
    QueueRefusal,
    Receipt,
    RemoteProtocolError,
    RequestHead,
    Result,
    ServerExchange,
    WireTensor,
    exchange_digest,
    receipt_message,
)
from tensorwire.events import kind_of, request_parts
from tensorwire.flow import Standing, Ticket
from tensorwire.queue import StakeQueue
from tensorwire.receipt import SHARE_ONE_PPM
from tensorwire.tensor import check_values, gradient_specs, output_shape, payload_bytes

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs that mypy finds for trio lack the name

RECEIVE_BYTES = 1 << 20  # per call; a stream returns what it has
STEP_COST = {  # per step of one row, in reply bytes: what a step takes on a small model
    Modality.TEXT: 1_024,
    Modality.TENSOR: 1_024,
    Modality.IMAGE: 4_096,
    Modality.SPEECH: 4_096,
}
BACKWARD_COST_FACTOR = 3  # its forward again, and twice that for the gradients
RATE_MEMORY = 0.8  # moving average of the measured cost per second

EXCHANGE_BYTES = 32 << 10  # of tasks, stream and header, held beside the payload

Array = NDArray[np.float32]
logger = logging.getLogger(__name__)


class Model(Protocol):
    """What a peer serves. Called in a worker thread, never twice at once unless allowed to be.

    A model that can be trained by others also has
    `backward(parts, gradient, *, share) -> Sequence[Array]`: apply the output gradient
    `[bs, seq, dim]`, clipped and scaled by `share` in [0, 1], and return the input gradient of
    every part but TEXT (those shaped like their parts).
    """

    @property
    def modalities(self) -> frozenset[Modality]:
        """What it accepts; a request may combine them."""

    @property
    def dim(self) -> int:
        """Width of the output."""

    @property
    def vocabulary(self) -> int:
        """Token ids of TEXT are below this."""

    def forward(self, parts: Sequence[Part]) -> Array:
        """`[bs, seq, dim]` float32 of `parts`; rows do not depend on each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """Bounds of a server; the sum of memory is `bytes_max` and one model batch."""

    limits: Limits = field(default_factory=Limits)
    items_max: int = 1_024  # waiting; at 10 ms each a newcomer's turn is in sight
    bytes_max: int = 256 << 20  # admitted payloads and their answers, until the answer has left
    bytes_per_peer_max: int = 128 << 20  # one 64 MiB request and its answer
    per_sender_max: int = 64
    floor_bytes_divisor: int = 4  # all peers without weight together hold at most this part
    batch_rows_max: int = 64  # of one model call
    models_in_flight_max: int = 1
    header_timeout_s: float = 5.0
    send_timeout_s: float = 5.0  # to begin with; more for more bytes at the minimum rate
    rate_bytes_per_s_min: int = 256 << 10  # slower senders and readers are ended
    remaining_ms_max: int = 120_000  # longer deadlines are taken as this


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    """A request with its payload, from the queue's side; `done` is set with its `answer`."""

    peer: PeerId
    head: RequestHead
    request: Forward | Backward
    weight: int
    arrived_s: float
    done: trio.Event = field(default_factory=trio.Event)
    answer: Result | Gradient | Failure | None = None
    reset: bool = False  # the peer has gone; nobody wants the answer

    def finish(self, answer: Result | Gradient | Failure) -> None:
        """Hand the answer to the handler; the first one counts."""
        if self.answer is None:
            self.answer = answer
            self.done.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Service:
    """What the server says of one service before it begins; goes into the receipt."""

    number: int
    queue_wait_us: int
    share_ppm: int
    weights_height: int


class Server:
    """Serves one model to a network.

    `weight_of(peer)` is s_i·w_ij, the sender's stake times the weight it gives us, at the latest
    final block; `sign` and `context` (the chain id) make receipts, `height_of()` is the height of
    those weights. `counters` counts every outcome by name.
    """

    def __init__(
        self,
        network: Network,
        model: Model,
        *,
        weight_of: Callable[[PeerId], int],
        options: ServingOptions | None = None,
        sign: Callable[[bytes], bytes] | None = None,
        context: bytes = b"",
        height_of: Callable[[], int] = lambda: 0,
    ) -> None:
        self._network = network
        self._model = model
        self._weight_of = weight_of
        self._options = options if options is not None else ServingOptions()
        self._sign = sign
        self._context = context
        self._height_of = height_of
        self._queue: StakeQueue[_Job] = StakeQueue(
            items_max=self._options.items_max,
            bytes_max=self._options.bytes_max,
            per_sender_max=self._options.per_sender_max,
        )
        self._memory = _Memory(self._options, self._queue)
        self._work = trio.Event()
        self._service_number = 0
        self._measured = False  # whether `cost_per_s` is this machine's
        self.counters: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once the network answers streams of the protocol."""
        limiter = trio.CapacityLimiter(self._options.models_in_flight_max)
        await self._network.serve(PROTOCOL, self._handle)
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._options.models_in_flight_max):
                    nursery.start_soon(self._work_off, limiter)
                task_status.started()
        finally:
            with trio.CancelScope(shield=True):
                await self._network.unserve(PROTOCOL)

    def weights_changed(self) -> None:
        """The ledger has new weights: what waits is put in its new order."""
        for sender in self._queue.senders:
            self._queue.reweigh(sender, self._weight_of(PeerId(str(sender))))

    async def _handle(self, stream: Stream) -> None:
        """One exchange; whatever the peer does ends in an answer frame or a reset of its stream."""
        exchange = ServerExchange(limits=self._options.limits, vocabulary=self._model.vocabulary)
        holding = _Holding(self._memory, stream.peer_id)
        try:
            answer = await self._answer(stream, exchange, holding)
            if answer is None:
                exchange.cancel()
                self.counters["cancelled"] += 1
            else:
                name = answer.code if isinstance(answer, Failure) else kind_of(answer)
                self.counters[name.name.lower()] += 1
                await self._send(stream, exchange, answer)
        except trio.BrokenResourceError:
            self.counters["cancelled"] += 1
        finally:
            holding.release()

    async def _answer(
        self, stream: Stream, exchange: ServerExchange, holding: "_Holding"
    ) -> Result | Gradient | Failure | None:
        """The answer to the one request of a stream; None where the peer has gone."""
        try:
            head = await self._receive_head(stream, exchange)
            if head is None:
                return Failure(code=FailureCode.DEADLINE, detail="the header took too long")
            arrived_s = trio.current_time()
            remaining_s = min(head.remaining_ms, self._options.remaining_ms_max) / 1_000
            weight = max(0, self._weight_of(stream.peer_id))
            refusal = self._refusal(stream.peer_id, head, weight, holding)
            if refusal is not None:
                return refusal
            with trio.move_on_at(arrived_s + remaining_s):
                request = await self._receive_request(stream, exchange, head)
                if request is None:
                    return Failure(code=FailureCode.DEADLINE, detail="the payload came too slowly")
                job = _Job(
                    peer=stream.peer_id,
                    head=head,
                    request=request,
                    weight=weight,
                    arrived_s=arrived_s,
                )
                return await self._serve(stream, exchange, job, holding.held_bytes, remaining_s)
            return Failure(code=FailureCode.DEADLINE)
        except RemoteProtocolError as error:
            return Failure(code=error.code, detail=error.detail)

    async def _receive_head(self, stream: Stream, exchange: ServerExchange) -> RequestHead | None:
        with trio.move_on_after(self._options.header_timeout_s):
            while True:
                data = await stream.receive_some(RECEIVE_BYTES)
                if not data:
                    exchange.receive_end()
                for event in exchange.receive_data(data):
                    if isinstance(event, RequestHead):
                        return event
        return None

    def _refusal(
        self, peer: PeerId, head: RequestHead, weight: int, holding: "_Holding"
    ) -> Failure | None:
        """Judge a header; None admits it and holds its bytes. Nothing of the payload was read."""
        options = self._options
        unknown = {spec.modality for spec in head.inputs} - self._model.modalities
        if unknown:
            names = ", ".join(sorted(modality.name for modality in unknown))
            return Failure(code=FailureCode.UNKNOWN_MODALITY, detail=f"not served here: {names}")
        if head.kind is Kind.BACKWARD and (weight == 0 or not hasattr(self._model, "backward")):
            return Failure(code=FailureCode.BACKWARD_REFUSED, detail="no gradients from this peer")
        if head.gradient is not None and head.gradient.shape[2] != self._model.dim:
            detail = f"a gradient of width {head.gradient.shape[2]}, {self._model.dim} served here"
            return Failure(code=FailureCode.BAD_SHAPE, detail=detail)
        reply_bytes = self._reply_bytes(head)
        if reply_bytes > options.limits.payload_bytes_max:
            return Failure(code=FailureCode.TOO_LARGE, detail=f"an answer of {reply_bytes} bytes")
        held_bytes = head.payload_bytes + reply_bytes + EXCHANGE_BYTES
        try:
            holding.take(held_bytes, floor=weight == 0)
            self._queue.check(peer, weight=weight, payload_bytes=held_bytes)
        except QueueRefusal as refusal:
            return _busy(refusal.args[0], refusal.retry_after_ms, refusal.position)
        return None

    def _reply_bytes(self, head: RequestHead) -> int:
        if head.kind is Kind.BACKWARD:
            return sum(
                payload_bytes(head.reply_dtype, spec.elements)
                for spec in gradient_specs(head.inputs)
            )
        rows, steps = output_shape(head.inputs)
        return payload_bytes(head.reply_dtype, rows * steps * self._model.dim)

    def _cost(self, head: RequestHead) -> int:
        """What a request will take, in the queue's units, from its header alone."""
        steps = sum(
            spec.shape[0] * spec.shape[1] * STEP_COST[spec.modality] for spec in head.inputs
        )
        factor = BACKWARD_COST_FACTOR if head.kind is Kind.BACKWARD else 1
        return factor * steps + self._reply_bytes(head)

    async def _receive_request(
        self, stream: Stream, exchange: ServerExchange, head: RequestHead
    ) -> Forward | Backward | None:
        options = self._options
        allowed_s = options.send_timeout_s + head.payload_bytes / options.rate_bytes_per_s_min
        events = exchange.admit()
        with trio.move_on_after(allowed_s):
            while not events:
                data = await stream.receive_some(RECEIVE_BYTES)
                if not data:
                    exchange.receive_end()
                events = exchange.receive_data(data)
        for event in events:
            if isinstance(event, Forward | Backward):
                return event
        return None

    async def _serve(
        self,
        stream: Stream,
        exchange: ServerExchange,
        job: _Job,
        held_bytes: int,
        remaining_s: float,
    ) -> Result | Gradient | Failure | None:
        """Queue a job and wait for its answer; None where the peer reset the stream."""
        try:
            ticket = self._queue.push(
                job.peer,
                job,
                weight=job.weight,
                cost=self._cost(job.head),
                payload_bytes=held_bytes,
                deadline_ms=_ms(job.arrived_s + remaining_s),
            )
        except QueueRefusal as refusal:
            return _busy(refusal.args[0], refusal.retry_after_ms, refusal.position)
        self._answer_dropped()
        self._work.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, stream, exchange, job)
                await job.done.wait()
                nursery.cancel_scope.cancel()
        finally:
            # Still waiting: reset by the peer (charged to it), or out of time (not).
            self._queue.cancel(ticket, expired=not job.reset)
        return job.answer

    async def _watch(self, stream: Stream, exchange: ServerExchange, job: _Job) -> None:
        """Notice a reset, or bytes that do not belong there, while a job waits."""
        try:
            while True:
                data = await stream.receive_some(RECEIVE_BYTES)
                if not data:
                    exchange.receive_end()
                    return
                exchange.receive_data(data)
        except RemoteProtocolError as error:
            job.finish(Failure(code=error.code, detail=error.detail))
        except trio.BrokenResourceError:
            job.reset = True
            job.done.set()

    def _answer_dropped(self) -> None:
        for ticket in self._queue.dropped():
            if ticket.standing is Standing.EXPIRED:
                ticket.request.finish(Failure(code=FailureCode.DEADLINE))
            else:
                retry_after_ms = self._queue.retry_after_ms(ticket.sender)
                ticket.request.finish(
                    _busy("displaced by peers with more weight", retry_after_ms, len(self._queue))
                )

    async def _work_off(self, limiter: trio.CapacityLimiter) -> None:
        """Run batches in fair order for ever; one of `models_in_flight_max` such tasks."""
        while True:
            tickets = self._take_batch()
            if not tickets:
                if self._work.is_set():
                    self._work = trio.Event()
                await self._work.wait()
                continue
            services = [self._service(ticket) for ticket in tickets]
            jobs = [ticket.request for ticket in tickets]
            duration_s, answers = await trio.to_thread.run_sync(
                partial(self._compute, jobs, services), limiter=limiter
            )
            for job, answer in zip(jobs, answers, strict=True):
                job.finish(answer)
            self._measure(tickets, duration_s)

    def _take_batch(self) -> list[Ticket[_Job]]:
        """The next request and those behind it in fair order that fit into its model call."""
        now_ms = _ms(trio.current_time())
        first = self._queue.pop(now_ms)
        tickets = [] if first is None else [first]
        if first is not None and first.request.head.kind is Kind.FORWARD:
            shapes = _row_shapes(first.request.head)
            rows = first.request.head.inputs[0].shape[0]

            def fits(job: _Job) -> bool:
                fitting_rows = self._options.batch_rows_max - rows
                return (
                    job.head.kind is Kind.FORWARD
                    and _row_shapes(job.head) == shapes
                    and job.head.inputs[0].shape[0] <= fitting_rows
                )

            while (ticket := self._queue.pop(now_ms, accept=fits)) is not None:
                rows += ticket.request.head.inputs[0].shape[0]
                tickets.append(ticket)
        self._answer_dropped()
        return tickets

    def _service(self, ticket: Ticket[_Job]) -> _Service:
        self._service_number += 1
        waited_s = trio.current_time() - ticket.request.arrived_s
        return _Service(
            number=self._service_number,
            queue_wait_us=int(waited_s * 1_000_000),
            share_ppm=self._queue.share_ppm(ticket.sender, ticket.request.weight),
            weights_height=self._height_of(),
        )

    def _measure(self, tickets: Sequence[Ticket[_Job]], duration_s: float) -> None:
        """Correct what each ticket was charged, and learn how much cost a second is."""
        cost = sum(ticket.cost for ticket in tickets)
        measured = max(1, int(duration_s * self._queue.cost_per_s))
        if self._measured:
            for ticket in tickets:
                self._queue.correct(ticket, measured * ticket.cost // cost)
        rate = cost / max(duration_s, 1e-6)
        memory = RATE_MEMORY if self._measured else 0.0
        self._queue.cost_per_s = max(1, int(memory * self._queue.cost_per_s + (1 - memory) * rate))
        self._measured = True

    def _compute(
        self, jobs: Sequence[_Job], services: Sequence[_Service]
    ) -> tuple[float, list[Result | Gradient | Failure]]:
        """Run the model, in a worker thread: (its seconds, an answer per job)."""
        began_s = time.perf_counter()
        try:
            outputs = self._outputs(jobs, services)
        except Exception:  # the guard: a user's model may raise anything, callers get INTERNAL
            logger.exception("the model failed on a request of %s", jobs[0].peer)
            failure = Failure(code=FailureCode.INTERNAL, detail="the model failed")
            return time.perf_counter() - began_s, [failure] * len(jobs)
        duration_s = time.perf_counter() - began_s
        answers = [
            self._packed(job, service, output)
            for job, service, output in zip(jobs, services, outputs, strict=True)
        ]
        return duration_s, answers

    def _outputs(
        self, jobs: Sequence[_Job], services: Sequence[_Service]
    ) -> list[list[tuple[Modality, Array]]]:
        """Per job, the arrays of its answer with their modalities."""
        first = jobs[0].request
        if isinstance(first, Backward):
            train: Callable[..., Sequence[Array]] = self._model.backward  # type: ignore[attr-defined]
            gradient = first.gradient.to_numpy()
            share = services[0].share_ppm / SHARE_ONE_PPM
            arrays = train(first.parts, gradient, share=share)
            modalities = [spec.modality for spec in gradient_specs(jobs[0].head.inputs)]
            return [list(zip(modalities, arrays, strict=True))]
        if len(jobs) == 1:
            parts = tuple(first.parts)
        else:
            columns = zip(*(job.request.parts for job in jobs), strict=True)
            parts = tuple(_joined(column) for column in columns)
        output = self._model.forward(parts)
        rows, steps = output_shape([part.spec for part in parts])
        if output.shape != (rows, steps, self._model.dim):
            raise ValueError(f"an output of shape {output.shape} for {(rows, steps)}")
        ends = np.cumsum([job.head.inputs[0].shape[0] for job in jobs])
        return [
            [(Modality.TENSOR, rows_of_job)] for rows_of_job in np.split(output, ends[:-1], axis=0)
        ]

    def _packed(
        self, job: _Job, service: _Service, arrays: list[tuple[Modality, Array]]
    ) -> Result | Gradient | Failure:
        """An answer frame's content, checked as the caller will check it, with its receipt."""
        dtype = job.head.reply_dtype
        parts = tuple(
            Part(modality, WireTensor.from_numpy(array, dtype)) for modality, array in arrays
        )
        try:
            for part in parts:
                check_values(part)
        except RemoteProtocolError:
            return Failure(code=FailureCode.INTERNAL, detail="the model's output is out of range")
        kind = Kind.GRADIENT if job.head.kind is Kind.BACKWARD else Kind.RESULT
        receipt = self._receipt(job, service, kind, parts)
        if kind is Kind.GRADIENT:
            return Gradient(gradients=parts, receipt=receipt)
        return Result(output=parts[0].tensor, receipt=receipt)

    def _receipt(
        self, job: _Job, service: _Service, kind: Kind, parts: Sequence[Part]
    ) -> Receipt | None:
        if self._sign is None or not job.head.receipt_wanted:
            return None
        request_id = job.head.request_id
        receipt = Receipt(
            server=self._network.peer_id.to_bytes(),
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

    async def _send(
        self, stream: Stream, exchange: ServerExchange, answer: Result | Gradient | Failure
    ) -> None:
        segments = exchange.send(answer)
        options = self._options
        allowed_s = options.send_timeout_s + sum(map(len, segments)) / options.rate_bytes_per_s_min
        with trio.move_on_after(allowed_s) as scope:
            for segment in segments:
                await stream.send_all(segment)
        if scope.cancelled_caught:
            self.counters["slow_reader"] += 1
            await stream.reset()


class _Memory:
    """Bytes held by admitted exchanges, per peer and in total."""

    def __init__(self, options: ServingOptions, queue: StakeQueue[_Job]) -> None:
        self.options = options
        self.queue = queue
        self.per_peer: Counter[PeerId] = Counter()
        self.total_bytes = 0
        self.floor_bytes = 0


class _Holding:
    """What one exchange holds; released when its answer has left."""

    def __init__(self, memory: _Memory, peer: PeerId) -> None:
        self._memory = memory
        self._peer = peer
        self._floor = False
        self.held_bytes = 0

    def take(self, held_bytes: int, *, floor: bool) -> None:
        """Hold bytes, or raise `QueueRefusal` at a bound."""
        memory, options = self._memory, self._memory.options
        floor_bytes_max = options.bytes_max // options.floor_bytes_divisor
        reason = None
        if memory.per_peer[self._peer] + held_bytes > options.bytes_per_peer_max:
            reason = "this peer's requests hold too many bytes"
        elif memory.total_bytes + held_bytes > options.bytes_max:
            reason = "all requests together hold too many bytes"
        elif floor and memory.floor_bytes + held_bytes > floor_bytes_max:
            reason = "requests of peers without weight hold too many bytes"
        if reason is not None:
            raise QueueRefusal(
                reason,
                retry_after_ms=memory.queue.retry_after_ms(self._peer),
                position=len(memory.queue),
            )
        self._floor = floor
        self.held_bytes = held_bytes
        self._change(held_bytes)

    def release(self) -> None:
        """Give everything back; idempotent."""
        self._change(-self.held_bytes)
        self.held_bytes = 0

    def _change(self, change_bytes: int) -> None:
        memory = self._memory
        memory.total_bytes += change_bytes
        memory.floor_bytes += change_bytes if self._floor else 0
        memory.per_peer[self._peer] += change_bytes
        if memory.per_peer[self._peer] == 0:
            del memory.per_peer[self._peer]


def _busy(reason: str, retry_after_ms: int, position: int) -> Failure:
    return Failure(
        code=FailureCode.BUSY, detail=reason, retry_after_ms=retry_after_ms, position=position
    )


def _row_shapes(head: RequestHead) -> tuple[tuple[Modality, tuple[int, ...]], ...]:
    """What two requests must share to be one model call: all but the batch size and the dtypes."""
    return tuple((spec.modality, spec.shape[1:]) for spec in head.inputs)


def _joined(parts: Sequence[Part]) -> Part:
    """Parts of several requests as one, along the batch."""
    arrays = [part.tensor.to_numpy() for part in parts]
    return Part(parts[0].modality, WireTensor.from_numpy(np.concatenate(arrays, axis=0)))


def _ms(at_s: float) -> int:
    return int(at_s * 1_000)
