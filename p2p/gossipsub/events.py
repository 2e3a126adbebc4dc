"""What goes into the router and what comes out: events and effects as values.

The rule: the router sees the world only through events and touches it only through effects, so that
the same events, times and seed give the same effects, on sockets and in a simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from p2p.gossipsub.codec import Control, Rpc
from p2p.gossipsub.message import CachedMessage, WireMessage
from p2p.gossipsub.topic import TopicRules
from p2p.identity import PeerId
from p2p.network import Verdict


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A stream to a peer that speaks `protocol` is open; again when it is opened anew."""

    peer: PeerId
    protocol: str
    outbound: bool = False  # we dialled it
    address: str = ""  # its remote multiaddr, for the colocation score


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The peer can no longer be sent to."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """One undecoded RPC of a peer."""

    peer: PeerId
    frame: bytes


@dataclass(frozen=True, slots=True)
class RpcReceived:
    """One decoded RPC of a peer."""

    peer: PeerId
    rpc: Rpc


@dataclass(frozen=True, slots=True)
class StreamViolated:
    """The peer's stream broke the framing; it has been reset."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class TopicJoined:
    """This node subscribes."""

    topic: str
    rules: TopicRules


@dataclass(frozen=True, slots=True)
class TopicLeft:
    """This node no longer subscribes."""

    topic: str


@dataclass(frozen=True, slots=True)
class Published:
    """This node sends a message of its own."""

    message: WireMessage
    rules: TopicRules
    deliver: bool = True  # hand it to the local subscriptions too


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on a message that a `Judge` effect asked about."""

    message_id: bytes
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SendRefused:
    """A message did not fit into the queue to a peer: it will be announced to it instead."""

    peer: PeerId
    topic: str
    message_id: bytes


@dataclass(frozen=True, slots=True)
class HeartbeatDue:
    """`heartbeat_s` have passed."""


Event: TypeAlias = (
    PeerJoined
    | PeerLeft
    | FrameReceived
    | RpcReceived
    | StreamViolated
    | TopicJoined
    | TopicLeft
    | Published
    | Judged
    | SendRefused
    | HeartbeatDue
)


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send a message to each of `peers`."""

    peers: tuple[PeerId, ...]
    message: CachedMessage
    own: bool = False  # published here: goes before what is forwarded for others


@dataclass(frozen=True, slots=True)
class SendControl:
    """Send control to a peer."""

    peer: PeerId
    control: Control


@dataclass(frozen=True, slots=True)
class SendSubscriptions:
    """Tell a peer what we joined (True) and left (False)."""

    peer: PeerId
    changes: tuple[tuple[bool, str], ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """Have the topic's judge look at a message, and answer with `Judged`, once."""

    message: CachedMessage


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand an accepted message to the local subscriptions."""

    message: CachedMessage


Effect: TypeAlias = SendMessage | SendControl | SendSubscriptions | Judge | Deliver
