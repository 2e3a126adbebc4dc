"""What the program has to do with each peer: the measure of who may be let go when places are few.

The rule: what a stranger does never protects it. A peer is *needed* when the program connected to
it, has a stream open to it, or had one within `NEEDED_S`. Streams that a peer opens to the program
only say that it is less idle than another.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType

import trio

from p2p.identity import PeerId
from p2p.network import Stream, StreamHandler

NEEDED_S = 120.0
"""How long a peer that the program had a stream open to is still needed."""


@dataclass(slots=True)
class _Use:
    """The program's dealings with one peer."""

    is_wanted: bool = False  # the program connected to it
    open_streams: int = 0  # opened by the program
    opened_s: float = -math.inf  # when the last of these ended
    serving: int = 0  # handlers at work for it
    served_s: float = -math.inf  # when the last of these ended


class PeerUses:
    """The dealings with the connected peers; `keep` forgets the others."""

    def __init__(self) -> None:
        self._uses: dict[PeerId, _Use] = {}

    def connected_to(self, peer_id: PeerId) -> None:
        """The program asked for a connection to the peer."""
        self._of(peer_id).is_wanted = True

    def opening(
        self, peer_id: PeerId, stream: AbstractAsyncContextManager[Stream]
    ) -> AbstractAsyncContextManager[Stream]:
        """The same stream, noted as opened by the program while its block lasts."""
        return _NotedStream(self._of(peer_id), stream)

    def serving(self, handler: StreamHandler) -> StreamHandler:
        """The same handler, noted as at work for a peer while it runs."""

        async def serve(stream: Stream) -> None:
            use = self._of(stream.peer_id)
            use.serving += 1
            try:
                await handler(stream)
            finally:
                use.serving -= 1
                use.served_s = trio.current_time()

        return serve

    def is_needed(self, peer_id: PeerId, now_s: float) -> bool:
        """Whether the program would miss the peer."""
        use = self._uses.get(peer_id)
        return use is not None and (
            use.is_wanted or use.open_streams > 0 or now_s - use.opened_s <= NEEDED_S
        )

    def active_s(self, peer_id: PeerId, now_s: float) -> float:
        """When the peer last had a stream with the program, either way; -inf: never."""
        use = self._uses.get(peer_id)
        if use is None:
            return -math.inf
        return now_s if use.serving or use.open_streams else max(use.opened_s, use.served_s)

    def keep(self, peers: Collection[PeerId]) -> None:
        """Forget what concerns other peers than these."""
        for peer_id in self._uses.keys() - peers:
            if not self._uses[peer_id].open_streams:
                del self._uses[peer_id]

    def _of(self, peer_id: PeerId) -> _Use:
        use = self._uses.get(peer_id)
        if use is None:
            use = self._uses[peer_id] = _Use()
        return use


class _NotedStream(AbstractAsyncContextManager[Stream]):
    """A stream's block; a class, because a generator would cost every request microseconds."""

    __slots__ = ("_block", "_use")

    def __init__(self, use: _Use, block: AbstractAsyncContextManager[Stream]) -> None:
        self._use = use
        self._block = block

    async def __aenter__(self) -> Stream:
        self._use.open_streams += 1
        try:
            return await self._block.__aenter__()
        except BaseException:
            self._use.open_streams -= 1
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self._use.open_streams -= 1
        self._use.opened_s = trio.current_time()
        return await self._block.__aexit__(kind, error, trace)


__all__ = ["NEEDED_S", "PeerUses"]
