"""What all connections of one transport share: big buffers, and the budget of bytes and streams.

The rule: an idle connection owns no buffer; one that is in the middle of a large transfer owns one
for each direction, and at most a few spare ones are kept. When more received bytes lie unread than
the process may hold, the connection that holds the most is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.backend.heap import keep_freed
from p2p.limits import Limits
from p2p.noise.cipher import FRAME_BYTES_MAX
from p2p.yamux import Bounds, Budget

if TYPE_CHECKING:
    from p2p.backend.connection import SecureConnection

BUFFER_BYTES = 5 * FRAME_BYTES_MAX
"""A burst of four full frames, and what goes before and behind it, 645 KiB: larger ones gain little
and fall out of the cache."""

OPENED_BYTES = 64 * 1024
"""Plaintext of small messages that is handed on at a time."""

SPARE_BUFFERS_MAX = 8


class Arena:
    """Lends buffers and keeps the sums."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        keep_freed()
        self.bounds = Bounds(
            window_bytes_max=limits.window_bytes_max,
            session_bytes_max=limits.connection_buffer_bytes_max,
            inbound_streams_max=limits.streams_per_connection_max,
        )
        self.budget = Budget(
            bytes_max=limits.process_buffer_bytes_max, streams_max=limits.streams_total_max
        )
        self.connections: set[SecureConnection] = set()
        self.counters: dict[str, int] = {}
        self.opened = memoryview(bytearray(OPENED_BYTES))  # for one synchronous step at a time
        self._spare: list[memoryview] = []

    def lend(self) -> memoryview:
        """A buffer of `BUFFER_BYTES` with unspecified content."""
        return self._spare.pop() if self._spare else memoryview(bytearray(BUFFER_BYTES))

    def take_back(self, buffer: memoryview) -> None:
        """End a loan."""
        if len(self._spare) < SPARE_BUFFERS_MAX:
            self._spare.append(buffer)

    def count(self, name: str) -> None:
        """Count one event of `name`, for metrics."""
        self.counters[name] = self.counters.get(name, 0) + 1

    def relieve(self) -> None:
        """Close connections, those with the most unread bytes first, until the budget holds."""
        while self.budget.is_overdrawn and self.connections:
            worst = max(self.connections, key=lambda connection: connection.unread_bytes)
            self.count("connections_closed_for_memory")
            worst.abort("too much lies unread")


__all__ = ["BUFFER_BYTES", "Arena"]
