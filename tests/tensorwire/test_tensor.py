"""Dtypes, layouts, shape rules and value rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorwire import (
    DType,
    FailureCode,
    Limits,
    LocalProtocolError,
    Modality,
    Part,
    PartSpec,
    RemoteProtocolError,
    WireTensor,
)
from tensorwire.tensor import (
    SPEECH_SAMPLES,
    check_spec,
    check_specs,
    check_values,
    payload_bytes,
)
from tests.tensorwire.strategies import array

RELATIVE_ERROR = {  # on normal data, as measured for the design, with room for the draw
    DType.FLOAT32: 0.0,
    DType.FLOAT16: 3e-4,
    DType.BFLOAT16: 2.5e-3,
    DType.INT8_BLOCK: 8e-3,
}


@pytest.mark.parametrize("dtype", RELATIVE_ERROR)
def test_a_round_trip_has_the_error_of_its_dtype(dtype: DType) -> None:
    values = np.random.default_rng(1).standard_normal((4, 50, 33)).astype(np.float32)
    tensor = WireTensor.from_numpy(values, dtype)
    back = tensor.to_numpy().astype(np.float32)
    error = np.linalg.norm(back - values) / np.linalg.norm(values)
    assert back.shape == values.shape
    assert error <= RELATIVE_ERROR[dtype]
    assert tensor.payload_bytes == payload_bytes(dtype, values.size)


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan_and_infinity() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -np.inf, np.nan, 3.4e38], dtype=np.float32)
    tensor = WireTensor.from_numpy(values.reshape(1, 1, -1), DType.BFLOAT16)
    assert tensor.bits().reshape(-1)[:4].tolist() == [0x3F80, 0x3F80, 0x3F82, 0xFF80]
    back = tensor.to_numpy().reshape(-1)
    assert np.isnan(back[4])
    assert np.isinf(back[5])  # rounds up past the greatest finite value


def test_bfloat16_equals_torchs() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(2).standard_normal(10_000).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    bits = WireTensor.from_numpy(values.reshape(1, 1, -1), DType.BFLOAT16).bits()
    assert np.array_equal(bits.reshape(-1), expected)


def test_numpys_own_dtypes_are_views_and_read_only() -> None:
    values = array((2, 3, 4), 1)
    tensor = WireTensor.from_numpy(values)
    assert np.shares_memory(tensor.to_numpy(), values)
    with pytest.raises(ValueError, match="read-only"):
        tensor.to_numpy()[0, 0, 0] = 1
    assert tensor.data.readonly


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.zeros((1, 2), np.int32), DType.INT64),
        (np.zeros((1, 2), np.uint8), DType.INT64),
        (np.zeros((1, 2, 3), np.float64), DType.FLOAT32),
        (np.zeros((1, 2, 3), np.float16), DType.FLOAT16),
        (np.asfortranarray(np.zeros((2, 2, 3), np.float32)), DType.FLOAT32),
    ],
)
def test_natural_dtypes(given: np.ndarray, dtype: DType) -> None:
    assert WireTensor.from_numpy(given).dtype is dtype


def test_any_sequence_may_be_a_shape() -> None:
    tensor = WireTensor(DType.FLOAT32, [1, 2, 3], memoryview(bytes(24)))  # type: ignore[arg-type]
    assert hash(Part(Modality.TENSOR, tensor).spec) == hash(
        PartSpec(Modality.TENSOR, DType.FLOAT32, (1, 2, 3))
    )


@pytest.mark.parametrize("bad", [3e38, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 8_191, 8_192, 16_383, 16_384, 24_575, 24_576, 29_999])
@pytest.mark.parametrize("size", [16_384, 30_000])
def test_a_bad_float_anywhere_is_found_without_a_warning(bad: float, at: int, size: int) -> None:
    values = np.zeros((1, 1, size), np.float32)
    values[0, 0, at % size] = bad
    with pytest.raises(RemoteProtocolError):
        check_values(Part(Modality.TENSOR, WireTensor.from_numpy(values)))


def test_what_has_no_representation_is_our_fault() -> None:
    with pytest.raises(LocalProtocolError):
        WireTensor.from_numpy(np.array([["a"]]))
    with pytest.raises(LocalProtocolError):
        WireTensor.from_numpy(np.zeros((1, 0, 3), np.float32))
    with pytest.raises(LocalProtocolError):
        WireTensor(DType.FLOAT32, (2, 2), memoryview(b"123"))
    with pytest.raises(LocalProtocolError):
        WireTensor.from_numpy(np.zeros((1, 1, 1), np.float32)).bits()
    with pytest.raises(LocalProtocolError):
        Limits(batch_max=0)


TEXT, IMAGE, SPEECH, TENSOR = Modality
F32, I64, I8 = DType.FLOAT32, DType.INT64, DType.INT8_BLOCK


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (PartSpec(TEXT, I64, (1,)), FailureCode.BAD_SHAPE),
        (PartSpec(TEXT, I64, (1, 2, 3)), FailureCode.BAD_SHAPE),
        (PartSpec(TEXT, I64, (0, 2)), FailureCode.BAD_SHAPE),
        (PartSpec(TEXT, I64, (1, 4097)), FailureCode.BAD_SHAPE),
        (PartSpec(TEXT, I64, (1025, 1)), FailureCode.BAD_SHAPE),
        (PartSpec(TEXT, I64, (1, 2**63)), FailureCode.BAD_SHAPE),
        (PartSpec(TENSOR, F32, (1, 1, 8193)), FailureCode.BAD_SHAPE),
        (PartSpec(TENSOR, F32, tuple([1] * 5000)), FailureCode.BAD_SHAPE),
        (PartSpec(SPEECH, F32, (1, 1, SPEECH_SAMPLES - 1)), FailureCode.BAD_SHAPE),
        (PartSpec(IMAGE, F32, (1, 1, 65, 1, 1)), FailureCode.BAD_SHAPE),
        (PartSpec(IMAGE, F32, (1, 1, 1, 1, 4097)), FailureCode.BAD_SHAPE),
        (PartSpec(TEXT, F32, (1, 1)), FailureCode.BAD_DTYPE),
        (PartSpec(TENSOR, I64, (1, 1, 1)), FailureCode.BAD_DTYPE),
        (PartSpec(SPEECH, I8, (1, 1, SPEECH_SAMPLES)), FailureCode.BAD_DTYPE),
    ],
    ids=str,
)
def test_a_wrong_part_is_refused_by_its_header(spec: PartSpec, code: FailureCode) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_spec(spec, Limits())
    assert caught.value.code is code
    assert len(caught.value.detail) <= 200


@pytest.mark.parametrize(
    ("specs", "code"),
    [
        ([], FailureCode.MALFORMED),
        ([PartSpec(TEXT, I64, (1, 1))] * 9, FailureCode.MALFORMED),
        ([PartSpec(TEXT, I64, (1, 1)), PartSpec(TEXT, I64, (2, 1))], FailureCode.BAD_SHAPE),
        ([PartSpec(TEXT, I64, (1, 4000)), PartSpec(TEXT, I64, (1, 97))], FailureCode.BAD_SHAPE),
        ([PartSpec(TENSOR, F32, (1024, 4, 8192))], FailureCode.TOO_LARGE),
    ],
)
def test_wrong_parts_together(specs: list[PartSpec], code: FailureCode) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_specs(specs, Limits())
    assert caught.value.code is code


def test_the_greatest_request_is_exactly_the_limit() -> None:
    assert PartSpec(TENSOR, F32, (1024, 2, 8192)).elements == 1 << 24
    check_specs([PartSpec(TENSOR, F32, (1024, 2, 8192))], Limits())


def part_of(modality: Modality, values: object, dtype: DType) -> Part:
    return Part(modality, WireTensor.from_numpy(np.array(values).reshape(1, 1, -1), dtype))


@pytest.mark.parametrize("dtype", [F32, DType.FLOAT16, DType.BFLOAT16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 10_100.0, -10_100.0])
def test_no_bad_float_passes(dtype: DType, bad: float) -> None:
    check_values(part_of(TENSOR, [0.0, 9_900.0, -9_900.0, 1.0], dtype))
    with pytest.raises(RemoteProtocolError) as caught:
        check_values(part_of(TENSOR, [0.0, 1.0, bad, 1.0], dtype))
    assert caught.value.code is FailureCode.BAD_VALUE


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 79.0])
def test_no_bad_scale_passes(scale: float) -> None:
    good = WireTensor.from_numpy(array((1, 1, 100), 3), I8)
    check_values(Part(TENSOR, good))
    data = np.float32(scale).tobytes() + bytes(good.data)[4:]
    with pytest.raises(RemoteProtocolError):
        check_values(Part(TENSOR, WireTensor(I8, (1, 1, 100), memoryview(data))))


def test_speech_is_within_one_and_tokens_within_the_vocabulary() -> None:
    loud = np.full((1, 1, SPEECH_SAMPLES), 1.01, np.float32)
    with pytest.raises(RemoteProtocolError):
        check_values(Part(SPEECH, WireTensor.from_numpy(loud)))
    tokens = Part(TEXT, WireTensor.from_numpy(np.array([[0, 255]])))
    check_values(tokens, vocabulary=256)
    for bad, vocabulary in ((tokens, 255), (Part(TEXT, negative()), 256)):
        with pytest.raises(RemoteProtocolError):
            check_values(bad, vocabulary=vocabulary)


def negative() -> WireTensor:
    return WireTensor.from_numpy(np.array([[3, -1]]))


@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_block_quantisation_is_within_half_a_step(elements: int, seed: int) -> None:
    values = array((1, 1, elements), seed)
    back = WireTensor.from_numpy(values, I8).to_numpy()
    assert np.abs(back - values).max() <= np.abs(values).max() / 127 / 2 * 1.001


def test_a_block_of_zeros_stays_zero() -> None:
    zeros = np.zeros((1, 2, 65), np.float32)
    assert not WireTensor.from_numpy(zeros, I8).to_numpy().any()
