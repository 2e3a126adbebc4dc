"""The chain up to the newest whole epoch, executed block by block.

Rule: every epoch is proved by the voters of the one before, its blocks hang together by hash below
the proved one, and each is executed before it is kept. A peer that answers wrongly is banned and
the next one is asked. What is newer than the last whole epoch is the engine's to fetch.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from consensus.block import Block
from consensus.codec import Reader
from consensus.crypto import Verifier
from consensus.engine_message import (
    EpochProof,
    decode_message,
    encode_message,
    epoch_proof_is_valid,
)
from consensus.engine_port import Valid
from consensus.epoch import boundary_height
from consensus.types import Epoch
from consensus.vote import VoterSet
from node.driver import stored
from node.errors import CallError, CallTimeout, Overloaded, RemoteError, StoreCorrupt
from node.recovery import Recovered
from node.store import EpochChange
from p2p.identity import PeerId
from p2p.network import Network

from .client import ask_for
from .messages import Question, Request

logger = logging.getLogger("agora.sync")

PROOFS_PER_REQUEST: Final = 256
BLOCKS_PER_REQUEST: Final = 256
EPOCH_TRIES_MAX: Final = 8  # failures in a row before an epoch is left to the engine
PEER_FAILURES_MAX: Final = 3  # then a peer is not asked any more
BUSY_PAUSE_S: Final = 0.5  # a refused asker's budget refills in this time for one more answer


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUpProgress:
    """How far catching up is."""

    height: int
    network_height: int


class Trials:
    """Who failed how often: a liar or a slow peer is asked after all others, and not for ever."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._failures: Counter[PeerId] = Counter()
        self._in_a_row = 0

    def choose(self, heights: Mapping[PeerId, int], height: int) -> PeerId | None:
        """Who to ask for what a chain of that height has; None when nobody is worth it."""
        if self._in_a_row >= EPOCH_TRIES_MAX:
            return None
        failures = self._failures
        worth = [
            peer
            for peer, announced in heights.items()
            if announced >= height and failures[peer] < PEER_FAILURES_MAX
        ]
        return min(worth, key=lambda peer: (failures[peer], -heights[peer], peer), default=None)

    def succeeded(self) -> None:
        """A peer gave what was asked for."""
        self._in_a_row = 0

    def failed(self, peer: PeerId) -> None:
        """A peer lacked what it announced."""
        self._failures[peer] += 1
        self._in_a_row += 1

    async def erred(self, peer: PeerId, error: CallError) -> None:
        """A call failed: whoever lied is banned, whoever is busy gets a pause."""
        logger.warning("catching up: %s", error)
        self.failed(peer)
        if isinstance(error, CallTimeout):
            self._failures[peer] += 1  # the dearest way to fail
        if isinstance(error, RemoteError):
            self._network.ban(peer)
        elif isinstance(error, Overloaded):
            await trio.sleep(BUSY_PAUSE_S)


