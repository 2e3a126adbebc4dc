"""A long chain without waiting for it: the pure engine with one voter, on virtual time.

The rule: every block passes the product's engine, ledger, store and snapshots, and every vote is
signed; left out are the pauses between blocks, the disk's round trip per vote, and gossip. The
chain ends at the present, so that a node goes on from it as from its own.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from consensus.block import Block, Proposal
from consensus.crypto import Domain, Ed25519Signer
from consensus.engine_message import ProposalMessage, encode_message
from consensus.engine_port import (
    Build,
    Commit,
    Discard,
    Event,
    Execute,
    Executed,
    ProposalSigned,
    SignProposal,
    SignVote,
    Tick,
    VoteSigned,
    WakeAt,
)
from consensus.genesis import Genesis
from consensus.types import PeerKey
from consensus.vote import Vote
from node.chain import SNAPSHOT_EPOCHS
from node.data_directory import DataDirectory
from node.driver import stored
from node.recovery import Recovered, recover, start_engine
from node.store import EpochChange
from node.sync.snapshot import cut
from node.verifier import RememberingVerifier
from node.vote_log import Record, RecordKind


class History:
    """The chain of a genesis with one voter, in that voter's directory."""

    def __init__(self, directory: Path, genesis: Genesis) -> None:
        data = DataDirectory(directory)
        self._signer = Ed25519Signer(data.load_keys(passphrase=None).peer.seed)
        verifier = RememberingVerifier()
        self._recovered: Recovered = recover(
            data,
            genesis,
            peer_key=PeerKey(self._signer.public_key),
            verifier=verifier,
            fresh_vote_log=False,
        )
        self._now_ms = genesis.time_ms
        self._engine = start_engine(
            self._recovered,
            own_key=PeerKey(self._signer.public_key),
            verifier=verifier,
            now_ms=self._now_ms,
        )
        self._blocks: list[Block] = []
        self._leaves: dict[bytes, bytes | None] = {}
        self._records: list[Record] = []

    def grow(self, height: int) -> int:
        """Add blocks up to the boundary at or above `height`; returns the height reached."""
        events: deque[Event] = deque([Tick()])
        ledger = self._recovered.ledger
        per_epoch = self._recovered.parameters.blocks_per_epoch
        wake_ms = self._now_ms
        while ledger.final.height < height or ledger.final.height % per_epoch:
            if not events:
                self._now_ms = max(self._now_ms + 1, wake_ms)
                events.append(Tick())
            for effect in self._engine.handle(events.popleft(), self._now_ms):
                match effect:
                    case SignVote():
                        events.append(self._sign_vote(effect))
                    case SignProposal():
                        events.append(self._sign_proposal(effect.block))
                    case Build():
                        events.append(ledger.build(effect, ()))
                    case Execute():
                        outcome = ledger.execute(effect.block)
                        events.append(Executed(block_hash=effect.block.hash, outcome=outcome))
                    case Commit():
                        self._commit(effect)
                    case Discard():
                        ledger.discard(effect.block_hashes)
                    case WakeAt():
                        wake_ms = effect.at_ms
                    case _:
                        pass  # nobody to send to
        return ledger.final.height

    def close(self) -> None:
        """Log the votes of the last epoch and close the databases."""
        self._recovered.vote_log.record(self._records)
        self._recovered.close()

    def _sign_vote(self, effect: SignVote) -> VoteSigned:
        ballot = effect.ballot
        payload = ballot.payload(effect.vset_hash)
        chain_id = self._recovered.chain_id
        vote = Vote(
            ballot=ballot,
            signer=PeerKey(self._signer.public_key),
            signature=self._signer.sign(Domain.VOTE, chain_id, payload),
        )
        self._records.append(
            Record(
                kind=RecordKind(ballot.kind),
                epoch=ballot.epoch,
                view=ballot.view,
                block_hash=ballot.block_hash,
                data=encode_message(vote),
            )
        )
        return VoteSigned(vote=vote)

    def _sign_proposal(self, block: Block) -> ProposalSigned:
        signature = self._signer.sign(Domain.PROPOSAL, self._recovered.chain_id, block.hash)
        proposal = Proposal(header=block.header, signature=signature)
        self._records.append(
            Record(
                kind=RecordKind.PROPOSE,
                epoch=block.header.epoch,
                view=block.header.view,
                block_hash=block.hash,
                data=encode_message(ProposalMessage(proposal=proposal, body=block.body)),
            )
        )
        return ProposalSigned(proposal=proposal)

    def _commit(self, effect: Commit) -> None:
        """Keep final blocks; they are written once an epoch, as catching up does."""
        for block in effect.blocks:
            self._leaves.update(self._recovered.ledger.finalize(block.hash))
            self._blocks.append(block)
        if effect.next_epoch is None or effect.epoch_proof is None:
            return
        self._recovered.store.commit(
            [stored(block) for block in self._blocks],
            leaves=self._leaves,
            certificate=effect.certificate.encode(),
            epoch_change=EpochChange(
                epoch=effect.next_epoch.epoch,
                voter_set=effect.next_epoch.voters.encode(),
                proof=encode_message(effect.epoch_proof),
            ),
        )
        self._blocks, self._leaves, self._records = [], {}, []
        state = self._recovered.ledger.final
        if state.epoch % SNAPSHOT_EPOCHS == 0:
            self._recovered.store.save_snapshot(state.height, list(cut(state)))
