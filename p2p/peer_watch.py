"""Peer events from one switch to many readers, none of which can be overrun.

The rule: a reader always learns the present, though not every detail of the past. What waits for it
is at most one `PeerDisconnected`, one `PeerConnected` and one `PeerIdentified` for each peer that
it knows of: a coming and a going that it has seen neither of are both left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_never

import trio

from p2p.identity import PeerId
from p2p.network import PeerConnected, PeerDisconnected
from p2p.switch import PeerIdentified, SwitchEvent


class PeerWatchers:
    """The connected peers of a switch as its readers shall see them."""

    def __init__(self) -> None:
        self._present: dict[PeerId, list[SwitchEvent]] = {}
        self._watchers: set[PeerWatch] = set()

    def tell(self, event: SwitchEvent) -> None:
        """Pass an event to every reader, and keep it for those that come later."""
        match event:
            case PeerConnected():
                self._present[event.peer_id] = [event]
            case PeerIdentified():
                present = self._present.get(event.peer_id)
                if present is None:
                    return  # it left while it was being identified
                present[1:] = [event]
            case PeerDisconnected():
                self._present.pop(event.peer_id, None)
            case _:
                assert_never(event)
        for watcher in self._watchers:
            watcher._take(event)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[PeerWatch]:
        """A reader that first sees the peers already there."""
        watcher = PeerWatch()
        for events in self._present.values():
            for event in events:
                watcher._take(event)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            watcher.close()

    def close(self) -> None:
        """End every reader's iteration, after what is still waiting for it."""
        for watcher in self._watchers:
            watcher.close()


class PeerWatch(trio.abc.ReceiveChannel[SwitchEvent]):
    """One reader's pending events. Cancelling `receive` loses nothing."""

    def __init__(self) -> None:
        self._pending: OrderedDict[PeerId, list[SwitchEvent]] = OrderedDict()
        self._wakeup = trio.Event()
        self._closed = False

    def receive_nowait(self) -> SwitchEvent:
        """The next event; `trio.WouldBlock` when none waits, `trio.EndOfChannel` after the end."""
        if not self._pending:
            if self._closed:
                raise trio.EndOfChannel
            raise trio.WouldBlock
        peer_id, events = next(iter(self._pending.items()))
        event = events.pop(0)
        if not events:
            del self._pending[peer_id]
        return event

    async def receive(self) -> SwitchEvent:
        """The next event, in order for each peer; `trio.EndOfChannel` when the switch is closed."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                event = self.receive_nowait()
            except trio.WouldBlock:
                self._wakeup = trio.Event()
                await self._wakeup.wait()
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return event

    async def aclose(self) -> None:
        """Stop reading."""
        self.close()
        self._pending.clear()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """No more events will come."""
        self._closed = True
        self._wakeup.set()

    def _take(self, event: SwitchEvent) -> None:
        pending = self._pending.setdefault(event.peer_id, [])
        match event:
            case PeerDisconnected() if any(isinstance(e, PeerConnected) for e in pending):
                # The reader never saw it come; an older going, if any, is still news to it.
                pending[:] = [e for e in pending if isinstance(e, PeerDisconnected)]
            case PeerIdentified():
                pending[:] = [e for e in pending if not isinstance(e, PeerIdentified)] + [event]
            case PeerDisconnected():
                pending[:] = [event]
            case PeerConnected():
                pending.append(event)
        if not pending:
            del self._pending[event.peer_id]
        self._wakeup.set()


__all__ = ["PeerWatch", "PeerWatchers"]
