"""An embeddable libp2p network layer on trio: streams, gossip and a DHT that survive strangers.

    async with p2p.open_network(identity, listen=["/ip4/0.0.0.0/tcp/4001"]) as network:
        await network.serve("/echo/1", handler)
        async with network.subscribe("news") as messages:
            await network.publish("news", b"hello")
            async for message in messages: ...

It needs none of the other packages of this project. Importing it imports no libp2p: `p2p.backend`
does that when the first network is opened. `p2p.memory` is the same network in one process.
"""

from __future__ import annotations

from p2p.errors import (
    DialFailed,
    HandshakeFailed,
    InvalidRecord,
    InvariantViolation,
    LimitExceeded,
    LookupFailed,
    MalformedAddress,
    MalformedPeerId,
    MessageRefused,
    NetworkClosed,
    NetworkError,
    NotConnected,
    PayloadTooLarge,
    PeerMismatch,
    PortInUse,
    ProtocolUnsupported,
    ProtocolViolation,
    StreamClosed,
    StreamError,
    StreamReset,
)
from p2p.gossipsub import GossipOptions
from p2p.identity import Identity, PeerId
from p2p.kademlia import RecordValidator
from p2p.limits import Limits
from p2p.network import (
    ContentRouting,
    Direction,
    Message,
    Network,
    Overflow,
    PeerConnected,
    PeerDisconnected,
    PeerEvent,
    PubSub,
    Stream,
    StreamHandler,
    Subscription,
    TopicOptions,
    Validator,
    Verdict,
)
from p2p.ping import ping
from p2p.stack import open_network

__all__ = [
    "ContentRouting",
    "DialFailed",
    "Direction",
    "GossipOptions",
    "HandshakeFailed",
    "Identity",
    "InvalidRecord",
    "InvariantViolation",
    "LimitExceeded",
    "Limits",
    "LookupFailed",
    "MalformedAddress",
    "MalformedPeerId",
    "Message",
    "MessageRefused",
    "Network",
    "NetworkClosed",
    "NetworkError",
    "NotConnected",
    "Overflow",
    "PayloadTooLarge",
    "PeerConnected",
    "PeerDisconnected",
    "PeerEvent",
    "PeerId",
    "PeerMismatch",
    "PortInUse",
    "ProtocolUnsupported",
    "ProtocolViolation",
    "PubSub",
    "RecordValidator",
    "Stream",
    "StreamClosed",
    "StreamError",
    "StreamHandler",
    "StreamReset",
    "Subscription",
    "TopicOptions",
    "Validator",
    "Verdict",
    "open_network",
    "ping",
]
