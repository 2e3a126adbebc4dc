"""The internal port under gossip and Kademlia: connections, streams and the address book.

The rule: the shells of gossipsub and Kademlia and the peer manager know only this; `p2p.backend`
implements it on sockets and `p2p.memory` in one process, and one contract suite runs on both.
`p2p.stack` composes a switch and the shells into a `p2p.network.Network`:

    async with open_switch(identity, ...) as switch:  # p2p.backend, or a hub of p2p.memory
        async with open_gossip(switch, ...) as pubsub:  # p2p.gossipsub: a PubSub
            async with open_kademlia(switch, ...) as routing:  # p2p.kademlia: a ContentRouting
                ...
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import trio

from p2p.identity import PeerId
from p2p.limits import Limits
from p2p.network import PeerConnected, PeerDisconnected, Stream, StreamHandler


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentified:
    """A connected peer has told what it speaks; again whenever that changes."""

    peer_id: PeerId
    protocols: frozenset[str]
    addresses: tuple[str, ...]  # full multiaddrs where it says it listens; unproved
    agent: str


SwitchEvent: TypeAlias = PeerConnected | PeerIdentified | PeerDisconnected


@runtime_checkable
class Switch(Protocol):
    """Connections by peer, streams by protocol; the meaning of each name is that of `Network`."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def addresses(self) -> tuple[str, ...]: ...

    @property
    def peers(self) -> frozenset[PeerId]: ...

    async def connect(self, address: str) -> PeerId:
        """As `Network.connect`: a full multiaddr, or a `PeerId` whose addresses are in the book."""
        ...

    async def disconnect(self, peer_id: PeerId) -> None: ...

    def ban(self, peer_id: PeerId, *, duration_s: float | None = None) -> None:
        """As `Network.ban`; does not block: connections are closed in the background."""
        ...

    def open_stream(
        self, peer_id: PeerId, *protocols: str, dial: bool = True
    ) -> AbstractAsyncContextManager[Stream]:
        """As `Network.open_stream`; with `dial=False` only an existing connection is used."""
        ...

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Answer inbound streams of `protocol`; `ValueError` if it is already served."""
        ...

    def unserve(self, protocol: str) -> None: ...

    def watch_peers(self) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[SwitchEvent]]:
        """Events from the first connected peer on; opens with the state of those already there.

        `PeerIdentified` of a peer comes after its `PeerConnected`. A pending pair of a coming
        and a going is left out and a newer `PeerIdentified` replaces a pending one: at most three
        events per peer wait.
        """
        ...

    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        """What the peer last said it speaks; empty when unknown."""
        ...

    def remote_address_of(self, peer_id: PeerId) -> str | None:
        """The socket address of a connected peer, /ip4/…/tcp/…; None when it is not connected."""
        ...

    def add_addresses(self, peer_id: PeerId, addresses: Iterable[str]) -> None: ...

    def addresses_of(self, peer_id: PeerId) -> tuple[str, ...]: ...

    def counters(self) -> dict[str, int]: ...


__all__ = ["PeerIdentified", "Switch", "SwitchEvent"]
