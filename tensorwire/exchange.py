"""One exchange: a request, an answer, done. Both ends as machines of bytes in, events out.

    client   IDLE ─request─► AWAITING_x ─head─► RECEIVING ─payload─► DONE
    server   IDLE ─head─► ADMITTING_x ─admit─► RECEIVING_x ─payload─► SERVING_x ─answer─► DONE

Rule: `transition.TRANSITIONS` says what is legal in which state, for every pair of both. What the
peer does out of order is a `RemoteProtocolError` and leaves the exchange FAULTED (a server may
still send one FAILURE); what this side does out of order is a `LocalProtocolError` and changes
nothing. Flow control, interleaving and cancellation are the stream's.
"""

from typing import TypeVar

from blake3 import blake3

from tensorwire.codec import Header, check_header, decode_header, encode_header
from tensorwire.errors import (
    FailureCode,
    InvariantViolation,
    LocalProtocolError,
    RemoteProtocolError,
)
from tensorwire.events import (
    Answer,
    Backward,
    ClientEvent,
    Failure,
    Forward,
    Gradient,
    Kind,
    Request,
    RequestHead,
    Result,
    ServerEvent,
    answer_parts,
    kind_of,
    request_parts,
    require_request_id,
)
from tensorwire.framing import HeadReader, PayloadReader, Segments, encode_frame
from tensorwire.tensor import (
    VOCABULARY_MAX,
    DType,
    Limits,
    Part,
    PartSpec,
    check_specs,
    check_values,
    gradient_specs,
    output_shape,
)
from tensorwire.transition import TRANSITIONS, Blame, Input, Role, State

_Value = TypeVar("_Value")

PROTOCOL = "/agora/tensor/1"

_HEADS = {
    Kind.FORWARD: Input.HEAD_FORWARD,
    Kind.BACKWARD: Input.HEAD_BACKWARD,
    Kind.RESULT: Input.HEAD_RESULT,
    Kind.GRADIENT: Input.HEAD_GRADIENT,
    Kind.FAILURE: Input.HEAD_FAILURE,
}
_SENDS = {
    Kind.FORWARD: Input.SEND_FORWARD,
    Kind.BACKWARD: Input.SEND_BACKWARD,
    Kind.RESULT: Input.SEND_RESULT,
    Kind.GRADIENT: Input.SEND_GRADIENT,
    Kind.FAILURE: Input.SEND_FAILURE,
}


# Python 3.11 looks up a member of an enumeration at ten times the cost of a name.
_FORWARD, _BACKWARD, _RESULT, _GRADIENT, _FAILURE = Kind
_ADMIT, _PAYLOAD = Input.ADMIT, Input.PAYLOAD
_IDLE, _RECEIVING_ANSWER, _FAULTED = State.IDLE, State.RECEIVING_ANSWER, State.FAULTED
_AWAITING = (State.AWAITING_RESULT, State.AWAITING_GRADIENT)
_ADMITTING = (State.ADMITTING_FORWARD, State.ADMITTING_BACKWARD)
_RECEIVING = (State.RECEIVING_FORWARD, State.RECEIVING_BACKWARD)
_SERVING = (State.SERVING_FORWARD, State.SERVING_BACKWARD)


