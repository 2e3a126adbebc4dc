"""What was seen and what can still be sent: the seen cache and the message cache (v1.0).

The rule: both are bounded by number, and the message cache by bytes; the oldest entry leaves first.
The seen cache answers "was this judged before, and how"; the message cache holds the last
`history_windows` heartbeats, of which the newest `gossip_windows` are announced.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from p2p.gossipsub.message import CachedMessage
from p2p.gossipsub.parameters import CACHE_BYTES_MAX, CACHE_MESSAGES_MAX, SEEN_MAX
from p2p.identity import PeerId


class SeenCache:
    """Ids of messages that were judged, for `seen_s`; the first `seen_max` leave when full."""

    def __init__(self, seen_s: float, seen_max: int = SEEN_MAX) -> None:
        self._seen_s = seen_s
        self._seen_max = seen_max
        self._seen_at: dict[bytes, float] = {}
        self._order: deque[bytes] = deque()  # the oldest first
        self._rejected: set[bytes] = set()

    def __contains__(self, message_id: bytes) -> bool:
        return message_id in self._seen_at

    def __len__(self) -> int:
        return len(self._seen_at)

    def seen_at(self, message_id: bytes) -> float:
        """When an id that is in the cache was judged."""
        return self._seen_at[message_id]

    def was_rejected(self, message_id: bytes) -> bool:
        """Whether the message was judged invalid: whoever sends it again is at fault too."""
        return message_id in self._rejected

    def add(self, message_id: bytes, now: float, *, rejected: bool = False) -> None:
        """Remember an id from `now` on; no-op when it is there."""
        if message_id in self._seen_at:
            return
        self._seen_at[message_id] = now
        self._order.append(message_id)
        if rejected:
            self._rejected.add(message_id)
        if len(self._order) > self._seen_max:
            self._forget_oldest()

    def expire(self, now: float) -> None:
        """Forget what was seen `seen_s` ago."""
        while self._order and now - self._seen_at[self._order[0]] >= self._seen_s:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        message_id = self._order.popleft()
        del self._seen_at[message_id]
        self._rejected.discard(message_id)


class MessageCache:
    """Messages of the last heartbeats, by id, and how often each was sent to whom on IWANT."""

    def __init__(
        self,
        history_windows: int,
        gossip_windows: int,
        *,
        messages_max: int = CACHE_MESSAGES_MAX,
        bytes_max: int = CACHE_BYTES_MAX,
    ) -> None:
        self._gossip_windows = gossip_windows
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._messages: OrderedDict[bytes, CachedMessage] = OrderedDict()  # the oldest first
        self._sent: dict[bytes, dict[PeerId, int]] = {}
        self._windows: deque[dict[str, list[bytes]]] = deque(
            ({} for _ in range(history_windows)), maxlen=history_windows
        )
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def size_bytes(self) -> int:
        """Encoded bytes held."""
        return self._bytes

    def put(self, message: CachedMessage) -> None:
        """Add a message to the current window; no-op when it is there."""
        if message.message_id in self._messages:
            return
        self._messages[message.message_id] = message
        self._bytes += len(message.encoded)
        window = self._windows[0]
        window.setdefault(message.message.topic, []).append(message.message_id)
        while len(self._messages) > self._messages_max or self._bytes > self._bytes_max:
            self._drop(next(iter(self._messages)))

    def get(self, message_id: bytes) -> CachedMessage | None:
        """The message of an id, while it is held."""
        return self._messages.get(message_id)

    def times_sent(self, message_id: bytes, peer: PeerId) -> int:
        """Counts and returns how often a held message has been asked for by `peer`."""
        sent = self._sent.setdefault(message_id, {})
        sent[peer] = sent.get(peer, 0) + 1
        return sent[peer]

    def gossip_ids(self, topic: str) -> list[bytes]:
        """Ids of `topic` to announce: those of the newest windows, the newest first."""
        return [
            message_id
            for window in list(self._windows)[: self._gossip_windows]
            for message_id in reversed(window.get(topic, ()))
            if message_id in self._messages
        ]

    def shift(self) -> None:
        """A heartbeat has passed: the oldest window leaves."""
        for ids in self._windows[-1].values():
            for message_id in ids:
                if message_id in self._messages:
                    self._drop(message_id)
        self._windows.appendleft({})

    def _drop(self, message_id: bytes) -> None:
        self._bytes -= len(self._messages.pop(message_id).encoded)
        self._sent.pop(message_id, None)
