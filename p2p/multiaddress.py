"""Where a peer may be dialled: the part of multiaddr that a TCP network needs.

The rule: an `Address` that exists can be written in both forms, and reads back equal. Text:
`/ip4/1.2.3.4/tcp/4001/p2p/12D3KooW…`; bytes: the multicodec of each part as a varint, then its
value (libp2p addressing spec; multiformats/multiaddr protocols.csv).

Deviations: only ip4, ip6, dns, dns4, dns6 followed by tcp and an optional p2p part exist here.
Other multiaddrs are well formed elsewhere; here they are a `MalformedAddress`, as nothing could
dial them.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass, replace

from p2p.errors import MalformedAddress, MalformedPeerId
from p2p.identity import PEER_ID_BYTES, PeerId

PORT_MAX = 65_535
TEXT_LENGTH_MAX = 512
"""A DNS name has at most 253 characters and a peer id 52."""

_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z")


class Host(enum.Enum):
    """The kind of the first part; the value is its multicodec."""

    IP4 = 0x04
    IP6 = 0x29
    DNS = 0x35
    DNS4 = 0x36
    DNS6 = 0x37


_TCP = 0x06
_P2P = 0x01A5
_KIND_OF_NAME = {kind.name.lower(): kind for kind in Host}
_HOST_BYTES = {Host.IP4: 4, Host.IP6: 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One TCP address, with the peer id that must answer there when it is known.

    Raises:
        MalformedAddress: the host does not suit its kind, or the port is out of range.
    """

    kind: Host
    host: str
    port: int
    peer_id: PeerId | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= PORT_MAX:
            raise MalformedAddress(f"{self.port} is no TCP port")
        object.__setattr__(self, "host", _canonical_host(self.kind, self.host))

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address written as `text`; `MalformedAddress` says what is wrong with it."""
        if len(text) > TEXT_LENGTH_MAX:
            raise MalformedAddress(f"{len(text)} characters are no address")
        match text.split("/"):
            case ["", kind_name, host, "tcp", port]:
                peer_id = None
            case ["", kind_name, host, "tcp", port, "p2p" | "ipfs", peer_text]:
                peer_id = _peer_id(peer_text)
            case _:
                raise MalformedAddress(f"{text!r} is not /ip4|ip6|dns/HOST/tcp/PORT[/p2p/ID]")
        kind = _KIND_OF_NAME.get(kind_name)
        if kind is None:
            raise MalformedAddress(f"{text!r}: hosts of kind {kind_name!r} cannot be dialled")
        if not (port.isascii() and port.isdigit() and len(port) <= len(str(PORT_MAX))):
            raise MalformedAddress(f"{text!r}: {port!r} is no TCP port")
        return cls(kind=kind, host=host, port=int(port), peer_id=peer_id)

    @classmethod
    def of_socket(cls, name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
        """The address of a socket's own or peer name, as `getsockname` gives it."""
        host = ipaddress.ip_address(name[0].partition("%")[0])
        if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
            host = host.ipv4_mapped
        kind = Host.IP4 if host.version == 4 else Host.IP6
        return cls(kind=kind, host=str(host), port=name[1])

    def __str__(self) -> str:
        text = f"/{self.kind.name.lower()}/{self.host}/tcp/{self.port}"
        return text if self.peer_id is None else f"{text}/p2p/{self.peer_id}"

    def with_peer(self, peer_id: PeerId | None) -> Address:
        """The same place, expected to be (or freed from being) `peer_id`."""
        return replace(self, peer_id=peer_id)

    @property
    def is_loopback(self) -> bool:
        """This machine itself."""
        return self.kind in _HOST_BYTES and ipaddress.ip_address(self.host).is_loopback

    def to_bytes(self) -> bytes:
        """The binary form."""
        if self.kind in _HOST_BYTES:
            host = ipaddress.ip_address(self.host).packed
        else:
            host = _varint(len(self.host)) + self.host.encode("ascii")
        raw = _varint(self.kind.value) + host + _varint(_TCP) + self.port.to_bytes(2, "big")
        if self.peer_id is not None:
            raw += _varint(_P2P) + _varint(PEER_ID_BYTES) + self.peer_id.to_bytes()
        return raw

    @classmethod
    def from_bytes(cls, raw: bytes) -> Address:
        """The address whose binary form is `raw`; `MalformedAddress` for any other bytes."""
        reader = _Reader(raw)
        try:
            kind = Host(reader.varint())
        except ValueError as error:
            raise MalformedAddress("a binary address of a kind that cannot be dialled") from error
        if kind in _HOST_BYTES:
            host = str(ipaddress.ip_address(reader.take(_HOST_BYTES[kind])))
        else:
            host = reader.take(reader.varint()).decode("ascii", "replace")
        if reader.varint() != _TCP:
            raise MalformedAddress("a binary address that is not TCP")
        port = int.from_bytes(reader.take(2), "big")
        peer_id = None
        if not reader.is_empty:
            if reader.varint() != _P2P:
                raise MalformedAddress("a binary address that goes on after its port")
            try:
                peer_id = PeerId.from_bytes(reader.take(reader.varint()))
            except MalformedPeerId as error:
                raise MalformedAddress(str(error)) from error
        if not reader.is_empty:
            raise MalformedAddress("a binary address that goes on after its peer")
        return cls(kind=kind, host=host, port=port, peer_id=peer_id)


class _Reader:
    """Takes parts off the front of a binary address; every shortage is a `MalformedAddress`."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._offset = 0

    @property
    def is_empty(self) -> bool:
        return self._offset == len(self._raw)

    def take(self, count: int) -> bytes:
        part = self._raw[self._offset : self._offset + count]
        if len(part) != count:
            raise MalformedAddress("a binary address that ends too early")
        self._offset += count
        return part

    def varint(self) -> int:
        value = 0
        for shift in (0, 7, 14):  # no multicodec or length here needs more
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise MalformedAddress("a binary address with an overlong number")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _canonical_host(kind: Host, host: str) -> str:
    try:
        match kind:
            case Host.IP4:
                return str(ipaddress.IPv4Address(host))
            case Host.IP6:
                return str(ipaddress.IPv6Address(host.partition("%")[0]))
            case Host.DNS | Host.DNS4 | Host.DNS6:
                if _DNS_NAME.match(host) is None:
                    raise MalformedAddress(f"{host!r} is no host name")
                return host
    except ipaddress.AddressValueError as error:
        raise MalformedAddress(f"{host!r} is no {kind.name.lower()} address") from error


def _peer_id(text: str) -> PeerId:
    try:
        return PeerId(text)
    except MalformedPeerId as error:
        raise MalformedAddress(str(error)) from error


__all__ = ["Address", "Host"]