class _Exchange:
    """What both ends share: the state, the readers, and the order of faults."""

    _role: Role

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._state = _IDLE
        self._head = HeadReader(limits.header_bytes_max)
        self._header: Header | None = None
        self._payload: PayloadReader | None = None

    @property
    def state(self) -> State:
        """Where this exchange stands."""
        return self._state

    @property
    def bytes_copied(self) -> int:
        """Payload bytes copied by this end so far: those received through chunks, once each."""
        return 0 if self._payload is None else self._payload.bytes_copied

    def cancel(self) -> None:
        """Forget the exchange; the stream is to be reset."""
        self._step(Input.CANCEL)

    def payload_target(self) -> memoryview | None:
        """Where the next payload bytes belong, for a transport that reads into buffers.

        None unless a payload is being received; after writing n bytes call `payload_received(n)`.
        """
        if self._payload is None or self._payload.complete or self._state is _FAULTED:
            return None
        return self._payload.target()

    def _step(self, given: Input, detail: str = "") -> None:
        following = TRANSITIONS[self._role][self._state, given]
        if isinstance(following, State):
            self._state = following
            return
        text = detail or f"{given.name} in state {self._state.name}"
        if following is Blame.LOCAL:
            raise LocalProtocolError(text)
        self._state = _FAULTED
        raise RemoteProtocolError(FailureCode.MALFORMED, text)

    def _receive_head(self, data: memoryview) -> tuple[Header | None, memoryview]:
        try:
            encoded, rest = self._head.receive(data)
            if encoded is None:
                return None, rest
            self._header = decode_header(encoded, self._limits)
        except RemoteProtocolError:
            self._state = _FAULTED
            raise
        self._step(_HEADS[self._header.kind])
        return self._header, rest

    def _received_parts(self, vocabulary: int) -> tuple[Part, ...]:
        if self._payload is None or self._header is None:
            raise InvariantViolation("a payload without a header")
        parts = self._payload.parts()
        try:
            digest = self._header.payload_digest
            if digest and digest != _payload_digest(parts):
                raise RemoteProtocolError(FailureCode.BAD_VALUE, "the payload's digest differs")
            gradients = _gradients(self._header.kind, parts)
            for index, part in enumerate(parts):
                check_values(part, vocabulary=vocabulary, is_gradient=index in gradients)
        except RemoteProtocolError:
            self._state = _FAULTED
            raise
        self._step(_PAYLOAD)
        return parts

    def _fault(self, code: FailureCode, detail: str) -> RemoteProtocolError:
        self._state = _FAULTED
        return RemoteProtocolError(code, detail)


class ClientExchange(_Exchange):
    """The asking end: `send` one request, then `receive_data` until an event says how it went.

    `request_id` is 16 random bytes; `limits` bound both the request and the answer.
    """

    _role = Role.CLIENT

    def __init__(self, *, request_id: bytes, limits: Limits | None = None) -> None:
        super().__init__(limits if limits is not None else Limits())
        self.request_id = require_request_id(request_id)
        self._inputs: tuple[PartSpec, ...] | None = None  # of the request that was sent
        self._reply_dtype = DType.FLOAT32

    @property
    def answer_begun(self) -> bool:
        """Whether any byte of an answer has arrived."""
        return self._head.started

    def send(
        self, request: Request, *, remaining_ms: int | None = None, digest: bool = False
    ) -> Segments:
        """The segments of the request's frame, to be sent in order and followed by a half-close.

        Raises `LocalProtocolError` out of order or for a request that no peer would accept.
        `remaining_ms` is what is left now of the request's own. `digest` adds the payload's blake3
        to the header.
        """
        kind = kind_of(request)
        parts = request_parts(request)
        specs = tuple([part.spec for part in parts])
        header = Header(
            kind=kind,
            request_id=self.request_id,
            remaining_ms=request.remaining_ms if remaining_ms is None else remaining_ms,
            parts=specs,
            payload_digest=_payload_digest(parts) if digest else b"",
            reply_dtype=request.reply_dtype,
            receipt_wanted=request.receipt_wanted,
        )
        try:
            check_header(header, self._limits)
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from error
        self._step(_SENDS[kind])
        self._inputs = specs if kind is _FORWARD else specs[:-1]
        self._reply_dtype = request.reply_dtype
        return encode_frame(encode_header(header), parts)

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[ClientEvent]:
        """Feed bytes of the answer; raises `RemoteProtocolError`, after which nothing follows."""
        rest = memoryview(data)
        events: list[ClientEvent] = []
        if self._state in _AWAITING:
            header, rest = self._receive_head(rest)
            if header is None:
                return []
            self._check_answer(header)
            events = self._begin_answer(header)
        if self._state is _RECEIVING_ANSWER:
            rest = _required(self._payload).receive(rest)
            events = self._completed()
        if rest.nbytes:
            self._step(Input.BYTES, "bytes behind the announced payload")
        return events

    def payload_received(self, filled_bytes: int) -> list[ClientEvent]:
        """Say that `filled_bytes` were written to `payload_target()`."""
        if self._payload is None:
            raise LocalProtocolError("no payload is being received")
        self._payload.advance(filled_bytes)
        return self._completed()

    def receive_end(self) -> None:
        """The peer closed its side; raises `RemoteProtocolError` before a whole answer."""
        self._step(Input.END, f"the stream ended in state {self._state.name}")

    def _begin_answer(self, header: Header) -> list[ClientEvent]:
        if header.kind is _FAILURE:
            return [_required(header.failure)]
        self._payload = PayloadReader(header.parts)
        return []

    def _completed(self) -> list[ClientEvent]:
        if self._payload is None or self._header is None or not self._payload.complete:
            return []
        parts = self._received_parts(VOCABULARY_MAX)
        if self._header.kind is _RESULT:
            return [Result(output=parts[0].tensor, receipt=self._header.receipt)]
        return [Gradient(gradients=parts, receipt=self._header.receipt)]

    def _check_answer(self, header: Header) -> None:
        if self._inputs is None:
            raise InvariantViolation("an answer without a request")
        if header.request_id != self.request_id:
            # A server that could not read our header answers with the id it did not learn: zeros.
            if header.kind is _FAILURE and not any(header.request_id):
                return
            raise self._fault(FailureCode.MALFORMED, "the answer is to another request")
        if header.kind is _FAILURE:
            return
        if not _fits(header.kind, header.parts, self._inputs):
            shapes = [spec.shape for spec in header.parts]
            raise self._fault(FailureCode.BAD_SHAPE, f"an answer of shapes {shapes}")
        for spec in header.parts:
            if spec.dtype is not self._reply_dtype:
                detail = f"{self._reply_dtype.name} was asked for"
                raise self._fault(FailureCode.BAD_DTYPE, detail)


