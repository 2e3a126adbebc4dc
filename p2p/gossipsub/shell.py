"""Gossipsub on a switch: streams, tasks and clocks around the router.

The rule: the router is entered only from synchronous code, so that trio's one thread is its lock;
tasks own the streams (`links`). Per peer there is one writing task and, while the peer has a stream
to us, the handler that reads it; per node a heartbeat and a watcher; further tasks only while
judges that are coroutines are at work (`judging`).

Full means: a queue to a slow peer refuses the message, and it is announced to the peer at the next
heartbeat; `publish` first waits up to `PUBLISH_WAIT_S` for a queue that is full, once per slow
peer; a full queue of messages to be judged makes readers wait up to `JUDGE_WAIT_S` and then drops;
a subscription drops by its own policy. Each is counted.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import assert_never

import trio

from p2p.errors import (
    LimitExceeded,
    MessageRefused,
    NetworkClosed,
    PayloadTooLarge,
)
from p2p.gossipsub.codec import encode_control, encode_subscriptions
from p2p.gossipsub.events import (
    Deliver,
    Effect,
    Event,
    HeartbeatDue,
    Judge,
    Judged,
    Published,
    SendControl,
    SendMessage,
    SendRefused,
    SendSubscriptions,
    TopicJoined,
    TopicLeft,
)
from p2p.gossipsub.judging import Judges
from p2p.gossipsub.links import Links
from p2p.gossipsub.message import (
    CachedMessage,
    SignaturePolicy,
    WireMessage,
    author_of,
    sign_message,
)
from p2p.gossipsub.parameters import PROTOCOLS, TOPIC_BYTES_MAX, MeshParameters
from p2p.gossipsub.router import Router
from p2p.gossipsub.score import PeerScoring
from p2p.gossipsub.subscription import TopicSubscription
from p2p.gossipsub.topic import TopicRules
from p2p.identity import Identity, PeerId
from p2p.lifetime import open_background
from p2p.network import (
    Message,
    Subscription,
    TopicOptions,
    Validator,
    Verdict,
)
from p2p.switch import Switch

PUBLISH_WAIT_S = 1.0
"""How long `publish` waits for room in the queue to a slow peer; a busy honest one makes room in
milliseconds, and a peer that does not is skipped until it has caught up by half."""


@dataclass(slots=True)
class _Topic:
    """One joined topic."""

    rules: TopicRules
    options: TopicOptions
    validate: Validator | None
    subscriptions: list[TopicSubscription] = field(default_factory=list)


@asynccontextmanager
async def open_gossip(
    switch: Switch,
    *,
    identity: Identity | None = None,
    parameters: MeshParameters | None = None,
    scoring: PeerScoring | None = None,
    topic_rules: Mapping[str, TopicRules] | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Gossipsub]:
    """Gossipsub on `switch` while the block lasts; it serves the meshsub protocols.

    `identity` is needed only to publish on signed topics. `topic_rules` overrides, by topic name,
    what `TopicOptions` cannot say: a lax signature policy, another message id, score weights. `rng`
    makes a run repeatable.

    Leaving the block, also by cancellation, ends every task and stream of it; subscriptions end.
    """
    async with open_background() as nursery:
        gossip = Gossipsub(
            switch,
            nursery,
            identity=identity,
            parameters=parameters or MeshParameters(),
            scoring=scoring,
            topic_rules=topic_rules or {},
            rng=rng or random.Random(),
        )
        served: list[str] = []
        try:
            for protocol in PROTOCOLS:
                switch.serve(protocol, gossip._links.listen)
                served.append(protocol)
            nursery.start_soon(gossip._links.watch)
            nursery.start_soon(gossip._beat)
            yield gossip
        finally:
            for protocol in served:
                switch.unserve(protocol)
            gossip._close()


class Gossipsub:
    """Publish and subscribe (`p2p.network.PubSub`); made by `open_gossip`."""

    def __init__(
        self,
        switch: Switch,
        nursery: trio.Nursery,
        *,
        identity: Identity | None,
        parameters: MeshParameters,
        scoring: PeerScoring | None,
        topic_rules: Mapping[str, TopicRules],
        rng: random.Random,
    ) -> None:
        self._switch = switch
        self._limits = switch.limits
        self._identity = identity
        self._topic_rules = topic_rules
        self._rng = rng
        self._router = Router(
            switch.peer_id,
            rng=rng,
            parameters=parameters,
            scoring=scoring,
            topics_per_peer_max=self._limits.topics_per_peer_max,
        )
        self._counters: Counter[str] = Counter()
        self._judges = Judges(
            nursery,
            self._limits.validations_concurrent_max,
            self._counters,
            lambda message_id, verdict: self._dispatch(Judged(message_id, verdict)),
        )
        self._links = Links(
            switch, nursery, self._judges, self._dispatch, self._router.scores.is_graylisted
        )
        self._topics: dict[str, _Topic] = {}
        self._sequence = rng.getrandbits(48) << 8  # signed topics: unlikely to repeat after restart
        self._closed = False

    # What programs call

    def subscribe(
        self,
        topic: str,
        *,
        validate: Validator | None = None,
        options: TopicOptions | None = None,
    ) -> AbstractAsyncContextManager[Subscription]:
        """As `PubSub.subscribe`.

        A judge that returns a verdict is called in the reading task and must be quick; one that
        returns an awaitable is awaited apart, up to `Limits.validations_concurrent_max` at a time
        per topic. Own messages are judged when published; IGNORE then only means that they are not
        delivered here.

        Raises (on entering the block):
            ValueError: another judge or other options than the first subscription's; a topic that
                is empty or too long.
            LimitExceeded: more than `Limits.topics_max` topics.
            NetworkClosed: the network is closed.
        """
        return self._subscribed(topic, validate, options)

    async def publish(self, topic: str, data: bytes) -> bytes:
        """As `PubSub.publish`; waits up to `PUBLISH_WAIT_S` for room in the queue to a slow peer.

        Cancelled, it has published everything or nothing.

        Raises:
            PayloadTooLarge: over the topic's `payload_bytes_max`.
            MessageRefused: the topic's judge here says REJECT.
            NetworkClosed: the network is closed.
        """
        if self._closed:
            raise NetworkClosed("publish on a closed network")
        joined = self._topics.get(topic)
        rules = joined.rules if joined is not None else self._rules_of(topic, None)
        if len(data) > rules.payload_bytes_max:
            raise PayloadTooLarge(len(data), rules.payload_bytes_max)
        wire = self._wire_message(topic, bytes(data), rules)
        message_id = rules.id_of(wire)
        if self._router.has_seen(message_id):
            await trio.lowlevel.checkpoint()
            if self._router.has_rejected(message_id):
                raise MessageRefused(f"the judge of {topic!r} has rejected this message")
            return message_id
        verdict = Verdict.ACCEPT
        if joined is not None and joined.validate is not None:
            message = self._message_of(wire, message_id, self._switch.peer_id)
            verdict = await self._judges.judge_now(joined.validate, message)
            if verdict is Verdict.REJECT:
                raise MessageRefused(f"the judge of {topic!r} rejects this message")
        await self._wait_for_room(topic)
        self._dispatch(Published(wire, rules, deliver=verdict is Verdict.ACCEPT))
        return message_id

    def topic_peers(self, topic: str) -> frozenset[PeerId]:
        """Connected peers known to be subscribed to `topic`."""
        return frozenset(self._router.topic_peers(topic))

    def mesh_peers(self, topic: str) -> frozenset[PeerId]:
        """The mesh of a topic; empty when it is not subscribed to."""
        return frozenset(self._router.mesh_peers(topic))

    def score(self, peer_id: PeerId) -> float:
        """The gossip score of a peer: 0 for a stranger, negative for one that broke rules."""
        return self._router.scores.score(peer_id)

    def set_application_score(self, peer_id: PeerId, score: float) -> None:
        """What the program thinks of a connected peer (P5); added to its score."""
        self._router.scores.set_application_score(peer_id, score)

    def counters(self) -> dict[str, int]:
        """Everything counted since the start, by name; for metrics."""
        return {f"gossip_{name}": n for name, n in (self._router.counters + self._counters).items()}

    # Subscriptions

    @asynccontextmanager
    async def _subscribed(
        self, topic: str, validate: Validator | None, options: TopicOptions | None
    ) -> AsyncIterator[Subscription]:
        joined = self._join(topic, validate, options)
        subscription = TopicSubscription(topic, joined.options)
        joined.subscriptions.append(subscription)
        try:
            await trio.lowlevel.checkpoint()
            yield subscription
        finally:
            joined.subscriptions.remove(subscription)
            subscription.end()
            if not joined.subscriptions and self._topics.get(topic) is joined:
                del self._topics[topic]
                self._dispatch(TopicLeft(topic))

    def _join(self, topic: str, validate: Validator | None, options: TopicOptions | None) -> _Topic:
        if self._closed:
            raise NetworkClosed("subscribe on a closed network")
        if not 0 < len(topic.encode()) <= TOPIC_BYTES_MAX:
            raise ValueError(f"a topic has 1 to {TOPIC_BYTES_MAX} bytes")
        joined = self._topics.get(topic)
        if joined is not None:
            if validate not in (None, joined.validate) or options not in (None, joined.options):
                raise ValueError(f"{topic!r} is subscribed to with another judge or options")
            return joined
        if len(self._topics) >= self._limits.topics_max:
            raise LimitExceeded("topics_max", self._limits.topics_max)
        rules = self._rules_of(topic, options)
        if rules.signatures is SignaturePolicy.STRICT_SIGN and self._identity is None:
            raise ValueError("a signed topic needs the identity")
        joined = self._topics[topic] = _Topic(rules, options or TopicOptions(), validate)
        self._dispatch(TopicJoined(topic, rules))
        return joined

    def _rules_of(self, topic: str, options: TopicOptions | None) -> TopicRules:
        rules = self._topic_rules.get(topic)
        if rules is not None:
            return rules
        options = options or TopicOptions()
        return TopicRules(
            payload_bytes_max=options.payload_bytes_max or self._limits.payload_bytes_max,
            signatures=SignaturePolicy.STRICT_SIGN
            if options.signed
            else SignaturePolicy.STRICT_NO_SIGN,
        )

    def _wire_message(self, topic: str, data: bytes, rules: TopicRules) -> WireMessage:
        if rules.signatures is not SignaturePolicy.STRICT_SIGN:
            return WireMessage(topic, data)
        if self._identity is None:
            raise ValueError("a signed topic needs the identity")
        self._sequence += 1
        return sign_message(topic, data, self._identity, self._sequence)

    # Effects

    def _dispatch(self, event: Event) -> None:
        """Let the router handle an event and do what it says, to the end."""
        if self._closed:
            return
        now = trio.current_time()
        effects: deque[Effect] = deque(self._router.handle(event, now))
        while effects:
            effect = effects.popleft()
            match effect:
                case Judge():
                    verdict = self._judge(effect.message)
                    if verdict is not None:
                        judged = Judged(effect.message.message_id, verdict)
                        effects.extend(self._router.handle(judged, now))
                case SendMessage():
                    for refused in self._send(effect):
                        effects.extend(self._router.handle(refused, now))
                case Deliver():
                    self._deliver(effect.message)
                case SendControl():
                    if (link := self._links.get(effect.peer)) is not None:
                        if not link.outbox.push_control(encode_control(effect.control)):
                            self._counters["control_dropped"] += 1
                        link.wake.set()
                case SendSubscriptions():
                    if (link := self._links.get(effect.peer)) is not None:
                        link.outbox.push_subscriptions(encode_subscriptions(effect.changes))
                        link.wake.set()
                case _:
                    assert_never(effect)

    def _send(self, effect: SendMessage) -> list[SendRefused]:
        refused: list[SendRefused] = []
        message = effect.message
        for peer in effect.peers:
            link = self._links.get(peer)
            if link is None:
                continue
            if link.outbox.push_message(message, own=effect.own):
                link.wake.set()
            else:
                self._counters["messages_queue_full"] += 1
                refused.append(SendRefused(peer, message.message.topic, message.message_id))
        return refused

    def _deliver(self, cached: CachedMessage) -> None:
        joined = self._topics.get(cached.message.topic)
        if joined is None:
            return
        message = self._message_of(cached.message, cached.message_id, cached.received_from)
        for subscription in joined.subscriptions:
            self._counters["subscription_dropped"] += subscription.put(message)

    def _message_of(self, wire: WireMessage, message_id: bytes, received_from: PeerId) -> Message:
        return Message(
            topic=wire.topic,
            data=wire.data,
            source=author_of(wire) if wire.signature else None,
            received_from=received_from,
            message_id=message_id,
        )

    def _judge(self, cached: CachedMessage) -> Verdict | None:
        """The verdict, or None when it will come from a task."""
        joined = self._topics.get(cached.message.topic)
        if joined is None:
            return Verdict.IGNORE
        if joined.validate is None:
            return Verdict.ACCEPT
        message = self._message_of(cached.message, cached.message_id, cached.received_from)
        return self._judges.judge(joined.validate, message)

    # Tasks

    async def _beat(self) -> None:
        """The heartbeat; it begins at a random offset, so that nodes of one process take turns."""
        period_s = self._router.parameters.heartbeat_s
        due = trio.current_time() + period_s * self._rng.random()
        while True:
            await trio.sleep_until(due)
            self._dispatch(HeartbeatDue())
            due = max(due + period_s, trio.current_time())

    async def _wait_for_room(self, topic: str) -> None:
        """Wait until no queue that the message goes to is full; see the module's docstring."""
        await trio.lowlevel.checkpoint()
        links = map(self._links.get, self._router.publish_targets(topic))
        full = [link for link in links if link and link.outbox.is_full and not link.slow]
        if not full:
            return
        with trio.move_on_after(PUBLISH_WAIT_S):
            for link in full:
                while link.outbox.is_full and self._links.get(link.peer) is link:
                    await link.room.wait()
        for link in full:
            link.slow = link.outbox.is_full

    def _close(self) -> None:
        self._links.close()
        self._closed = True
        for joined in self._topics.values():
            for subscription in joined.subscriptions:
                subscription.end()
        self._topics.clear()
