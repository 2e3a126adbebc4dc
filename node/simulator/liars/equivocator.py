"""An equivocating leader: two blocks in one view, one for each half, and votes for both."""

from __future__ import annotations

from consensus.engine_message import Message, ProposalMessage
from consensus.vote import Vote, VoteKind
from node.simulator.liars.liar import Liar


class Equivocator(Liar):
    """Attacks rule 1: voters that notarize twice, or count a signer twice, certify both blocks."""

    def broadcast(self, message: Message) -> None:
        """Its own proposal splits; all else goes out as it is."""
        other = None
        if isinstance(message, ProposalMessage):
            other = self.again(message)
        if not isinstance(message, ProposalMessage) or other is None:
            super().broadcast(message)
            return
        left, right = self.halves()
        first, second = message.proposal.hash, other.proposal.hash
        self.tell(left, (message, self.vote(VoteKind.NOTARIZE, first)))
        self.tell(right, (other, self.vote(VoteKind.NOTARIZE, second)))
        later: list[Vote] = [
            self.vote(VoteKind.NOTARIZE, first),
            self.vote(VoteKind.NOTARIZE, second),
            self.vote(VoteKind.FINALIZE, first),
            self.vote(VoteKind.FINALIZE, second),
        ]
        delay_ms = self.world.random.randint(1, 400)
        self.later(delay_ms, lambda: self.tell((*left, *right), (message, other, *later)))
