"""The whole network: a switch, gossipsub, Kademlia and the peer keeper, as one `Network`.

The rule: everything starts before the first address is listened on, and when the block is left, by
any path, nothing is left running. The same composition runs on sockets and in one process.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from p2p.backend.switch import open_switch
from p2p.discovery import PeerKeeper
from p2p.errors import MalformedAddress
from p2p.gossipsub import GossipOptions, Gossipsub, open_gossip
from p2p.identity import Identity, PeerId
from p2p.kademlia import PROTOCOL as KADEMLIA_PROTOCOL
from p2p.kademlia import Kademlia, RecordValidator, open_kademlia
from p2p.lifetime import open_background
from p2p.limits import Limits
from p2p.multiaddress import Address
from p2p.network import (
    Network,
    PeerConnected,
    PeerDisconnected,
    PeerEvent,
    Stream,
    StreamHandler,
    Subscription,
    TopicOptions,
    Validator,
)
from p2p.peer_file import load_addresses, save_addresses
from p2p.peer_use import PeerUses
from p2p.switch import SwitchEvent
from p2p.switchboard import Switchboard

PEERS_FILE = "peers.json"
KADEMLIA_FILE = "kademlia.table"

SAVE_INTERVAL_S = 60.0
"""A node that is killed loses at most a minute of new addresses."""


@asynccontextmanager
async def open_network(
    identity: Identity,
    *,
    listen: Sequence[str] = (),
    bootstrap: Sequence[str] = (),
    limits: Limits | None = None,
    data_dir: Path | None = None,
    gossip: GossipOptions | None = None,
    kademlia_protocol: str = KADEMLIA_PROTOCOL,
    record_validators: Mapping[str, RecordValidator] | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Network]:
    """Join a network over TCP, Noise and Yamux while the block lasts.

    Args:
        identity: who we are.
        listen: multiaddrs such as `/ip4/0.0.0.0/tcp/4001`; port 0 takes a free one; none listens
            nowhere and only dials.
        bootstrap: full multiaddrs of peers to stay connected to. That they cannot be reached is no
            error: they are tried again until they can.
        limits: every bound; the defaults suit a node on the Internet.
        data_dir: where addresses and the DHT table are kept between runs; None keeps none.
        gossip: mesh, scores and the rules of single topics; the defaults suit thousands of nodes.
        kademlia_protocol: another id makes another DHT; `/ipfs/kad/1.0.0` is the public one.
        record_validators: judges of DHT records by namespace; others than these do not exist.
        rng: chance for jitter and mesh choices; a seeded one makes a run repeatable.

    Raises:
        MalformedAddress: one of the addresses; nothing was started.
        PortInUse: another socket listens there.
    """
    starts = bootstrap_addresses(bootstrap)
    for text in listen:
        Address.parse(text)
    async with open_switch(identity, limits or Limits()) as switch:
        async with open_stack(
            switch,
            identity,
            bootstrap=starts,
            data_dir=data_dir,
            gossip=gossip,
            kademlia_protocol=kademlia_protocol,
            record_validators=record_validators,
            rng=rng,
        ) as network:
            await switch.listen(listen)
            yield network


@asynccontextmanager
async def open_stack(
    switch: Switchboard,
    identity: Identity,
    *,
    bootstrap: Sequence[Address],
    data_dir: Path | None = None,
    gossip: GossipOptions | None = None,
    kademlia_protocol: str = KADEMLIA_PROTOCOL,
    record_validators: Mapping[str, RecordValidator] | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Network]:
    """Gossipsub, Kademlia and the peer keeper on a switch that exists, while the block lasts."""
    rng = rng or random.Random()
    gossip = gossip or GossipOptions()
    table_path = None if data_dir is None else data_dir / KADEMLIA_FILE
    peers_path = None if data_dir is None else data_dir / PEERS_FILE
    if peers_path is not None:
        load_addresses(peers_path, switch.book)
    async with (
        open_background() as nursery,
        open_gossip(
            switch,
            identity=identity,
            parameters=gossip.mesh,
            scoring=gossip.scoring,
            topic_rules=gossip.topics,
            rng=rng,
        ) as pubsub,
        open_kademlia(
            switch,
            protocol=kademlia_protocol,
            validators=record_validators,
            table_path=table_path,
            rng=rng,
        ) as kademlia,
    ):
        network = StackedNetwork(switch, pubsub, kademlia, bootstrap, rng)
        nursery.start_soon(network.keeper.run)
        if peers_path is not None:
            nursery.start_soon(_save_regularly, peers_path, switch)
        try:
            yield network
        finally:
            nursery.cancel_scope.cancel()
            if peers_path is not None:
                save_addresses(peers_path, switch.book)


class StackedNetwork(Network):
    """A `Network` made of its parts; see there for what each call means."""

    def __init__(
        self,
        switch: Switchboard,
        gossip: Gossipsub,
        kademlia: Kademlia,
        bootstrap: Sequence[Address],
        rng: random.Random,
    ) -> None:
        self._switch = switch
        self._gossip = gossip
        self._kademlia = kademlia
        self._subscriptions: Counter[str] = Counter()
        self._uses = PeerUses()
        self.keeper = PeerKeeper(switch, bootstrap, self._uses, self._is_meshed, gossip.score, rng)

    # Peers

    @property
    def peer_id(self) -> PeerId:
        return self._switch.peer_id

    @property
    def limits(self) -> Limits:
        return self._switch.limits

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._switch.addresses

    @property
    def peers(self) -> frozenset[PeerId]:
        return self._switch.peers

    async def connect(self, address: str) -> PeerId:
        peer_id = await self._switch.connect(address)
        self._uses.connected_to(peer_id)
        return peer_id

    async def disconnect(self, peer_id: PeerId) -> None:
        self.keeper.dismiss(peer_id)
        await self._switch.disconnect(peer_id)

    def ban(self, peer_id: PeerId, *, duration_s: float | None = None) -> None:
        self._switch.ban(peer_id, duration_s=duration_s)

    @asynccontextmanager
    async def watch_peers(self) -> AsyncIterator[trio.abc.ReceiveChannel[PeerEvent]]:
        async with self._switch.watch_peers() as events:
            yield _ComingsAndGoings(events)

    def add_addresses(self, peer_id: PeerId, addresses: Iterable[str]) -> None:
        self._switch.add_addresses(peer_id, addresses)

    def addresses_of(self, peer_id: PeerId) -> tuple[str, ...]:
        return self._switch.addresses_of(peer_id)

    def counters(self) -> dict[str, int]:
        parts = (
            self._switch.counters(),
            self._switch.book.counts,
            self._gossip.counters(),
            self._kademlia.counters(),
        )
        return {name: value for part in parts for name, value in part.items()}

    # Streams

    def open_stream(self, peer_id: PeerId, *protocols: str) -> AbstractAsyncContextManager[Stream]:
        return self._uses.opening(peer_id, self._switch.open_stream(peer_id, *protocols))

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._switch.serve(protocol, self._uses.serving(handler))
        await trio.lowlevel.checkpoint()

    async def unserve(self, protocol: str) -> None:
        self._switch.unserve(protocol)
        await trio.lowlevel.checkpoint()

    # Gossip

    @asynccontextmanager
    async def subscribe(
        self,
        topic: str,
        *,
        validate: Validator | None = None,
        options: TopicOptions | None = None,
    ) -> AsyncIterator[Subscription]:
        async with self._gossip.subscribe(topic, validate=validate, options=options) as messages:
            self._subscriptions[topic] += 1
            try:
                yield messages
            finally:
                self._subscriptions[topic] -= 1
                if not self._subscriptions[topic]:
                    del self._subscriptions[topic]

    async def publish(self, topic: str, data: bytes) -> bytes:
        return await self._gossip.publish(topic, data)

    def topic_peers(self, topic: str) -> frozenset[PeerId]:
        return self._gossip.topic_peers(topic)

    def mesh_peers(self, topic: str) -> frozenset[PeerId]:
        """The neighbours in the mesh of a topic; empty when it is not subscribed to."""
        return self._gossip.mesh_peers(topic)

    # Content routing

    async def provide(self, key: bytes) -> None:
        await self._kademlia.provide(key)

    async def find_providers(self, key: bytes, *, count: int = 20) -> list[PeerId]:
        return await self._kademlia.find_providers(key, count=count)

    async def find_peer(self, peer_id: PeerId) -> tuple[str, ...]:
        return await self._kademlia.find_peer(peer_id)

    async def put_record(self, key: bytes, value: bytes) -> None:
        await self._kademlia.put_record(key, value)

    async def get_record(self, key: bytes) -> bytes:
        return await self._kademlia.get_record(key)

    def _is_meshed(self, peer_id: PeerId) -> bool:
        return any(peer_id in self._gossip.mesh_peers(topic) for topic in self._subscriptions)


class _ComingsAndGoings(trio.abc.ReceiveChannel[PeerEvent]):
    """The events of a switch without what peers say of themselves."""

    def __init__(self, events: trio.abc.ReceiveChannel[SwitchEvent]) -> None:
        self._events = events

    async def receive(self) -> PeerEvent:
        while True:
            event = await self._events.receive()
            if isinstance(event, PeerConnected | PeerDisconnected):
                return event

    async def aclose(self) -> None:
        await self._events.aclose()


def bootstrap_addresses(texts: Sequence[str]) -> list[Address]:
    """Full addresses of peers; `MalformedAddress` when one is not, or names no peer."""
    addresses = [Address.parse(text) for text in texts]
    for address in addresses:
        if address.peer_id is None:
            raise MalformedAddress(f"bootstrap address {str(address)!r} does not end in /p2p/ID")
    return addresses


async def _save_regularly(path: Path, switch: Switchboard) -> None:
    while True:
        await trio.sleep(SAVE_INTERVAL_S)
        save_addresses(path, switch.book)


__all__ = ["StackedNetwork", "bootstrap_addresses", "open_network", "open_stack"]
