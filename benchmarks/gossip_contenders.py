"""One process of the gossip benchmark: ours, or stock py-libp2p's gossipsub, behind one interface.

The rule: both contenders do the same work — subscribe to one topic, judge each message by the same
Ed25519 check, publish the same 1 KiB payloads — and report times of the one monotonic clock that
all processes of a machine share.

`python -m benchmarks.gossip_contenders CONTENDER INDEX COUNT` is a worker of `measure`: it prints
its address, takes those of all, prints `ready` once the mesh stands, takes the number of messages,
and prints what it received and when. Each order is acknowledged at once.

py-libp2p drops what its queues of 32 do not hold, so its publisher is paced: it keeps at most
`WINDOW` messages unconfirmed, by datagrams beside the network. Ours is not paced: `publish` waits
by itself. py-libp2p's limit of 10 messages/s per peer and topic is switched off.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import nacl.exceptions
import nacl.signing
import trio

from benchmarks.measure import tell

TOPIC = "benchmark"
PAYLOAD_BYTES = 1024
SIGNATURE_BYTES = 64
WINDOW = 16
IDLE_S = 5.0
"""A receiver that has heard nothing for so long takes the rest for lost."""

READY_TIMEOUT_S = 60.0
PUBLISHER_KEY = nacl.signing.SigningKey(bytes(range(32)))
VERIFY_KEY = PUBLISHER_KEY.verify_key


def make_payload(number: int) -> bytes:
    """A payload of 1 KiB: signature, number, filling."""
    body = number.to_bytes(8, "big").ljust(PAYLOAD_BYTES - SIGNATURE_BYTES, b"\xa5")
    return PUBLISHER_KEY.sign(body).signature + body


def is_valid(payload: bytes) -> bool:
    """The judge of both contenders."""
    try:
        VERIFY_KEY.verify(payload[SIGNATURE_BYTES:], payload[:SIGNATURE_BYTES])
    except nacl.exceptions.BadSignatureError:
        return False
    return True


class Contender(ABC):
    """A gossip node as the benchmark needs it."""

    address: str
    paced = False

    @abstractmethod
    async def connect(self, address: str) -> None:
        """Dial another node."""

    @abstractmethod
    def mesh_size(self) -> int:
        """Peers in the mesh of the topic."""

    @abstractmethod
    async def publish(self, payload: bytes) -> None:
        """Publish to the topic."""

    @abstractmethod
    async def receive(self) -> bytes:
        """The next payload that was accepted."""


class Agora(Contender):
    """`p2p`: the switch on TCP and the gossipsub shell."""

    def __init__(self, switch: Any, gossip: Any, messages: Any) -> None:
        self._switch, self._gossip, self._messages = switch, gossip, messages
        self.address = switch.addresses[0]

    async def connect(self, address: str) -> None:
        await self._switch.connect(address)

    def mesh_size(self) -> int:
        return len(self._gossip.mesh_peers(TOPIC))

    async def publish(self, payload: bytes) -> None:
        await self._gossip.publish(TOPIC, payload)

    async def receive(self) -> bytes:
        payload: bytes = (await self._messages.receive()).data
        return payload


@asynccontextmanager
async def open_agora() -> AsyncIterator[Contender]:
    """Our node on an ephemeral port of loopback."""
    from p2p.backend.switch import open_switch
    from p2p.gossipsub import open_gossip
    from p2p.identity import Identity
    from p2p.limits import Limits
    from p2p.network import Message, TopicOptions, Verdict

    def judge(message: Message) -> Verdict:
        return Verdict.ACCEPT if is_valid(message.data) else Verdict.REJECT

    identity = Identity.generate()
    options = TopicOptions(backlog_messages_max=65_536)
    async with open_switch(identity, Limits()) as switch, open_gossip(switch) as gossip:
        await switch.listen(["/ip4/127.0.0.1/tcp/0"])
        async with gossip.subscribe(TOPIC, validate=judge, options=options) as messages:
            yield Agora(switch, gossip, messages)


class PyLibp2p(Contender):
    """Stock py-libp2p 0.8.1: default host (Noise, Yamux) and its gossipsub."""

    paced = True

    def __init__(self, host: Any, router: Any, pubsub: Any, subscription: Any) -> None:
        self._host, self._router, self._pubsub = host, router, pubsub
        self._subscription = subscription
        self.address = str(host.get_addrs()[0])

    async def connect(self, address: str) -> None:
        from libp2p.peer.peerinfo import info_from_p2p_addr
        from multiaddr import Multiaddr

        await self._host.connect(info_from_p2p_addr(Multiaddr(address)))

    def mesh_size(self) -> int:
        return len(self._router.mesh.get(TOPIC, ()))

    async def publish(self, payload: bytes) -> None:
        await self._pubsub.publish(TOPIC, payload)

    async def receive(self) -> bytes:
        payload: bytes = (await self._subscription.get()).data
        return payload


@asynccontextmanager
async def open_py_libp2p() -> AsyncIterator[Contender]:
    """Stock py-libp2p on an ephemeral port of loopback; unsigned, for the payload is signed."""
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

    host = new_host(key_pair=create_new_key_pair())
    router = GossipSub(
        protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11],
        degree=8,
        degree_low=6,
        degree_high=12,
        heartbeat_interval=1,
        spam_protection_enabled=False,
    )
    pubsub = Pubsub(host, router, strict_signing=False)
    pubsub.set_topic_validator(TOPIC, lambda _peer, message: is_valid(message.data), False)
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        async with background_trio_service(router), background_trio_service(pubsub):
            await pubsub.wait_until_ready()
            yield PyLibp2p(host, router, pubsub, await pubsub.subscribe(TOPIC))


CONTENDERS: dict[str, Callable[[], AbstractAsyncContextManager[Contender]]] = {
    "agora": open_agora,
    "py_libp2p": open_py_libp2p,
}


@dataclass(slots=True)
class Pacer:
    """Confirmations of receivers to the publisher, by datagram."""

    socket: trio.socket.SocketType
    publisher: tuple[str, int]
    received: dict[int, int] = field(default_factory=dict)
    heard: trio.Event = field(default_factory=trio.Event)

    async def confirm(self, index: int, count: int) -> None:
        """A receiver tells the publisher how many it has."""
        await self.socket.sendto(json.dumps([index, count]).encode(), self.publisher)

    async def collect(self) -> None:
        """The publisher listens, for ever."""
        while True:
            index, count = json.loads(await self.socket.recv(64))
            self.received[index] = count
            self.heard.set()
            self.heard = trio.Event()

    async def wait(self, sent: int, receivers: int) -> None:
        """Until every receiver lacks less than the window; no longer than a second."""
        with trio.move_on_after(1):
            while sent - min([self.received.get(i + 1, 0) for i in range(receivers)]) >= WINDOW:
                await self.heard.wait()


async def _run(contender: str, index: int, count: int) -> None:
    orders = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await socket.bind(("127.0.0.1", 0))
    async with CONTENDERS[contender]() as node:
        tell(address=node.address, port=socket.getsockname()[1])
        peers = await _next_order(orders)
        for address in peers["addresses"][:index]:
            await node.connect(address)
        with trio.fail_after(READY_TIMEOUT_S):
            while node.mesh_size() < count - 1:  # noqa: ASYNC110 - set-up
                await trio.sleep(0.05)
        tell(ready=True)
        messages = (await _next_order(orders))["messages"]
        pacer = Pacer(socket, ("127.0.0.1", peers["ports"][0]))
        if index == 0:
            payloads = [make_payload(number) for number in range(messages)]
            tell(**await _publish(node, pacer, payloads, count - 1))
        else:
            tell(**await _receive(node, pacer, index, messages))
        await orders.receive_some(1)  # serve on until the input ends
        os._exit(0)  # py-libp2p fails when it is closed while messages arrive


async def _publish(
    node: Contender, pacer: Pacer, payloads: list[bytes], receivers: int
) -> dict[str, float]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pacer.collect)
        nursery.start_soon(_drain, node)
        started = time.monotonic()
        for sent, payload in enumerate(payloads):
            if node.paced:
                await pacer.wait(sent, receivers)
            await node.publish(payload)
        nursery.cancel_scope.cancel()
    return {"started": started}


async def _drain(node: Contender) -> None:
    while True:
        await node.receive()


async def _receive(
    node: Contender, pacer: Pacer, index: int, messages: int
) -> dict[str, float | int]:
    numbers: set[bytes] = set()
    last = time.monotonic()
    copies = 0
    while len(numbers) < messages:
        payload = None
        with trio.move_on_after(IDLE_S if numbers else READY_TIMEOUT_S):
            payload = await node.receive()
        if payload is None:
            break
        last = time.monotonic()
        copies += 1
        numbers.add(payload[SIGNATURE_BYTES : SIGNATURE_BYTES + 8])
        if node.paced:
            await pacer.confirm(index, len(numbers))
    return {"received": len(numbers), "twice": copies - len(numbers), "last": last}


async def _next_order(orders: trio.lowlevel.FdStream) -> dict[str, Any]:
    line = bytearray()
    while not line.endswith(b"\n"):
        line += await orders.receive_some(1)
    tell(taken=True)
    order: dict[str, Any] = json.loads(line)
    return order


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    trio.run(_run, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
