"""Tensors as they cross the wire: a dtype, a shape, and little-endian bytes that nobody copies.

Rule: a `PartSpec` is checked before a byte is allocated for it; a `WireTensor`'s buffer always has
exactly the length that its dtype and shape imply. Layouts (row-major throughout):

    FLOAT32, FLOAT16, INT64   as in IEEE 754 / two's complement, little-endian
    BFLOAT16                  the upper 16 bits of a float32, rounded to nearest even
    INT8_BLOCK                ceil(n/64) float32 scales, then n int8; value = scale · int8

Specification: "The protocol" in `interop/README.md`.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum, unique
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tensorwire.errors import FailureCode, LocalProtocolError, RemoteProtocolError

BLOCK_ELEMENTS = 64  # of INT8_BLOCK: relative error 5.9e-3 on normal data at 6 % overhead
VALUE_MAX = 1e4  # |x| of any float on the wire: hidden states are O(1), an attack is not
SPEECH_SAMPLES = 4_000  # 250 ms of 16 kHz mono per step
SPEECH_VALUE_MAX = 1.0
SCALE_BYTES = 4
VOCABULARY_MAX = 1 << 31  # token ids below this, where no vocabulary is known
SQUARES_ELEMENTS = 8_192  # of one dot product: from 10,000 on OpenBLAS wakes its threads for it
SQUARES_SAFE = 0.9  # of bound²: float32 sums of squares are within 1e-3 of exact
ALIGNMENT_BYTES = 64  # of every received part, so that torch may read it in place

if sys.byteorder != "little":  # pragma: no cover - no such machine runs torch today
    raise ImportError("tensorwire reads and writes buffers in place: little-endian only")


@unique
class DType(IntEnum):
    """Element types; the numbers are those of `wire.proto`."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    INT64 = 4
    INT8_BLOCK = 5


@unique
class Modality(IntEnum):
    """What a part means, and so its rank; the numbers are those of `wire.proto`."""

    TEXT = 1  # [bs, seq] int64: token ids
    IMAGE = 2  # [bs, seq, chans, rows, cols] float
    SPEECH = 3  # [bs, seq, 4000] float32 in [-1, 1]
    TENSOR = 4  # [bs, seq, dim] float; every output is one


# Python 3.11 looks up a member of an enumeration at ten times the cost of a name.
_FLOAT32, _BFLOAT16, _INT8_BLOCK = DType.FLOAT32, DType.BFLOAT16, DType.INT8_BLOCK
_SPEECH = Modality.SPEECH

ITEM_BYTES = {DType.FLOAT32: 4, DType.FLOAT16: 2, DType.BFLOAT16: 2, DType.INT64: 8}
RANKS = {Modality.TEXT: 2, Modality.IMAGE: 5, Modality.SPEECH: 3, Modality.TENSOR: 3}
FLOATS = frozenset({DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.INT8_BLOCK})
DTYPES = {
    Modality.TEXT: frozenset({DType.INT64}),
    Modality.IMAGE: FLOATS,
    Modality.SPEECH: frozenset({DType.FLOAT32}),
    Modality.TENSOR: FLOATS,
}
GRADIENT_DTYPES = frozenset({DType.FLOAT32, DType.BFLOAT16})  # float16 would flush them to zero

