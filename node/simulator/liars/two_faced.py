"""A two-faced voter: FINALIZE and NULLIFY in every view, to everybody."""

from __future__ import annotations

from consensus.engine_message import Message
from consensus.vote import Vote, VoteKind
from node.simulator.liars.liar import Liar


class TwoFaced(Liar):
    """Attacks rule 2: honest voters that break it as well make a view both final and skipped."""

    def broadcast(self, message: Message) -> None:
        """Beside each own vote for a block, both others of that view."""
        super().broadcast(message)
        if isinstance(message, Vote) and message.ballot.kind is VoteKind.NOTARIZE:
            if message.ballot.epoch != self.engine.epoch:
                return
            view, block_hash = message.ballot.view, message.ballot.block_hash
            votes = (
                self.vote(VoteKind.NULLIFY, view=view),
                self.vote(VoteKind.FINALIZE, block_hash, view=view),
            )
            self.tell(self.network.others(self), votes)
