"""The DHT machines of a whole network in one process and virtual time.

The rule: the routing tables, lookups and servers are the product's own; only the network under
them is made up: every message takes a seeded latency, the dead either refuse at once or stay silent
until the request's time-out. The network is grown by real joins, then a fifth of it dies
unannounced, and only then is it measured: nobody has had time to notice.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from p2p.identity import PeerId
from p2p.kademlia.contact import Contact, Key, key_of
from p2p.kademlia.lookup import Lookup
from p2p.kademlia.message import Kind, Message
from p2p.kademlia.multihash import provider_key
from p2p.kademlia.providers import ProviderStore
from p2p.kademlia.records import RecordStore, Validators
from p2p.kademlia.server import Server
from p2p.kademlia.table import BUCKET_SIZE, RoutingTable, nearest

LATENCY_S = (0.01, 0.15)
"""One way, uniform: a continent to the other side of the world."""

REQUEST_TIMEOUT_S = 3.0
"""As `Limits.lookup_request_timeout_s`."""

SILENT_SHARE = 0.5
"""Of the dead: hosts that are gone; the others' hosts still refuse connections."""

ENTRY_NODES = 16
"""The first nodes, which newcomers know: a bootstrap list."""

RANDOM_LOOKUPS = 2
"""Each newcomer's, after it has looked itself up: a first refresh of its far buckets."""

Done = Callable[[Lookup], None]
Heard = Callable[[Lookup, Message], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtFigures:
    """What was measured; requests include those that failed."""

    nodes: int
    dead_share: float
    lookups: int
    dht_success: float
    dht_rpcs_mean: float
    dht_rpcs_p99: float
    dht_latency_p50_s: float
    dht_latency_p99_s: float
    full_success: float
    full_rpcs_mean: float
    full_recall: float
    full_latency_p50_s: float
    full_latency_p99_s: float
    table_peers_mean: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Node:
    contact: Contact
    table: RoutingTable
    server: Server
    alive: bool = True
    silent: bool = False


class DhtSimulation:
    """A network of `nodes` DHT nodes; everything that happens follows from `seed`."""

    def __init__(self, *, nodes: int, seed: int) -> None:
        self.now_s = 0.0
        self._rng = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self.nodes: dict[PeerId, _Node] = {}
        self._order: list[_Node] = []
        for _ in range(nodes):
            self._join()

    def kill(self, share: float) -> None:
        """End that share of the nodes, all at once and without a word."""
        for node in self._rng.sample(self._order, round(share * len(self._order))):
            node.alive = False
            node.silent = self._rng.random() < SILENT_SHARE

    def alive(self) -> list[_Node]:
        """The nodes that live."""
        return [node for node in self._order if node.alive]

    def run(self) -> None:
        """Let everything happen that has been started."""
        while self._events:
            self.now_s, _, happen = heapq.heappop(self._events)
            happen()

    def search(
        self, node: _Node, target: Key, request: Message, *, heard: Heard, done: Done
    ) -> None:
        """Start a lookup of `node`; `heard` sees every answer, `done` the end."""
        lookup = Lookup(
            target=target,
            local=node.contact.peer_id,
            seeds=node.table.closest(target, BUCKET_SIZE),
        )
        ended = False

        def advance() -> None:
            nonlocal ended
            if ended:
                return
            for contact in lookup.poll(self.now_s):
                self._ask(node, contact, request, answered, failed)
            if lookup.done:
                ended = True
                done(lookup)
            elif lookup.wake_s is not None:
                self._at(lookup.wake_s, advance)

        def answered(contact: Contact, answer: Message) -> None:
            node.table.answered(contact, self.now_s)
            if not ended:
                heard(lookup, answer)
                lookup.answered(contact.peer_id, answer.closer)
                advance()

        def failed(contact: Contact) -> None:
            node.table.failed(contact.peer_id)
            if not ended:
                lookup.failed(contact.peer_id)
                advance()

        advance()

    def _join(self) -> None:
        peer_id = PeerId.from_public_key(self._rng.randbytes(32))
        contact = Contact(peer_id=peer_id)
        table = RoutingTable(peer_id)
        server = Server(
            table=table,
            providers=ProviderStore(table.key),
            records=RecordStore(table.key, Validators()),
        )
        node = _Node(contact, table, server)
        entries = self._order[:ENTRY_NODES]
        for entry in self._rng.sample(entries, min(3, len(entries))):
            table.answered(entry.contact, self.now_s)
        self.nodes[peer_id] = node
        self._order.append(node)
        names = [peer_id.to_bytes()]
        names += [self._rng.randbytes(32) for _ in range(RANDOM_LOOKUPS)]
        for name in names:
            request = Message(kind=Kind.FIND_NODE, key=name)
            self.search(node, key_of(name), request, heard=_ignore, done=_ignore)
            self.run()

    def _ask(
        self,
        node: _Node,
        contact: Contact,
        request: Message,
        answered: Callable[[Contact, Message], None],
        failed: Callable[[Contact], None],
    ) -> None:
        other = self.nodes[contact.peer_id]
        sent_s = self.now_s
        there_s = self._rng.uniform(*LATENCY_S)
        back_s = self._rng.uniform(*LATENCY_S)

        def arrive() -> None:
            if other.silent:
                self._at(sent_s + REQUEST_TIMEOUT_S, lambda: failed(contact))
            elif not other.alive:
                self._at(self.now_s + back_s, lambda: failed(contact))
            else:
                answer = other.server.answer(node.contact.peer_id, request, self.now_s)
                # A real node asks back before it adds a newcomer; one that lives always answers.
                other.table.answered(node.contact, self.now_s)
                back = answer or Message(kind=request.kind)
                self._at(self.now_s + back_s, lambda: answered(contact, back))

        self._at(sent_s + there_s, arrive)

    def _at(self, time_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._sequence), happen))


