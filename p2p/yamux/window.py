"""How much one process lends to its peers: bytes of receive windows, and streams.

The rule: every stream has the 256 KiB that the Yamux spec fixes; whatever a window grows beyond
that is reserved here first, so all growth together stays within one number. The bytes that really
lie unread are counted against the same number; over it, the session that holds the most must go.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW_BYTES_INITIAL = 256 * 1024
"""Fixed by the Yamux spec: both sides assume it before the first window update."""

LEARNED_WINDOW_BYTES_MAX = 4 * 1024 * 1024
"""A new stream begins with the window that its predecessors grew to, up to this: what a session may
grant lasts for 16 such streams at once, and growing from less costs a megabyte a fifteenth."""

WINDOW_LIMIT = 2**32 - 1
"""No honest credit exceeds what one update can carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds of one session."""

    window_bytes_max: int = 16 * 1024 * 1024  # 1 Gbit/s at 128 ms
    session_bytes_max: int = 64 * 1024 * 1024  # growth granted, and separately bytes lying unread
    inbound_streams_max: int = 1024  # alive at once; further ones are reset at once


@dataclass(slots=True, kw_only=True)
class Budget:
    """Counts what all sessions of a process lend; one instance is shared by them."""

    bytes_max: int = 256 * 1024 * 1024
    streams_max: int = 16_384
    granted_bytes: int = field(default=0, init=False)
    unread_bytes: int = field(default=0, init=False)
    streams: int = field(default=0, init=False)

    def reserve(self, count: int) -> bool:
        """Take `count` bytes of growth, or take nothing and say so."""
        if self.granted_bytes + count > self.bytes_max:
            return False
        self.granted_bytes += count
        return True

    def release(self, count: int) -> None:
        """Give back growth that was reserved."""
        self.granted_bytes -= count

    @property
    def is_overdrawn(self) -> bool:
        """Whether more lies unread than the process may hold."""
        return self.unread_bytes > self.bytes_max

    @property
    def has_streams(self) -> bool:
        """Whether another stream may be opened or accepted."""
        return self.streams < self.streams_max


__all__ = [
    "LEARNED_WINDOW_BYTES_MAX",
    "WINDOW_BYTES_INITIAL",
    "WINDOW_LIMIT",
    "Bounds",
    "Budget",
]
