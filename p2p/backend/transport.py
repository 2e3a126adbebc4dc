"""Our TCP + Noise + Yamux as one transport of a plain py-libp2p host.

    transport = AgoraTransport(identity)
    host = new_host(key_pair=transport.key_pair, transports=[transport])

The rule: the swarm is handed finished connections, so its upgrader (plaintext, secio, unbounded
windows) is never reached, and an exception of a stream handler costs that stream, not the host.

What of py-libp2p 0.8.1 this relies on beyond its interfaces: a transport whose `dial` or listener
yields an `IMuxedConn` skips the upgrade (made for QUIC); `set_swarm` is called on every transport
that has it, when the swarm starts; `background_nursery` is set on a listener before `listen`; the
listener's handler returns only when the swarm ends, holding an inbound slot until then, and is
therefore cancelled here when its connection ends.
"""

from __future__ import annotations

import logging
from typing import Any

import trio
from libp2p.abc import IListener, INetStream, ITransport
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import THandler
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2p.backend.connection import SecureConnection
from p2p.backend.endpoint import Endpoint, listen
from p2p.backend.muxed import MuxedConnection
from p2p.errors import DialFailed, MalformedAddress, PeerMismatch, PortInUse
from p2p.identity import Identity
from p2p.limits import Limits
from p2p.multiaddress import Address

_log = logging.getLogger(__name__)


class AgoraTransport(ITransport):
    """An `ITransport` for /ip4, /ip6 and /dns addresses over TCP.

    One instance belongs to one host. `identity` must be that of the host: give it `key_pair`.
    """

    provides_native_muxing = True

    def __init__(self, identity: Identity, limits: Limits | None = None) -> None:
        self.endpoint = Endpoint(identity, Limits() if limits is None else limits)

    @property
    def key_pair(self) -> KeyPair:
        """The identity as py-libp2p wants it."""
        return create_new_key_pair(self.endpoint.identity.seed)

    def set_swarm(self, swarm: Any) -> None:
        """Called by the swarm as it starts: put the guard around its stream handler."""
        handler = swarm.common_stream_handler

        async def guarded(stream: INetStream) -> None:
            try:
                await handler(stream)
            except Exception:  # noqa: BLE001  (the guard at the root of every handler)
                self.endpoint.arena.count("handlers_failed")
                _log.warning("a stream handler failed", exc_info=True)
                await stream.reset()

        swarm.set_stream_handler(guarded)

    async def dial(self, maddr: Multiaddr) -> MuxedConnection:  # type: ignore[override]
        """Connect to `maddr`; whoever answers must be the peer that it names, if it names one.

        Raises:
            OpenConnectionError: nobody there in time, no proper handshake, or somebody else.
        """
        try:
            return MuxedConnection(await self.endpoint.dial(Address.parse(str(maddr))))
        except PeerMismatch as error:
            raise OpenConnectionError(f"Peer ID mismatch: {error}") from error
        except (DialFailed, MalformedAddress) as error:
            raise OpenConnectionError(str(error)) from error

    def create_listener(self, handler_function: THandler) -> IListener:
        return MuxedListener(self.endpoint, handler_function)

    def can_dial(self, maddr: Multiaddr) -> bool:
        try:
            Address.parse(str(maddr))
        except MalformedAddress:
            return False
        return True

    def can_listen(self, maddr: Multiaddr) -> bool:
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        return ["tcp"]


class MuxedListener(IListener):
    """Listening sockets whose finished connections go to the swarm's handler."""

    background_nursery: trio.Nursery | None = None  # set by the swarm

    def __init__(self, endpoint: Endpoint, handler: THandler) -> None:
        self._endpoint = endpoint
        self._handler = handler
        self._addresses: list[Address] = []
        self._scope = trio.CancelScope()

    async def listen(self, maddr: Multiaddr) -> None:
        """Listen on `maddr`; `OpenConnectionError` if the port is in use or is not ours."""
        if self.background_nursery is None:
            raise OpenConnectionError("the swarm does not run")
        try:
            sock = listen(Address.parse(str(maddr)))
        except (MalformedAddress, PortInUse) as error:
            raise OpenConnectionError(str(error)) from error
        address = Address.of_socket(sock.getsockname())
        try:
            self.background_nursery.start_soon(self._accept_forever, sock)
        except RuntimeError as error:  # trio's word for a nursery whose tasks have all ended
            sock.close()
            raise OpenConnectionError("the swarm has ended") from error
        self._addresses.append(address)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return tuple(Multiaddr(str(address)) for address in self._addresses)

    async def close(self) -> None:
        """Stop listening, and close what was accepted."""
        self._addresses.clear()
        self._scope.cancel()
        await trio.lowlevel.checkpoint()

    async def _accept_forever(self, sock: Any) -> None:
        with self._scope:
            await self._endpoint.accept_forever(sock, self._handle)

    async def _handle(self, connection: SecureConnection) -> None:
        with trio.CancelScope() as scope:
            connection.on_closed.append(scope.cancel)
            await self._handler(MuxedConnection(connection))  # type: ignore[arg-type]


__all__ = ["AgoraTransport"]
