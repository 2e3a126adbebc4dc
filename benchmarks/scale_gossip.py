"""The gossip machines of a whole network in one process and virtual time.

The rule: the routers are the product's own, with its default parameters; made up is only the
network under them: every node dials ten others, every connection has a seeded latency, nothing is
encoded. After the meshes have formed messages are published by random nodes; then a fifth of the
nodes vanishes while messages go on, and the living are counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from benchmarks.measure import percentile
from p2p.gossipsub.simulation import LinkModel, SimulatedNode, Simulation

TOPIC = "scale"
DIALS = 10
"""Connections that each node opens; with those that it accepts it has about twenty."""

LINK = LinkModel(latency_min_s=0.04, latency_max_s=0.1)
"""One way: within a continent, with what a busy host adds."""

PAYLOAD_BYTES = 1024
WARM_UP_S = 6.0
INTERVAL_S = 0.2
SETTLE_S = 5.0
"""Longer than gossip takes to repair what the mesh lost: three heartbeats and two round trips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipFigures:
    """What was measured; latencies in virtual milliseconds."""

    messages: int
    delivery_ratio: float  # of (message, living subscriber)
    delivered_twice: int
    hops_p50: int
    hops_p99: int
    hops_max: int
    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    latency_max_ms: float
    duplicates_per_message: float  # copies received beyond the first, per node and message
    control_overhead: float  # bytes of control sent per byte of messages sent
    mesh_degree_mean: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def measure_gossip(
    *, nodes: int, seed: int = 1, messages: int = 30, dead_share: float = 0.2
) -> tuple[GossipFigures, GossipFigures]:
    """A quiet network, and the same while `dead_share` of it dies unannounced."""
    simulation = Simulation(nodes, seed=seed, link=LINK)
    simulation.connect_at_random(DIALS)
    for node in simulation.nodes:
        simulation.subscribe(node, TOPIC)
    simulation.run_until(WARM_UP_S)
    quiet = _publish(simulation, range(messages), victims=[])
    victims = simulation.rng.sample(simulation.nodes, int(dead_share * nodes))
    churning = _publish(simulation, range(messages, 2 * messages), victims=victims)
    return quiet, churning


def _publish(simulation: Simulation, numbers: range, victims: list[SimulatedNode]) -> GossipFigures:
    """Publish one message every interval; `victims` die one by one meanwhile."""
    doomed = {victim.index for victim in victims}
    publishers = [node for node in simulation.nodes if node.is_alive and node.index not in doomed]
    copies, payload, control = _sums(simulation.nodes)
    published_at: dict[bytes, float] = {}
    for step, number in enumerate(numbers):
        data = number.to_bytes(8, "big").ljust(PAYLOAD_BYTES, b"\xa5")
        publisher = simulation.rng.choice(publishers)
        published_at[simulation.publish(publisher, TOPIC, data)] = simulation.now
        share = slice(
            step * len(victims) // len(numbers), (step + 1) * len(victims) // len(numbers)
        )
        for victim in victims[share]:
            simulation.kill(victim)
        simulation.run_until(simulation.now + INTERVAL_S)
    simulation.run_until(simulation.now + SETTLE_S)
    living = [node for node in simulation.nodes if node.is_alive]
    accepted = [
        (node.accepted[one][0] - at, node.accepted[one][1])
        for node in living
        for one, at in published_at.items()
        if one in node.accepted
    ]
    copies_after, payload_after, control_after = _sums(simulation.nodes)
    firsts = sum(one in node.accepted for node in simulation.nodes for one in published_at)
    latencies_ms = [1000 * latency_s for latency_s, _ in accepted]
    hops = [hop for _, hop in accepted]
    return GossipFigures(
        messages=len(numbers),
        delivery_ratio=len(accepted) / (len(living) * len(published_at)),
        delivered_twice=sum(
            node.deliveries.get(one, 0) > 1 for node in living for one in published_at
        ),
        hops_p50=int(percentile(hops, 50)),
        hops_p99=int(percentile(hops, 99)),
        hops_max=max(hops),
        latency_p50_ms=round(percentile(latencies_ms, 50), 1),
        latency_p90_ms=round(percentile(latencies_ms, 90), 1),
        latency_p99_ms=round(percentile(latencies_ms, 99), 1),
        latency_max_ms=round(max(latencies_ms), 1),
        duplicates_per_message=round(
            (copies_after - copies - (firsts - len(published_at))) / firsts, 3
        ),
        control_overhead=round((control_after - control) / (payload_after - payload), 4),
        mesh_degree_mean=round(
            sum(len(node.router.mesh_peers(TOPIC)) for node in living) / len(living), 2
        ),
    )


def _sums(nodes: Iterable[SimulatedNode]) -> tuple[int, int, int]:
    """Copies received, bytes of messages and of control sent, of all nodes together."""
    copies = payload = control = 0
    for node in nodes:
        copies += node.copies
        payload += node.payload_bytes
        control += node.control_bytes
    return copies, payload, control
