"""Joining a long chain without executing it: proofs of all epochs, then one certified state.

Rule: light first. The voters of each epoch prove the next, from what this node knows (genesis, or
its own last block) to the newest whole epoch; only then is a state taken, at a boundary that is
proved, piece by piece against its root. What the node knew before stays until the new state is in
the store, in one transaction.

A chain of proofs means nothing once its voters have taken their bonds back: a node that has been
away for longer than the bond window, on a public network, must be told a checkpoint.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from consensus.block import Block
from consensus.crypto import Verifier
from consensus.engine_message import (
    EpochProof,
    epoch_proof_is_valid,
)
from consensus.entries import state_of_entries
from consensus.epoch import boundary_height
from consensus.errors import DecodeError
from consensus.types import Digest, Epoch, Height
from consensus.vote import VoterSet
from node.driver import stored
from node.errors import CallError, ChainMismatch, JoinError, RemoteError, StoreCorrupt
from node.ledger import Ledger
from node.recovery import Recovered
from node.store import EpochChange
from p2p.identity import PeerId
from p2p.network import Network

from .catch_up import CatchUpProgress, Trials, ask_proofs, change_of, own_voters
from .client import ask_for
from .download import Download
from .messages import Question, Request
from .snapshot import decode_offer

logger = logging.getLogger("agora.sync")

OTHERS_S: Final = 2.0  # for the other peers' offers, after the first one came
BEHIND_MIN: Final = 1_000  # blocks; fewer are executed faster than a state is fetched


class FastForward:
    """Brings a store to the newest snapshot that `peers` (with their heights) offer."""

    def __init__(
        self,
        network: Network,
        recovered: Recovered,
        *,
        directory: Path,
        verifier: Verifier,
        checkpoint: tuple[Epoch, Digest] | None,
        must_check: bool,
        now_ms: int,
        peers: Callable[[], dict[PeerId, int]],
        trials: Trials,
        observe: Callable[[CatchUpProgress], None],
        observe_pieces: Callable[[int, int], None],
    ) -> None:
        self._network = network
        self._recovered = recovered
        self._directory = directory
        self._verifier = verifier
        self._checkpoint = checkpoint
        self._must_check = must_check
        self._now_ms = now_ms
        self._peers = peers
        self._trials = trials
        self._observe = observe
        self._observe_pieces = observe_pieces
        self._proofs: list[EpochProof] = []

    async def run(self) -> bool:
        """Install a snapshot when one is far enough ahead; True when it was.

        Raises ChainMismatch when the checkpoint is not on the chain, JoinError when one is needed.
        """
        height = self._recovered.ledger.final.height
        if max([*self._peers().values(), 0]) < height + BEHIND_MIN:
            return False
        await self._prove_epochs()
        self._check_checkpoint()
        offers = await self._offers()
        for offered in sorted(offers, reverse=True):
            proof = next((p for p in self._proofs if p.boundary.height == offered), None)
            if proof is None or offered < height + BEHIND_MIN:
                continue
            try:
                await self._install(proof, sorted(offers[offered]))
            except JoinError as error:
                logger.warning("%s", error)
                continue
            return True
        return False

    async def _prove_epochs(self) -> None:
        """Collect valid proofs from the epoch this node is in to the newest one."""
        voters = own_voters(self._recovered)
        per_epoch = self._recovered.parameters.blocks_per_epoch
        trials = self._trials
        while (
            peer := trials.choose(self._peers(), boundary_height(voters.epoch, per_epoch))
        ) is not None:
            try:
                proofs = await ask_proofs(self._network, peer, voters.epoch)
                if proofs:
                    voters = await trio.to_thread.run_sync(self._verify, peer, proofs, voters)
                    trials.succeeded()
                else:
                    trials.failed(peer)
            except CallError as error:
                # What a liar proved before it lied stays proved.
                voters = self._proofs[-1].next_voters if self._proofs else voters
                await trials.erred(peer, error)
            if self._proofs:
                at = self._proofs[-1].boundary.height
                top = max([*self._peers().values(), at])
                self._observe(CatchUpProgress(height=at, network_height=top))

    def _verify(self, peer: PeerId, proofs: list[EpochProof], voters: VoterSet) -> VoterSet:
        """Check proofs in order, keep the valid ones; the set after the last."""
        for proof in proofs:
            valid = epoch_proof_is_valid(
                proof,
                voters,
                self._recovered.chain_id,
                self._recovered.parameters.blocks_per_epoch,
                self._verifier,
            )
            if not valid:
                raise RemoteError(f"peer {peer} gave an invalid proof of epoch {voters.epoch}")
            self._proofs.append(proof)
            voters = proof.next_voters
        return voters

    def _check_checkpoint(self) -> None:
        if self._checkpoint is not None:
            epoch, block_hash = self._checkpoint
            proof = next((p for p in self._proofs if p.epoch == epoch), None)
            if proof is None or proof.boundary.hash != block_hash:
                raise ChainMismatch(f"the chain offered does not hold the checkpoint of {epoch}")
            return
        parameters = self._recovered.parameters
        epoch_ms = parameters.blocks_per_epoch * parameters.block_interval_ms
        window_ms = parameters.bond_window_epochs * epoch_ms
        away_ms = self._now_ms - self._recovered.ledger.final.time_ms
        if self._must_check and away_ms > window_ms and self._proofs:
            newest = self._proofs[-1]
            raise JoinError(
                f"this node knows nothing younger than {away_ms // 86_400_000} days, longer than "
                "voters are bound; compare the newest epoch with somebody you trust and start with "
                f"--checkpoint {newest.epoch}:{newest.boundary.hash.hex()}"
            )

    async def _offers(self) -> dict[int, set[PeerId]]:
        """Which peers have a snapshot at which height."""
        offers: dict[int, set[PeerId]] = {}
        proved = {proof.boundary.height for proof in self._proofs}

        async def ask_one(peer: PeerId) -> None:
            request = Request(question=Question.SNAPSHOTS)
            try:
                for height, _ in await ask_for(self._network, peer, request, decode_offer):
                    if height in proved:
                        offers.setdefault(height, set()).add(peer)
                        scope.deadline = min(scope.deadline, trio.current_time() + OTHERS_S)
            except CallError as error:
                logger.debug("snapshots: %s", error)

        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            for peer in sorted(self._peers()):
                nursery.start_soon(ask_one, peer)
        return offers

    async def _install(self, proof: EpochProof, peers: list[PeerId]) -> None:
        boundary = proof.boundary
        download = Download(
            self._network,
            height=boundary.height,
            root=boundary.state_root,
            directory=self._directory / f"snapshot-{boundary.height}",
            peers=peers,
            observe=self._observe_pieces,
        )
        entries = await download.run()
        block = await self._boundary_block(proof, peers)
        await trio.to_thread.run_sync(self._replace, proof, block, entries)
        await trio.to_thread.run_sync(download.discard)

    async def _boundary_block(self, proof: EpochProof, peers: list[PeerId]) -> Block:
        request = Request(question=Question.BLOCKS, number=proof.boundary.height, count=1)
        found: list[Block] = []

        async def ask_one(peer: PeerId) -> None:
            try:
                blocks = await ask_for(self._network, peer, request, Block.decode)
            except CallError as error:
                logger.debug("boundary block: %s", error)
                return
            if len(blocks) == 1 and blocks[0].hash == proof.boundary.hash:
                found.extend(blocks)
                nursery.cancel_scope.cancel()  # nobody else is waited for

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask_one, peer)
        if not found:
            raise JoinError(f"no peer gave the block at height {proof.boundary.height}")
        return found[0]

    def _replace(self, proof: EpochProof, block: Block, entries: list[tuple[bytes, bytes]]) -> None:
        """Put the state in place of what was there: store, ledger and vote log."""
        try:
            state = state_of_entries(entries)
        except DecodeError as error:
            raise JoinError(f"the certified state does not decode: {error}") from error
        if state.root != block.header.state_root:
            raise JoinError("the pieces do not make the certified state")
        recovered = self._recovered
        recovered.store.install_snapshot(
            stored(block),
            leaves=dict(entries),
            certificate=proof.certificate.encode(),
            epochs=[self._own_epoch(), *(change_of(each) for each in self._up_to(block.height))],
        )
        recovered.ledger = Ledger(
            recovered.parameters, self._verifier, final=state, final_hash=block.hash
        )
        recovered.vote_log.drop_before(state.epoch)

    def _own_epoch(self) -> EpochChange:
        """The epoch that the proofs begin in, with the proof of it that this node may have."""
        change = self._recovered.store.epoch(self._recovered.ledger.final.epoch)
        if change is None:
            raise StoreCorrupt("the voter set of the own epoch is missing")
        return change

    def _up_to(self, height: Height) -> list[EpochProof]:
        return [proof for proof in self._proofs if proof.boundary.height <= height]
