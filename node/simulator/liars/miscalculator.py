"""A miscalculating leader: blocks that execute to something else, proposals out of turn."""

from __future__ import annotations

import dataclasses

from consensus.block import Block
from consensus.crypto import H
from consensus.engine_message import Message, ProposalMessage
from node.simulator.liars.liar import Liar


class Miscalculator(Liar):
    """Attacks execution before voting, and the check of who leads."""

    def on_view(self) -> None:
        """Sometimes it proposes although another leads."""
        if not self.is_leader() and self.world.random.random() < 0.3:
            message = self.propose(self.engine.tip)
            if message is not None:
                self.tell(self.network.others(self), (message,))

    def broadcast(self, message: Message) -> None:
        """Its own blocks claim a false state."""
        if isinstance(message, ProposalMessage) and message.body is not None:
            header = dataclasses.replace(
                message.proposal.header, state_root=H(b"false", message.proposal.hash)
            )
            message = self.signed(Block(header=header, body=message.body))
        super().broadcast(message)
