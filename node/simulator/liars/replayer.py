"""A replayer: signatures of one epoch and view, relabelled for another."""

from __future__ import annotations

import dataclasses

from consensus.engine_message import Message, ProposalMessage
from consensus.types import View
from consensus.vote import Certificate, Vote, VoteKind
from node.simulator.liars.liar import Liar
from node.simulator.replica import decoded

KEPT_MAX = 512


class Replayer(Liar):
    """Attacks the binding of signatures to epoch, view and set: old NULLIFY votes name no block,
    so they would fit any epoch.
    """

    _kept: list[Vote | Certificate]

    def start(self) -> None:
        """Nothing kept yet."""
        self._kept = []
        super().start()

    def receive(self, data: bytes, source: int) -> None:
        """Keep what others sign."""
        message = decoded(data)
        if isinstance(message, Vote | Certificate):
            self._kept = [*self._kept[-KEPT_MAX:], message]
        super().receive(data, source)

    def broadcast(self, message: Message) -> None:
        """It leads only into timeouts, so that there are NULLIFY votes to keep."""
        if not isinstance(message, ProposalMessage):
            super().broadcast(message)

    def on_view(self) -> None:
        """Replay what was said elsewhere as if it were of this epoch, and of views around here."""
        engine = self.engine
        fresh: list[Message] = []
        for kept in self._kept:
            ballot = kept.ballot
            if ballot.epoch == engine.epoch and ballot.kind is not VoteKind.NULLIFY:
                continue
            for view in {ballot.view, View(engine.view), View(max(1, engine.view - 1))}:
                relabelled = dataclasses.replace(ballot, epoch=engine.epoch, view=view)
                fresh.append(dataclasses.replace(kept, ballot=relabelled))
        chosen = self.world.random.sample(fresh, min(len(fresh), 24))
        self.tell(self.network.others(self), chosen)