class ServerExchange(_Exchange):
    """The answering end: a `RequestHead` first, `admit()` or a FAILURE, then the request itself.

    Bytes behind the head are kept, uncopied, until `admit`; feeding more before the decision is a
    `LocalProtocolError`, because not reading is what holds the sender back.
    """

    _role = Role.SERVER

    def __init__(self, *, limits: Limits | None = None, vocabulary: int = VOCABULARY_MAX) -> None:
        super().__init__(limits if limits is not None else Limits())
        self._vocabulary = vocabulary
        self._held = memoryview(b"")
        self._request: RequestHead | None = None

    @property
    def request_id(self) -> bytes:
        """The request's id, or 16 zeros while no header has been read."""
        return bytes(16) if self._header is None else self._header.request_id

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[ServerEvent]:
        """Feed bytes of the request; raises `RemoteProtocolError`, then `send` a `Failure`."""
        rest = memoryview(data)
        if self._state is _IDLE:
            header, self._held = self._receive_head(rest)
            if header is None:
                return []
            self._request = _request_head(header)
            return [self._request]
        if self._state in _ADMITTING:
            raise LocalProtocolError("admit or refuse the request before reading on")
        events: list[ServerEvent] = []
        if self._state in _RECEIVING:
            rest = _required(self._payload).receive(rest)
            events = self._completed()
        if rest.nbytes:
            self._step(Input.BYTES, "bytes behind the announced payload")
        return events

    def admit(self) -> list[ServerEvent]:
        """Read the payload; the request follows at once where its bytes came with the head.

        The payload's buffer is allocated here and nowhere before.
        """
        self._step(_ADMIT)
        self._payload = PayloadReader(_required(self._header).parts)
        held, self._held = self._held, memoryview(b"")
        return self.receive_data(held)

    def payload_received(self, filled_bytes: int) -> list[ServerEvent]:
        """Say that `filled_bytes` were written to `payload_target()`."""
        if self._payload is None:
            raise LocalProtocolError("no payload is being received")
        self._payload.advance(filled_bytes)
        return self._completed()

    def receive_end(self) -> None:
        """The client half-closed; raises `RemoteProtocolError` before a whole request."""
        self._step(Input.END, f"the stream ended in state {self._state.name}")

    def send(self, answer: Answer) -> Segments:
        """The segments of the answer's frame; raises `LocalProtocolError` for a wrong one."""
        kind = kind_of(answer)
        parts = answer_parts(answer)
        specs = tuple([part.spec for part in parts])
        if not isinstance(answer, Failure):
            self._check_own_answer(kind, specs)
        self._step(_SENDS[kind])
        header = Header(
            kind=kind,
            request_id=self.request_id,
            parts=specs,
            receipt=None if isinstance(answer, Failure) else answer.receipt,
            failure=answer if isinstance(answer, Failure) else None,
        )
        return encode_frame(encode_header(header), parts)

    def _completed(self) -> list[ServerEvent]:
        if not _required(self._payload).complete:
            return []
        header = _required(self._header)
        parts = self._received_parts(self._vocabulary)
        if header.kind is _FORWARD:
            return [
                Forward(
                    parts=parts,
                    remaining_ms=header.remaining_ms,
                    reply_dtype=header.reply_dtype,
                    receipt_wanted=header.receipt_wanted,
                )
            ]
        return [
            Backward(
                parts=parts[:-1],
                gradient=parts[-1].tensor,
                remaining_ms=header.remaining_ms,
                reply_dtype=header.reply_dtype,
                receipt_wanted=header.receipt_wanted,
            )
        ]

    def _check_own_answer(self, kind: Kind, specs: tuple[PartSpec, ...]) -> None:
        request = self._request
        if request is None or self._state not in _SERVING:
            raise LocalProtocolError(f"no request waits for an answer in {self._state.name}")
        for spec in specs:
            if spec.dtype is not request.reply_dtype:
                raise LocalProtocolError(f"{request.reply_dtype.name} was asked for")
        if not _fits(kind, specs, request.inputs):
            shapes = [spec.shape for spec in specs]
            raise LocalProtocolError(f"an answer of shapes {shapes} to {request.kind.name}")
        if kind is _RESULT:
            check_specs(specs, self._limits)


