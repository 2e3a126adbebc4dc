"""Who provides what: announcements of others that this node keeps for the network.

The rule: an announcement names only its sender, lives `PROVIDER_LIFETIME_S` and must then be made
again; no key, peer or stranger's zeal takes more than its share (libp2p kad-dht, "Content
routing"). Full means: expired announcements go first; then, of all keys, the one farthest from us
in the key space, since we are the last node that anybody would ask for it.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field

from p2p.identity import PeerId
from p2p.kademlia.contact import Contact, Key, distance, key_of, subnet_of

PROVIDER_LIFETIME_S = 24 * 3600.0
"""As the specification says; providers announce again every half of it."""

PROVIDERS_PER_KEY_MAX = 128
"""As `Limits.providers_per_key_max`; six times what a search asks for. Full: newcomers are refused,
so that a flood cannot drive out who is there."""

KEYS_PER_PEER_MAX = 256
"""As `Limits.provided_keys_per_peer_max`. Full: newcomers are refused."""

KEYS_MAX = 16_384
"""As `Limits.provider_keys_max`; 16 peers' full shares of 1,024 nodes land here by chance."""

ANNOUNCEMENTS_MAX = 4 * KEYS_MAX
"""Over all keys; 65,536 of about 200 bytes are 13 MB."""

PER_SUBNET_MAX = 16
"""Providers of one key in one public /24: an eighth of the key's room."""


@dataclass(slots=True)
class _Provider:
    """A peer as announced last, and the keys it provides."""

    contact: Contact
    keys: set[bytes] = field(default_factory=set)


class ProviderStore:
    """Announcements by key, for the node at `local`; time in seconds of one clock."""

    def __init__(
        self,
        local: Key,
        *,
        keys_max: int = KEYS_MAX,
        per_key_max: int = PROVIDERS_PER_KEY_MAX,
        per_peer_max: int = KEYS_PER_PEER_MAX,
        limit_private_addresses: bool = False,
    ) -> None:
        self._local = local
        self._keys_max = keys_max
        self._per_key_max = per_key_max
        self._per_peer_max = per_peer_max
        self._limit_private_addresses = limit_private_addresses
        self._keys: dict[bytes, dict[PeerId, float]] = {}
        self._by_distance: list[tuple[int, bytes]] = []
        self._peers: dict[PeerId, _Provider] = {}
        self._announcements = 0
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._announcements

    def add(
        self, key: bytes, contact: Contact, now_s: float, *, observed: str | None = None
    ) -> bool:
        """Keep that `contact` provides `key`; False when a bound refuses it (counted)."""
        is_kept = self._add(key, contact, now_s, observed)
        self.counts["kademlia_announcements_refused"] += not is_kept
        return is_kept

    def _add(self, key: bytes, contact: Contact, now_s: float, observed: str | None) -> bool:
        known = self._keys.get(key)
        if known is not None and contact.peer_id in known:
            known[contact.peer_id] = now_s
            self._peers[contact.peer_id].contact = contact
            return True
        provider = self._peers.get(contact.peer_id)
        if provider is not None and len(provider.keys) >= self._per_peer_max:
            return False
        if known is not None and not self._has_room(known, contact, observed, now_s):
            return False
        if not self._make_room(key, now_s):
            return False
        if key not in self._keys:
            self._keys[key] = {}
            bisect.insort(self._by_distance, (distance(key_of(key), self._local), key))
        self._keys[key][contact.peer_id] = now_s
        provider = self._peers.setdefault(contact.peer_id, _Provider(contact))
        provider.contact = contact
        provider.keys.add(key)
        self._announcements += 1
        return True

    def get(self, key: bytes, now_s: float, *, count: int) -> list[Contact]:
        """Peers that provide `key`, the most recently announced first, at most `count`."""
        known = self._keys.get(key, {})
        alive = [
            (announced_s, peer_id)
            for peer_id, announced_s in known.items()
            if announced_s > now_s - PROVIDER_LIFETIME_S
        ]
        alive.sort(reverse=True)
        return [self._peers[peer_id].contact for _, peer_id in alive[:count]]

    def expire(self, now_s: float) -> int:
        """Drop what is too old; returns how many announcements that were."""
        expired = [
            (key, peer_id)
            for key, known in self._keys.items()
            for peer_id, announced_s in known.items()
            if announced_s <= now_s - PROVIDER_LIFETIME_S
        ]
        for key, peer_id in expired:
            self._drop(key, peer_id)
        return len(expired)

    def _has_room(
        self, known: dict[PeerId, float], contact: Contact, observed: str | None, now_s: float
    ) -> bool:
        if len(known) >= self._per_key_max:
            oldest_s = min(known.values())
            if oldest_s > now_s - PROVIDER_LIFETIME_S:
                return False
            self.expire(now_s)
        subnet = self._subnet(observed or next(iter(contact.addresses), ""))
        if subnet is None:
            return True
        neighbours = sum(
            self._subnet(next(iter(self._peers[peer_id].contact.addresses), "")) == subnet
            for peer_id in known
        )
        return neighbours < PER_SUBNET_MAX

    def _make_room(self, key: bytes, now_s: float) -> bool:
        """Drop keys farther from us than `key` until it fits; False when it cannot."""
        own_distance = distance(key_of(key), self._local)
        while self._announcements >= ANNOUNCEMENTS_MAX or (
            key not in self._keys and len(self._keys) >= self._keys_max
        ):
            if self.expire(now_s):
                continue
            farthest_distance, farthest = self._by_distance[-1]
            if own_distance >= farthest_distance:
                return False
            self.counts["kademlia_announcements_displaced"] += len(self._keys[farthest])
            for peer_id in list(self._keys[farthest]):
                self._drop(farthest, peer_id)
        return True

    def _drop(self, key: bytes, peer_id: PeerId) -> None:
        known = self._keys[key]
        del known[peer_id]
        self._announcements -= 1
        if not known:
            del self._keys[key]
            entry = (distance(key_of(key), self._local), key)
            del self._by_distance[bisect.bisect_left(self._by_distance, entry)]
        provider = self._peers[peer_id]
        provider.keys.discard(key)
        if not provider.keys:
            del self._peers[peer_id]

    def _subnet(self, address: str) -> str | None:
        return subnet_of(address, count_private=self._limit_private_addresses)
