"""Noise transport messages: plaintext to length-prefixed ciphertext and back, without copies.

The rule: a message is `length (2 bytes, big-endian) || ciphertext || tag`, of at most 65,535 bytes
of which 65,519 are plaintext (libp2p Noise spec, "Wire Format"); the nonce counts messages per
direction and never repeats. A message that is not authentic ends the connection.

The bulk of a large payload is sealed straight from the caller's memory into the send buffer
(`Sealer.seal_into`), and opened straight to where its reader wants it (`Opener.open_into`) or into
the object that the reader will be given (`Opener.open_bytes`). What is small is opened into a
buffer that is lent for one step (`Opener.open`).
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag

from p2p.errors import InvariantViolation, ProtocolViolation
from p2p.noise.cipher import CHACHAPOLY, Cipher

LENGTH_BYTES = 2
TAG_BYTES = 16
MESSAGE_BYTES_MAX = 65_535
PLAINTEXT_BYTES_MAX = MESSAGE_BYTES_MAX - TAG_BYTES
FRAME_BYTES_MAX = LENGTH_BYTES + MESSAGE_BYTES_MAX
FRAME_OVERHEAD_BYTES = LENGTH_BYTES + TAG_BYTES

BULK_BYTES_MIN = 16 * 1024
"""Plaintext from which on a message is worth a call of its own: copying it would cost as much."""

_encode_length = struct.Struct(">H").pack
_encode_length_into = struct.Struct(">H").pack_into
_decode_length = struct.Struct(">H").unpack_from


class Sealer:
    """The sending direction."""

    __slots__ = ("_aead", "_nonce", "cipher")

    def __init__(self, key: bytes, cipher: Cipher = CHACHAPOLY) -> None:
        self.cipher = cipher
        self._aead = cipher.with_key(key)
        self._nonce = 0

    def seal(self, plaintext: bytes) -> bytes:
        """One frame of at most `PLAINTEXT_BYTES_MAX` bytes of plaintext."""
        return _encode_length(len(plaintext) + TAG_BYTES) + self._aead.encrypt(
            self._next_nonce(), plaintext, None
        )

    def seal_into(self, plaintext: bytes | memoryview, out: memoryview) -> int:
        """Write one frame to the front of `out`; returns its length."""
        message_bytes = len(plaintext) + TAG_BYTES
        _encode_length_into(out, 0, message_bytes)
        end = LENGTH_BYTES + message_bytes
        self._aead.encrypt_into(self._next_nonce(), plaintext, None, out[LENGTH_BYTES:end])
        return end

    def _next_nonce(self) -> bytes:
        nonce = self._nonce
        if nonce >= self.cipher.messages_max:
            raise InvariantViolation("the Noise nonce is exhausted")
        self._nonce = nonce + 1
        return self.cipher.nonce_of(nonce)


class Opener:
    """The receiving direction.

    Each call raises `ProtocolViolation` for a frame that is too short or not authentic; what it
    wrote by then is not to be used.
    """

    __slots__ = ("_aead", "_nonce", "cipher")

    def __init__(self, key: bytes, cipher: Cipher = CHACHAPOLY) -> None:
        self.cipher = cipher
        self._aead = cipher.with_key(key)
        self._nonce = 0

    def open(self, buffer: memoryview, start: int, end: int, out: memoryview) -> tuple[int, int]:
        """Write the plaintexts of the whole frames in `buffer[start:end]` to `out`, back to back.

        Returns how many bytes were written, and where the first frame begins that is not whole, is
        bulk behind others, or has no room left in `out`; an `out` of `PLAINTEXT_BYTES_MAX` has
        room for any first one.
        """
        count, room = 0, len(out)
        while (plaintext_bytes := self.next_bytes(buffer, start, end)) >= 0:
            written = count + plaintext_bytes
            if written > room or (count and plaintext_bytes >= BULK_BYTES_MIN):
                break
            start = self.open_into(buffer, start, out[count:written])
            count = written
        return count, start

    def next_bytes(self, buffer: memoryview, start: int, end: int) -> int:
        """How much plaintext the frame at `start` holds; -1 while not all of it is there."""
        if end - start < LENGTH_BYTES:
            return -1
        plaintext_bytes: int = _decode_length(buffer, start)[0] - TAG_BYTES
        if plaintext_bytes < 0:
            raise ProtocolViolation(f"a Noise message of {plaintext_bytes + TAG_BYTES} bytes")
        return plaintext_bytes if start + FRAME_OVERHEAD_BYTES + plaintext_bytes <= end else -1

    def open_into(self, buffer: memoryview, start: int, out: memoryview) -> int:
        """Open the whole frame at `start` into `out`, of its length; where the next one begins."""
        begin, stop = start + LENGTH_BYTES, start + FRAME_OVERHEAD_BYTES + len(out)
        nonce = self._next_nonce()
        try:
            self._aead.decrypt_into(nonce, buffer[begin:stop], None, out)
        except InvalidTag as error:
            raise ProtocolViolation("a Noise message is not authentic") from error
        return stop

    def open_bytes(self, buffer: memoryview, start: int, plaintext_bytes: int) -> tuple[bytes, int]:
        """Open the whole frame at `start`: (its plaintext, where the next one begins)."""
        begin, stop = start + LENGTH_BYTES, start + FRAME_OVERHEAD_BYTES + plaintext_bytes
        nonce = self._next_nonce()
        try:
            return self._aead.decrypt(nonce, buffer[begin:stop], None), stop
        except InvalidTag as error:
            raise ProtocolViolation("a Noise message is not authentic") from error

    def _next_nonce(self) -> bytes:
        nonce = self._nonce
        if nonce >= self.cipher.messages_max:
            raise ProtocolViolation("the Noise nonce is exhausted")
        self._nonce = nonce + 1
        return self.cipher.nonce_of(nonce)


__all__ = [
    "BULK_BYTES_MIN",
    "FRAME_BYTES_MAX",
    "FRAME_OVERHEAD_BYTES",
    "LENGTH_BYTES",
    "MESSAGE_BYTES_MAX",
    "PLAINTEXT_BYTES_MAX",
    "TAG_BYTES",
    "Opener",
    "Sealer",
]
