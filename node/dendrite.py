"""The asking side of `/agora/tensor/1`: one call, one stream, always one typed outcome.

Rule: a call ends within its deadline in an answer or in one of `node.errors`' call errors:

    Overloaded        BUSY; carries when to ask again
    CallTimeout       our deadline passed, or the peer dropped the request for its own
    RemoteError       any other failure frame, or an answer against the protocol; `.code` names it
    PeerUnreachable   no connection, or it broke

A FORWARD whose connection breaks before any of the answer came is sent once more, because asking
twice changes nothing; a BACKWARD never is, because it may have been applied. Cancelling a call
resets its stream, and the peer takes the request out of its queue.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from node.deadline import Deadlines
from node.errors import CallError, CallTimeout, Overloaded, PeerUnreachable, RemoteError
from node.frame_stream import receive_more
from p2p.errors import NetworkError
from p2p.identity import PeerId, verify
from p2p.network import Network, Stream
from tensorwire import (
    Backward,
    ClientExchange,
    DType,
    Failure,
    FailureCode,
    Forward,
    Gradient,
    Kind,
    Limits,
    Part,
    Receipt,
    RemoteProtocolError,
    Result,
    WireTensor,
    exchange_digest,
    verify_receipt,
)
from tensorwire.events import REQUEST_ID_BYTES, answer_parts, kind_of, request_parts
from tensorwire.exchange import PROTOCOL

SEND_ALONE_BYTES = 128 << 10  # half of Yamux's first window: cannot block on a peer not reading
LIMITS = Limits()  # of a peer whose status is not known
HASH_INLINE_BYTES = 256 << 10  # 0.1 ms of blake3; more goes to a worker thread


@dataclass(frozen=True, slots=True, kw_only=True)
class Represented:
    """The answer to a forward call: `output` is `[bs, seq, dim]`.

    `receipt` is None where none was wanted, or where the one that came does not hold.
    """

    output: WireTensor
    receipt: Receipt | None
    request_id: bytes
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """The answer to a backward call: input gradients of every part but TEXT, in order."""

    gradients: tuple[Part, ...]
    receipt: Receipt | None
    request_id: bytes
    duration_s: float


class Dendrite:
    """Asks other peers. `context` is the chain id that receipts must be bound to.

    `limits_of(peer)` are the bounds that a peer's status advertises. `counters` counts every
    outcome by name.
    """

    def __init__(
        self,
        network: Network,
        *,
        context: bytes = b"",
        receipts: bool = True,
        limits_of: Callable[[PeerId], Limits] = lambda _: LIMITS,
        deadlines: Deadlines | None = None,
    ) -> None:
        self._network = network
        self._context = context
        self._receipts = receipts
        self._limits_of = limits_of
        self.deadlines = deadlines if deadlines is not None else Deadlines()
        self.counters: Counter[str] = Counter()

    async def forward(
        self,
        peer_id: PeerId,
        parts: Sequence[Part],
        *,
        deadline_s: float | None = None,
        reply_dtype: DType = DType.FLOAT32,
    ) -> Represented:
        """Ask `peer_id` for the representation of `parts`; raises a `CallError`.

        `deadline_s` bounds the whole call; None takes what is usual for this peer.
        """
        request = Forward(parts=parts, reply_dtype=reply_dtype, receipt_wanted=self._receipts)
        answer, receipt, request_id, duration_s = await self._call(peer_id, request, deadline_s)
        if not isinstance(answer, Result):
            raise RemoteError(f"{peer_id} sent no result", code=FailureCode.MALFORMED.name)
        return Represented(
            output=answer.output, receipt=receipt, request_id=request_id, duration_s=duration_s
        )

    async def backward(
        self,
        peer_id: PeerId,
        parts: Sequence[Part],
        gradient: WireTensor,
        *,
        deadline_s: float | None = None,
        reply_dtype: DType = DType.FLOAT32,
    ) -> Taught:
        """Send the gradient of a loss at the output of `parts`; raises a `CallError`.

        `gradient` is `[bs, seq, dim]` float32 or bfloat16. Sent once: never retried.
        """
        request = Backward(
            parts=parts,
            gradient=gradient,
            reply_dtype=reply_dtype,
            receipt_wanted=self._receipts,
        )
        answer, receipt, request_id, duration_s = await self._call(peer_id, request, deadline_s)
        if not isinstance(answer, Gradient):
            raise RemoteError(f"{peer_id} sent no gradient", code=FailureCode.MALFORMED.name)
        return Taught(
            gradients=tuple(answer.gradients),
            receipt=receipt,
            request_id=request_id,
            duration_s=duration_s,
        )

    async def _call(
        self, peer_id: PeerId, request: Forward | Backward, deadline_s: float | None
    ) -> tuple[Result | Gradient, Receipt | None, bytes, float]:
        began_s = trio.current_time()
        allowed_s = self.deadlines.deadline_s(peer_id) if deadline_s is None else deadline_s
        try:
            with trio.CancelScope(deadline=began_s + allowed_s) as scope:
                answer, request_id = await self._attempts(peer_id, request, began_s + allowed_s)
                duration_s = trio.current_time() - began_s
                receipt = answer.receipt
                if receipt is not None:
                    receipt = await self._checked(receipt, peer_id, request, answer, request_id)
        except CallError as error:
            self.counters[type(error).__name__.lower()] += 1
            raise
        if scope.cancelled_caught:
            self.deadlines.late(peer_id, allowed_s)
            self.counters["timeout"] += 1
            raise CallTimeout(f"{peer_id} did not answer within {allowed_s:.3g} s")
        self.deadlines.answered(peer_id, duration_s)
        self.counters["answered"] += 1
        return answer, receipt, request_id, duration_s

    async def _attempts(
        self, peer_id: PeerId, request: Forward | Backward, deadline_at_s: float
    ) -> tuple[Result | Gradient, bytes]:
        """Up to two attempts of a FORWARD, one of a BACKWARD; (answer, its request id)."""
        last = isinstance(request, Backward)
        while True:
            request_id = secrets.token_bytes(REQUEST_ID_BYTES)
            exchange = ClientExchange(request_id=request_id, limits=self._limits_of(peer_id))
            try:
                answer = await self._exchange(peer_id, exchange, request, deadline_at_s)
            except (NetworkError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                # After part of an answer the peer has done the work: do not make it do it again.
                if last or exchange.answer_begun:
                    raise PeerUnreachable(f"{peer_id}: {error}") from error
                last = True
                self.counters["retried"] += 1
                continue
            except RemoteProtocolError as error:
                raise RemoteError(f"{peer_id}: {error}", code=error.code.name) from error
            if isinstance(answer, Failure):
                raise _call_error(peer_id, answer)
            return answer, request_id

    async def _exchange(
        self,
        peer_id: PeerId,
        exchange: ClientExchange,
        request: Forward | Backward,
        deadline_at_s: float,
    ) -> Result | Gradient | Failure:
        async with self._network.open_stream(peer_id, PROTOCOL) as stream:
            remaining_ms = max(1, int((deadline_at_s - trio.current_time()) * 1_000))
            segments = exchange.send(request, remaining_ms=remaining_ms)
            if sum(map(len, segments)) <= SEND_ALONE_BYTES:
                await stream.send_last(*segments)
                return await _receive(stream, exchange)
            return await _send_and_receive(stream, exchange, segments)

    async def _checked(
        self,
        receipt: Receipt,
        peer_id: PeerId,
        request: Forward | Backward,
        answer: Result | Gradient,
        request_id: bytes,
    ) -> Receipt | None:
        """The receipt of an answer; None where it does not hold."""

        def holds() -> bool:
            server, client = peer_id.to_bytes(), self._network.peer_id.to_bytes()
            parts, replied = request_parts(request), answer_parts(answer)
            kind = Kind(kind_of(request))
            return (
                (receipt.server, receipt.client) == (server, client)
                and receipt.request_digest == exchange_digest(kind, request_id, parts)
                and receipt.result_digest == exchange_digest(kind_of(answer), request_id, replied)
                and verify_receipt(receipt, _verified, context=self._context, request_id=request_id)
            )

        hashed_bytes = sum(
            part.tensor.payload_bytes for part in (*request_parts(request), *answer_parts(answer))
        )
        if hashed_bytes <= HASH_INLINE_BYTES:
            held = holds()
        else:
            held = await trio.to_thread.run_sync(holds)
        if not held:
            self.counters["receipt_refused"] += 1
        return receipt if held else None


async def _receive(stream: Stream, exchange: ClientExchange) -> Result | Gradient | Failure:
    while True:
        for event in await receive_more(stream, exchange):
            return event


async def _send_and_receive(
    stream: Stream, exchange: ClientExchange, segments: Sequence[bytes | memoryview]
) -> Result | Gradient | Failure:
    """Send while listening: a refusal may come while most of a payload is still here."""
    answers: list[Result | Gradient | Failure] = []
    faults: list[RemoteProtocolError | trio.BrokenResourceError] = []
    sent = False
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            try:
                answers.append(await _receive(stream, exchange))
            except (RemoteProtocolError, trio.BrokenResourceError) as error:
                faults.append(error)
            nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        try:
            await stream.send_last(*segments)
            sent = True
        except trio.BrokenResourceError:
            # The peer reads no more; what it had to say about that may still be to read.
            sent = False
    if answers:
        if not sent:
            await stream.reset()
        return answers[0]
    raise faults[0]


def _verified(server: bytes, message: bytes, signature: bytes) -> bool:
    return verify(PeerId.from_bytes(server).public_key, message, signature)


def _call_error(peer_id: PeerId, failure: Failure) -> CallError:
    text = f"{peer_id}: {failure.code.name} {failure.detail}".rstrip()
    match failure.code:
        case FailureCode.BUSY:
            return Overloaded(text, retry_after_s=failure.retry_after_ms / 1_000)
        case FailureCode.DEADLINE:
            return CallTimeout(text)
        case _:
            return RemoteError(text, code=failure.code.name)
