"""Whatever a peer sends is an event or a typed fault, at the price of its header.

100,000 cases in all at AGORA_TEST_SCALE=20.
"""

import random
import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorwire import (
    ClientExchange,
    Failure,
    FailureCode,
    Forward,
    Limits,
    Modality,
    Part,
    RemoteProtocolError,
    RequestHead,
    ServerExchange,
    WireTensor,
    wire_pb2,
)
from tensorwire.codec import decode_header
from tensorwire.framing import MAGIC
from tests.tensorwire.strategies import SCALE, array, lying_headers

ID = bytes(range(16))
CASES = 1_000 * SCALE
MUTATIONS = 4_000 * SCALE
DECODE_BYTES_MAX = 1 << 20
FLAT_BYTES_MAX = 3 << 20  # the interpreter's own table of strings doubles once: 1.9 MB


def frame(header: bytes, payload: bytes = b"") -> bytes:
    return MAGIC + b"\x01" + len(header).to_bytes(4, "little") + header + payload


def serve(data: bytes, chunk: int) -> Failure | None:
    """What a server would answer to `data`; None while it waits for more or has a request."""
    server = ServerExchange(limits=Limits(payload_bytes_max=1 << 20))
    try:
        at = 0
        while at < len(data):
            events = server.receive_data(data[at : at + chunk])
            at += chunk
            if events and isinstance(events[0], RequestHead):
                assert events[0].payload_bytes <= 1 << 20
                server.admit()
    except RemoteProtocolError as error:
        failure = Failure(code=error.code, detail=error.detail)
        assert server.send(failure)
        return failure
    return None


@settings(max_examples=CASES, deadline=None)
@given(lying_headers(), st.sampled_from([1, 64, 1 << 16]))
def test_lying_headers(header: bytes, chunk: int) -> None:
    serve(frame(header), chunk)
    try:
        decoded = decode_header(header, Limits())
    except RemoteProtocolError:
        return
    assert 0 <= decoded.payload_bytes <= Limits().payload_bytes_max
    assert all(size >= 1 for spec in decoded.parts for size in spec.shape)


@settings(max_examples=CASES, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_noise(data: bytes, framed: bool) -> None:
    serve(frame(data) if framed else data, 7)
    client = ClientExchange(request_id=ID)
    client.send(Forward(parts=[Part(Modality.TEXT, WireTensor.from_numpy(np.array([[1]])))]))
    try:
        client.receive_data(frame(data) if framed else data)
        client.receive_end()
    except RemoteProtocolError:
        return


def test_mutated_frames_cost_no_memory() -> None:
    seed = 7
    rng = random.Random(seed)
    request = Forward(parts=[Part(Modality.TENSOR, WireTensor.from_numpy(array((2, 3, 40), 1)))])
    good = b"".join(bytes(s) for s in ClientExchange(request_id=ID).send(request))
    codes = set()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(MUTATIONS):
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(min(len(data), 80))] = rng.randrange(256)
            cut = rng.randrange(len(data)) if rng.random() < 0.2 else len(data)
            failure = serve(bytes(data[:cut]), rng.choice([1 << 16, 100]))
            codes.add(failure.code if failure else None)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < FLAT_BYTES_MAX
    assert peak - before < FLAT_BYTES_MAX + 2 * (1 << 20)  # one admitted payload at a time
    assert {None, FailureCode.MALFORMED, FailureCode.VERSION, FailureCode.BAD_SHAPE} <= codes


def test_a_declared_giant_allocates_nothing() -> None:
    tracemalloc.start()
    try:
        for shape in ([2**63, 1, 1], [1024, 4096, 8192], [2**32, 2**32, 2**32]):
            header = lying_header(shape)
            assert serve(frame(header), 1 << 16) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < DECODE_BYTES_MAX


def lying_header(shape: list[int]) -> bytes:
    part = {"modality": 4, "dtype": 1, "shape": shape, "payload_bytes": 1 << 40}
    return wire_pb2.Header(kind=1, request_id=ID, parts=[part]).SerializeToString()  # type: ignore[arg-type, list-item]
