"""The one product of the mechanism that may run on floating-point units, and why it is exact.

Everything else in this package is Python integers or int64 within stated bounds.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from consensus.errors import InvariantViolation

EXACT_LIMIT: Final = 2**53
"""Every integer up to here is a float64."""

Integers: TypeAlias = npt.NDArray[np.int64]
Matrix: TypeAlias = Any
"""A csr_array or ndarray of int64 or bool (scipy has no types)."""


class Arithmetic(Enum):
    """Where `exact_product` multiplies. INT64 is the reference, FLOAT64 the fast path."""

    INT64 = "int64"
    FLOAT64 = "float64"


def exact_product(
    matrix: Matrix,
    masses: Integers,
    *,
    shift: int = 0,
    arithmetic: Arithmetic = Arithmetic.FLOAT64,
) -> Integers:
    """floor(matrix @ masses / 2^shift), entry by entry, the same on every machine.

    `matrix` is sparse or dense, [rows, n]; `masses` is [n] or [n, columns]; both hold integers.
    Raises InvariantViolation when the bound below does not hold.

    Why a float is allowed here. Every entry of the result is a sum of terms m * x. Suppose that
    either (max |m|) * (sum |x| of a column) or (sum |m| of a row) * (max |x|) is at most 2^53.
    Then every term, and every partial sum *in any order and grouping*, is an integer of magnitude
    at most 2^53. Such an integer is a float64, and IEEE 754 requires an operation whose exact
    result is representable to return it: no rounding ever happens, fused or not. So the result
    does not depend on the library, its kernels, its threads or the processor; int64, sparse
    float64 and dense BLAS agree bit for bit. The floor comes after the whole sum, on int64.
    """
    absolute = abs(masses)
    magnitude = abs(matrix)
    largest = int(magnitude.max()) if 0 not in magnitude.shape else 0
    by_column = largest * int(absolute.sum(axis=0).max(initial=0))
    if by_column > EXACT_LIMIT:
        by_row = int(magnitude.sum(axis=1, dtype=np.int64).max()) * int(absolute.max(initial=0))
        if by_row > EXACT_LIMIT:
            raise InvariantViolation(f"product bounded only by {min(by_column, by_row)}")
    if arithmetic is Arithmetic.INT64:
        product = matrix.astype(np.int64) @ masses
    else:
        product = (matrix.astype(np.float64) @ masses.astype(np.float64)).astype(np.int64)
    return np.asarray(product >> shift)


def sparse(data: Integers, rows: Integers, columns: Integers, size: tuple[int, int]) -> Matrix:
    """A sparse int64 matrix of the given entries."""
    from scipy.sparse import csr_array  # slow to import, and clients never multiply

    return csr_array((data, (rows, columns)), shape=size, dtype=np.int64)
