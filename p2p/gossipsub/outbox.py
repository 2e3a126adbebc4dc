"""What waits to be sent to one peer: bounded, ordered by importance, and sent in large RPCs.

The rule: one slow peer costs at most `messages_max` messages or `bytes_max` bytes and never delays
another. Everything that waits is coalesced into one RPC per write; own messages go before forwarded
ones, and gossip (IHAVE, IDONTWANT) is dropped first. What is refused is refused to the caller's
face: the router announces it at the next heartbeat.
"""

from __future__ import annotations

from collections import deque

from p2p.gossipsub.codec import encode_varint, wrap_control
from p2p.gossipsub.message import CachedMessage

WRITE_BYTES = 128 * 1024
"""An RPC is closed when it reaches this: two large Noise frames' worth, decoded in under 5 ms."""

BYTES_MAX = 8 * 1024 * 1024
"""Messages waiting for one peer; encoded messages are shared with the cache and other peers."""

CONTROL_BYTES_MAX = 1024 * 1024
"""Control waiting for one peer: eight full IHAVE; an honest reader never has two waiting."""

CONTROL_FRAME_BYTES_MAX = 256 * 1024
"""Control in one RPC, half of what our own decoder takes."""


class Outbox:
    """The queue to one peer; `push_*` adds, `take` removes the next RPC."""

    def __init__(self, messages_max: int, bytes_max: int = BYTES_MAX) -> None:
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._subscriptions: list[bytes] = []
        self._own: deque[CachedMessage] = deque()
        self._forwarded: deque[CachedMessage] = deque()
        self._control: deque[bytes] = deque()
        self._message_bytes = 0
        self._control_bytes = 0

    def __len__(self) -> int:
        return len(self._own) + len(self._forwarded)

    def __bool__(self) -> bool:
        return bool(self._own or self._forwarded or self._control or self._subscriptions)

    @property
    def is_full(self) -> bool:
        """Whether the next message would be refused."""
        return len(self) >= self._messages_max or self._message_bytes >= self._bytes_max

    @property
    def is_half_empty(self) -> bool:
        """Whether a peer that was slow has caught up."""
        return len(self) <= self._messages_max // 2 and self._message_bytes <= self._bytes_max // 2

    def push_message(self, message: CachedMessage, *, own: bool) -> bool:
        """Queue a message; False when the queue is full."""
        if self.is_full:
            return False
        (self._own if own else self._forwarded).append(message)
        self._message_bytes += len(message.encoded)
        return True

    def push_control(self, encoded: bytes) -> bool:
        """Queue an encoded control message; False when the queue is full."""
        if self._control_bytes + len(encoded) > CONTROL_BYTES_MAX:
            return False
        self._control.append(encoded)
        self._control_bytes += len(encoded)
        return True

    def push_subscriptions(self, encoded: bytes) -> None:
        """Queue subscription changes; bounded by what we ourselves join and leave."""
        self._subscriptions.append(encoded)

    def clear(self) -> None:
        """The stream is gone: what waits is void."""
        self._subscriptions.clear()
        self._own.clear()
        self._forwarded.clear()
        self._control.clear()
        self._message_bytes = self._control_bytes = 0

    def take(self) -> bytes:
        """The next RPC with its length prefix; empty when nothing waits."""
        parts = self._subscriptions
        self._subscriptions = []
        size = sum(map(len, parts))
        for queue in (self._own, self._forwarded):
            while queue and (size == 0 or size + len(queue[0].encoded) <= WRITE_BYTES):
                encoded = queue.popleft().encoded
                self._message_bytes -= len(encoded)
                parts.append(encoded)
                size += len(encoded)
        control: list[bytes] = []
        control_size = 0
        while self._control:
            control_size += len(self._control[0])
            if control and control_size > CONTROL_FRAME_BYTES_MAX:
                break
            self._control_bytes -= len(self._control[0])
            control.append(self._control.popleft())
        if control:
            parts.append(wrap_control(control))
        body = b"".join(parts)
        return encode_varint(len(body)) + body if body else b""
