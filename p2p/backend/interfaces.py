"""Which addresses of this machine stand behind "all interfaces".

The rule: what a node says of itself can be dialled; 0.0.0.0 and :: cannot. No packet is sent: a
connected datagram socket only asks the routing table which own address it would use.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from dataclasses import replace

from p2p.multiaddress import Address, Host

_ELSEWHERE = {Host.IP4: "192.0.2.1", Host.IP6: "2001:db8::1"}
"""Addresses set aside for documentation (RFC 5737, RFC 3849): routed like any other, never used."""

_FAMILIES = {Host.IP4: socket.AF_INET, Host.IP6: socket.AF_INET6}
_LOOPBACK = {Host.IP4: "127.0.0.1", Host.IP6: "::1"}


def dialable(listening: Address) -> tuple[Address, ...]:
    """The address itself; for all interfaces, the one towards the Internet, then loopback."""
    if listening.kind not in _FAMILIES or not ipaddress.ip_address(listening.host).is_unspecified:
        return (listening,)
    hosts = []
    with (
        contextlib.suppress(OSError),  # no route: this machine has loopback only
        socket.socket(_FAMILIES[listening.kind], socket.SOCK_DGRAM) as probe,
    ):
        probe.connect((_ELSEWHERE[listening.kind], 9))
        hosts.append(probe.getsockname()[0].partition("%")[0])
    loopback = _LOOPBACK[listening.kind]
    return tuple(replace(listening, host=host) for host in dict.fromkeys([*hosts, loopback]))


__all__ = ["dialable"]
