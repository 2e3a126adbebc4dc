"""Noise transport messages: plaintext to length-prefixed ciphertext and back, without copies.

The rule: a message is `length (2 bytes, big-endian) || ChaCha20-Poly1305 ciphertext || tag`, of at
most 65,535 bytes of which 65,519 are plaintext (libp2p Noise spec, "Wire Format"); the nonce counts
messages per direction and never repeats. A message that is not authentic ends the connection.

The bulk of a large payload is sealed straight from the caller's memory into the send buffer
(`Sealer.seal_into`) and opened straight from the receive buffer (`Opener.open`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2p.errors import InvariantViolation, ProtocolViolation

LENGTH_BYTES = 2
TAG_BYTES = 16
MESSAGE_BYTES_MAX = 65_535
PLAINTEXT_BYTES_MAX = MESSAGE_BYTES_MAX - TAG_BYTES
FRAME_BYTES_MAX = LENGTH_BYTES + MESSAGE_BYTES_MAX
FRAME_OVERHEAD_BYTES = LENGTH_BYTES + TAG_BYTES
NONCE_MAX = 2**64 - 2
"""2^64 - 1 is reserved (Noise 5.1); after 2^64 - 2 the connection must end."""

nonce_of: Callable[[int], bytes] = struct.Struct("<4xQ").pack
"""Noise's ChaChaPoly nonce: 32 zero bits, then the counter in little-endian order."""

_encode_length = struct.Struct(">H").pack
_encode_length_into = struct.Struct(">H").pack_into
_decode_length = struct.Struct(">H").unpack_from


class Sealer:
    """The sending direction."""

    __slots__ = ("_cipher", "_nonce")

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = 0

    def seal(self, plaintext: bytes) -> bytes:
        """One frame of at most `PLAINTEXT_BYTES_MAX` bytes of plaintext."""
        return _encode_length(len(plaintext) + TAG_BYTES) + self._cipher.encrypt(
            self._next_nonce(), plaintext, None
        )

    def seal_into(self, plaintext: bytes | memoryview, out: memoryview) -> int:
        """Write one frame to the front of `out`; returns its length."""
        message_bytes = len(plaintext) + TAG_BYTES
        _encode_length_into(out, 0, message_bytes)
        end = LENGTH_BYTES + message_bytes
        self._cipher.encrypt_into(self._next_nonce(), plaintext, None, out[LENGTH_BYTES:end])
        return end

    def _next_nonce(self) -> bytes:
        nonce = self._nonce
        if nonce > NONCE_MAX:
            raise InvariantViolation("the Noise nonce is exhausted")
        self._nonce = nonce + 1
        return nonce_of(nonce)


class Opener:
    """The receiving direction."""

    __slots__ = ("_cipher", "_nonce")

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = 0

    def open(self, buffer: memoryview, start: int, end: int) -> tuple[list[bytes], int]:
        """The plaintexts of all whole frames in `buffer[start:end]`, and where the rest begins.

        Raises:
            ProtocolViolation: a frame that is too short or not authentic.
        """
        plaintexts = []
        decrypt, nonce = self._cipher.decrypt, self._nonce
        try:
            while end - start >= LENGTH_BYTES:
                stop = start + LENGTH_BYTES + _decode_length(buffer, start)[0]
                if stop > end:
                    break
                plaintexts.append(
                    decrypt(nonce_of(nonce), buffer[start + LENGTH_BYTES : stop], None)
                )
                nonce += 1
                start = stop
        except InvalidTag as error:
            raise ProtocolViolation("a Noise message is not authentic") from error
        if nonce > NONCE_MAX:
            raise ProtocolViolation("the Noise nonce is exhausted")
        self._nonce = nonce
        return plaintexts, start


__all__ = [
    "FRAME_BYTES_MAX",
    "FRAME_OVERHEAD_BYTES",
    "LENGTH_BYTES",
    "MESSAGE_BYTES_MAX",
    "PLAINTEXT_BYTES_MAX",
    "TAG_BYTES",
    "Opener",
    "Sealer",
    "nonce_of",
]
