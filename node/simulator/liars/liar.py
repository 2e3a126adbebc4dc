"""What all liars can do: sign anything with their own key, tell peers different things."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from consensus.block import Block, Header, Proposal
from consensus.crypto import Domain
from consensus.engine_message import Message, ProposalMessage
from consensus.engine_port import Anchor, Build, Commit, Discard, Effect
from consensus.epoch import block_kind
from consensus.types import ZERO_DIGEST, Digest, Height
from consensus.vote import NO_BLOCK, Ballot, Vote, VoteKind
from node.simulator.ledger import State
from node.simulator.replica import Replica


class Liar(Replica):
    """Keeps every state it ever had, so that it can build on any block."""

    honest = False
    _past: dict[Digest, State]

    def start(self) -> None:
        """Like any replica, remembering nothing of its earlier lies."""
        self._past = {}
        super().start()

    def carry_out(self, effect: Effect) -> None:
        """Like any replica, but states are kept."""
        if isinstance(effect, Discard | Commit):
            self._past.update(self.states)
        super().carry_out(effect)

    def state_after(self, block_hash: Digest) -> State | None:
        """The state after a block that this replica has executed at any time of this life."""
        state = self.states.get(block_hash)
        return state if state is not None else self._past.get(block_hash)

    def vote(self, kind: VoteKind, block_hash: Digest = NO_BLOCK, view: int | None = None) -> Vote:
        """A signed vote on anything, unlogged."""
        engine = self.engine
        ballot = Ballot(
            kind=kind,
            epoch=engine.epoch,
            view=engine.view if view is None else type(engine.view)(view),
            block_hash=block_hash,
        )
        payload = ballot.payload(engine.voters.hash)
        signature = self.signer.sign(Domain.VOTE, self.ledger.chain_id, payload)
        return Vote(ballot=ballot, signer=self.key, signature=signature)

    def propose(self, parent: Anchor, *, delay_ms: int = 0) -> ProposalMessage | None:
        """A signed block on any parent whose state is held, for the current view."""
        engine, state = self.engine, self.state_after(parent.hash)
        if state is None or engine.own_index is None:
            return None
        height = Height(parent.height + 1)
        kind = block_kind(engine.epoch, height, self.network.parameters.blocks_per_epoch)
        if kind is not block_kind(engine.epoch, Height(0), 1_000):
            return None  # closing blocks change nothing; there is nothing to lie about
        template = Header(
            chain_id=self.ledger.chain_id,
            epoch=engine.epoch,
            view=engine.view,
            height=height,
            kind=kind,
            parent_hash=parent.hash,
            parent_view=parent.view,
            time_ms=max(self.now_ms, parent.time_ms + 1) + delay_ms,
            proposer=engine.voters.voters[engine.own_index].account,
            body_root=ZERO_DIGEST,
            state_root=ZERO_DIGEST,
            vset_hash=engine.voters.hash,
            next_vset_hash=ZERO_DIGEST,
            receipts_root=ZERO_DIGEST,
        )
        built = self.ledger.build(state, Build(template=template, evidence=(), attest=None), ())
        self._past[built.block.hash] = built.state
        return self.signed(built.block)

    def signed(self, block: Block) -> ProposalMessage:
        """The proposal of a block, signed by this liar."""
        signature = self.signer.sign(Domain.PROPOSAL, self.ledger.chain_id, block.header.hash)
        self.network.watch.proposed(block.hash)
        return ProposalMessage(
            proposal=Proposal(header=block.header, signature=signature), body=block.body
        )

    def again(self, message: ProposalMessage) -> ProposalMessage | None:
        """Another block for the same view and parent, a millisecond younger."""
        header = message.proposal.header
        parent = self.engine.chain.anchor(header.parent_hash)
        if parent is None:
            return None
        fresh = self.propose(parent, delay_ms=header.time_ms - self.now_ms + 1)
        if fresh is None or fresh.proposal.header.view != header.view:
            return None
        return fresh

    def tell(self, targets: Iterable[Replica], messages: Sequence[Message]) -> None:
        """Send something to some."""
        for target in targets:
            for message in messages:
                self._carry(target, message)

    def halves(self) -> tuple[list[Replica], list[Replica]]:
        """The others in two parts of about equal power, at random."""
        others = self.network.others(self)
        self.world.random.shuffle(others)
        return others[::2], others[1::2]

    def is_leader(self) -> bool:
        """Whether this liar leads its current view."""
        engine = self.engine
        return engine.own_index is not None and (
            engine.rotation.leader(engine.view) == engine.own_index
        )


def without_body(message: ProposalMessage) -> ProposalMessage:
    """Only the signed header."""
    return dataclasses.replace(message, body=None)
