"""What the engine is missing, asked of peers one after another: blocks, certificates, proofs.

Rule: one request for a thing is under way at a time, however often the engine asks; it asks the
peer that should know first, then others, and what comes goes to the engine, which checks it.
"""

import logging
import random
from collections.abc import Callable
from typing import Final, assert_never

import trio

from consensus.block import Block
from consensus.engine_message import decode_message
from consensus.engine_port import (
    BlocksReceived,
    Event,
    Received,
    RequestBlocks,
    RequestCertificates,
    RequestEpochProof,
)
from consensus.types import AccountId
from consensus.vote import Certificate
from node.errors import CallError
from p2p.identity import PeerId
from p2p.network import Network

from .client import ask_for
from .messages import Question, Request

logger = logging.getLogger("agora.sync")

Wanted = RequestBlocks | RequestCertificates | RequestEpochProof

PEERS_ASKED_MAX: Final = 3  # then the engine will ask again
REQUESTS_MAX: Final = 32  # different things under way; the engine's own window is smaller


class Fetcher:
    """Asks for what the engine wants while `run` runs.

    `peer_of` names the peer of an account, None when it has none; `deliver` takes the answers.
    """

    def __init__(
        self,
        network: Network,
        *,
        peer_of: Callable[[AccountId], PeerId | None],
        deliver: Callable[[Event], bool],
        chance: random.Random,
    ) -> None:
        self._network = network
        self._peer_of = peer_of
        self._deliver = deliver
        self._chance = chance
        self._wanted: set[Wanted] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Hold the requests' tasks until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def request(self, wanted: Wanted) -> None:
        """Start fetching unless the same is under way, or too much is."""
        if self._nursery is None or wanted in self._wanted or len(self._wanted) >= REQUESTS_MAX:
            return
        self._wanted.add(wanted)
        self._nursery.start_soon(self._fetch, wanted)

    async def _fetch(self, wanted: Wanted) -> None:
        try:
            for peer in self._order(wanted.ask_first)[:PEERS_ASKED_MAX]:
                try:
                    if await self._ask(peer, wanted):
                        return
                except CallError as error:
                    logger.debug("%s: %s", type(wanted).__name__, error)
        finally:
            self._wanted.discard(wanted)

    def _order(self, first: AccountId | str | None) -> list[PeerId]:
        peers = sorted(self._network.peers)
        self._chance.shuffle(peers)
        preferred = PeerId(first) if isinstance(first, str) else None
        if isinstance(first, bytes):
            preferred = self._peer_of(AccountId(first))
        return sorted(peers, key=lambda peer: peer != preferred)

    async def _ask(self, peer: PeerId, wanted: Wanted) -> bool:
        """Ask one peer; True when it had something."""
        match wanted:
            case RequestBlocks():
                request = Request(
                    question=Question.ANCESTRY,
                    number=wanted.above_height,
                    hash=wanted.block_hash,
                )
                blocks = await ask_for(self._network, peer, request, Block.decode)
                if blocks:
                    self._deliver(BlocksReceived(blocks=tuple(blocks), source=str(peer)))
                return bool(blocks)
            case RequestCertificates():
                request = Request(
                    question=Question.CERTIFICATES,
                    number=wanted.epoch,
                    first=wanted.first,
                    count=min(wanted.last - wanted.first + 1, 2**16 - 1),
                )
                certificates = await ask_for(self._network, peer, request, Certificate.decode)
                for certificate in certificates:
                    self._deliver(Received(message=certificate, source=str(peer)))
                return bool(certificates)
            case RequestEpochProof():
                request = Request(question=Question.EPOCH_PROOFS, number=wanted.epoch, count=1)
                messages = await ask_for(self._network, peer, request, decode_message)
                for message in messages:
                    self._deliver(Received(message=message, source=str(peer)))
                return bool(messages)
            case _:
                assert_never(wanted)
