"""The port behind which every foreign peer stands: what a trial can ask of it.

The rule: a foreign peer is a process of its own that listens on loopback, serves the three stream
protocols below, and does what it is told. What an implementation does not offer raises
`NotOffered` with the reason, which the matrix then shows instead of a result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from p2p import PeerId

ECHO = "/interop/echo/1"
"""Returns what it reads, until the end; then ends too."""

SLOW = "/interop/slow/1"
"""The same, but reads nothing for `PAUSE_S` after the first bytes."""

DIGEST = "/interop/digest/1"
"""Reads all, answers the SHA-256 of it."""

PAUSE_S = 8.0
"""Longer than the five seconds after which py-libp2p gives up a stalled stream."""

ANSWER_TIMEOUT_S = 40.0
"""For one command; the longest are a paused echo and a DHT query."""


class NotOffered(Exception):
    """The implementation has no such feature, or no way to control it."""


class ForeignFault(Exception):
    """The foreign peer reported an error; the message is its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """How a foreign peer is started."""

    kademlia_protocol: str = "/ipfs/kad/1.0.0"
    signed: bool = True  # StrictSign, or StrictNoSign with content ids
    meshes: bool = True  # False: grafts nobody, where that can be set
    mplex_first: bool = False  # proposes Mplex, which we do not speak, before Yamux


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """What came back of what a foreign peer sent."""

    received_bytes: int
    equal: bool


class ForeignPeer(ABC):
    """A running peer of another implementation; every call raises `ForeignFault` on its errors."""

    peer_id: PeerId
    addresses: tuple[str, ...]

    half_closes = True
    """Whether it can end its sending and go on reading."""

    own_namespaces = True
    """Whether its DHT keeps records of the namespace t, whose every value is valid."""

    tells_protocols = True
    """Whether it can be asked for the protocols of a peer; else its addresses are what it tells."""

    dials = False
    """Whether trials begin with its dial, because it can do little with who has dialled it."""

    @abstractmethod
    async def dial(self, address: str) -> None:
        """Connect to a full multiaddr."""

    @abstractmethod
    async def identified(self, peer_id: PeerId) -> frozenset[str]:
        """What a connected peer has told by identify: its protocols, or its full addresses."""

    @abstractmethod
    async def ping(self, peer_id: PeerId) -> None:
        """One ping and its answer."""

    @abstractmethod
    async def round_trip(
        self, peer_id: PeerId, protocol: str, size: int, *, pause_s: float = 0.0
    ) -> RoundTrip:
        """Send `size` bytes and the end, read what comes back; read nothing for `pause_s` first."""

    @abstractmethod
    async def subscribe(self, topic: str) -> None:
        """Join a topic and remember what arrives."""

    @abstractmethod
    async def publish(self, topic: str, data: bytes) -> None:
        """Publish to a topic."""

    @abstractmethod
    async def received(self, topic: str) -> list[bytes]:
        """What has arrived on a joined topic so far."""

    @abstractmethod
    async def topic_peers(self, topic: str) -> frozenset[str]:
        """The peers that it knows to be subscribed."""

    @abstractmethod
    async def provide(self, multihash: bytes) -> None:
        """Announce a key in the DHT."""

    @abstractmethod
    async def finds_provider(self, multihash: bytes, wanted: PeerId) -> bool:
        """Whether a search of the DHT names `wanted` as a provider."""

    @abstractmethod
    async def put(self, key: bytes, value: bytes) -> None:
        """Store a record in the DHT."""

    @abstractmethod
    async def get(self, key: bytes) -> bytes | None:
        """The record under a key in the DHT."""
