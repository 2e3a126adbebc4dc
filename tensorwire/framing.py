"""Frames: a fixed prefix, a header, raw payloads back to back.

    "AGT" ‖ version (1 byte) ‖ u32 little-endian header length ‖ header ‖ payload of each part

Rule: sending joins nothing and receiving copies each payload byte once, from the transport's chunk
into the buffer that the tensor then keeps; where a transport can fill a given buffer
(`PayloadReader.target`), not even once. The prefix is judged byte by byte as it arrives, so that a
peer of another protocol is refused after four bytes.
"""

import ctypes
from collections.abc import Sequence

import numpy as np

from tensorwire.errors import FailureCode, InvariantViolation, RemoteProtocolError
from tensorwire.tensor import ALIGNMENT_BYTES, Part, PartSpec, WireTensor

MAGIC = b"AGT"
VERSION = 1
PREFIX_BYTES = 8

_BEGINNING = MAGIC + bytes([VERSION])

Segments = list[bytes | memoryview]


class HeadReader:
    """Collects prefix and header from chunks of any size."""

    def __init__(self, header_bytes_max: int) -> None:
        self._header_bytes_max = header_bytes_max
        self._collected = bytearray()
        self._frame_head_bytes = PREFIX_BYTES

    @property
    def started(self) -> bool:
        """Whether any byte has arrived."""
        return bool(self._collected)

    def receive(self, data: memoryview) -> tuple[bytes | None, memoryview]:
        """(header once complete, bytes of `data` behind it); raises `RemoteProtocolError`."""
        if not self._collected and data[:4] == _BEGINNING and data.nbytes >= PREFIX_BYTES:
            end = PREFIX_BYTES + int.from_bytes(data[4:PREFIX_BYTES], "little")
            if end <= data.nbytes and end <= PREFIX_BYTES + self._header_bytes_max:
                # A whole head in one piece, as almost all come.
                self._collected = bytearray(data[:PREFIX_BYTES])
                return bytes(data[PREFIX_BYTES:end]), data[end:]
        if len(self._collected) < PREFIX_BYTES:
            taken = min(PREFIX_BYTES - len(self._collected), data.nbytes)
            self._collected += data[:taken]
            data = data[taken:]
            self._check_prefix()
            if len(self._collected) < PREFIX_BYTES:
                return None, data
        taken = min(self._frame_head_bytes - len(self._collected), data.nbytes)
        self._collected += data[:taken]
        data = data[taken:]
        if len(self._collected) < self._frame_head_bytes:
            return None, data
        return bytes(memoryview(self._collected)[PREFIX_BYTES:]), data

    def _check_prefix(self) -> None:
        seen = self._collected
        if not MAGIC.startswith(seen[: len(MAGIC)]):
            raise RemoteProtocolError(FailureCode.MALFORMED, "not a tensor frame")
        if len(seen) > len(MAGIC) and seen[len(MAGIC)] != VERSION:
            detail = f"version {seen[len(MAGIC)]}, {VERSION} spoken here"
            raise RemoteProtocolError(FailureCode.VERSION, detail)
        if len(seen) == PREFIX_BYTES:
            header_bytes = int.from_bytes(seen[len(MAGIC) + 1 :], "little")
            if header_bytes > self._header_bytes_max:
                detail = f"a header of {header_bytes} bytes"
                raise RemoteProtocolError(FailureCode.TOO_LARGE, detail)
            self._frame_head_bytes = PREFIX_BYTES + header_bytes


class PayloadReader:
    """One preallocated buffer for all parts; each part begins on its own 64-byte boundary.

    The operating system backs the buffer with memory as it fills, so that an announced payload that
    never arrives costs address space only.
    """

    def __init__(self, specs: Sequence[PartSpec]) -> None:
        self._specs = tuple(specs)
        self._views = _aligned_views([spec.payload_bytes for spec in self._specs])
        self._part = 0
        self._unfilled = self._views[0] if self._views else None  # the rest of the current part
        self.bytes_copied = 0

    @property
    def complete(self) -> bool:
        """Whether every payload byte has arrived."""
        return self._unfilled is None

    def target(self) -> memoryview:
        """The writable rest of the current part, for a transport that can read into it."""
        if self._unfilled is None:
            raise InvariantViolation("a complete payload has no target")
        return self._unfilled

    def advance(self, filled_bytes: int) -> None:
        """Say that the first `filled_bytes` of `target()` have been written."""
        target = self.target()
        if filled_bytes > target.nbytes:
            raise InvariantViolation("more bytes written than the target has")
        if filled_bytes < target.nbytes:
            self._unfilled = target[filled_bytes:]
            return
        self._part += 1
        self._unfilled = self._views[self._part] if self._part < len(self._views) else None

    def receive(self, data: memoryview) -> memoryview:
        """Copy what belongs to this payload; the rest of `data` is returned."""
        while data.nbytes and (target := self._unfilled) is not None:
            taken = min(target.nbytes, data.nbytes)
            target[:taken] = data[:taken]
            self.bytes_copied += taken
            self.advance(taken)
            data = data[taken:]
        return data

    def parts(self) -> tuple[Part, ...]:
        """The parts of a complete payload; they keep the buffer."""
        if not self.complete:
            raise InvariantViolation("the payload is not complete")
        return tuple(
            [
                Part(spec.modality, WireTensor(spec.dtype, spec.shape, view))
                for spec, view in zip(self._specs, self._views, strict=True)
            ]
        )


def encode_frame(header: bytes, parts: Sequence[Part]) -> Segments:
    """The segments of a frame in order; payloads are views of the tensors' own buffers."""
    prefix = _BEGINNING + len(header).to_bytes(4, "little")
    return [prefix + header, *[part.tensor.data for part in parts]]


def _aligned_views(lengths: Sequence[int]) -> list[memoryview]:
    room = ALIGNMENT_BYTES
    for length in lengths:
        room += length + -length % ALIGNMENT_BYTES
    # numpy leaves the memory untouched and asks for huge pages; a bytearray would clear it first.
    buffer = np.empty(room, dtype=np.uint8)
    whole, views = buffer.data, []
    at = -ctypes.addressof(ctypes.c_char.from_buffer(whole)) % ALIGNMENT_BYTES
    for length in lengths:
        views.append(whole[at : at + length])
        at += length + -length % ALIGNMENT_BYTES
    return views
