"""Who of the connected peers belongs to our chain, and how far each of them is.

Rule: a peer counts only after the greeting of `handshake`; whoever dialled greets first. A peer
that runs another chain or version is told so, disconnected and left alone for a while.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

from consensus.errors import DecodeError
from node.errors import ChainMismatch, JoinError, VersionMismatch
from p2p.identity import PeerId
from p2p.network import Direction, Network, PeerConnected, Stream

from .handshake import FOREIGN_BAN_S, STATUS_PROTOCOL, answer_greeting, greet
from .messages import Status

logger = logging.getLogger("agora.sync")

REFRESH_S: Final = 5.0  # how old an announced height may get


class Greeter:
    """Greets while `run` runs; `met` is called with each peer that belongs here, once.

    `somebody` is set when the first peer was met.
    """

    def __init__(
        self, network: Network, *, status: Callable[[], Status], met: Callable[[PeerId], None]
    ) -> None:
        self._network = network
        self._status = status
        self._met = met
        self.somebody = trio.Event()
        self._statuses: dict[PeerId, Status] = {}
        self.counters: Counter[str] = Counter()

    def heights(self) -> dict[PeerId, int]:
        """The final height that each greeted and connected peer last announced."""
        return {peer: status.height for peer, status in self._statuses.items()}

    async def run(self) -> None:
        """Greet until cancelled."""
        await self._network.serve(STATUS_PROTOCOL, self._answer)
        try:
            async with (
                self._network.watch_peers() as events,
                trio.open_nursery() as nursery,
            ):
                scopes: dict[PeerId, trio.CancelScope] = {}
                async for event in events:
                    peer = event.peer_id
                    if not isinstance(event, PeerConnected):
                        self._statuses.pop(peer, None)
                        if peer in scopes:
                            scopes.pop(peer).cancel()
                    elif event.direction is Direction.OUTBOUND:
                        scopes[peer] = trio.CancelScope()
                        nursery.start_soon(self._keep_greeting, peer, scopes[peer])
        finally:
            with trio.CancelScope(shield=True):
                await self._network.unserve(STATUS_PROTOCOL)

    async def _keep_greeting(self, peer: PeerId, scope: trio.CancelScope) -> None:
        with scope:
            while peer in self._network.peers:
                try:
                    self._accept(peer, await greet(self._network, peer, self._status()))
                except (ChainMismatch, VersionMismatch) as error:
                    logger.warning("%s", error)
                    self._part(peer)
                    return
                except JoinError as error:
                    self.counters["greetings_failed"] += 1
                    logger.debug("%s", error)
                await trio.sleep(REFRESH_S)

    async def _answer(self, stream: Stream) -> None:
        peer = stream.peer_id
        try:
            belongs = await answer_greeting(
                stream, self._status(), lambda status: self._accept(peer, status)
            )
        except (DecodeError, trio.TooSlowError):
            self.counters["greetings_malformed"] += 1
            raise
        if not belongs:
            # The goodbye has to leave before the connection goes.
            await stream.receive_some(1)
            self._part(peer)

    def _accept(self, peer: PeerId, status: Status) -> None:
        if peer not in self._network.peers:
            return
        is_new = peer not in self._statuses
        self._statuses[peer] = status
        if is_new:
            self.counters["peers_met"] += 1
            self.somebody.set()
            self._met(peer)

    def _part(self, peer: PeerId) -> None:
        self.counters["peers_of_other_chains"] += 1
        self._network.ban(peer, duration_s=FOREIGN_BAN_S)
