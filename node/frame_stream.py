"""Between exchange machines and streams: the steps that both ends of an exchange share.

The rule: a frame leaves in one flight together with our end of the stream, and what is large is
neither joined on its way out nor gathered on its way in.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from p2p.network import Stream

DIRECT_BYTES_MIN = 16 << 10  # from this on, received bytes go straight to where they belong
HEAD_BYTES = (
    4 << 10
)  # read at a time until it is known where payload belongs: more would move twice

_Event = TypeVar("_Event", covariant=True)


class Receiver(Protocol[_Event]):
    """What `receive_more` needs of an exchange."""

    def payload_target(self) -> memoryview | None:
        """Where the next payload bytes belong."""

    def payload_received(self, filled_bytes: int) -> Sequence[_Event]:
        """Take what was written there."""

    def receive_data(self, data: bytes) -> Sequence[_Event]:
        """Take the next bytes."""

    def receive_end(self) -> None:
        """Take the end of the peer's direction."""


async def receive_more(stream: Stream, exchange: Receiver[_Event]) -> Sequence[_Event]:
    """Receive what comes next, and give it to `exchange`; returns its events."""
    target = exchange.payload_target()
    if target is not None and len(target) >= DIRECT_BYTES_MIN:
        filled = await stream.receive_into(target)
        events = exchange.payload_received(filled)
        if filled < len(target):
            exchange.receive_end()
        return events
    data = await stream.receive_some(HEAD_BYTES if target is None else None)
    if not data:
        exchange.receive_end()
    return exchange.receive_data(data)


__all__ = ["receive_more"]
