"""What the tests of tensorwire draw from: parts, requests, headers that lie, and arrivals."""

import os
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensorwire import Backward, Forward, Modality, Part, WireTensor, wire_pb2
from tensorwire.tensor import DTYPES, FLOATS, GRADIENT_DTYPES, SPEECH_SAMPLES, output_shape

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
HUGE = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1]


def array(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Values in [-1, 1], the same for the same seed."""
    values = np.random.default_rng(seed).uniform(-1, 1, size=shape)
    return values.astype(np.float32)


@st.composite
def parts(draw: st.DrawFn, rows: int, modality: Modality | None = None) -> Part:
    """One part of `rows` rows, any modality and any of its dtypes."""
    chosen = modality or draw(st.sampled_from(Modality))
    steps = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    dtype = draw(st.sampled_from(sorted(DTYPES[chosen])))
    match chosen:
        case Modality.TEXT:
            tokens = np.random.default_rng(seed).integers(0, 1000, size=(rows, steps))
            return Part(chosen, WireTensor.from_numpy(tokens))
        case Modality.IMAGE:
            shape: tuple[int, ...] = (rows, steps, 3, draw(st.integers(1, 9)), 5)
        case Modality.SPEECH:
            shape = (rows, steps, SPEECH_SAMPLES)
        case Modality.TENSOR:
            shape = (rows, steps, draw(st.integers(1, 70)))
    return Part(chosen, WireTensor.from_numpy(array(shape, seed), dtype))


@st.composite
def part_lists(draw: st.DrawFn) -> list[Part]:
    """One to three parts of one batch size."""
    rows = draw(st.integers(1, 3))
    return draw(st.lists(parts(rows), min_size=1, max_size=3))


@st.composite
def forwards(draw: st.DrawFn) -> Forward:
    """A FORWARD that is within every bound."""
    return Forward(
        parts=draw(part_lists()),
        remaining_ms=draw(st.integers(0, 2**32 - 1)),
        reply_dtype=draw(st.sampled_from(sorted(FLOATS))),
        receipt_wanted=draw(st.booleans()),
    )


@st.composite
def backwards(draw: st.DrawFn) -> Backward:
    """A BACKWARD that is within every bound; outputs have dim 5."""
    listed = draw(part_lists())
    rows, steps = output_shape([part.spec for part in listed])
    gradient = array((rows, steps, 5), draw(st.integers(0, 2**32 - 1)))
    return Backward(
        parts=listed,
        gradient=WireTensor.from_numpy(gradient, draw(st.sampled_from(sorted(GRADIENT_DTYPES)))),
        reply_dtype=draw(st.sampled_from(sorted(GRADIENT_DTYPES))),
    )


@st.composite
def lying_headers(draw: st.DrawFn) -> bytes:
    """Headers whose every field may be anything a peer can write."""
    number = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 77, -1])
    size = st.one_of(st.sampled_from(HUGE), st.integers(0, 5))
    header = wire_pb2.Header(
        kind=draw(number),
        request_id=draw(st.sampled_from([b"", bytes(16), bytes(15), bytes(300)])),
        remaining_ms=draw(st.integers(0, 2**32 - 1)),
        payload_digest=draw(st.sampled_from([b"", b"", bytes(32), b"x"])),
        reply_dtype=draw(number),
    )
    for _ in range(draw(st.integers(0, 10))):
        header.parts.add(
            modality=draw(number),
            dtype=draw(number),
            shape=draw(st.lists(size, max_size=6)),
            codec=draw(st.sampled_from([0, 0, 0, 1, 9])),
            payload_bytes=draw(size),
        )
    if draw(st.booleans()):
        header.failure.code = draw(number)  # type: ignore[assignment]
        header.failure.detail = "x" * draw(st.integers(0, 300))
    if draw(st.booleans()):
        header.receipt.server = bytes(draw(st.integers(0, 200)))
        header.receipt.request_digest = bytes(draw(st.sampled_from([0, 32])))
        header.receipt.result_digest = bytes(draw(st.sampled_from([0, 32])))
        header.receipt.signature = bytes(draw(st.sampled_from([64, 129])))
    return header.SerializeToString()
