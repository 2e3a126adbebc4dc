"""Fixed-point numbers: the sigmoid of eq. 4 in integers, the same on every machine.

Rule: no float. A quantity is an integer with a stated number of fractional bits, `>>` and `//`
floor towards minus infinity, and a product that leaves 64 bits is a Python integer.

`sigmoid` takes t in Q24 and gives T = 1/(1 + e^-t) in Q30. The argument is cut into a coarse part
(steps of 1/64) and two fine parts, so e^-|t| is a product of three table entries:

    x = min(|t|, 2^28 - 1),  h = x >> 18,  m = (x >> 9) & 511,  l = x & 511
    e^-x = M[h] * 2^-(30 + S[h])  *  E1[m]  *  E2[l]

The coarse entries carry their own shift, which makes the error *relative*: with an absolute one T
would not be monotone near 0. The result is within 1.31 * 2^-30 of the true value, monotone and
exactly antisymmetric. The tables are computed in integers at first use and compared with a digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Final

from consensus.errors import InvariantViolation

TRUST_ONE: Final = 2**30
"""T = 1, Q30."""
TRUST_HALF: Final = 2**29
"""T = 1/2: what a peer without a measured trust has."""
SHARE_ONE: Final = 2**36
"""The whole scaled stake, and the whole mass of one walk: Q36."""
RANK_ONE: Final = 2**52
"""The whole rank: Q52 = Q36 * Q16."""

ARGUMENT_MAX: Final = 2**28 - 1
"""Largest |t| that is told apart, Q24: just below 16, the most a temperature of 16 can give."""
COARSE_STEPS: Final = 1024
FINE_STEPS: Final = 512
TABLES_SHA256: Final = "74978901a52601507630ff2b7504a6e9d31e7189b6f3e089a019cee569fa313b"
"""Of M, S, E1, E2 as little-endian int64."""

_GUARD_BITS: Final = 160
"""Precision of the table computation: 1,024 factors lose 10 bits, 64 are needed."""


def sigmoid(t: int) -> int:
    """T = 1/(1 + e^-t): t in Q24, any integer; T in Q30, from 0 to 2^30 (eq. 4, Figure 6)."""
    mantissas, shifts, fine, finest = _tables()
    x = min(abs(t), ARGUMENT_MAX)
    h = x >> 18
    e = (mantissas[h] * fine[(x >> 9) & 511] + 2**29) >> 30
    e = (e * finest[x & 511] + 2**29) >> 30
    divisor = (1 << (30 + shifts[h])) + e
    n = ((e << 30) + (divisor >> 1)) // divisor
    return n if t < 0 else TRUST_ONE - n


@cache
def _tables() -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """M, S, E1, E2. Raises InvariantViolation when they are not the specified ones."""
    mantissas, shifts = [], []
    for power in _powers(64, COARSE_STEPS):
        # The largest shift whose unrounded mantissa is at most one.
        shift = _GUARD_BITS - (power - 1).bit_length()
        mantissas.append(_rounded(power << shift))
        shifts.append(shift)
    fine = [_rounded(power) for power in _powers(2**15, FINE_STEPS)]
    finest = [_rounded(power) for power in _powers(2**24, FINE_STEPS)]
    tables = (tuple(mantissas), tuple(shifts), tuple(fine), tuple(finest))
    if _digest(value for table in tables for value in table) != TABLES_SHA256:
        raise InvariantViolation("the sigmoid tables differ from the specified ones")
    return tables


def _digest(values: Iterable[int]) -> str:
    return hashlib.sha256(b"".join(value.to_bytes(8, "little") for value in values)).hexdigest()


def _powers(divisor: int, count: int) -> list[int]:
    """e^(-i / divisor) for i < count, as integers with _GUARD_BITS fractional bits."""
    one = 1 << _GUARD_BITS
    base, term, k = 0, one, 0
    while term:
        base += term
        k += 1
        term = -(abs(term) // (divisor * k)) if term > 0 else abs(term) // (divisor * k)
    powers = [one]
    for _ in range(count - 1):
        powers.append(powers[-1] * base >> _GUARD_BITS)
    return powers


def _rounded(power: int) -> int:
    """To Q30, to the nearest."""
    drop = _GUARD_BITS - 30
    return (power + (1 << (drop - 1))) >> drop
