"""A stale-parent leader: its block claims to skip views that were never nullified."""

from __future__ import annotations

from consensus.engine_message import Message, ProposalMessage
from consensus.engine_port import Anchor
from consensus.types import View
from consensus.vote import VoteKind
from node.simulator.liars.liar import Liar


class Skipper(Liar):
    """Attacks the gap check: as soon as it leads, it builds beside the newest certified block,
    while that one is becoming final.
    """

    def on_view(self) -> None:
        """Propose at once, on an older parent than the rules allow."""
        parent = self._stale_parent()
        if not self.is_leader() or parent is None:
            return
        message = self.propose(parent)
        if message is not None:
            vote = self.vote(VoteKind.NOTARIZE, message.proposal.hash)
            self.tell(self.network.others(self), (message, vote))

    def broadcast(self, message: Message) -> None:
        """Its lawful proposal is not sent; it also votes FINALIZE for its own block."""
        if isinstance(message, ProposalMessage) and self._stale_parent() is not None:
            return
        super().broadcast(message)

    def _stale_parent(self) -> Anchor | None:
        """The last final block, or a certified one, with certified views above it."""
        engine = self.engine
        certified = [
            record.view
            for view, record in sorted(engine.records.items())
            if view < engine.view and record.certified_hash is not None and not record.nullified
        ]
        if not certified:
            return None
        older = [view for view in certified[:-1] if self.world.random.random() < 0.3]
        if not older:
            return engine.tip
        record = engine.records[View(older[-1])]
        block_hash = record.certified_hash
        return engine.chain.anchor(block_hash) if block_hash is not None else None
