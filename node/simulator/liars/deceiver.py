"""A deceiving server: wrong blocks, unasked ones, false proofs to those who catch up."""

from __future__ import annotations

import dataclasses

from consensus.block import Block, Body
from consensus.engine_port import (
    BlocksReceived,
    RequestBlocks,
    RequestCertificates,
    RequestEpochProof,
)
from consensus.types import Epoch, Height
from consensus.vote import VoterSet
from node.simulator.liars.liar import Liar
from node.simulator.replica import Replica


class Deceiver(Liar):
    """Attacks catching up: what a peer serves has to prove itself."""

    def answer(
        self, request: RequestBlocks | RequestCertificates | RequestEpochProof, asker: Replica
    ) -> None:
        """Falsely."""
        match request:
            case RequestBlocks(block_hash=block_hash):
                blocks = tuple(self._spoiled(b) for b in self.ancestry(block_hash, Height(0)))
                event = BlocksReceived(blocks=blocks, source=str(self.index))
                self.world.carry(self.index, asker.index, lambda: asker.hand(event))
            case RequestEpochProof(epoch=epoch):
                self._false_proof(epoch, asker)
            case RequestCertificates():
                return

    def _spoiled(self, block: Block) -> Block:
        body = Body(transactions=(b"not what was voted on",))
        header = dataclasses.replace(block.header, body_root=body.root)
        return Block(header=header, body=body)

    def _false_proof(self, epoch: Epoch, asker: Replica) -> None:
        proof = self.disk.proofs.get(epoch)
        if proof is None:
            return
        voters = VoterSet(epoch=proof.next_voters.epoch, voters=proof.next_voters.voters[:1])
        boundary = dataclasses.replace(proof.boundary, next_vset_hash=voters.hash)
        certificate = dataclasses.replace(
            proof.certificate,
            ballot=dataclasses.replace(proof.certificate.ballot, block_hash=boundary.hash),
        )
        false = dataclasses.replace(
            proof, certificate=certificate, headers=(boundary,), next_voters=voters
        )
        self._carry(asker, false)
