"""Both ends of an exchange: whole conversations, the total table, and what no peer may do."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorwire import (
    Backward,
    ClientExchange,
    DType,
    Failure,
    FailureCode,
    Forward,
    Gradient,
    InvariantViolation,
    Kind,
    Limits,
    LocalProtocolError,
    Modality,
    Overloaded,
    Part,
    Receipt,
    RemoteProtocolError,
    RequestHead,
    Result,
    ServerExchange,
    WireTensor,
    wire_pb2,
)
from tensorwire.codec import Header, decode_header, encode_header
from tensorwire.errors import BackwardRefused, DeadlineExpired
from tensorwire.events import Answer, Request, request_parts
from tensorwire.framing import MAGIC, HeadReader, PayloadReader
from tensorwire.tensor import gradient_specs, output_shape
from tensorwire.transition import LOCAL_INPUTS, TRANSITIONS, Blame, Input, Role, State
from tests.tensorwire.strategies import array, backwards, forwards

ID = bytes(range(16))
F32 = DType.FLOAT32


def tensor_part(*shape: int, seed: int = 0) -> Part:
    return Part(Modality.TENSOR, WireTensor.from_numpy(array(shape, seed)))


def tokens_part(*shape: int) -> Part:
    return Part(Modality.TEXT, WireTensor.from_numpy(np.arange(np.prod(shape)).reshape(shape)))


def pieces(segments: Iterable[bytes | memoryview], size: int) -> list[bytes]:
    joined = b"".join(bytes(segment) for segment in segments)
    return [joined[at : at + size] for at in range(0, len(joined), size)]


def feed_server(server: ServerExchange, chunks: Sequence[bytes]) -> list[object]:
    events: list[object] = []
    for chunk in chunks:
        got = server.receive_data(chunk)
        events += got
        if got and isinstance(got[0], RequestHead):
            events += server.admit()
    return events


def same(first: Part, second: Part) -> bool:
    return first.spec == second.spec and first.tensor.data == second.tensor.data


def answer_to(request: Request) -> Answer:
    specs = [part.spec for part in request.parts]
    if isinstance(request, Forward):
        output = array((*output_shape(specs), 7), 5)
        return Result(output=WireTensor.from_numpy(output, request.reply_dtype))
    return Gradient(
        gradients=[
            Part(spec.modality, WireTensor.from_numpy(array(spec.shape, 6), request.reply_dtype))
            for spec in gradient_specs(specs)
        ]
    )


@settings(deadline=None, max_examples=60)
@given(st.one_of(forwards(), backwards()), st.sampled_from([1, 7, 1000, 1 << 20]))
def test_a_whole_exchange_in_pieces_of_any_size(request: Request, size: int) -> None:
    if size == 1 and sum(p.tensor.payload_bytes for p in request.parts) > 20_000:
        size = 997
    client, server = ClientExchange(request_id=ID), ServerExchange()
    sent = client.send(request, digest=True)
    head, received = feed_server(server, pieces(sent, size))
    assert isinstance(head, RequestHead)
    assert (head.request_id, server.request_id) == (ID, ID)
    assert head.payload_bytes == sum(p.tensor.payload_bytes for p in request_parts(request))
    assert type(received) is type(request)
    assert received.remaining_ms == request.remaining_ms  # type: ignore[union-attr]
    pairs = zip(request_parts(received), request_parts(request), strict=True)  # type: ignore[arg-type]
    assert all(same(got, given) for got, given in pairs)
    answer = answer_to(request)
    events: list[object] = []
    for chunk in pieces(server.send(answer), size):
        events += client.receive_data(chunk)
    client.receive_end()
    server.receive_end()
    assert len(events) == 1
    assert type(events[0]) is type(answer)
    assert (client.state, server.state) == (State.DONE, State.DONE)


def test_each_payload_byte_is_copied_once_by_its_receiver_and_never_by_its_sender() -> None:
    request = Forward(parts=[tensor_part(4, 16, 128), tokens_part(4, 3)])
    client, server = ClientExchange(request_id=ID), ServerExchange()
    segments = client.send(request)
    for segment, part in zip(segments[1:], request.parts, strict=True):
        assert np.shares_memory(np.frombuffer(segment, np.uint8), np.frombuffer(part.tensor.data))
    _, received = feed_server(server, [bytes(segment) for segment in segments])
    payload = sum(part.tensor.payload_bytes for part in request.parts)
    assert (client.bytes_copied, server.bytes_copied) == (0, payload)
    assert isinstance(received, Forward)
    output = WireTensor.from_numpy(array((4, 19, 8), 1))
    back = server.send(Result(output=output))
    assert np.shares_memory(np.frombuffer(back[1], np.uint8), np.frombuffer(output.data))
    for segment in back:
        client.receive_data(segment)
    assert client.bytes_copied == output.payload_bytes
    assert server.bytes_copied == payload


def test_a_transport_that_fills_buffers_copies_nothing() -> None:
    part = tensor_part(2, 5, 64)
    client, server = ClientExchange(request_id=ID), ServerExchange()
    head, payload = client.send(Forward(parts=[part]))
    assert client.payload_target() is None
    server.receive_data(head)
    assert server.payload_target() is None
    assert server.admit() == []
    target = server.payload_target()
    assert target is not None
    target[:100] = payload[:100]
    assert server.payload_received(100) == []
    target = server.payload_target()
    assert target is not None
    target[:] = payload[100:]
    (request,) = server.payload_received(len(payload) - 100)
    assert isinstance(request, Forward)
    assert same(request.parts[0], part)
    assert server.bytes_copied == 0
    assert server.payload_target() is None
    result = server.send(Result(output=WireTensor.from_numpy(array((2, 5, 3), 1))))
    client.receive_data(result[0])
    target = client.payload_target()
    assert target is not None
    target[:] = result[1]
    (answer,) = client.payload_received(len(result[1]))
    assert isinstance(answer, Result)
    assert client.bytes_copied == 0


def test_received_parts_are_aligned_for_torch() -> None:
    request = Forward(parts=[tensor_part(1, 1, 3), tensor_part(1, 1, 5)])
    client, server = ClientExchange(request_id=ID), ServerExchange()
    _, received = feed_server(server, pieces(client.send(request), 11))
    assert isinstance(received, Forward)
    for part in received.parts:
        assert np.frombuffer(part.tensor.data, np.uint8).ctypes.data % 64 == 0


@pytest.mark.parametrize("role", Role)
def test_the_table_is_total_and_faults_name_the_right_side(role: Role) -> None:
    table = TRANSITIONS[role]
    assert set(table) == set(itertools.product(State, Input))
    for (_, given_input), following in table.items():
        if isinstance(following, Blame):
            assert (following is Blame.LOCAL) == (given_input in LOCAL_INPUTS)
        elif given_input is not Input.CANCEL:
            assert following is not State.CANCELLED
    for state in State:
        assert table[state, Input.CANCEL] is State.CANCELLED
        assert table[state, Input.INVALID] is Blame.REMOTE


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("given_input", Input)
def test_every_state_and_input_steps_as_the_table_says(
    role: Role, state: State, given_input: Input
) -> None:
    exchange = ClientExchange(request_id=ID) if role is Role.CLIENT else ServerExchange()
    exchange._state = state
    following = TRANSITIONS[role][state, given_input]
    match following:
        case State():
            exchange._step(given_input)
            assert exchange.state is following
        case Blame.LOCAL:
            with pytest.raises(LocalProtocolError):
                exchange._step(given_input)
            assert exchange.state is state
        case Blame.REMOTE:
            with pytest.raises(RemoteProtocolError) as caught:
                exchange._step(given_input)
            assert caught.value.code is FailureCode.MALFORMED
            assert exchange.state is State.FAULTED


def test_a_receipt_travels_with_the_answer() -> None:
    receipt = Receipt(
        server=b"s" * 38,
        client=b"c" * 38,
        request_digest=bytes(32),
        result_digest=bytes([9]) * 32,
        service_number=2**63,
        queue_wait_us=5,
        share_ppm=1_000_000,
        weights_height=7,
        signature=b"x" * 64,
    )
    server, frame = admitted()
    server.admit()
    server.receive_data(frame[1])
    answer = Result(output=WireTensor.from_numpy(array((2, 3, 1), 0)), receipt=receipt)
    client = ClientExchange(request_id=ID)
    sent(client)
    assert not client.answer_begun
    (received,) = client.receive_data(b"".join(map(bytes, server.send(answer))))
    assert client.answer_begun
    assert isinstance(received, Result)
    assert received.receipt == receipt


def test_a_state_without_what_it_implies_is_an_invariant() -> None:
    server = ServerExchange()
    server._state = State.RECEIVING_FORWARD
    with pytest.raises(InvariantViolation):
        server.receive_data(b"x")


def test_a_fault_lets_the_server_say_so_once() -> None:
    server = ServerExchange()
    with pytest.raises(RemoteProtocolError) as caught:
        server.receive_data(b"GET / HTTP/1.1\r\n")
    failure = Failure(code=caught.value.code, detail=caught.value.detail)
    segments = server.send(failure)
    with pytest.raises(LocalProtocolError):
        server.send(failure)
    client = ClientExchange(request_id=ID)
    client.send(Forward(parts=[tokens_part(1, 2)]))
    # The server never learned our request id, and answers with zeros.
    (answer,) = client.receive_data(b"".join(map(bytes, segments)))
    assert answer == failure
    assert client.state is State.DONE


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"X", FailureCode.MALFORMED),
        (b"AGX", FailureCode.MALFORMED),
        (b"AGT\x02", FailureCode.VERSION),
        (b"AGT\x00", FailureCode.VERSION),
        (b"AGT\x01\x01\x00\x01\x00", FailureCode.TOO_LARGE),
        (b"AGT\x01\xff\xff\xff\xff", FailureCode.TOO_LARGE),
        (b"AGT\x01\x03\x00\x00\x00\xff\xff\xff", FailureCode.MALFORMED),
        (b"AGT\x01\x00\x00\x00\x00", FailureCode.MALFORMED),
    ],
)
def test_a_wrong_prefix_is_refused_at_its_first_wrong_byte(data: bytes, code: FailureCode) -> None:
    for size in (1, len(data)):
        server = ServerExchange()
        with pytest.raises(RemoteProtocolError) as caught:
            feed_server(server, pieces([data], size))
        assert caught.value.code is code
        assert server.state is State.FAULTED


def sent(client: ClientExchange, part: Part | None = None) -> list[bytes]:
    return [bytes(s) for s in client.send(Forward(parts=[part or tensor_part(2, 3, 4)]))]


def admitted() -> tuple[ServerExchange, list[bytes]]:
    server, frame = ServerExchange(), sent(ClientExchange(request_id=ID))
    assert isinstance(server.receive_data(frame[0])[0], RequestHead)
    return server, frame


def test_reading_on_before_the_decision_is_our_fault() -> None:
    server, frame = admitted()
    with pytest.raises(LocalProtocolError):
        server.receive_data(frame[1])
    assert len(server.admit() + server.receive_data(frame[1])) == 1


def test_bytes_behind_the_payload_are_the_peers_fault() -> None:
    server, frame = admitted()
    server.admit()
    with pytest.raises(RemoteProtocolError):
        server.receive_data(frame[1] + b"x")
    server, frame = admitted()
    server.admit()
    server.receive_data(frame[1])
    assert server.receive_data(b"") == []
    with pytest.raises(RemoteProtocolError):
        server.receive_data(b"x")
    assert server.payload_target() is None


def test_an_early_end_is_the_peers_fault() -> None:
    for exchange in (ServerExchange(), admitted()[0]):
        with pytest.raises(RemoteProtocolError, match="ended"):
            exchange.receive_end()
    client = ClientExchange(request_id=ID)
    sent(client)
    with pytest.raises(RemoteProtocolError):
        client.receive_end()


def test_a_half_close_behind_a_whole_request_is_fine() -> None:
    server, frame = admitted()
    server.admit()
    server.receive_data(frame[1])
    server.receive_end()
    server.send(Result(output=WireTensor.from_numpy(array((2, 3, 1), 0))))
    assert server.state is State.DONE


@pytest.mark.parametrize(
    "answer",
    [
        Result(output=WireTensor.from_numpy(array((2, 4, 4), 0))),
        Result(output=WireTensor.from_numpy(array((2, 3), 0))),
        Result(output=WireTensor.from_numpy(array((2, 3, 4), 0), DType.BFLOAT16)),
        Result(output=WireTensor.from_numpy(array((2, 3, 8193), 0))),
        Gradient(gradients=[tensor_part(2, 3, 4)]),
        Gradient(gradients=[]),
    ],
)
def test_a_server_cannot_send_a_wrong_answer(answer: Answer) -> None:
    server, frame = admitted()
    with pytest.raises(LocalProtocolError):
        server.send(answer)
    server.admit()
    server.receive_data(frame[1])
    with pytest.raises((LocalProtocolError, RemoteProtocolError)):
        server.send(answer)
    server.send(Failure(code=FailureCode.INTERNAL))


def lying_answer(header: Header, payload: bytes = b"") -> bytes:
    encoded = encode_header(header)
    return MAGIC + b"\x01" + len(encoded).to_bytes(4, "little") + encoded + payload


def spec(*shape: int, dtype: DType = F32, modality: Modality = Modality.TENSOR) -> object:
    return Part(modality, WireTensor.from_numpy(np.zeros(shape, np.float32), dtype)).spec


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (Header(kind=Kind.RESULT, request_id=ID, parts=(spec(2, 4, 4),)), FailureCode.BAD_SHAPE),
        (Header(kind=Kind.RESULT, request_id=ID, parts=(spec(1, 3, 4),)), FailureCode.BAD_SHAPE),
        (Header(kind=Kind.RESULT, request_id=ID), FailureCode.MALFORMED),
        (
            Header(kind=Kind.RESULT, request_id=ID, parts=(spec(2, 3, 4, dtype=DType.FLOAT16),)),
            FailureCode.BAD_DTYPE,
        ),
        (
            Header(kind=Kind.RESULT, request_id=bytes(16), parts=(spec(2, 3, 4),)),
            FailureCode.MALFORMED,
        ),
        (Header(kind=Kind.GRADIENT, request_id=ID, parts=(spec(2, 3, 4),)), FailureCode.MALFORMED),
        (Header(kind=Kind.FORWARD, request_id=ID, parts=(spec(2, 3, 4),)), FailureCode.MALFORMED),
        (
            Header(kind=Kind.FAILURE, request_id=b"x" * 16, failure=Failure(code=FailureCode.BUSY)),
            FailureCode.MALFORMED,
        ),
    ],
)
def test_a_lying_answer_is_a_typed_fault(header: Header, code: FailureCode) -> None:
    client = ClientExchange(request_id=ID)
    sent(client)
    with pytest.raises(RemoteProtocolError) as caught:
        client.receive_data(lying_answer(header, bytes(header.payload_bytes)))
    assert caught.value.code is code
    assert client.state is State.FAULTED
    with pytest.raises(RemoteProtocolError):
        client.receive_data(b"more")


def test_a_gradient_has_the_shapes_of_the_inputs() -> None:
    request = Backward(
        parts=[tokens_part(2, 2), tensor_part(2, 3, 4)],
        gradient=WireTensor.from_numpy(array((2, 5, 6), 1)),
    )
    client = ClientExchange(request_id=ID)
    client.send(request)
    header = Header(kind=Kind.GRADIENT, request_id=ID, parts=(spec(2, 3, 5),))
    with pytest.raises(RemoteProtocolError) as caught:
        client.receive_data(lying_answer(header))
    assert caught.value.code is FailureCode.BAD_SHAPE


def test_a_text_only_backward_is_answered_without_a_payload() -> None:
    gradient = WireTensor.from_numpy(array((1, 2, 6), 1))
    client, server = ClientExchange(request_id=ID), ServerExchange()
    request = Backward(parts=[tokens_part(1, 2)], gradient=gradient)
    feed_server(server, pieces(client.send(request), 50))
    (segment,) = server.send(Gradient(gradients=[]))
    assert client.receive_data(segment) == [Gradient(gradients=[])]


def test_bytes_behind_an_answer_are_a_fault() -> None:
    failure = Failure(code=FailureCode.BUSY, retry_after_ms=70, position=3)
    header = Header(kind=Kind.FAILURE, request_id=ID, failure=failure)
    client = ClientExchange(request_id=ID)
    sent(client)
    with pytest.raises(RemoteProtocolError):
        client.receive_data(lying_answer(header, b"x"))
    client = ClientExchange(request_id=ID)
    sent(client)
    assert client.receive_data(lying_answer(header)) == [failure]
    assert client.receive_data(b"") == []
    error = failure.error()
    assert isinstance(error, Overloaded)
    assert (error.retry_after_ms, error.position) == (70, 3)


def test_failures_become_their_own_exceptions() -> None:
    assert isinstance(Failure(code=FailureCode.DEADLINE).error(), DeadlineExpired)
    assert isinstance(Failure(code=FailureCode.BACKWARD_REFUSED).error(), BackwardRefused)
    assert str(Failure(code=FailureCode.INTERNAL, detail="x" * 999).error()).endswith("x" * 200)


def test_a_payload_that_differs_from_its_digest_is_refused() -> None:
    client, server = ClientExchange(request_id=ID), ServerExchange()
    frame = [bytes(s) for s in client.send(Forward(parts=[tensor_part(1, 1, 8)]), digest=True)]
    server.receive_data(frame[0])
    server.admit()
    with pytest.raises(RemoteProtocolError) as caught:
        server.receive_data(b"\x01" + frame[1][1:])
    assert caught.value.code is FailureCode.BAD_VALUE


def test_a_vocabulary_is_kept() -> None:
    client, server = ClientExchange(request_id=ID), ServerExchange(vocabulary=3)
    with pytest.raises(RemoteProtocolError) as caught:
        feed_server(server, pieces(client.send(Forward(parts=[tokens_part(2, 2)])), 999))
    assert caught.value.code is FailureCode.BAD_VALUE


def test_what_no_peer_would_accept_is_not_sent() -> None:
    small = Limits(seq_max=2)
    client = ClientExchange(request_id=ID, limits=small)
    with pytest.raises(LocalProtocolError):
        client.send(Forward(parts=[tokens_part(1, 3)]))
    client.send(Forward(parts=[tokens_part(1, 2)]))
    with pytest.raises(LocalProtocolError):
        client.send(Forward(parts=[tokens_part(1, 2)]))
    with pytest.raises(LocalProtocolError):
        ClientExchange(request_id=b"short")


def test_nothing_can_be_received_before_a_request() -> None:
    client = ClientExchange(request_id=ID)
    assert client.receive_data(b"") == []
    with pytest.raises(RemoteProtocolError):
        client.receive_data(b"AGT")
    with pytest.raises(LocalProtocolError):
        ClientExchange(request_id=ID).payload_received(1)
    with pytest.raises(LocalProtocolError):
        ServerExchange().payload_received(1)


def test_cancel_ends_either_side() -> None:
    for exchange in (ClientExchange(request_id=ID), ServerExchange()):
        exchange.cancel()
        assert exchange.state is State.CANCELLED


def test_the_readers_own_misuse_is_an_invariant() -> None:
    reader = PayloadReader([tensor_part(1, 1, 1).spec])
    with pytest.raises(InvariantViolation):
        reader.parts()
    with pytest.raises(InvariantViolation):
        reader.advance(5)
    reader.receive(memoryview(bytes(4)))
    with pytest.raises(InvariantViolation):
        reader.target()
    head = HeadReader(100)
    assert not head.started
    exchange = ServerExchange()
    with pytest.raises(InvariantViolation):
        exchange._received_parts(5)
    client = ClientExchange(request_id=ID)
    client._state = State.AWAITING_RESULT
    with pytest.raises(InvariantViolation):
        client.receive_data(
            lying_answer(Header(kind=Kind.RESULT, request_id=ID, parts=(spec(1, 1, 1),)))
        )


def header_bytes(**fields: object) -> bytes:
    return wire_pb2.Header(**{"kind": 1, "request_id": ID, **fields}).SerializeToString()  # type: ignore[arg-type]


TEXT_PART = {"modality": 1, "dtype": 4, "shape": [1, 1], "payload_bytes": 8}
GRADIENT_PART = {"modality": 4, "dtype": 1, "shape": [1, 1, 2], "payload_bytes": 8}
RECEIPT = {"request_digest": bytes(32), "result_digest": bytes(32)}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"kind": 0}, FailureCode.MALFORMED),
        ({"kind": 9}, FailureCode.MALFORMED),
        ({"request_id": b"x"}, FailureCode.MALFORMED),
        ({"payload_digest": b"x"}, FailureCode.MALFORMED),
        ({"parts": [TEXT_PART] * 10}, FailureCode.MALFORMED),
        ({"parts": [TEXT_PART | {"modality": 9}]}, FailureCode.UNKNOWN_MODALITY),
        ({"parts": [TEXT_PART | {"modality": 0}]}, FailureCode.UNKNOWN_MODALITY),
        ({"parts": [TEXT_PART | {"dtype": 0}]}, FailureCode.BAD_DTYPE),
        ({"parts": [TEXT_PART | {"dtype": 6}]}, FailureCode.BAD_DTYPE),
        ({"parts": [TEXT_PART | {"codec": 1}]}, FailureCode.MALFORMED),
        ({"parts": [TEXT_PART | {"payload_bytes": 9}]}, FailureCode.BAD_SHAPE),
        ({"parts": [TEXT_PART], "reply_dtype": 4}, FailureCode.BAD_DTYPE),
        ({"parts": [TEXT_PART], "reply_dtype": 17}, FailureCode.BAD_DTYPE),
        ({"parts": [TEXT_PART], "failure": {"code": 1}}, FailureCode.MALFORMED),
        ({"kind": 2, "parts": [TEXT_PART]}, FailureCode.MALFORMED),
        ({"kind": 2, "parts": [TEXT_PART, TEXT_PART]}, FailureCode.MALFORMED),
        (
            {"kind": 2, "parts": [TEXT_PART, GRADIENT_PART | {"shape": [1, 2, 1]}]},
            FailureCode.BAD_SHAPE,
        ),
        (
            {"kind": 2, "parts": [TEXT_PART, GRADIENT_PART | {"dtype": 2, "payload_bytes": 4}]},
            FailureCode.BAD_DTYPE,
        ),
        ({"kind": 2, "parts": [TEXT_PART, GRADIENT_PART], "reply_dtype": 2}, FailureCode.BAD_DTYPE),
        ({"kind": 3, "parts": [TEXT_PART]}, FailureCode.MALFORMED),
        ({"kind": 5}, FailureCode.MALFORMED),
        ({"kind": 5, "failure": {"code": 0}}, FailureCode.MALFORMED),
        ({"kind": 5, "failure": {"code": 12}}, FailureCode.MALFORMED),
        ({"kind": 5, "failure": {"code": 1}, "parts": [TEXT_PART]}, FailureCode.MALFORMED),
        ({"kind": 3, "parts": [GRADIENT_PART], "receipt": {}}, FailureCode.MALFORMED),
        (
            {"kind": 3, "parts": [GRADIENT_PART], "receipt": RECEIPT | {"server": bytes(129)}},
            FailureCode.MALFORMED,
        ),
        (
            {"kind": 3, "parts": [GRADIENT_PART], "receipt": RECEIPT | {"signature": bytes(129)}},
            FailureCode.MALFORMED,
        ),
        (
            {
                "kind": 4,
                "parts": [
                    {"modality": 4, "dtype": 1, "shape": [1024, 2, 8192], "payload_bytes": 1 << 26},
                    GRADIENT_PART,
                ],
            },
            FailureCode.TOO_LARGE,
        ),
    ],
)
def test_a_wrong_header_is_refused_with_its_code(
    fields: dict[str, object], code: FailureCode
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_header(header_bytes(**fields), Limits())
    assert caught.value.code is code


def test_a_header_may_leave_the_reply_dtype_out() -> None:
    header = decode_header(header_bytes(parts=[TEXT_PART]), Limits())
    assert header.reply_dtype is F32
    assert header.payload_bytes == 8
