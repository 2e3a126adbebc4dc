"""TCP sockets in and out: dialling, listening, accepting; each ends as a connection or closed.

The rule: a port in use is an error (no SO_REUSEPORT: two processes would share strangers silently);
a socket whose handshake does not finish in time, or is cancelled, is closed; running out of file
descriptors pauses accepting and ends nothing.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeAlias

import trio

from p2p.backend.admission import Admission
from p2p.backend.arena import Arena
from p2p.backend.connection import SecureConnection, StreamServer
from p2p.backend.upgrade import MUXERS, secure_inbound, secure_outbound
from p2p.errors import DialFailed, HandshakeFailed, LimitExceeded, MalformedAddress, PortInUse
from p2p.identity import Identity
from p2p.limits import Limits
from p2p.multiaddress import Address, Host
from p2p.noise import StaticKey, faster_ciphers

BACKLOG = 512
"""Connections that the kernel completes while we are busy."""

ACCEPT_PAUSE_S = 0.1
"""After an error that time may heal, such as no free file descriptor."""

ACCEPTS_PER_TURN_MAX = 32
"""Sockets accepted before other tasks run."""

NOT_SENT_BYTES = 256 * 1024
"""What the kernel queues beyond what is in flight; more only delays pings behind bulk data."""

ConnectionHandler: TypeAlias = Callable[[SecureConnection], Awaitable[None]]

_CLOSED = {errno.EBADF, errno.ENOTSOCK, errno.EINVAL}


class Endpoint:
    """What all sockets of one identity share: its static key, its limits and its sums."""

    def __init__(
        self, identity: Identity, limits: Limits, *, serve: StreamServer | None = None
    ) -> None:
        """`serve` is given every inbound stream; without it `accept_stream` yields them."""
        self.identity = identity
        self.limits = limits
        self.arena = Arena(limits)
        self.admission = Admission(limits)
        self._static = StaticKey.certify(identity, muxers=MUXERS, ciphers=faster_ciphers())
        self._serve = serve

    async def dial(self, address: Address) -> SecureConnection:
        """Connect to `address`, and check its peer id if it names one; `run` is up to the caller.

        Raises:
            DialFailed: nobody there, or no proper handshake, within `dial_timeout_s`.
            PeerMismatch: somebody else is there.
        """
        limits = self.limits
        try:
            with trio.fail_after(limits.dial_timeout_s):
                sock = await _connect(address)
                with _closing_on_error(sock):
                    with trio.fail_after(limits.handshake_timeout_s):
                        link = await secure_outbound(sock, self._static, expected=address.peer_id)
                    return SecureConnection(link, self.arena, serve=self._serve)
        except trio.TooSlowError as error:
            raise DialFailed(f"{address} did not answer in time") from error
        except HandshakeFailed as error:
            raise DialFailed(f"{address}: {error}") from error
        except OSError as error:
            raise DialFailed(f"{address}: {error}") from error

    async def accept_forever(self, listener: socket.socket, handle: ConnectionHandler) -> NoReturn:
        """Accept on a listening socket, one task per connection; closes it when cancelled.

        `handle` is called with each finished connection and must `run` it, or see to it that
        somebody does; the connection is closed when it returns.
        """
        with listener:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(listener.fileno())
                    for _ in range(ACCEPTS_PER_TURN_MAX):
                        try:
                            sock, name = listener.accept()
                        except BlockingIOError:
                            break
                        except OSError as error:
                            if error.errno in _CLOSED:
                                raise
                            await trio.sleep(ACCEPT_PAUSE_S)
                            break
                        nursery.start_soon(self._take_in, sock, name[0].partition("%")[0], handle)

    async def _take_in(self, sock: socket.socket, host: str, handle: ConnectionHandler) -> None:
        """From an accepted socket to the end of its connection."""
        connection = None
        with sock:
            try:
                _configure(sock)
                with self.admission.handshake(host) as scope:
                    link = await secure_inbound(sock, self._static)
                if scope.cancelled_caught:
                    self.arena.count("handshakes_dropped")
                    return
                with self.admission.connection(host):
                    connection = SecureConnection(link, self.arena, serve=self._serve)
                    await handle(connection)
            except (HandshakeFailed, OSError):  # a socket may be gone before it is looked at
                self.arena.count("handshakes_failed")
            except LimitExceeded:
                if connection is None:  # else `handle` refused it, and whoever refuses counts
                    self.arena.count("connections_refused")
            finally:
                if connection is not None:
                    connection.abort("the connection was dropped here")


def listen(address: Address) -> socket.socket:
    """A listening, non-blocking socket at an IP address; port 0 picks a free one.

    Raises:
        PortInUse: somebody listens there already.
        MalformedAddress: not an IP address of this machine.
    """
    families = {Host.IP4: socket.AF_INET, Host.IP6: socket.AF_INET6}
    family = families.get(address.kind)
    if family is None:
        raise MalformedAddress(f"{address}: only an IP address can be listened on")
    listener = socket.socket(family, socket.SOCK_STREAM)
    with _closing_on_error(listener):
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # skips TIME_WAIT only
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind((address.host, address.port))
            listener.listen(BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(f"{address}: {error.strerror}") from error
            raise MalformedAddress(f"{address}: {error.strerror}") from error
    return listener


async def _connect(address: Address) -> socket.socket:
    stream = await trio.open_tcp_stream(address.host, address.port, happy_eyeballs_delay=0.25)
    sock = socket.socket(fileno=stream.socket.detach())
    with _closing_on_error(sock):
        _configure(sock)
    return sock


def _configure(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)


@contextmanager
def _closing_on_error(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


__all__ = ["ConnectionHandler", "Endpoint", "listen"]