def _fits(kind: Kind, specs: tuple[PartSpec, ...], inputs: tuple[PartSpec, ...]) -> bool:
    """Whether an answer of such parts has the shapes that a request of `inputs` asks for."""
    if kind is _RESULT:
        shape = specs[0].shape
        return len(shape) == 3 and shape[:2] == output_shape(inputs)
    return [spec.shape for spec in specs] == [spec.shape for spec in gradient_specs(inputs)]


def _request_head(header: Header) -> RequestHead:
    backward = header.kind is _BACKWARD
    return RequestHead(
        kind=header.kind,
        request_id=header.request_id,
        remaining_ms=header.remaining_ms,
        inputs=header.parts[:-1] if backward else header.parts,
        gradient=header.parts[-1] if backward else None,
        reply_dtype=header.reply_dtype,
        receipt_wanted=header.receipt_wanted,
        payload_bytes=header.payload_bytes,
    )


def _gradients(kind: Kind, parts: tuple[Part, ...]) -> range:
    """Which parts of a frame are gradients: all of a GRADIENT, the last of a BACKWARD."""
    if kind is _GRADIENT:
        return range(len(parts))
    if kind is _BACKWARD:
        return range(len(parts) - 1, len(parts))
    return range(0)


def _payload_digest(parts: tuple[Part, ...]) -> bytes:
    hasher = blake3()
    for part in parts:
        hasher.update(part.tensor.data)
    return hasher.digest()


def _required(value: _Value | None) -> _Value:
    if value is None:
        raise InvariantViolation("a value that this state implies is missing")
    return value