_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.FLOAT32: np.dtype("<f4"),
    DType.FLOAT16: np.dtype("<f2"),
    DType.BFLOAT16: np.dtype("<u2"),  # its bits: numpy has no such type
    DType.INT64: np.dtype("<i8"),
}
_MAGNITUDES_MAX = {
    DType.FLOAT16: 0x70E2,  # 10,000 exactly
    DType.BFLOAT16: 0x461C,  # 9,984: the greatest that is <= VALUE_MAX
}
_NATURAL = {_NUMPY[dtype]: dtype for dtype in (DType.FLOAT32, DType.FLOAT16, DType.INT64)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one exchange; a peer's status may advertise less, never more.

    64 MiB is 1,024 × 16 × 1,024 float32 or one 4,096-step sequence of dim 4,096; with 64 exchanges
    in flight a server stays under 4 GiB, and `node.exchange` sets a lower total. `bounds` are those
    of every dimension, by modality.
    """

    batch_max: int = 1_024
    seq_max: int = 4_096
    dim_max: int = 8_192
    channels_max: int = 64
    side_max: int = 4_096  # rows and columns of an image
    parts_max: int = 8
    payload_bytes_max: int = 64 << 20
    header_bytes_max: int = 64 << 10
    bounds: Mapping[Modality, tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.init and getattr(self, each.name) < 1:
                raise LocalProtocolError(f"{each.name} must be positive")
        steps = (self.batch_max, self.seq_max)
        bounds = {
            Modality.TEXT: steps,
            Modality.IMAGE: (*steps, self.channels_max, self.side_max, self.side_max),
            Modality.SPEECH: (*steps, SPEECH_SAMPLES),
            Modality.TENSOR: (*steps, self.dim_max),
        }
        object.__setattr__(self, "bounds", MappingProxyType(bounds))


class PartSpec(NamedTuple):  # made nine times an exchange, at a third of a frozen dataclass's cost
    """Modality, dtype and shape of a part, without its bytes."""

    modality: Modality
    dtype: DType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Product of the shape (exact: Python's integers do not overflow)."""
        return math.prod(self.shape)

    @property
    def payload_bytes(self) -> int:
        """Length of the buffer in bytes."""
        return payload_bytes(self.dtype, math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor on the wire: `data` is a read-only view of `dtype` × `shape`, row-major.

    Raises `LocalProtocolError` where the buffer's length does not fit. Holds whatever object owns
    the bytes; that object must not be written while a `WireTensor` of it is in use.
    """

    dtype: DType
    shape: tuple[int, ...]
    data: memoryview = field(repr=False)

    def __post_init__(self) -> None:
        expected = payload_bytes(self.dtype, math.prod(self.shape))
        if self.data.nbytes != expected:
            raise LocalProtocolError(f"{self.data.nbytes} bytes for {expected} of {self.shape}")
        if type(self.shape) is not tuple:
            object.__setattr__(self, "shape", tuple(self.shape))
        if not self.data.readonly:
            object.__setattr__(self, "data", self.data.toreadonly())

    @classmethod
    def from_numpy(cls, array: NDArray[Any], dtype: DType | None = None) -> Self:
        """A tensor of a numpy array; without a copy unless a conversion or a stride asks for one.

        `dtype` None keeps float32, float16 and int64 and turns other integers into INT64 and other
        floats into FLOAT32. BFLOAT16 rounds to nearest even; INT8_BLOCK quantises.
        """
        chosen = dtype if dtype is not None else _natural_dtype(array.dtype)
        if chosen is _BFLOAT16:
            flat: NDArray[Any] = _bfloat16_bits(np.ascontiguousarray(array, _NUMPY[_FLOAT32]))
        elif chosen is _INT8_BLOCK:
            flat = _quantised(np.ascontiguousarray(array, _NUMPY[_FLOAT32]).reshape(-1))
        else:
            flat = np.ascontiguousarray(array, _NUMPY[chosen])
        return cls(chosen, array.shape, _bytes_view(flat))

    @property
    def payload_bytes(self) -> int:
        """Length of the buffer in bytes."""
        return self.data.nbytes

    def to_numpy(self) -> NDArray[Any]:
        """The values as float32, float16 or int64; BFLOAT16 and INT8_BLOCK widen to float32.

        A read-only view where the dtype is one of numpy's, else a new array.
        """
        if self.dtype is _BFLOAT16:
            bits = self.bits().astype("<u4")
            return (bits << np.uint32(16)).view("<f4").reshape(self.shape)
        if self.dtype is _INT8_BLOCK:
            return _dequantised(self.data, math.prod(self.shape)).reshape(self.shape)
        return np.frombuffer(self.data, _NUMPY[self.dtype]).reshape(self.shape)

    def bits(self) -> NDArray[np.uint16]:
        """A view of the 16-bit patterns of a BFLOAT16 or FLOAT16 tensor, in its shape."""
        if ITEM_BYTES.get(self.dtype) != 2:
            raise LocalProtocolError(f"{self.dtype.name} has no 16-bit patterns")
        return np.frombuffer(self.data, dtype="<u2").reshape(self.shape)


class Part(NamedTuple):
    """One input or output: a tensor and what it means."""

    modality: Modality
    tensor: WireTensor

    @property
    def spec(self) -> PartSpec:
        """The part without its bytes."""
        return PartSpec(self.modality, self.tensor.dtype, self.tensor.shape)


def payload_bytes(dtype: DType, elements: int) -> int:
    """Length in bytes of `elements` of `dtype`."""
    item_bytes = ITEM_BYTES.get(dtype)
    if item_bytes is None:  # INT8_BLOCK
        return elements + SCALE_BYTES * -(-elements // BLOCK_ELEMENTS)
    return elements * item_bytes


def check_spec(spec: PartSpec, limits: Limits, *, is_gradient: bool = False) -> None:
    """Rank, dimensions and dtype of one part; raises `RemoteProtocolError`.

    A gradient has the shape of what it belongs to, and the dtypes of gradients.
    Nothing has been allocated yet, so that a lie costs the receiver only this look.
    """
    if len(spec.shape) != RANKS[spec.modality]:
        raise _shape_fault(spec, f"rank {RANKS[spec.modality]} expected")
    for size, bound in zip(spec.shape, limits.bounds[spec.modality], strict=True):
        if not 1 <= size <= bound:
            raise _shape_fault(spec, f"a dimension is not within 1..{bound}")
    if spec.modality is _SPEECH and spec.shape[2] != SPEECH_SAMPLES:
        raise _shape_fault(spec, f"{SPEECH_SAMPLES} samples per step expected")
    if spec.dtype not in (GRADIENT_DTYPES if is_gradient else DTYPES[spec.modality]):
        kind = "a gradient" if is_gradient else spec.modality.name
        detail = f"{spec.dtype.name} is not a dtype of {kind}"
        raise RemoteProtocolError(FailureCode.BAD_DTYPE, detail)


def check_specs(specs: Sequence[PartSpec], limits: Limits) -> int:
    """All parts of a request: each one, one batch size, seq in sum and bytes in total.

    Returns the bytes in total; raises `RemoteProtocolError`.
    """
    if not 1 <= len(specs) <= limits.parts_max:
        detail = f"{len(specs)} parts, 1..{limits.parts_max} expected"
        raise RemoteProtocolError(FailureCode.MALFORMED, detail)
    rows, steps, total_bytes = specs[0].shape[:1], 0, 0
    for spec in specs:
        check_spec(spec, limits)
        if spec.shape[:1] != rows:
            raise _shape_fault(spec, "the parts differ in batch size")
        steps += spec.shape[1]
        total_bytes += spec.payload_bytes
    if steps > limits.seq_max:
        raise _shape_fault(specs[0], f"more than {limits.seq_max} steps in sum")
    if total_bytes > limits.payload_bytes_max:
        detail = f"{total_bytes} bytes, {limits.payload_bytes_max} allowed"
        raise RemoteProtocolError(FailureCode.TOO_LARGE, detail)
    return total_bytes


def check_values(
    part: Part, *, vocabulary: int = VOCABULARY_MAX, is_gradient: bool = False
) -> None:
    """Token ids in range, floats finite and bounded; raises `RemoteProtocolError` (BAD_VALUE)."""
    tensor = part.tensor
    if tensor.dtype is _FLOAT32:
        is_sound = part.modality is _SPEECH and not is_gradient
        bound = SPEECH_VALUE_MAX if is_sound else VALUE_MAX
        fits = _are_within(np.frombuffer(tensor.data, _NUMPY[_FLOAT32]), bound)
    elif tensor.dtype is DType.INT64:
        tokens = tensor.to_numpy()
        fits = bool(tokens.min() >= 0 and tokens.max() < vocabulary)
    elif tensor.dtype is _INT8_BLOCK:
        blocks = -(-math.prod(tensor.shape) // BLOCK_ELEMENTS)
        scales = np.frombuffer(tensor.data, dtype="<f4", count=blocks)
        fits = bool(scales.min() >= 0 and scales.max() <= VALUE_MAX / 128)
    else:
        fits = _magnitude_max(tensor) <= _MAGNITUDES_MAX[tensor.dtype]
    if not fits:
        detail = f"a value of {part.modality.name} {tensor.dtype.name} is out of range"
        raise RemoteProtocolError(FailureCode.BAD_VALUE, detail)


def output_shape(specs: Sequence[PartSpec]) -> tuple[int, int]:
    """(bs, seq) of the answer to `specs`: seq is the sum over the parts, joined in order."""
    return specs[0].shape[0], sum(spec.shape[1] for spec in specs)


def gradient_specs(specs: Sequence[PartSpec]) -> tuple[PartSpec, ...]:
    """The parts that have an input gradient: all but TEXT, whose ids are not differentiable."""
    return tuple(spec for spec in specs if spec.modality is not Modality.TEXT)


def _shape_fault(spec: PartSpec, detail: str) -> RemoteProtocolError:
    # A hostile shape may have thousands of dimensions of 20 digits: show few of them.
    shown = ", ".join(str(size) for size in spec.shape[:6])
    text = f"{spec.modality.name} [{shown}]: {detail}"
    return RemoteProtocolError(FailureCode.BAD_SHAPE, text)


def _natural_dtype(dtype: np.dtype[Any]) -> DType:
    natural = _NATURAL.get(dtype)
    if natural is not None:
        return natural
    if np.issubdtype(dtype, np.integer):
        return DType.INT64
    if np.issubdtype(dtype, np.floating):
        return DType.FLOAT32
    raise LocalProtocolError(f"no wire dtype for numpy's {dtype}")


def _bytes_view(array: NDArray[Any]) -> memoryview:
    if array.size == 0:
        raise LocalProtocolError("an empty tensor has no representation")
    return array.data.cast("B").toreadonly()


def _are_within(values: NDArray[np.float32], bound: float) -> bool:
    # Squares that add up to less than bound² are proof in one pass at a third of the cost; not so
    # where they are infinite, NaN or near it (of which `vdot` does not warn). min and max propagate
    # NaN, which fails both tests.
    safe = SQUARES_SAFE * bound * bound
    first, rest = values[:SQUARES_ELEMENTS], values[SQUARES_ELEMENTS:]
    if rest.size > SQUARES_ELEMENTS:
        whole = values.size - values.size % SQUARES_ELEMENTS
        rows, rest = values[:whole].reshape(-1, SQUARES_ELEMENTS), values[whole:]
        with np.errstate(over="ignore", invalid="ignore"):
            fits = np.maximum.reduce(np.vecdot(rows, rows)) <= safe
    else:
        fits = np.vdot(first, first) <= safe
    if fits and np.vdot(rest, rest) <= safe:
        return True
    return bool(values.min() >= -bound and values.max() <= bound)


def _magnitude_max(tensor: WireTensor) -> int:
    # Without the sign bit, patterns order as magnitudes do; infinities and NaN lie above all.
    return int((tensor.bits() & np.uint16(0x7FFF)).max())


def _bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view("<u4")
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> 16
    # Rounding would carry a NaN's low payload bits into the exponent; keep it a quiet NaN.
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype("<u2")


def _quantised(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    blocks = -(-values.size // BLOCK_ELEMENTS)
    padded = np.zeros(blocks * BLOCK_ELEMENTS, dtype="<f4")
    padded[: values.size] = values
    grid = padded.reshape(blocks, BLOCK_ELEMENTS)
    scales = (np.abs(grid).max(axis=1) / np.float32(127)).astype("<f4")
    divisors = np.where(scales > 0, scales, np.float32(1))
    steps = np.rint(grid / divisors[:, None]).clip(-127, 127).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), steps.reshape(-1)[: values.size].view(np.uint8)])


def _dequantised(data: memoryview, elements: int) -> NDArray[np.float32]:
    blocks = -(-elements // BLOCK_ELEMENTS)
    scales = np.frombuffer(data, dtype="<f4", count=blocks)
    steps = np.frombuffer(data, dtype=np.int8, offset=SCALE_BYTES * blocks, count=elements)
    values: NDArray[np.float32] = steps.astype("<f4")
    values *= np.repeat(scales, BLOCK_ELEMENTS)[:elements]
    return values
