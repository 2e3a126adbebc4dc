"""The guard around every inbound stream: who is served, how many at once, and what a failure costs.

The rule: whatever a peer sends, and whatever a handler raises, ends at most that stream, and is
counted. Streams, and streams that have not named a protocol, are bounded per connection and in all;
over a bound the newest is reset.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import trio

from p2p.connection import Connection, RawStream
from p2p.errors import NetworkError, ProtocolViolation, StreamError
from p2p.lifetime import note_failure
from p2p.limits import Limits
from p2p.multistream import LINE_BYTES_MAX, NegotiatedStream, agreement, meet_optimist, respond
from p2p.network import Stream, StreamHandler

_log = logging.getLogger(__name__)


class StreamGuard:
    """The handlers of one switch, and the inbound streams that they serve now."""

    def __init__(self, limits: Limits, count: Callable[[str], None]) -> None:
        self._limits = limits
        self._count = count
        self._handlers: dict[str, StreamHandler] = {}
        self._agreements: dict[bytes, str] = {}  # the same, by what is said to agree on it
        self._streams: Counter[Connection] = Counter()
        self._streams_total = 0
        self._negotiating: Counter[Connection] = Counter()

    @property
    def protocols(self) -> tuple[str, ...]:
        """What is served."""
        return tuple(self._handlers)

    @property
    def streams(self) -> int:
        """Inbound streams alive."""
        return self._streams_total

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol; `ValueError` if it is served already or its id is too long."""
        if protocol in self._handlers:
            raise ValueError(f"{protocol!r} is served already")
        if len(protocol.encode()) > self._limits.protocol_id_bytes_max:
            raise ValueError(f"a protocol id of {len(protocol)} characters")
        self._agreements[agreement(protocol)] = protocol
        self._handlers[protocol] = handler

    def unserve(self, protocol: str) -> bool:
        """Serve it no more; whether it was."""
        was_served = self._handlers.pop(protocol, None) is not None
        if was_served:
            del self._agreements[agreement(protocol)]
        return was_served

    async def serve_stream(self, connection: Connection, stream: RawStream) -> None:
        """Negotiate and serve one inbound stream; never raises but when cancelled."""
        if self._is_full(connection):
            self._count("streams_refused")
            await reset(stream)
            return
        self._count("streams_inbound")
        self._streams[connection] += 1
        self._streams_total += 1
        try:
            received = stream.receive_nowait(LINE_BYTES_MAX)
            negotiated = meet_optimist(stream, connection.peer_id, self._agreements, received)
            if negotiated is None:
                negotiated = await self._negotiate(connection, stream, received)
            await self._serve(negotiated)
        except StreamError:
            self._count("streams_broken")  # the peer or the wire; nothing to tell
            await reset(stream)
        except NetworkError as error:
            self._count("streams_violating")
            _log.debug("stream of %s: %s", connection.peer_id, error)
            await reset(stream)
        except BaseException as error:  # noqa: BLE001  (the guard at the root of every handler)
            await reset(stream)
            cancellation = note_failure(error, connection.peer_id, self._count)
            if cancellation is not None:
                raise cancellation from None
        finally:
            self._streams_total -= 1
            self._streams[connection] -= 1
            if not self._streams[connection]:
                del self._streams[connection]

    def _is_full(self, connection: Connection) -> bool:
        limits = self._limits
        return (
            self._streams.get(connection, 0) >= limits.streams_per_connection_max
            or self._negotiating.get(connection, 0) >= limits.negotiations_per_connection_max
            or self._streams_total >= limits.streams_total_max
        )

    async def _negotiate(
        self, connection: Connection, raw: RawStream, received: bytes
    ) -> NegotiatedStream:
        self._negotiating[connection] += 1
        try:
            with trio.fail_after(self._limits.negotiation_timeout_s):
                return await respond(
                    raw,
                    connection.peer_id,
                    self._handlers.__contains__,
                    self._limits.negotiation_proposals_max,
                    received,
                )
        except trio.TooSlowError as error:
            raise ProtocolViolation("the peer did not name a protocol in time") from error
        finally:
            self._negotiating[connection] -= 1
            if not self._negotiating[connection]:
                del self._negotiating[connection]

    async def _serve(self, stream: NegotiatedStream) -> None:
        handler = self._handlers.get(stream.protocol)
        if handler is None:  # unserved while the answer was on its way
            raise ProtocolViolation(f"{stream.protocol!r} is not served any more")
        await handler(stream)
        await stream.leave()


async def reset(stream: Stream | RawStream) -> None:
    """Reset also when cancelled: a reset only queues a frame."""
    with trio.CancelScope(shield=True):
        await stream.reset()


__all__ = ["StreamGuard", "reset"]
