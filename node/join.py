"""Joining a network: its genesis from the bootstrap peers, and the chain up to the newest epoch.

Rule: genesis is trusted on first use, and only when every bootstrap peer that answers says the same
(or it has the chain id that was asked for); after that nothing is trusted. Every epoch is proved by
the voters of the one before, its blocks hang together by hash below the proved one, and each is
executed before it is kept. A peer that answers wrongly is banned and the next one is asked.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

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
from consensus.errors import DecodeError
from consensus.genesis import GENESIS_BYTES_MAX, Genesis, decode_genesis
from consensus.types import Epoch
from consensus.vote import VoterSet
from node.driver import stored
from node.errors import CallError, ChainMismatch, JoinError, RemoteError, StoreCorrupt
from node.recovery import Recovered
from node.store import EpochChange
from node.sync.client import ask, ask_for
from node.sync.messages import GENESIS_PIECE_BYTES, Question, Request
from p2p.errors import NetworkError
from p2p.identity import Identity, PeerId
from p2p.network import Network
from p2p.stack import open_network

logger = logging.getLogger("agora.join")

GENESIS_DEADLINE_S: Final = 30.0  # bootstrap peers may still be starting
DIAL_PAUSE_S: Final = 0.25
PROOFS_PER_REQUEST: Final = 64
BLOCKS_PER_REQUEST: Final = 256
EPOCH_TRIES_MAX: Final = 8  # peers asked for one epoch before catching up is left to the engine


class NetworkOpener(Protocol):
    """`p2p.open_network`, or a `MemoryHub`'s."""

    def __call__(
        self, identity: Identity, *, listen: Sequence[str] = (), bootstrap: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Network]:
        """Open a network while the block lasts."""
        ...


async def fetch_genesis(
    bootstrap: Sequence[str], *, chain_id: str | None, opener: NetworkOpener = open_network
) -> Genesis:
    """Ask the bootstrap peers for their genesis, under a throw-away identity.

    Raises ChainMismatch when it is not `chain_id` (hex) or the peers disagree, JoinError when none
    answers within GENESIS_DEADLINE_S.
    """
    found: dict[str, Genesis] = {}
    failures: list[str] = []

    async def ask_one(network: Network, address: str) -> None:
        while True:
            try:
                peer = await network.connect(address)
                found[address] = await _ask_genesis(network, peer)
                return
            except (NetworkError, CallError) as error:
                failures.append(str(error))
            await trio.sleep(DIAL_PAUSE_S)

    async with opener(Identity.generate()) as network:
        with trio.move_on_after(GENESIS_DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for address in bootstrap:
                    nursery.start_soon(ask_one, network, address)
    if not found:
        reason = failures[-1] if failures else "no answer"
        raise JoinError(f"no bootstrap peer gave a genesis in {GENESIS_DEADLINE_S:g} s: {reason}")
    chains = sorted({genesis.chain_id.hex() for genesis in found.values()})
    if chain_id is not None and chains != [chain_id]:
        raise ChainMismatch(f"the bootstrap peers run chain {', '.join(chains)}, not {chain_id}")
    if len(chains) > 1:
        raise ChainMismatch(f"the bootstrap peers disagree: chains {', '.join(chains)}")
    return next(iter(found.values()))


async def _ask_genesis(network: Network, peer: PeerId) -> Genesis:
    data = b""
    for number in range(GENESIS_BYTES_MAX // GENESIS_PIECE_BYTES + 1):
        items = await ask(network, peer, Request(question=Question.GENESIS, number=number))
        if len(items) != 1:
            raise RemoteError(f"peer {peer} gave no genesis")
        data += items[0]
        if len(items[0]) < GENESIS_PIECE_BYTES:
            break
    try:
        return decode_genesis(data)
    except DecodeError as error:
        raise RemoteError(f"peer {peer} gave no valid genesis: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUpProgress:
    """How far catching up is."""

    height: int
    network_height: int


class CatchUp:
    """Executes whole epochs from peers until none of them has a further one.

    `peers` gives those that may be asked now, with the height each has announced.
    """

    def __init__(
        self,
        network: Network,
        recovered: Recovered,
        *,
        verifier: Verifier,
        peers: Callable[[], dict[PeerId, int]],
        observe: Callable[[CatchUpProgress], None],
    ) -> None:
        self._network = network
        self._recovered = recovered
        self._verifier = verifier
        self._peers = peers
        self._observe = observe

    async def run(self) -> None:
        """Catch up; what is newer than the last whole epoch is the engine's to fetch."""
        tries = 0
        while (peer := self._ahead(tries)) is not None:
            try:
                advanced = await self._advance(peer)
            except CallError as error:
                logger.warning("catching up: %s", error)
                if isinstance(error, RemoteError):
                    self._network.ban(peer)
                advanced = False
            tries = 0 if advanced else tries + 1

    def _ahead(self, tries: int) -> PeerId | None:
        """A peer that knows the end of our epoch, another one at every try."""
        height = self._recovered.ledger.final.height
        parameters = self._recovered.parameters
        boundary = boundary_height(self._recovered.ledger.final.epoch, parameters.blocks_per_epoch)
        ahead = sorted(peer for peer, tip in self._peers().items() if tip >= boundary > height)
        return None if tries >= EPOCH_TRIES_MAX or not ahead else ahead[tries % len(ahead)]

    async def _advance(self, peer: PeerId) -> bool:
        """Do as many epochs as one answer proves; True when at least one was done."""
        epoch = self._recovered.ledger.final.epoch
        request = Request(question=Question.EPOCH_PROOFS, number=epoch, count=PROOFS_PER_REQUEST)
        proofs = await ask_for(self._network, peer, request, decode_message)
        for proof in proofs:
            if not isinstance(proof, EpochProof):
                raise RemoteError(f"peer {peer} gave something else than proofs of epochs")
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
        recovered = self._recovered
        change = recovered.store.epoch(epoch)
        if change is None:
            raise StoreCorrupt(f"the voter set of epoch {epoch} is missing")
        return epoch_proof_is_valid(
            proof,
            VoterSet.read(Reader(change.voter_set)),
            recovered.chain_id,
            recovered.parameters.blocks_per_epoch,
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
            epoch_change=EpochChange(
                epoch=proof.next_voters.epoch,
                voter_set=proof.next_voters.encode(),
                proof=encode_message(proof),
            ),
        )
        self._recovered.vote_log.drop_before(proof.next_voters.epoch)
