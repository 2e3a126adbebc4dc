"""A mute voter: follows everything and says nothing, so that the others are a bare quorum."""

from __future__ import annotations

from consensus.engine_message import Message
from node.simulator.liars.liar import Liar
from node.simulator.replica import Replica


class Mute(Liar):
    """Attacks whatever tacitly relies on more than a quorum."""

    def broadcast(self, message: Message) -> None:
        """Nothing."""

    def send(self, to: int, messages: tuple[Message, ...]) -> None:
        """Nothing."""

    def answer(self, request: object, asker: Replica) -> None:
        """Nothing."""
