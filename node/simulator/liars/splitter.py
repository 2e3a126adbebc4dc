"""A splitting voter: NOTARIZE to one half, NULLIFY to the other, in every view."""

from __future__ import annotations

from consensus.engine_message import Message
from consensus.vote import Vote, VoteKind
from node.simulator.liars.liar import Liar


class Splitter(Liar):
    """Attacks agreement on how a view ended: both certificates of a view become likely."""

    def broadcast(self, message: Message) -> None:
        """Its votes split, all else goes out as it is."""
        if not isinstance(message, Vote) or message.ballot.epoch != self.engine.epoch:
            super().broadcast(message)
            return
        left, right = self.halves()
        self.tell(left, (message,))
        self.tell(right, (self.vote(VoteKind.NULLIFY, view=message.ballot.view),))
