"""One router under test, and what it was told and said."""

from __future__ import annotations

import random
from collections.abc import Iterable

from p2p.gossipsub.codec import Control, Rpc
from p2p.gossipsub.events import (
    Deliver,
    Effect,
    Event,
    HeartbeatDue,
    Judge,
    Judged,
    PeerJoined,
    Published,
    RpcReceived,
    SendControl,
    SendMessage,
    SendSubscriptions,
    TopicJoined,
)
from p2p.gossipsub.message import WireMessage, content_id
from p2p.gossipsub.parameters import MESHSUB_1_2, MeshParameters
from p2p.gossipsub.router import Router
from p2p.gossipsub.score import PeerScoring
from p2p.gossipsub.topic import TopicRules
from p2p.identity import PeerId
from p2p.network import Verdict
from tests.p2p.gossipsub.strategies import peer

TOPIC = "votes"
SELF = peer(0)


class Bench:
    """A router with a clock; `told` gathers the effects since it was last read."""

    def __init__(
        self,
        parameters: MeshParameters | None = None,
        scoring: PeerScoring | None = None,
        rules: TopicRules | None = None,
        *,
        joined: bool = True,
        seed: int = 1,
    ) -> None:
        self.rules = rules or TopicRules()
        self.router = Router(SELF, rng=random.Random(seed), parameters=parameters, scoring=scoring)
        self.now = 100.0
        self.told: list[Effect] = []
        if joined:
            self.do(TopicJoined(TOPIC, self.rules))

    def do(self, event: Event) -> list[Effect]:
        """Handle one event now; its effects."""
        effects = self.router.handle(event, self.now)
        self.told += effects
        return effects

    def rpc(self, sender: PeerId, rpc: Rpc) -> list[Effect]:
        """An RPC arrives."""
        return self.do(RpcReceived(sender, rpc))

    def control(self, sender: PeerId, **control: tuple[object, ...]) -> list[Effect]:
        """An RPC with control arrives."""
        return self.rpc(sender, Rpc(control=Control(**control)))  # type: ignore[arg-type]

    def message(self, sender: PeerId, data: bytes, topic: str = TOPIC) -> list[Effect]:
        """An RPC with one message arrives."""
        return self.rpc(sender, Rpc(messages=(WireMessage(topic, data),)))

    def judge(self, data: bytes, verdict: Verdict, topic: str = TOPIC) -> list[Effect]:
        """The verdict on a message is known."""
        return self.do(Judged(content_id(WireMessage(topic, data)), verdict))

    def accept(self, sender: PeerId, data: bytes) -> list[Effect]:
        """A message arrives and is accepted."""
        self.message(sender, data)
        return self.judge(data, Verdict.ACCEPT)

    def publish(self, data: bytes, topic: str = TOPIC) -> list[Effect]:
        """This node publishes."""
        return self.do(Published(WireMessage(topic, data), self.rules))

    def beat(self, count: int = 1) -> list[Effect]:
        """Heartbeats, a second apart."""
        effects: list[Effect] = []
        for _ in range(count):
            self.now += 1
            effects += self.do(HeartbeatDue())
        return effects

    def join(
        self,
        numbers: Iterable[int],
        *,
        topic: str | None = TOPIC,
        outbound: bool = False,
        protocol: str = MESHSUB_1_2,
    ) -> list[PeerId]:
        """Peers connect and subscribe."""
        peers = [peer(number) for number in numbers]
        for one in peers:
            self.do(PeerJoined(one, protocol, outbound=outbound))
            if topic is not None:
                self.rpc(one, Rpc(subscriptions=((True, topic),)))
        return peers

    @property
    def mesh(self) -> set[PeerId]:
        """The mesh of the topic."""
        return set(self.router.mesh_peers(TOPIC))


def id_of(data: bytes, topic: str = TOPIC) -> bytes:
    """The id of an unsigned message."""
    return content_id(WireMessage(topic, data))


def receivers(effects: Iterable[Effect], data: bytes) -> list[PeerId]:
    """To whom a message is sent."""
    return [
        one
        for effect in effects
        if isinstance(effect, SendMessage) and effect.message.message.data == data
        for one in effect.peers
    ]


def controls(effects: Iterable[Effect], to: PeerId) -> Control:
    """All control sent to a peer, as one."""
    sent = [e.control for e in effects if isinstance(e, SendControl) and e.peer == to]
    return Control(
        ihave=tuple(one for control in sent for one in control.ihave),
        iwant=tuple(one for control in sent for one in control.iwant),
        graft=tuple(one for control in sent for one in control.graft),
        prune=tuple(one for control in sent for one in control.prune),
        idontwant=tuple(one for control in sent for one in control.idontwant),
    )


def announcements(effects: Iterable[Effect], to: PeerId) -> list[tuple[bool, str]]:
    """Subscription changes sent to a peer."""
    return [
        change
        for effect in effects
        if isinstance(effect, SendSubscriptions) and effect.peer == to
        for change in effect.changes
    ]


def judged(effects: Iterable[Effect]) -> list[bytes]:
    """The data of messages that are to be judged."""
    return [e.message.message.data for e in effects if isinstance(e, Judge)]


def delivered(effects: Iterable[Effect]) -> list[bytes]:
    """The data of messages that are delivered."""
    return [e.message.message.data for e in effects if isinstance(e, Deliver)]
