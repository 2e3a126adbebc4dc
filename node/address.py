"""Multiaddrs as people type them: checked before anything is opened, with one clear reason.

The rule: a bootstrap address names *who* is meant, `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/p2p/ID`
(through a relay: `<relay's address>/p2p-circuit/p2p/ID`); an address to listen on or to announce
names a place, `/ip4|ip6|dns…/HOST/tcp/PORT`. Only TCP: the stack speaks Noise and Yamux over it.
See the multiaddr specification and libp2p's addressing document.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from node.errors import AddressError
from p2p.errors import MalformedPeerId
from p2p.identity import PeerId

ADDRESS_LENGTH_MAX: Final = 1_024
"""Longer than any relay address with two names of 255 characters."""

_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_EXAMPLE: Final = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooW…"


def check_dialable(address: str) -> PeerId:
    """The peer that a bootstrap address names. Raises AddressError with the reason."""
    if "/p2p-circuit/" in address:
        relay, _, target = address.partition("/p2p-circuit")
        check_dialable(relay)
        rest = target.split("/")[1:]
    else:
        rest = _after_place(address, listening=False)
    if not rest:
        raise AddressError(f"{address!r} names no peer: it must end in /p2p/ID, as in {_EXAMPLE}")
    if len(rest) != 2 or rest[0] != "p2p":
        raise AddressError(f"{address!r} is not a peer's address; expected {_EXAMPLE}")
    try:
        return PeerId(rest[1])
    except MalformedPeerId as error:
        raise AddressError(f"{address!r}: {error}") from None


def check_listen(address: str) -> None:
    """Raises AddressError unless `address` is a local IP address and TCP port (0 = any free)."""
    if _after_place(address, listening=True):
        raise AddressError(f"{address!r}: an address to listen on ends after its port")


def check_announce(address: str) -> None:
    """Raises AddressError unless others could dial `address` (without `/p2p/ID`)."""
    if _after_place(address, listening=False):
        raise AddressError(f"{address!r}: an announced address ends after its port")


def _after_place(address: str, *, listening: bool) -> list[str]:
    """The parts that follow `/ip4/HOST/tcp/PORT`."""
    if len(address) > ADDRESS_LENGTH_MAX:
        raise AddressError(f"an address of {len(address)} characters is no multiaddr")
    parts = address.split("/")
    if len(parts) < 5 or parts[0] != "" or parts[3] != "tcp":
        raise AddressError(f"{address!r} is not a TCP multiaddr; expected {_EXAMPLE}")
    kind, host, port = parts[1], parts[2], parts[4]
    if not _names_host(kind, host, listening=listening):
        raise AddressError(f"{address!r}: {host!r} is not a valid /{kind} host")
    # isdecimal admits other scripts' digits; a port is ASCII.
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 1 << 16):
        raise AddressError(f"{address!r}: {port!r} is not a TCP port")
    if not listening and int(port) == 0:
        raise AddressError(f"{address!r}: port 0 cannot be dialled")
    return parts[5:]


def _names_host(kind: str, host: str, *, listening: bool) -> bool:
    match kind:
        case "ip4":
            return _is_ip(ipaddress.IPv4Address, host)
        case "ip6":
            return _is_ip(ipaddress.IPv6Address, host)
        case "dns" | "dns4" | "dns6":
            return not listening and _HOST_NAME.fullmatch(host) is not None
        case _:
            return False


def _is_ip(family: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address], host: str) -> bool:
    try:
        family(host)
    except ValueError:
        return False
    return True
