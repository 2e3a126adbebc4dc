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
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import trio
from numpy.typing import NDArray

from node.byte_budget import BudgetExceeded, ByteBudget, ByteBudgetLimits, Holding
from node.cost_meter import CostMeter
from node.frame_stream import receive_more
from node.model import Model, promised_cost, reply_bytes
from node.model_call import Job, ModelCaller, Ran, Service, row_shapes
from p2p.identity import PeerId
from p2p.network import Network, Stream
from tensorwire import (
    Failure,
    FailureCode,
    InvariantViolation,
    Kind,
    Limits,
    QueueRefusal,
    RemoteProtocolError,
    RequestHead,
    ServerExchange,
)
from tensorwire.events import Answer, ServerEvent, kind_of
from tensorwire.exchange import PROTOCOL
from tensorwire.flow import Standing, Ticket
from tensorwire.queue import StakeQueue
from tensorwire.transition import State

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs that mypy finds for trio lack the name

INSTANT_BYTES_MAX = 9 << 16  # held for what an instant model serves here: 256 KiB each way, 0.2 ms
WATCH_AFTER_S = 0.01  # a job that waits longer has a task that notices when its peer goes

EXCHANGE_BYTES = 32 << 10  # of tasks, stream and header, held beside the payload

_FORWARD, _BACKWARD = Kind.FORWARD, Kind.BACKWARD

_ANSWERS = {kind: kind.name.lower() for kind in Kind}  # their counters
_FAILURES = {code: code.name.lower() for code in FailureCode}

Array = NDArray[np.float32]
logger = logging.getLogger(__name__)


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


