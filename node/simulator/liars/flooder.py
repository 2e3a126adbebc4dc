"""A flooder: votes and proposals for views far ahead, strangers' votes, false standings."""

from __future__ import annotations

import dataclasses

from consensus.crypto import H
from consensus.engine_message import Message, Status
from consensus.types import Digest, Epoch, Height, PeerKey, View
from consensus.vote import Vote, VoteKind
from node.simulator.liars.liar import Liar


class Flooder(Liar):
    """Attacks the bounds: windows, places per signer, the next epoch's buffer."""

    def on_view(self) -> None:
        """A burst of everything, to everybody."""
        chance, engine = self.world.random, self.engine
        burst: list[Message] = []
        for _ in range(20):
            view = engine.view + chance.choice((0, 1, 2, 40, 64, 65, 1_000, 2**40))
            name = H(b"flood", chance.randbytes(8))
            vote = self.vote(chance.choice((VoteKind.NOTARIZE, VoteKind.FINALIZE)), name, view)
            burst.append(vote)
            burst.append(self._of_next_epoch(vote))
            burst.append(dataclasses.replace(vote, signer=PeerKey(chance.randbytes(32))))
        burst.append(
            Status(
                epoch=Epoch(engine.epoch + chance.choice((-1, 0, 1, 9)) if engine.epoch else 0),
                view=View(engine.view + 5),
                final_view=View(engine.view + 4),
                final_height=Height(2**40),
                final_hash=Digest(chance.randbytes(32)),
            )
        )
        self.tell(self.network.others(self), burst)

    def _of_next_epoch(self, vote: Vote) -> Vote:
        ballot = dataclasses.replace(vote.ballot, epoch=Epoch(vote.ballot.epoch + 1))
        return dataclasses.replace(vote, ballot=ballot)
