"""Canonical fixed-layout encoding: every value has exactly one byte string, every other is refused.

Rule: integers are big-endian and of fixed width; a variable part is preceded by its length or
count; an optional part by one byte that is 0 or 1; nothing follows the last field. There is no
padding, default or version negotiation inside a value, so equal values have equal hashes.

A `Writer` is filled by the encoder of a type, a `Reader` is emptied by its decoder, in the same
order; the decoder then rebuilds the type, whose constructor checks the ranges (ledger.md,
State root and vectors).
"""

from __future__ import annotations

from typing import Final

from consensus.errors import DecodeError, InvariantViolation

BYTES_MAX: Final = 4 * 1024 * 1024
"""Longest value anybody may ask to decode: one reply of the sync protocol."""


class Writer:
    """Collects the fields of one value. A field out of range is our fault: InvariantViolation."""

    __slots__ = ("_out",)

    def __init__(self) -> None:
        self._out = bytearray()

    def u8(self, value: int) -> Writer:
        """One byte."""
        return self._unsigned(value, 1)

    def u16(self, value: int) -> Writer:
        """Two bytes, big-endian."""
        return self._unsigned(value, 2)

    def u32(self, value: int) -> Writer:
        """Four bytes, big-endian."""
        return self._unsigned(value, 4)

    def u64(self, value: int) -> Writer:
        """Eight bytes, big-endian."""
        return self._unsigned(value, 8)

    def u128(self, value: int) -> Writer:
        """Sixteen bytes, big-endian."""
        return self._unsigned(value, 16)

    def u256(self, value: int) -> Writer:
        """Thirty-two bytes, big-endian: a proof-of-work target."""
        return self._unsigned(value, 32)

    def i64(self, value: int) -> Writer:
        """Eight bytes, two's complement, big-endian."""
        if not -(2**63) <= value < 2**63:
            raise InvariantViolation(f"{value} does not fit in i64")
        self._out += value.to_bytes(8, "big", signed=True)
        return self

    def flag(self, value: bool) -> Writer:
        """One byte, 0 or 1."""
        self._out.append(1 if value else 0)
        return self

    def fixed(self, value: bytes, size: int) -> Writer:
        """Exactly `size` bytes, without a length."""
        if len(value) != size:
            raise InvariantViolation(f"{len(value)} bytes where {size} belong")
        self._out += value
        return self

    def short(self, value: bytes) -> Writer:
        """Up to 65,535 bytes after their u16 length."""
        self._unsigned(len(value), 2)
        self._out += value
        return self

    def long(self, value: bytes) -> Writer:
        """Bytes after their u32 length."""
        self._unsigned(len(value), 4)
        self._out += value
        return self

    def raw(self, value: bytes) -> Writer:
        """The canonical encoding of a nested value, as it is."""
        self._out += value
        return self

    def done(self) -> bytes:
        """Everything written."""
        return bytes(self._out)

    def _unsigned(self, value: int, size: int) -> Writer:
        try:
            self._out += value.to_bytes(size, "big")
        except OverflowError:
            raise InvariantViolation(f"{value} does not fit in {size} bytes") from None
        return self


class Reader:
    """Hands out the fields of one value in order. Raises DecodeError at the first wrong byte."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, bytes_max: int = BYTES_MAX) -> None:
        if len(data) > bytes_max:
            raise DecodeError(f"{len(data)} bytes, at most {bytes_max}")
        self._data = data
        self._at = 0

    def u8(self) -> int:
        """One byte."""
        return self._take(1)[0]

    def u16(self) -> int:
        """Two bytes, big-endian."""
        return int.from_bytes(self._take(2), "big")

    def u32(self) -> int:
        """Four bytes, big-endian."""
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        """Eight bytes, big-endian."""
        return int.from_bytes(self._take(8), "big")

    def u128(self) -> int:
        """Sixteen bytes, big-endian."""
        return int.from_bytes(self._take(16), "big")

    def u256(self) -> int:
        """Thirty-two bytes, big-endian."""
        return int.from_bytes(self._take(32), "big")

    def i64(self) -> int:
        """Eight bytes, two's complement, big-endian."""
        return int.from_bytes(self._take(8), "big", signed=True)

    def flag(self) -> bool:
        """One byte that must be 0 or 1."""
        match self.u8():
            case 0:
                return False
            case 1:
                return True
            case other:
                raise DecodeError(f"flag {other}, expected 0 or 1")

    def fixed(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        return self._take(size)

    def short(self, size_max: int) -> bytes:
        """At most `size_max` bytes after their u16 length."""
        return self._take(self._bounded(self.u16(), size_max))

    def long(self, size_max: int) -> bytes:
        """At most `size_max` bytes after their u32 length."""
        return self._take(self._bounded(self.u32(), size_max))

    def count(self, value: int, value_max: int) -> int:
        """`value`, just read, when at most `value_max`: the bound of a loop over their data."""
        return self._bounded(value, value_max)

    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def end(self) -> None:
        """Nothing may follow the last field."""
        if self._at != len(self._data):
            raise DecodeError(f"{self.remaining()} bytes after the last field")

    def _bounded(self, value: int, value_max: int) -> int:
        if value > value_max:
            raise DecodeError(f"length {value}, at most {value_max}")
        return value

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise DecodeError(f"{self.remaining()} bytes left where {size} belong")
        taken = self._data[self._at : end]
        self._at = end
        return taken