class Server:
    """Serves one model to a network.

    `weight_of(peer)` is s_i·w_ij, the sender's stake times the weight it gives us, at the latest
    final block; `sign` and `context` (the chain id) make receipts, `height_of()` is the height of
    those weights, `stopwatch` tells the seconds that the model takes. `counters` counts every
    outcome by name.
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
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._network = network
        self._model = model
        self._weight_of = weight_of
        self._options = options if options is not None else ServingOptions()
        self._caller = ModelCaller(
            model,
            server=network.peer_id.to_bytes(),
            sign=sign,
            context=context,
            stopwatch=stopwatch,
        )
        self._height_of = height_of
        self._queue: StakeQueue[Job] = StakeQueue(
            items_max=self._options.items_max,
            bytes_max=self._options.bytes_max,
            per_sender_max=self._options.per_sender_max,
        )
        self._budget = ByteBudget(
            ByteBudgetLimits(
                total_bytes_max=self._options.bytes_max,
                per_peer_bytes_max=self._options.bytes_per_peer_max,
                floor_bytes_max=self._options.bytes_max // self._options.floor_bytes_divisor,
            )
        )
        self._work = trio.Event()
        self._is_instant = getattr(model, "is_instant", False)
        self._service_number = 0
        self._meter = CostMeter()
        self._uncharged: list[tuple[Sequence[Ticket[Job]], float]] = []  # and the seconds they took
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
        self._charge()
        for sender in self._queue.senders:
            self._queue.reweigh(sender, self._weight_of(PeerId(str(sender))))

    async def _handle(self, stream: Stream) -> None:
        """One exchange; whatever the peer does ends in an answer frame or a reset of its stream."""
        exchange = ServerExchange(limits=self._options.limits, vocabulary=self._model.vocabulary)
        holding = self._budget.holding(stream.peer_id)
        try:
            stream.deadline_s = trio.current_time() + self._options.header_timeout_s
            try:
                answer = await self._answer(stream, exchange, holding)
                await self._send(stream, exchange, answer)
            except trio.TooSlowError:
                await self._end_late(stream, exchange)
            self._charge()
        except trio.BrokenResourceError:
            self.counters["cancelled"] += 1
        finally:
            holding.release()

    async def _end_late(self, stream: Stream, exchange: ServerExchange) -> None:
        """The deadline of a phase has passed: tell the peer, unless it is slow to read that."""
        if exchange.state is not State.DONE:
            late = Failure(code=FailureCode.DEADLINE, detail=f"in {exchange.state.name}")
            with suppress(trio.TooSlowError):
                await self._send(stream, exchange, late)
                return
        self.counters["slow_reader"] += 1
        await stream.reset()

    async def _answer(
        self, stream: Stream, exchange: ServerExchange, holding: Holding
    ) -> Answer | None:
        """The answer to the one request of a stream; None where the peer has gone.

        Raises `TooSlowError` when header or payload come too slowly or the request's time is over.
        """
        options = self._options
        try:
            head = await _receive(stream, exchange, ())
            arrived_s = trio.current_time()
            if not isinstance(head, RequestHead):
                raise InvariantViolation("a request before its head")
            remaining_s = min(head.remaining_ms, options.remaining_ms_max) / 1_000
            weight = max(0, self._weight_of(stream.peer_id))
            refusal = self._refusal(stream.peer_id, head, weight, holding)
            if refusal is not None:
                return refusal
            admitted = exchange.admit()
            if not admitted:
                rate_s = head.payload_bytes / options.rate_bytes_per_s_min
                stream.deadline_s = arrived_s + min(options.send_timeout_s + rate_s, remaining_s)
            request = await _receive(stream, exchange, admitted)
            if isinstance(request, RequestHead):
                raise InvariantViolation("a second head")
            job = Job(
                peer=stream.peer_id,
                head=head,
                request=request,
                weight=weight,
                arrived_s=arrived_s,
                held_bytes=holding.held_bytes,
            )
            ticket = self._queued(job, arrived_s + remaining_s)
            if not job.done.is_set():
                with trio.CancelScope(deadline=arrived_s + remaining_s) as scope:
                    await self._wait(stream, exchange, job, ticket)
                if scope.cancel_called:  # the answer may have come as its time ran out: it is late
                    raise trio.TooSlowError
            return job.answer
        except QueueRefusal as refusal:
            return _busy(str(refusal), refusal.retry_after_ms, refusal.position)
        except RemoteProtocolError as error:
            return Failure(code=error.code, detail=error.detail)

    def _refusal(
        self, peer: PeerId, head: RequestHead, weight: int, holding: Holding
    ) -> Failure | None:
        """Judge a header; None admits it and holds its bytes. Nothing of the payload was read."""
        self._charge()
        options = self._options
        unknown = {spec.modality for spec in head.inputs} - self._model.modalities
        if unknown:
            names = ", ".join(sorted(modality.name for modality in unknown))
            return Failure(code=FailureCode.UNKNOWN_MODALITY, detail=f"not served here: {names}")
        if head.kind is _BACKWARD and (weight == 0 or not hasattr(self._model, "backward")):
            return Failure(code=FailureCode.BACKWARD_REFUSED, detail="no gradients from this peer")
        if head.gradient is not None and head.gradient.shape[2] != self._model.dim:
            detail = f"a gradient of width {head.gradient.shape[2]}, {self._model.dim} served here"
            return Failure(code=FailureCode.BAD_SHAPE, detail=detail)
        answer_bytes = reply_bytes(head, self._model.dim)
        if answer_bytes > options.limits.payload_bytes_max:
            return Failure(code=FailureCode.TOO_LARGE, detail=f"an answer of {answer_bytes} bytes")
        held_bytes = head.payload_bytes + answer_bytes + EXCHANGE_BYTES
        try:
            holding.take(held_bytes, floor=weight == 0)
            self._queue.check(peer, weight=weight, payload_bytes=held_bytes)
        except BudgetExceeded as refusal:
            retry_after_ms = self._queue.retry_after_ms(peer)
            return _busy(str(refusal), retry_after_ms, len(self._queue))
        except QueueRefusal as refusal:
            return _busy(str(refusal), refusal.retry_after_ms, refusal.position)
        return None

    def _queued(self, job: Job, deadline_s: float) -> Ticket[Job]:
        """Put a job into the queue, or raise `QueueRefusal`; what runs at once has run then."""
        ticket = self._queue.push(
            job.peer,
            job,
            weight=job.weight,
            cost=promised_cost(job.head, self._model.dim),
            payload_bytes=job.held_bytes,
            deadline_ms=_ms(deadline_s),
        )
        self._answer_dropped()
        if self._is_instant:
            self._serve_instantly()
        if self._queue:
            self._work.set()
        return ticket

    async def _wait(
        self, stream: Stream, exchange: ServerExchange, job: Job, ticket: Ticket[Job]
    ) -> None:
        """Wait until a job is done, or its peer has reset the stream."""
        try:
            with trio.move_on_after(WATCH_AFTER_S):
                await job.done.wait()
            if not job.done.is_set():
                stream.deadline_s = math.inf
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, stream, exchange, job)
                    await job.done.wait()
                    nursery.cancel_scope.cancel()
        finally:
            # Still waiting: reset by the peer (charged to it), or out of time (not).
            self._queue.cancel(ticket, expired=not job.reset)

    async def _watch(self, stream: Stream, exchange: ServerExchange, job: Job) -> None:
        """Notice a reset, or bytes that do not belong there, while a job waits."""
        try:
            while data := await stream.receive_some():
                exchange.receive_data(data)
            exchange.receive_end()
            await stream.wait_ended()  # who has ended the request in order can still take it back
        except RemoteProtocolError as error:
            job.finish(Failure(code=error.code, detail=error.detail))
            return
        except trio.BrokenResourceError:
            pass
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
            call = self._model_call(tickets)
            self._finish(tickets, await trio.to_thread.run_sync(call, limiter=limiter))

    def _serve_instantly(self) -> None:
        """Run what is next here and now, while it is small: a thread would cost more."""
        while tickets := self._take_batch(accept=_is_small):
            self._finish(tickets, self._model_call(tickets)())

    def _model_call(self, tickets: Sequence[Ticket[Job]]) -> Callable[[], Ran]:
        now_s = trio.current_time()
        services = [self._service(ticket, now_s) for ticket in tickets]
        return partial(self._caller.run, [ticket.request for ticket in tickets], services)

    def _finish(self, tickets: Sequence[Ticket[Job]], ran: Ran) -> None:
        """Hand out the answers; what they took is charged before the queue decides anything."""
        duration_s, answers = ran
        for ticket, answer in zip(tickets, answers, strict=True):
            ticket.request.finish(answer)
        self._uncharged.append((tickets, duration_s))

    def _charge(self) -> None:
        """Correct what each served ticket was charged by what it took."""
        for tickets, duration_s in self._uncharged:
            costs = [(ticket.request.peer, ticket.cost) for ticket in tickets]
            for ticket, cost in zip(tickets, self._meter.observe(costs, duration_s), strict=True):
                self._queue.correct(ticket, cost)
            self._queue.cost_per_s = max(1, self._meter.cost_per_s)
        self._uncharged.clear()

    def _take_batch(self, *, accept: Callable[[Job], bool] | None = None) -> list[Ticket[Job]]:
        """The next request and those behind it in fair order that fit into its model call."""
        if not self._queue:
            return []
        self._charge()
        now_ms = _ms(trio.current_time())
        first = self._queue.pop(now_ms, accept=accept)
        tickets = [] if first is None else [first]
        if first is not None and self._queue and first.request.head.kind is _FORWARD:
            shapes = row_shapes(first.request.head)
            rows = first.request.head.inputs[0].shape[0]

            def fits(job: Job) -> bool:
                fitting_rows = self._options.batch_rows_max - rows
                return (
                    job.head.kind is _FORWARD
                    and row_shapes(job.head) == shapes
                    and job.head.inputs[0].shape[0] <= fitting_rows
                )

            while self._queue and (ticket := self._queue.pop(now_ms, accept=fits)) is not None:
                rows += ticket.request.head.inputs[0].shape[0]
                tickets.append(ticket)
        self._answer_dropped()
        return tickets

    def _service(self, ticket: Ticket[Job], now_s: float) -> Service:
        self._service_number += 1
        job = ticket.request
        job.weight = max(0, self._weight_of(job.peer))  # it may have waited while the ledger moved
        waited_s = now_s - job.arrived_s
        asks_share = job.head.receipt_wanted or job.head.kind is _BACKWARD
        return Service(
            number=self._service_number,
            queue_wait_us=int(waited_s * 1_000_000),
            share_ppm=self._queue.share_ppm(ticket.sender, job.weight) if asks_share else 0,
            weights_height=self._height_of(),
        )

    async def _send(self, stream: Stream, exchange: ServerExchange, answer: Answer | None) -> None:
        """Send an answer, with the time that its length may take; None: nobody waits for one."""
        if answer is None:
            exchange.cancel()
            self.counters["cancelled"] += 1
            return
        if isinstance(answer, Failure):
            self.counters[_FAILURES[answer.code]] += 1
        else:
            self.counters[_ANSWERS[kind_of(answer)]] += 1
        segments = exchange.send(answer)
        rate_s = sum(map(len, segments)) / self._options.rate_bytes_per_s_min
        stream.deadline_s = trio.current_time() + self._options.send_timeout_s + rate_s
        await stream.send_last(*segments)


async def _receive(
    stream: Stream, exchange: ServerExchange, events: Sequence[ServerEvent]
) -> ServerEvent:
    """The first of `events`, or of those that come with more bytes."""
    while not events:
        events = await receive_more(stream, exchange)
    return events[0]


def _is_small(job: Job) -> bool:
    return job.held_bytes <= INSTANT_BYTES_MAX


def _busy(reason: str, retry_after_ms: int, position: int) -> Failure:
    return Failure(
        code=FailureCode.BUSY, detail=reason, retry_after_ms=retry_after_ms, position=position
    )


def _ms(at_s: float) -> int:
    return int(at_s * 1_000)
