"""The port: what a program sees of the network, whatever carries it.

The rule: two implementations — real sockets (`p2p.open_network`) and one process (`p2p.memory`) —
pass one contract suite, and neither lets a type or an error of a library below through. A program
written against these names runs on both.

`Network` is the sum of three ports that are implemented apart: peers and streams here, publish and
subscribe (`PubSub`: gossipsub), and content routing (`ContentRouting`: Kademlia).
"""

from __future__ import annotations

import enum
import math
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import trio

from p2p.identity import PeerId
from p2p.limits import Limits

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes to send; they must not change until the call that sends them returns."""


class ByteStream(trio.abc.HalfCloseableStream):
    """Trio's contract of a half-closeable stream, and what streams here do beyond it.

    `deadline_s` is trio's time from which on no call of this stream waits: one that would raises
    `trio.TooSlowError`, as if cancelled in `trio.fail_at`. Each call takes it as it is when it
    begins to wait. A handler that moves it on from phase to phase has the scope of a timeout only
    where it does wait.
    """

    deadline_s: float = math.inf

    @abstractmethod
    async def send_all(self, data: Buffer) -> None:
        """Send all of it, waiting for the peer's window."""

    @abstractmethod
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, as many as are there up to `max_bytes`; b"" at the peer's end."""

    @abstractmethod
    async def reset(self) -> None:
        """End both directions at once; the peer's calls raise `StreamReset`. Idempotent."""

    async def send_last(self, *segments: Buffer) -> None:
        """As `send_all` of each and `send_eof`, in one flight where the transport can.

        Large segments are encrypted where they lie: joining them first gains nothing.
        """
        await self.send_all(b"".join(segments))
        await self.send_eof()

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer`; returns its length, or less at the end of the peer's direction.

        Cancelled or failed, it has consumed an unknown part: reset the stream.
        """
        target = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(target):
            data = await self.receive_some(len(target) - filled)
            if not data:
                break
            target[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    @abstractmethod
    async def wait_ended(self) -> None:
        """Wait until the stream can carry nothing more: both directions have ended, or it was reset
        or its connection lost. A peer that has ended its direction in order can still reset it."""

    def _patience(self) -> AbstractContextManager[object]:
        """Ends what waits within it at `deadline_s`; for implementations."""
        if self.deadline_s == math.inf:
            return nullcontext()
        return trio.fail_at(self.deadline_s)


class Stream(ByteStream):
    """A reliable, ordered, flow-controlled pair of byte directions to one peer.

    It follows trio's contract of a `HalfCloseableStream` (one sender and one receiver at a time)
    and adds: `send_all` after `aclose` or `send_eof` raises `StreamClosed`; any use after the
    peer's reset or the loss of the connection raises `StreamReset`, once the bytes that arrived in
    order before it have been read. A cancelled `send_all` has sent an unknown part: reset the
    stream. A cancelled `receive_some` has consumed nothing. Every call is a cancellation point; one
    that need not wait lets other tasks run now and then, not each time. `aclose` closes the sending
    side in order and tells the peer that nothing more is read.
    """

    @property
    @abstractmethod
    def peer_id(self) -> PeerId:
        """Who is at the other end; proved by the handshake."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """The protocol that both sides agreed on."""


StreamHandler: TypeAlias = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream: closed when it returns; reset, and counted, when it raises; cancelled
a few seconds after its connection is lost, if it has not noticed by itself."""


class Direction(enum.Enum):
    """Who dialled."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConnected:
    """The first connection to a peer is ready for streams."""

    peer_id: PeerId
    direction: Direction
    address: str  # the remote end as the socket sees it: /ip4/1.2.3.4/tcp/5678


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDisconnected:
    """The last connection to a peer is gone; every stream with it has been reset."""

    peer_id: PeerId


PeerEvent: TypeAlias = PeerConnected | PeerDisconnected


class Verdict(enum.Enum):
    """What a topic's judge says of a message (gossipsub v1.1, extended validators)."""

    ACCEPT = "accept"  # deliver here and forward
    IGNORE = "ignore"  # drop without penalty and forget the id: it may be judged again later
    REJECT = "reject"  # drop, and lower the score of whoever sent it


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One published message, as it reaches a judge and a subscriber."""

    topic: str
    data: bytes
    source: PeerId | None  # the signer on a signed topic; None where messages are unsigned
    received_from: PeerId  # the neighbour that sent it; our own id for our own messages
    message_id: bytes


Validator: TypeAlias = Callable[[Message], "Verdict | Awaitable[Verdict]"]
"""A topic's judge; it sees every message once before delivery. An exception counts as IGNORE."""


class Overflow(enum.Enum):
    """What a subscription does with a message when its reader is `backlog_messages_max` behind."""

    DROP_OLDEST = "drop oldest"
    DROP_NEWEST = "drop newest"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicOptions:
    """How one topic is judged and buffered; every node of a topic should use the same sizes."""

    payload_bytes_max: int | None = None  # None: Limits.payload_bytes_max; larger ones are rejected
    backlog_messages_max: int = 1024  # messages waiting for a slow reader
    overflow: Overflow = Overflow.DROP_OLDEST
    signed: bool = False  # True: StrictSign with author and sequence number, for foreign topics


class Subscription(trio.abc.ReceiveChannel[Message]):
    """The messages of one topic, in the order in which they were accepted here.

    Iterate it or call `receive`; both may be cancelled without losing a message.
    """

    @property
    @abstractmethod
    def topic(self) -> str:
        """The topic subscribed to."""

    @property
    @abstractmethod
    def dropped(self) -> int:
        """How many accepted messages the overflow policy has dropped so far."""


@runtime_checkable
class PubSub(Protocol):
    """Publish and subscribe by topic."""

    def subscribe(
        self,
        topic: str,
        *,
        validate: Validator | None = None,
        options: TopicOptions | None = None,
    ) -> AbstractAsyncContextManager[Subscription]:
        """Join `topic` while the block lasts; without a judge everything well formed is accepted.

        A second subscription to the same topic shares its judge and options; giving others is a
        `ValueError`. The own messages of this node are judged and delivered too.
        """
        ...

    async def publish(self, topic: str, data: bytes) -> bytes:
        """Send `data` to the topic and return its message id; needs no subscription.

        Returns once the message is queued to the mesh (at once also when no peer is known).
        Publishing what was already seen returns its id and sends nothing.

        Raises:
            PayloadTooLarge: over the topic's `payload_bytes_max`.
            MessageRefused: this node subscribes to the topic, and its judge says REJECT.
        """
        ...

    def topic_peers(self, topic: str) -> frozenset[PeerId]:
        """Connected peers known to be subscribed to `topic`."""
        ...


@runtime_checkable
class ContentRouting(Protocol):
    """Find who has a key, and small signed records, by a distributed hash table."""

    async def provide(self, key: bytes) -> None:
        """Announce that this node has `key`, now and again until the network closes."""
        ...

    async def find_providers(self, key: bytes, *, count: int = 20) -> list[PeerId]:
        """Peers that announced `key`, at most `count`, without this node; may be empty.

        Their addresses are then in the address book. The answer is a hint from strangers.
        """
        ...

    async def find_peer(self, peer_id: PeerId) -> tuple[str, ...]:
        """Addresses of a peer, from the book or the table; `LookupFailed` when there are none."""
        ...

    async def put_record(self, key: bytes, value: bytes) -> None:
        """Store a record with the peers closest to its key.

        Raises:
            InvalidRecord: refused here by the validator of the key's namespace, or too large.
            LookupFailed: no peer took it.
        """
        ...

    async def get_record(self, key: bytes) -> bytes:
        """The best valid record found; `LookupFailed` when there is none."""
        ...


@runtime_checkable
class Network(PubSub, ContentRouting, Protocol):
    """Everything together; made by `p2p.open_network` or `p2p.memory`, ends with its block."""

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        ...

    @property
    def limits(self) -> Limits:
        """The bounds that this network was opened with."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can dial us: full multiaddrs that end in /p2p/OUR-ID."""
        ...

    @property
    def peers(self) -> frozenset[PeerId]:
        """The peers connected now."""
        ...

    async def connect(self, address: str) -> PeerId:
        """Connect to a full multiaddr, or to a `PeerId` with known addresses; no-op if connected.

        Raises:
            MalformedAddress: not a multiaddr with /p2p/ID at its end, or our own.
            DialFailed: nobody there in time, or (`PeerMismatch`) somebody else.
            NotConnected: a bare `PeerId` without a known address.
        """
        ...

    async def disconnect(self, peer_id: PeerId) -> None:
        """Close every connection to the peer and do not redial it unasked; no-op if none."""
        ...

    def ban(self, peer_id: PeerId, *, duration_s: float | None = None) -> None:
        """Disconnect the peer and refuse it for `duration_s` (default `Limits.ban_s`)."""
        ...

    def watch_peers(self) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[PeerEvent]]:
        """Peers as they come and go, beginning with a `PeerConnected` for each one already there.

        A slow reader loses nothing that matters: a pair of a coming and a going that it has not
        seen is left out, so that at most two events per peer wait.
        """
        ...

    def open_stream(self, peer_id: PeerId, *protocols: str) -> AbstractAsyncContextManager[Stream]:
        """A new stream that speaks the first of `protocols` that the peer knows; dials if need be.

        Leaving the block closes the stream; leaving it by an exception or cancellation resets it.
        When the peer is known to speak the protocol its id travels with the first payload, and a
        peer that has dropped the protocol since is noticed at the first receive.

        Raises:
            ProtocolUnsupported: the peer knows none of them.
            NotConnected, DialFailed: no connection could be had.
            ProtocolViolation: it negotiates wrongly, or not in time.
            StreamReset: the connection was lost meanwhile.
            LimitExceeded: too many streams.
        """
        ...

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Answer inbound streams of `protocol` until `unserve`; `ValueError` if already served."""
        ...

    async def unserve(self, protocol: str) -> None:
        """Accept no new streams of `protocol`; running handlers go on. No-op if not served."""
        ...

    def add_addresses(self, peer_id: PeerId, addresses: Iterable[str]) -> None:
        """Remember where a peer may be dialled; malformed ones raise `MalformedAddress`."""
        ...

    def addresses_of(self, peer_id: PeerId) -> tuple[str, ...]:
        """Known full multiaddrs of a peer, the most recently confirmed first; may be empty."""
        ...

    def counters(self) -> dict[str, int]:
        """Everything counted since the network was opened, by name; for metrics."""
        ...


__all__ = [
    "ContentRouting",
    "Direction",
    "Limits",
    "Message",
    "Network",
    "Overflow",
    "PeerConnected",
    "PeerDisconnected",
    "PeerEvent",
    "PubSub",
    "Stream",
    "StreamHandler",
    "Subscription",
    "TopicOptions",
    "Validator",
    "Verdict",
]
