"""Who may have a socket here: half-open handshakes and finished connections, in total and per IP.

The rule: strangers compete only with strangers. A full table of half-open sockets drops its oldest,
so that whoever finishes a handshake promptly gets in however many sit and wait; finished inbound
connections are capped, and the newest is refused. One IP address fills no table alone, except
loopback and private ones, unless `Limits.limit_private_addresses`.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from p2p.errors import LimitExceeded
from p2p.limits import Limits

INBOUND_SHARE = 0.75
"""Of `connections_max`; the rest is for our own dials."""


class Admission:
    """Counts the inbound sockets of one transport."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._half_open: dict[trio.CancelScope, str] = {}  # in order of arrival
        self._established: Counter[str] = Counter()
        self.evicted = 0

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return len(self._half_open)

    @property
    def established(self) -> int:
        """Inbound connections alive."""
        return self._established.total()

    @contextmanager
    def handshake(self, host: str) -> Iterator[trio.CancelScope]:
        """A place in the half-open table while the block lasts; being evicted cancels the block."""
        self._make_room(host)
        with trio.move_on_after(self._limits.handshake_timeout_s) as scope:
            self._half_open[scope] = host
            try:
                yield scope
            finally:
                self._half_open.pop(scope, None)

    @contextmanager
    def connection(self, host: str) -> Iterator[None]:
        """A place among the inbound connections while the block lasts.

        Raises:
            LimitExceeded: there is none.
        """
        limits = self._limits
        if self.established >= int(limits.connections_max * INBOUND_SHARE):
            raise LimitExceeded("connections_max", limits.connections_max)
        if self._is_counted(host) and self._established[host] >= limits.connections_per_ip_max:
            raise LimitExceeded("connections_per_ip_max", limits.connections_per_ip_max)
        self._established[host] += 1
        try:
            yield
        finally:
            self._established[host] -= 1
            if not self._established[host]:
                del self._established[host]

    def _make_room(self, host: str) -> None:
        limits = self._limits
        if self._is_counted(host):
            same = [scope for scope, other in self._half_open.items() if other == host]
            if len(same) >= limits.half_open_per_ip_max:
                self._evict(same[0])
        if len(self._half_open) >= limits.half_open_max:
            self._evict(next(iter(self._half_open)))

    def _evict(self, scope: trio.CancelScope) -> None:
        del self._half_open[scope]
        self.evicted += 1
        scope.cancel()

    def _is_counted(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        is_local = address.is_private or address.is_loopback or address.is_link_local
        return self._limits.limit_private_addresses or not is_local


__all__ = ["Admission"]
