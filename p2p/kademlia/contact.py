"""A contact: a peer, where it is said to listen, and its place in the key space.

The rule: names become keys by SHA-256 and nearness is XOR of keys (libp2p kad-dht, "Distance"), so
that nobody chooses a place in the key space without paying for it by hashing.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass, field
from typing import NewType

from p2p.identity import PeerId

KEY_BITS = 256

SUBNET_BITS_IP4 = 24
"""A /24 is the smallest block that is routed, so the cheapest one to rent whole."""

SUBNET_BITS_IP6 = 48
"""A /48 is what one site is given."""

Key = NewType("Key", int)
"""A place in the key space: 0 <= key < 2**256."""


def key_of(name: bytes) -> Key:
    """The place of a name: of a peer id in its binary form, a provider key or a record key."""
    return Key(int.from_bytes(hashlib.sha256(name).digest()))


def distance(a: Key, b: Key) -> int:
    """How far apart two places are; the triangle inequality holds, and 0 is only equality."""
    return a ^ b


def common_prefix_bits(a: Key, b: Key) -> int:
    """How many leading bits two places share: 0..256. Each bit more halves the distance."""
    return KEY_BITS - (a ^ b).bit_length()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """A peer with full multiaddrs (ending in /p2p/ID) where it may be dialled; unproved."""

    peer_id: PeerId
    addresses: tuple[str, ...] = ()
    key: Key = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", key_of(self.peer_id.to_bytes()))


def subnet_of(address: str, *, count_private: bool = False) -> str | None:
    """The /24 (or IPv6 /48) of a multiaddr that begins with an IP.

    None, that is unlimited, for names and, unless `count_private`, for loopback, private and
    link-local addresses: there one subnet holds a whole honest network.
    """
    parts = address.split("/", 3)
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return None
    if ip.is_private and not count_private:
        return None
    bits = SUBNET_BITS_IP4 if ip.version == 4 else SUBNET_BITS_IP6
    return str(ipaddress.ip_network((int(ip), bits) if ip.version == 4 else f"{ip}/{bits}", False))
