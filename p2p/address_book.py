"""The address book: where peers said, or proved, that they can be dialled.

The rule: bounded in peers and in addresses per peer, and what was proved by a dial comes first.
Full of peers, the one touched longest ago is forgotten; full of addresses, claims are left out and
a proved one takes the place of the least recently confirmed. Both are counted.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from p2p.errors import MalformedAddress
from p2p.identity import PeerId
from p2p.multiaddress import Address


class AddressBook:
    """Full multiaddrs by peer; not thread-safe, owned by one switch."""

    def __init__(self, *, peers_max: int, addresses_per_peer_max: int) -> None:
        self._peers_max = peers_max
        self._addresses_per_peer_max = addresses_per_peer_max
        self._addresses: OrderedDict[PeerId, list[Address]] = OrderedDict()
        self.counts: Counter[str] = Counter()

    def add(self, peer_id: PeerId, addresses: Iterable[str]) -> None:
        """Remember claimed addresses behind those already known.

        Raises:
            MalformedAddress: one is malformed or names another peer; those before it are kept.
        """
        for text in addresses:
            address = _address_of_peer(text, peer_id)
            known = self._known(peer_id)
            if address in known:
                continue
            if len(known) < self._addresses_per_peer_max:
                known.append(address)
            else:
                self.counts["addresses_left_out"] += 1

    def confirm(self, address: Address) -> None:
        """A dial to `address` met the peer that it names: it is tried first from now on."""
        if address.peer_id is None:
            raise MalformedAddress(f"{address} names no peer")
        known = self._known(address.peer_id)
        if address in known:
            known.remove(address)
        known.insert(0, address)
        del known[self._addresses_per_peer_max :]

    def of(self, peer_id: PeerId) -> tuple[Address, ...]:
        """The known addresses of a peer, the most recently confirmed first."""
        return tuple(self._addresses.get(peer_id, ()))

    def forget(self, address: Address) -> None:
        """Another peer answered there: the claim was wrong."""
        if address.peer_id is not None and address in self._addresses.get(address.peer_id, ()):
            self._addresses[address.peer_id].remove(address)

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Every peer with an address, the one touched longest ago first."""
        return tuple(peer_id for peer_id, known in self._addresses.items() if known)

    def _known(self, peer_id: PeerId) -> list[Address]:
        known = self._addresses.setdefault(peer_id, [])
        self._addresses.move_to_end(peer_id)
        while len(self._addresses) > self._peers_max:
            self._addresses.popitem(last=False)
            self.counts["address_book_peers_forgotten"] += 1
        return known


def _address_of_peer(text: str, peer_id: PeerId) -> Address:
    address = Address.parse(text)
    if address.peer_id not in (None, peer_id):
        raise MalformedAddress(f"{text!r} is an address of another peer than {peer_id}")
    return address.with_peer(peer_id)


__all__ = ["AddressBook"]
