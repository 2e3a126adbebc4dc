"""Noise transport messages: plaintext to length-prefixed ciphertext and back, without copies.

The rule: a message is `length || ciphertext || tag`, as its `Cipher` says: for ChaChaPoly a length
of two bytes and at most 65,519 bytes of plaintext (libp2p Noise spec, "Wire Format"). The nonce
counts messages per direction and never repeats. A message that is not authentic, or longer than it
may be, ends the connection.

The bulk of a large payload is sealed straight from the caller's memory into the send buffer
(`Sealer.seal_into`), and opened straight to where its reader wants it (`Opener.open_into`) or into
the object that the reader will be given (`Opener.open_bytes`). What is small is opened into a
buffer that is lent for one step (`Opener.open`).
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag

from p2p.errors import InvariantViolation, ProtocolViolation
from p2p.noise.cipher import CHACHAPOLY, TAG_BYTES, Cipher

BULK_BYTES_MIN = 16 * 1024
"""Plaintext from which on a message is worth a call of its own: copying it would cost as much."""


class Sealer:
    """The sending direction; a plaintext has at most `cipher.plaintext_bytes_max` bytes."""

    __slots__ = ("_aead", "_length", "_nonce", "cipher")

    def __init__(self, key: bytes, cipher: Cipher = CHACHAPOLY) -> None:
        self.cipher = cipher
        self._aead = cipher.with_key(key)
        self._length = cipher.length
        self._nonce = 0

    def seal(self, plaintext: bytes) -> bytes:
        """One frame."""
        return self._length.pack(len(plaintext) + TAG_BYTES) + self._aead.encrypt(
            self._next_nonce(), plaintext, None
        )

    def seal_into(self, plaintext: bytes | memoryview, out: memoryview) -> int:
        """Write one frame to the front of `out`; returns its length."""
        message_bytes = len(plaintext) + TAG_BYTES
        begin, end = self._length.size, self._length.size + message_bytes
        self._length.pack_into(out, 0, message_bytes)
        self._aead.encrypt_into(self._next_nonce(), plaintext, None, out[begin:end])
        return end

    def _next_nonce(self) -> bytes:
        nonce = self._nonce
        if nonce >= self.cipher.messages_max:
            raise InvariantViolation("the Noise nonce is exhausted")
        self._nonce = nonce + 1
        return self.cipher.nonce_of(nonce)


class Opener:
    """The receiving direction.

    Each call raises `ProtocolViolation` for a frame that is too short, too long or not authentic;
    what it wrote by then is not to be used.
    """

    __slots__ = ("_aead", "_length", "_length_bytes", "_nonce", "_overhead_bytes", "cipher")

    def __init__(self, key: bytes, cipher: Cipher = CHACHAPOLY) -> None:
        self.cipher = cipher
        self._aead = cipher.with_key(key)
        self._length = cipher.length
        self._length_bytes = cipher.length.size
        self._overhead_bytes = cipher.overhead_bytes
        self._nonce = 0

    def open(self, buffer: memoryview, start: int, end: int, out: memoryview) -> tuple[int, int]:
        """Write the plaintexts of the whole frames in `buffer[start:end]` to `out`, back to back.

        Returns how many bytes were written, and where the first frame begins that is not whole, is
        bulk behind others, or has no room left in `out`.
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
        if end - start < self._length_bytes:
            return -1
        plaintext_bytes: int = self._length.unpack_from(buffer, start)[0] - TAG_BYTES
        if not 0 <= plaintext_bytes <= self.cipher.plaintext_bytes_max:
            raise ProtocolViolation(f"a Noise message of {plaintext_bytes + TAG_BYTES} bytes")
        return plaintext_bytes if start + self._overhead_bytes + plaintext_bytes <= end else -1

    def open_into(self, buffer: memoryview, start: int, out: memoryview) -> int:
        """Open the whole frame at `start` into `out`, of its length; where the next one begins."""
        begin, stop = start + self._length_bytes, start + self._overhead_bytes + len(out)
        nonce = self._next_nonce()
        try:
            self._aead.decrypt_into(nonce, buffer[begin:stop], None, out)
        except InvalidTag as error:
            raise ProtocolViolation("a Noise message is not authentic") from error
        return stop

    def open_bytes(self, buffer: memoryview, start: int, plaintext_bytes: int) -> tuple[bytes, int]:
        """Open the whole frame at `start`: (its plaintext, where the next one begins)."""
        begin, stop = start + self._length_bytes, start + self._overhead_bytes + plaintext_bytes
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


__all__ = ["BULK_BYTES_MIN", "Opener", "Sealer"]
