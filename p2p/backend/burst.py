"""How payload is cut: the front of what is unsent, and the Noise messages that carry it.

The rule: every byte in order and once, no message empty or longer than it may be. What is small is
joined, as a message costs more than a copy; bulk is sealed from where it lies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from p2p.noise.frames import BULK_BYTES_MIN


def taken(unsent: deque[memoryview], count: int) -> Iterator[memoryview]:
    """Take the first `count` bytes out of `unsent`."""
    while count:
        piece = unsent.popleft()
        if len(piece) > count:
            unsent.appendleft(piece[count:])
            piece = piece[:count]
        count -= len(piece)
        yield piece


def messages(pieces: Iterable[memoryview], bytes_max: int) -> Iterator[memoryview | bytes]:
    """`pieces`, in order, as Noise messages: small ones are joined, bulk is cut where it lies.

    The odd bytes of bulk travel with what is before it, if anything is, and last otherwise.
    """
    small: list[memoryview] = []
    small_bytes = 0
    for piece in pieces:
        is_bulk = len(piece) >= BULK_BYTES_MIN
        front = len(piece) if not is_bulk else len(piece) % bytes_max if small else 0
        if small and small_bytes + front > bytes_max:
            yield b"".join(small)
            small, small_bytes = [], 0
        if front:
            small.append(piece[:front])
            small_bytes += front
        if is_bulk:
            if small:
                yield b"".join(small)
                small, small_bytes = [], 0
            for start in range(front, len(piece), bytes_max):
                yield piece[start : start + bytes_max]
    if small:
        yield b"".join(small)


__all__ = ["messages", "taken"]
