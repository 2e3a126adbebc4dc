"""What can go wrong on the network, sorted by whose fault it is.

The rule: whatever a remote party or the wire does becomes one of these types and never an exception
of a library below; each is cheap to raise and ends at most one call, stream or connection.

    NetworkError                        all of the below
    ├── MalformedAddress                ours: not a multiaddr that can be dialled
    ├── MalformedPeerId                 text or bytes that are not an Ed25519 peer id
    ├── PortInUse                       ours: another socket already listens there
    ├── PayloadTooLarge                 ours: a message over its topic's payload_bytes_max
    ├── MessageRefused                  ours: a message that the topic's own judge here rejects
    ├── NetworkClosed                   ours: the network has been closed, or is closing
    ├── NotConnected                    no connection to that peer, and none was to be made
    ├── DialFailed                      no address of the peer could be reached in time
    │   └── PeerMismatch                who answered proved another identity than the one dialled
    ├── HandshakeFailed                 theirs: the other side broke the security handshake
    ├── ProtocolViolation               theirs: bytes that the protocol forbids
    ├── ProtocolUnsupported             the peer speaks none of the protocols offered
    ├── LimitExceeded                   a named bound of `Limits` is reached
    ├── StreamError                     one stream has ended
    │   ├── StreamReset                 the peer, the wire or a limit ended it
    │   └── StreamClosed                ours: used after it was closed here
    ├── LookupFailed                    the DHT holds no answer, or gave none in time
    └── InvalidRecord                   a DHT record refused by the validator of its namespace

    InvariantViolation                  impossible: a defect of this package; ends the network

`StreamReset` is also a `trio.BrokenResourceError` and `StreamClosed` a `trio.ClosedResourceError`,
so that code written for any `trio.abc.Stream` works unchanged.
"""

from __future__ import annotations

import trio


class NetworkError(Exception):
    """The root of every expected failure of this package."""


class MalformedAddress(NetworkError, ValueError):
    """An address that is not a multiaddr, or not one that this network can dial or listen on."""


class MalformedPeerId(NetworkError, ValueError):
    """Text or bytes that are not the identity multihash of an Ed25519 public key."""


class PortInUse(NetworkError):
    """Another socket already listens on the requested address."""


class PayloadTooLarge(NetworkError, ValueError):
    """A message longer than its topic allows; nothing was sent."""

    def __init__(self, payload_bytes: int, payload_bytes_max: int) -> None:
        super().__init__(f"{payload_bytes} bytes, the topic allows {payload_bytes_max}")
        self.payload_bytes = payload_bytes
        self.payload_bytes_max = payload_bytes_max


class MessageRefused(NetworkError, ValueError):
    """A message that the topic's judge on this node rejects; nothing was sent."""


class NetworkClosed(NetworkError):
    """The network has been closed; nothing can be started on it."""


class NotConnected(NetworkError):
    """There is no connection to the peer, and no address by which to make one."""


class DialFailed(NetworkError):
    """No connection could be made in time; the message names each address and its cause."""


class PeerMismatch(DialFailed):
    """Whoever answered proved to hold another key than the peer id that was dialled."""


class HandshakeFailed(NetworkError):
    """The security handshake was broken, timed out, or carried a wrong signature."""


class ProtocolViolation(NetworkError):
    """The remote party sent what its protocol forbids; its connection or stream is ended."""


class ProtocolUnsupported(NetworkError):
    """The peer speaks none of the protocols that were offered."""

    def __init__(self, protocols: tuple[str, ...]) -> None:
        super().__init__(f"the peer speaks none of {', '.join(protocols)}")
        self.protocols = protocols


class LimitExceeded(NetworkError):
    """A bound of `Limits` is reached; the message names it."""

    def __init__(self, limit: str, value: float) -> None:
        super().__init__(f"{limit} = {value:g} is reached")
        self.limit = limit
        self.value = value


class StreamError(NetworkError):
    """One stream has ended; its connection is not affected."""


class StreamReset(StreamError, trio.BrokenResourceError):
    """The stream was ended by the peer, by the loss of its connection, or by a limit."""


class StreamClosed(StreamError, trio.ClosedResourceError):
    """The stream was used after this side had closed it."""


class LookupFailed(NetworkError):
    """The distributed hash table gave no answer, or none before its deadline."""


class InvalidRecord(NetworkError, ValueError):
    """A record that the validator of its namespace refuses, or whose namespace has none."""


class InvariantViolation(Exception):
    """Something that cannot happen happened: a defect here, never a remote party's doing."""


__all__ = [
    "DialFailed",
    "HandshakeFailed",
    "InvalidRecord",
    "InvariantViolation",
    "LimitExceeded",
    "LookupFailed",
    "MalformedAddress",
    "MalformedPeerId",
    "MessageRefused",
    "NetworkClosed",
    "NetworkError",
    "NotConnected",
    "PayloadTooLarge",
    "PeerMismatch",
    "PortInUse",
    "ProtocolUnsupported",
    "ProtocolViolation",
    "StreamClosed",
    "StreamError",
    "StreamReset",
]
