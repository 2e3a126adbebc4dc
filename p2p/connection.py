"""The seam under the switch: what a transport gives, whether it is sockets or one process.

The rule: a connection is finished before anyone above sees it: encrypted, multiplexed, and its
peer id proved. The transport owns the tasks that read it; the switch above owns what it means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from p2p.identity import PeerId
from p2p.multiaddress import Address
from p2p.network import Buffer, ByteStream, Direction

HANDLER_GRACE_S = 5.0
"""How long a handler may go on after its connection is lost, to read what had arrived; then it is
cancelled, or strangers could leave handlers behind that wait for something else."""


class RawStream(ByteStream):
    """One multiplexed stream that does not yet speak a protocol; errors are those of `Stream`."""

    @property
    def readable_bytes(self) -> int:
        """What can certainly be received without waiting; 0 where that is not known."""
        return 0

    def receive_nowait(self, max_bytes: int) -> bytes:
        """What can certainly be received without waiting, at most `max_bytes`."""
        return b""

    def close_now(self) -> bool:
        """As `aclose`, without a checkpoint, if both directions have ended in order; whether so."""
        return False

    async def send_behind(self, first: bytes, data: Buffer) -> None:
        """As `send_all` of both, in one flight where the transport can."""
        await self.send_all(b"".join((first, data)))


class Connection(ABC):
    """One finished connection to one peer. Compared and hashed by identity."""

    @property
    @abstractmethod
    def peer_id(self) -> PeerId:
        """Who proved to be at the other end."""

    @property
    @abstractmethod
    def direction(self) -> Direction:
        """Who dialled."""

    @property
    @abstractmethod
    def remote(self) -> Address:
        """The other end of the socket, without a peer id."""

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether no stream can be opened any more."""

    @abstractmethod
    async def open_stream(self) -> RawStream:
        """A new stream; `StreamReset` when the connection is gone, `LimitExceeded` when full."""

    @abstractmethod
    async def aclose(self) -> None:
        """Reset every stream, and close. Idempotent; closed even when cancelled."""


class ConnectionSink(Protocol):
    """What a transport tells the switch; the switch implements it."""

    def connected(self, connection: Connection) -> None:
        """A connection of either direction is finished, and no stream of it has been passed yet.

        Raises:
            LimitExceeded, NetworkClosed: it is not wanted; the transport closes it.
        """
        ...

    def disconnected(self, connection: Connection) -> None:
        """A connection that was accepted is gone. Called once."""
        ...

    async def stream_opened(self, connection: Connection, stream: RawStream) -> None:
        """Serve one inbound stream in a task of the transport; never raises but when cancelled.

        The transport cancels it `HANDLER_GRACE_S` after the connection is lost.
        """
        ...


class Transport(Protocol):
    """Makes connections. Opened and closed by whoever composes it with a switch."""

    @property
    def listening(self) -> tuple[Address, ...]:
        """Where it can be dialled now, with real ports, without peer ids."""
        ...

    def counters(self) -> dict[str, int]:
        """What was counted below the switch, by name."""
        ...

    async def listen(self, addresses: Sequence[Address]) -> None:
        """Listen on every address, or on none; `PortInUse` or `MalformedAddress` when one fails."""
        ...

    async def dial(self, address: Address) -> Connection:
        """Connect to the peer that `address` names; the sink has been told when this returns.

        Raises:
            DialFailed, PeerMismatch, LimitExceeded: there is no connection, and no task is left.
        """
        ...


__all__ = ["HANDLER_GRACE_S", "Connection", "ConnectionSink", "RawStream", "Transport"]
