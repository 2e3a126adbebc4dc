"""A withholding leader: certified blocks that some cannot see, and votes for a chosen few."""

from __future__ import annotations

from consensus.engine_message import Message, ProposalMessage
from consensus.engine_port import RequestBlocks, RequestCertificates, RequestEpochProof
from consensus.vote import Certificate, Vote
from node.simulator.liars.liar import Liar, without_body
from node.simulator.replica import Replica


class Withholder(Liar):
    """Attacks liveness and readiness: bodies reach a bare quorum, certificates nobody or one."""

    def broadcast(self, message: Message) -> None:
        """Proposals whole to some and bare to others, votes to one, certificates to none."""
        left, right = self.halves()
        match message:
            case ProposalMessage():
                self.tell(left, (message,))
                self.tell(right[1:], (without_body(message),))
            case Vote():
                self.tell((*left, *right)[:1], (message,))
            case Certificate():
                return
            case _:
                super().broadcast(message)

    def answer(
        self, request: RequestBlocks | RequestCertificates | RequestEpochProof, asker: Replica
    ) -> None:
        """Seldom."""
        if self.world.random.random() < 0.2:
            super().answer(request, asker)