class CatchUp:
    """Executes whole epochs from peers until none of them has a further one.

    `peers` gives those that may be asked now, with the height each has announced; `trials` knows
    how they have done so far.
    """

    def __init__(
        self,
        network: Network,
        recovered: Recovered,
        *,
        verifier: Verifier,
        peers: Callable[[], dict[PeerId, int]],
        trials: Trials,
        observe: Callable[[CatchUpProgress], None],
    ) -> None:
        self._network = network
        self._recovered = recovered
        self._verifier = verifier
        self._peers = peers
        self._observe = observe
        self._trials = trials

    async def run(self) -> None:
        """Catch up; what is newer than the last whole epoch is the engine's to fetch."""
        while (peer := self._ahead()) is not None:
            try:
                if await self._advance(peer):
                    self._trials.succeeded()
                else:
                    self._trials.failed(peer)
            except CallError as error:
                await self._trials.erred(peer, error)

    def _ahead(self) -> PeerId | None:
        """A peer that says it knows the end of our epoch, the most reliable first."""
        state = self._recovered.ledger.final
        boundary = boundary_height(state.epoch, self._recovered.parameters.blocks_per_epoch)
        if boundary <= state.height:
            return None
        return self._trials.choose(self._peers(), boundary)

    async def _advance(self, peer: PeerId) -> bool:
        """Do as many epochs as one answer proves; True when at least one was done."""
        proofs = await ask_proofs(self._network, peer, self._recovered.ledger.final.epoch)
        for proof in proofs:
            await self._finish_epoch(peer, proof)
        return bool(proofs)

    async def _finish_epoch(self, peer: PeerId, proof: EpochProof) -> None:
        recovered = self._recovered
        epoch, parameters = recovered.ledger.final.epoch, recovered.parameters
        valid = await trio.to_thread.run_sync(self._proves, proof, epoch)
        if not valid:
            raise RemoteError(f"peer {peer} gave an invalid proof of epoch {epoch}")
        blocks = await self._blocks_up_to(peer, proof)
        await trio.to_thread.run_sync(self._commit, peer, proof, blocks)
        top = max([*self._peers().values(), 0])
        height = boundary_height(epoch, parameters.blocks_per_epoch)
        self._observe(CatchUpProgress(height=height, network_height=max(top, height)))

    def _proves(self, proof: EpochProof, epoch: Epoch) -> bool:
        return proof.epoch == epoch and epoch_proof_is_valid(
            proof,
            own_voters(self._recovered),
            self._recovered.chain_id,
            self._recovered.parameters.blocks_per_epoch,
            self._verifier,
        )

    async def _blocks_up_to(self, peer: PeerId, proof: EpochProof) -> list[Block]:
        """The blocks above ours up to the proved one, linked by hash."""
        first = self._recovered.ledger.final.height + 1
        last = proof.boundary.height
        blocks: list[Block] = []
        while len(blocks) < last - first + 1:
            request = Request(
                question=Question.BLOCKS,
                number=first + len(blocks),
                count=min(BLOCKS_PER_REQUEST, last - first + 1 - len(blocks)),
            )
            more = await ask_for(self._network, peer, request, Block.decode)
            if not more or len(blocks) + len(more) > last - first + 1:
                raise RemoteError(f"peer {peer} lacks blocks of an epoch that it proves")
            blocks += more
        expected = proof.boundary.hash
        for block in reversed(blocks):
            if block.hash != expected:
                raise RemoteError(f"peer {peer} gave a block that is not on the proved chain")
            expected = block.header.parent_hash
        if expected != self._recovered.ledger.final_hash:
            raise RemoteError(f"peer {peer} proves a chain that is not ours")
        return blocks

    def _commit(self, peer: PeerId, proof: EpochProof, blocks: list[Block]) -> None:
        """Execute and keep an epoch: all of it or nothing."""
        ledger, store = self._recovered.ledger, self._recovered.store
        for block in blocks:
            outcome = ledger.execute(block)
            if not isinstance(outcome, Valid):
                ledger.discard([each.hash for each in blocks])
                raise RemoteError(f"peer {peer} gave an invalid block: {outcome.fault}")
        leaves: dict[bytes, bytes | None] = {}
        for block in blocks:
            leaves.update(ledger.finalize(block.hash))
        store.commit(
            [stored(block) for block in blocks],
            leaves=leaves,
            certificate=proof.certificate.encode(),
            epoch_change=change_of(proof),
        )
        self._recovered.vote_log.drop_before(proof.next_voters.epoch)


def change_of(proof: EpochProof) -> EpochChange:
    """The epoch that a proof begins, as the store keeps it."""
    return EpochChange(
        epoch=proof.next_voters.epoch,
        voter_set=proof.next_voters.encode(),
        proof=encode_message(proof),
    )


async def ask_proofs(network: Network, peer: PeerId, epoch: Epoch) -> list[EpochProof]:
    """Ask one peer for proofs of `epoch` and later ones; raises `CallError`."""
    request = Request(question=Question.EPOCH_PROOFS, number=epoch, count=PROOFS_PER_REQUEST)
    messages = await ask_for(network, peer, request, decode_message)
    proofs = [message for message in messages if isinstance(message, EpochProof)]
    if len(proofs) != len(messages):
        raise RemoteError(f"peer {peer} gave something else than proofs of epochs")
    return proofs


def own_voters(recovered: Recovered) -> VoterSet:
    """The voters of the epoch that the store stands in."""
    change = recovered.store.epoch(recovered.ledger.final.epoch)
    if change is None:
        raise StoreCorrupt("the voter set of the own epoch is missing")
    return VoterSet.read(Reader(change.voter_set))
