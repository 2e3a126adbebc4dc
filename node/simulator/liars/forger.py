"""A forger of certificates: too few signers, signatures of another ballot, its own many times."""

from __future__ import annotations

from consensus.engine_message import Message
from consensus.types import Signature
from consensus.vote import NO_BLOCK, Ballot, Certificate, Vote, VoteKind
from node.simulator.liars.liar import Liar


class Forger(Liar):
    """Attacks the checks of certificates and of votes."""

    def broadcast(self, message: Message) -> None:
        """After each own vote, forged certificates and votes of the same view, and that vote
        again and again.
        """
        super().broadcast(message)
        if not isinstance(message, Vote) or message.ballot.epoch != self.engine.epoch:
            return
        others = self.network.others(self)
        target = [self.world.random.choice(others)] if others else []
        self.tell(target, (message,) * len(self.engine.voters))
        self.tell(target, self._forged(message))

    def _forged(self, vote: Vote) -> list[Message]:
        engine = self.engine
        record = engine.records.get(vote.ballot.view)
        own = engine.own_index
        if own is None:
            return []
        forged: list[Message] = []
        for kind in VoteKind:
            block_hash = NO_BLOCK if kind is VoteKind.NULLIFY else vote.ballot.block_hash
            if (kind is VoteKind.NULLIFY) != (block_hash == NO_BLOCK):
                continue
            ballot = Ballot(
                kind=kind, epoch=engine.epoch, view=vote.ballot.view, block_hash=block_hash
            )
            everyone = tuple(range(len(engine.voters)))
            forged.append(self._certificate(ballot, everyone, vote.signature))
            forged.append(self._certificate(ballot, (own,), vote.signature))
            for tally in record.tallies.values() if record is not None else ():
                indices = tuple(sorted(tally.signatures))
                signatures = tuple(tally.signatures[index] for index in indices)
                forged.append(
                    Certificate(
                        ballot=ballot,
                        voter_count=len(engine.voters),
                        signers=indices,
                        signatures=signatures,
                    )
                )
        return forged

    def _certificate(
        self, ballot: Ballot, signers: tuple[int, ...], signature: Signature
    ) -> Certificate:
        return Certificate(
            ballot=ballot,
            voter_count=len(self.engine.voters),
            signers=signers,
            signatures=(signature,) * len(signers),
        )