def measure_dht(
    *, nodes: int, seed: int = 1, dead_share: float = 0.2, lookups: int = 400
) -> DhtFigures:
    """Grow a network, store provider records in it, kill `dead_share` of it, and search.

    A lookup that stops at the first valid answer succeeds when a provider is named; a full one when
    it has found at least one of the true k closest that live (recall: how many of them).
    """
    simulation = DhtSimulation(nodes=nodes, seed=seed)
    rng = random.Random(seed + 1)
    keys = [provider_key(rng.randbytes(16)) for _ in range(lookups)]
    providers = [rng.choice(simulation.alive()) for _ in keys]
    for key, provider in zip(keys, providers, strict=True):
        _provide(simulation, provider, key)
    simulation.run()
    simulation.kill(dead_share)
    alive = simulation.alive()
    first = _Tally()
    for key, provider in zip(keys, providers, strict=True):
        others = [node for node in alive if node is not provider]
        _find_provider(simulation, rng.choice(others), key, first)
    full = _Tally()
    for _ in range(max(1, lookups // 4)):
        _find_closest(simulation, rng.choice(alive), rng.randbytes(32), alive, full)
    return DhtFigures(
        nodes=nodes,
        dead_share=dead_share,
        lookups=lookups,
        dht_success=statistics.fmean(first.success),
        dht_rpcs_mean=statistics.fmean(first.requests),
        dht_rpcs_p99=_percentile(first.requests, 0.99),
        dht_latency_p50_s=_percentile(first.latency_s, 0.5),
        dht_latency_p99_s=_percentile(first.latency_s, 0.99),
        full_success=statistics.fmean(r > 0 for r in full.success),
        full_rpcs_mean=statistics.fmean(full.requests),
        full_recall=statistics.fmean(full.success),
        full_latency_p50_s=_percentile(full.latency_s, 0.5),
        full_latency_p99_s=_percentile(full.latency_s, 0.99),
        table_peers_mean=statistics.fmean(len(node.table) for node in alive),
    )


class _Tally:
    def __init__(self) -> None:
        self.success: list[float] = []
        self.requests: list[float] = []
        self.latency_s: list[float] = []

    def add(self, success: float, requests: int, latency_s: float) -> None:
        self.success.append(success)
        self.requests.append(requests)
        self.latency_s.append(latency_s)


def _provide(simulation: DhtSimulation, node: _Node, key: bytes) -> None:
    announcement = Message(kind=Kind.ADD_PROVIDER, key=key, providers=(node.contact,))

    def done(lookup: Lookup) -> None:
        for holder in lookup.closest():
            simulation.nodes[holder.peer_id].server.answer(
                node.contact.peer_id, announcement, simulation.now_s
            )

    request = Message(kind=Kind.FIND_NODE, key=key)
    simulation.search(node, key_of(key), request, heard=_ignore, done=done)
    simulation.run()


def _find_provider(simulation: DhtSimulation, node: _Node, key: bytes, tally: _Tally) -> None:
    started_s = simulation.now_s
    found = False

    def heard(lookup: Lookup, answer: Message) -> None:
        nonlocal found
        if answer.providers:
            found = True
            lookup.stop()

    def done(lookup: Lookup) -> None:
        tally.add(found, lookup.requests, simulation.now_s - started_s)

    request = Message(kind=Kind.GET_PROVIDERS, key=key)
    simulation.search(node, key_of(key), request, heard=heard, done=done)
    simulation.run()


def _find_closest(
    simulation: DhtSimulation, node: _Node, name: bytes, alive: Iterable[_Node], tally: _Tally
) -> None:
    started_s = simulation.now_s
    others = (other.contact for other in alive if other is not node)
    true = {contact.peer_id for contact in nearest(others, key_of(name), BUCKET_SIZE)}

    def done(lookup: Lookup) -> None:
        found = {contact.peer_id for contact in lookup.closest()}
        recall = len(true & found) / len(true)
        tally.add(recall, lookup.requests, simulation.now_s - started_s)

    request = Message(kind=Kind.FIND_NODE, key=name)
    simulation.search(node, key_of(name), request, heard=_ignore, done=done)
    simulation.run()


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _ignore(*_arguments: object) -> None:
    """For a search whose answers or end nobody waits for."""
