"""What keeps a DHT alive without being asked: newcomers, refreshing, probing, announcing again.

The rule: all of it is paced and bounded, and none of it makes a full mesh: a refresh is one lookup
per bucket and ten minutes. A network that is only just forming is refreshed sooner: the intervals
begin short and double (libp2p kad-dht, "Bootstrap process").
"""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

import trio

from p2p.errors import ProtocolViolation
from p2p.kademlia.contact import Contact, common_prefix_bits, key_of
from p2p.kademlia.table import load_contacts
from p2p.network import PeerConnected, PeerDisconnected
from p2p.switch import PeerIdentified, Switch

if TYPE_CHECKING:
    from p2p.kademlia.dht import Kademlia

REFRESH_FIRST_S = 4.0
REFRESH_MAX_S = 600.0
"""Between refreshes: soon after the start, then every ten minutes, as Kademlia's buckets."""

ANNOUNCE_FIRST_S = 15.0
ANNOUNCE_MAX_S = 12 * 3600.0
"""Between announcements of one key: half of what they live; sooner while the network forms."""

UPKEEP_INTERVAL_S = 15.0
"""Suspects are probed this soon: a dead peer is gone from the table half a minute later."""

STALE_AFTER_S = 300.0
"""A peer not heard of for this long is probed; 200 peers make 0.7 probes a second at most."""

PROBES_PER_ROUND = 16
"""So that an outage does not turn into a burst of dials."""

PROBES_CONCURRENT = 4

EXPIRE_ROUNDS = 40
SAVE_ROUNDS = 20
"""Rounds of upkeep between expiring what is old (10 min) and saving the table (5 min)."""

REFRESHED_BITS_MAX = 12
"""A random name that shares n bits with us takes 2**n hashes to find; beyond 12 our own
neighbourhood is refreshed by the lookup of ourselves."""

SAVED_BYTES_MAX = 1 << 20
"""128 contacts of 8 addresses are about 300 KiB; a larger file is not ours."""


class Upkeep:
    """The background tasks of one `Kademlia`, and the file that keeps its table."""

    def __init__(
        self, dht: Kademlia, switch: Switch, *, table_path: Path | None, rng: random.Random
    ) -> None:
        self._dht = dht
        self._switch = switch
        self._table_path = table_path
        self._rng = rng

    def start(self, nursery: trio.Nursery) -> None:
        """Start all tasks; they end when the nursery is cancelled."""
        for _ in range(PROBES_CONCURRENT):
            nursery.start_soon(self._dht.walker.serve_probes)
        nursery.start_soon(self._meet_peers)
        nursery.start_soon(self._refresh)
        nursery.start_soon(self._announce)
        nursery.start_soon(self._keep_alive)
        for contact in self._load():
            self._dht.walker.probe(contact)

    def save(self) -> None:
        """Write the table to its file, whole or not at all; a full disk is no reason to fail."""
        if self._table_path is None:
            return
        fresh = self._table_path.with_suffix(".new")
        with contextlib.suppress(OSError):
            fresh.write_bytes(self._dht.table.save())
            os.replace(fresh, self._table_path)

    def _load(self) -> list[Contact]:
        if self._table_path is None:
            return []
        try:
            with self._table_path.open("rb") as file:
                return load_contacts(file.read(SAVED_BYTES_MAX))
        except (OSError, ProtocolViolation):
            return []

    async def _meet_peers(self) -> None:
        """Probe every connected peer that says it speaks our protocol."""
        async with self._switch.watch_peers() as events:
            async for event in events:
                match event:
                    case PeerIdentified(peer_id=peer_id, addresses=addresses):
                        if self._dht.protocol not in event.protocols:
                            self._dht.table.remove(peer_id)
                        elif peer_id not in self._dht.table:
                            self._dht.walker.probe(Contact(peer_id=peer_id, addresses=addresses))
                    case PeerDisconnected(peer_id=peer_id):
                        self._dht.service.forget(peer_id)
                    case PeerConnected():
                        pass  # what it speaks is not known yet
                    case _:
                        assert_never(event)

    async def _refresh(self) -> None:
        """Look ourselves up, then a random name in each bucket down to our neighbourhood."""
        interval_s = REFRESH_FIRST_S
        while True:
            await self._dht.walker.populated.wait()
            await self._dht.closest_peers(self._switch.peer_id.to_bytes())
            if interval_s >= REFRESH_MAX_S:
                deepest = max(self._dht.table.buckets(), default=0)
                for bits in range(min(deepest, REFRESHED_BITS_MAX) + 1):
                    await self._dht.closest_peers(self._name_sharing(bits))
            # Jittered, so that nodes started together do not refresh together for ever.
            await trio.sleep(interval_s * self._rng.uniform(0.8, 1.2))
            interval_s = min(2 * interval_s, REFRESH_MAX_S)

    async def _announce(self) -> None:
        """Announce every provided key again, each at its own growing interval."""
        due: dict[bytes, tuple[float, float]] = {}
        while True:
            now_s = trio.current_time()
            for key in self._dht.provided.keys() - due.keys():
                due[key] = (now_s + ANNOUNCE_FIRST_S, ANNOUNCE_FIRST_S)
            for key in due.keys() - self._dht.provided.keys():
                del due[key]
            for key, (due_s, interval_s) in list(due.items()):
                if due_s > now_s:
                    continue
                await self._dht.announce(key)
                interval_s = min(2 * interval_s, ANNOUNCE_MAX_S)
                jittered_s = interval_s * self._rng.uniform(0.8, 1.0)
                due[key] = (trio.current_time() + jittered_s, interval_s)
            self._dht.newly_provided = trio.Event()
            next_s = min((due_s for due_s, _ in due.values()), default=float("inf"))
            with trio.move_on_at(next_s):
                await self._dht.newly_provided.wait()

    async def _keep_alive(self) -> None:
        """Probe suspects and silent peers; expire and save now and then."""
        rounds = 0
        while True:
            await trio.sleep(UPKEEP_INTERVAL_S)
            rounds += 1
            table = self._dht.table
            stale = table.stale(trio.current_time(), older_than_s=STALE_AFTER_S)
            for contact in stale[:PROBES_PER_ROUND]:
                self._dht.walker.probe(contact)
            if len(table) < table.bucket_size:
                self._find_somebody()
            if rounds % EXPIRE_ROUNDS == 0:
                self._dht.expire()
            if rounds % SAVE_ROUNDS == 0:
                self.save()

    def _find_somebody(self) -> None:
        """The table is nearly empty, at the start or after an outage: ask who is connected."""
        strangers = sorted(
            peer_id
            for peer_id in self._switch.peers
            if peer_id not in self._dht.table
            and self._dht.protocol in self._switch.protocols_of(peer_id)
        )
        for peer_id in strangers[:PROBES_PER_ROUND]:
            addresses = self._switch.addresses_of(peer_id)
            self._dht.walker.probe(Contact(peer_id=peer_id, addresses=addresses))

    def _name_sharing(self, bits: int) -> bytes:
        """A random name whose key shares exactly `bits` leading bits with ours."""
        while True:
            name = self._rng.randbytes(32)
            if common_prefix_bits(key_of(name), self._dht.table.key) == bits:
                return name
