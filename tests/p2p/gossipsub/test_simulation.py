"""Networks of routers in virtual time against the oracle: exactly once to every subscriber."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.gossipsub.message import WireMessage
from p2p.gossipsub.parameters import MeshParameters
from p2p.gossipsub.simulation import LinkModel, SimulatedNode, Simulation
from p2p.network import Verdict
from tests.p2p.gossipsub.strategies import SCALE

TOPIC = "oracle"


def connected(simulation: Simulation, extra: int) -> None:
    """A random tree, so that the network is connected, and `extra` further connections."""
    nodes = simulation.nodes
    for index, node in enumerate(nodes[1:], start=1):
        simulation.connect(node, nodes[simulation.rng.randrange(index)])
    for _ in range(extra):
        simulation.connect(*simulation.rng.choices(nodes, k=2))


def assert_everybody_has_it_once(
    simulation: Simulation, message_ids: list[bytes], nodes: list[SimulatedNode]
) -> None:
    for node in nodes:
        counts = {one: node.deliveries.get(one, 0) for one in message_ids}
        assert counts == dict.fromkeys(message_ids, 1), f"node {node.index}"


@settings(max_examples=15 * SCALE, deadline=None)
@given(
    nodes=st.integers(2, 24),
    extra=st.integers(0, 60),
    seed=st.integers(0, 10**6),
    warm_up_s=st.sampled_from([0.0, 0.5, 5.0]),
)
def test_stateful_every_subscriber_gets_every_message_once(
    nodes: int, extra: int, seed: int, warm_up_s: float
) -> None:
    """Also when messages are published before the meshes stand."""
    simulation = Simulation(nodes, seed=seed)
    connected(simulation, extra)
    for node in simulation.nodes:
        simulation.subscribe(node, TOPIC)
    simulation.run_until(warm_up_s)
    ids = []
    for number in range(10):
        publisher = simulation.rng.choice(simulation.nodes)
        ids.append(simulation.publish(publisher, TOPIC, b"%d" % number))
        simulation.run_until(simulation.now + 0.1)
    # Along a path each node may have to wait for a heartbeat's announcement.
    simulation.run_until(simulation.now + 30)
    assert_everybody_has_it_once(simulation, ids, simulation.nodes)


def test_lossy_links_are_repaired_by_gossip() -> None:
    """A dense network keeps more neighbours outside the mesh, and they announce."""
    simulation = Simulation(60, seed=3, link=LinkModel(loss=0.1))
    simulation.connect_at_random(12)
    for node in simulation.nodes:
        simulation.subscribe(node, TOPIC)
    simulation.run_until(8)
    ids = []
    for number in range(30):
        publisher = simulation.rng.choice(simulation.nodes)
        ids.append(simulation.publish(publisher, TOPIC, b"%d" % number))
        simulation.run_until(simulation.now + 0.2)
    simulation.run_until(simulation.now + 10)
    assert_everybody_has_it_once(simulation, ids, simulation.nodes)


def test_a_fifth_of_the_nodes_dies_and_the_rest_misses_nothing() -> None:
    simulation = Simulation(100, seed=5)
    simulation.connect_at_random(8)
    for node in simulation.nodes:
        simulation.subscribe(node, TOPIC)
    simulation.run_until(6)
    victims = simulation.rng.sample(simulation.nodes, 20)
    survivors = [node for node in simulation.nodes if node not in victims]
    ids = []
    for number, victim in enumerate(victims):
        ids.append(simulation.publish(simulation.rng.choice(survivors), TOPIC, b"%d" % number))
        simulation.kill(victim)
        simulation.run_until(simulation.now + 0.2)
    simulation.run_until(simulation.now + 10)
    assert_everybody_has_it_once(simulation, ids, survivors)
    sizes = [len(node.router.mesh_peers(TOPIC)) for node in survivors]
    assert min(sizes) >= 5
    assert max(sizes) <= 12


def test_a_third_of_liars_is_pruned_and_the_honest_are_served() -> None:
    """Liars flood messages that every honest judge rejects."""

    def judge(node: SimulatedNode, message: WireMessage) -> Verdict:
        return Verdict.REJECT if message.data.startswith(b"lie") else Verdict.ACCEPT

    simulation = Simulation(60, seed=9, judge=judge)
    simulation.connect_at_random(8)
    for node in simulation.nodes:
        simulation.subscribe(node, TOPIC)
    simulation.run_until(5)
    liars, honest = simulation.nodes[::3], [n for n in simulation.nodes if n.index % 3]
    ids = []
    for number in range(30):
        for liar in liars:
            simulation.publish(liar, TOPIC, b"lie %d of %d" % (number, liar.index))
        ids.append(simulation.publish(simulation.rng.choice(honest), TOPIC, b"true %d" % number))
        simulation.run_until(simulation.now + 0.3)
    simulation.run_until(simulation.now + 5)
    assert_everybody_has_it_once(simulation, ids, honest)
    names = {liar.router.peer_id for liar in liars}
    for node in honest:
        assert not names & set(node.router.mesh_peers(TOPIC))
        for other in node.router.topic_peers(TOPIC):
            assert (node.router.scores.score(other) < 0) == (other in names)


@pytest.mark.parametrize("flood", [True, False])
def test_a_publisher_outside_the_topic_is_heard(flood: bool) -> None:
    simulation = Simulation(30, seed=2, parameters=MeshParameters(flood_publish=flood))
    simulation.connect_at_random(5)
    outsider, *members = simulation.nodes
    for node in members:
        simulation.subscribe(node, TOPIC)
    simulation.run_until(5)
    message_id = simulation.publish(outsider, TOPIC, b"from outside")
    simulation.run_until(10)
    assert_everybody_has_it_once(simulation, [message_id], members)
    assert message_id not in outsider.accepted


def test_equal_seeds_give_equal_networks() -> None:
    def run() -> list[tuple[int, int, dict[bytes, tuple[float, int]]]]:
        simulation = Simulation(30, seed=4, link=LinkModel(loss=0.05))
        simulation.connect_at_random(5)
        for node in simulation.nodes:
            simulation.subscribe(node, TOPIC)
        simulation.run_until(3)
        for number in range(5):
            simulation.publish(simulation.nodes[number], TOPIC, b"%d" % number)
            simulation.run_until(simulation.now + 1)
        return [(node.copies, node.control_bytes, node.accepted) for node in simulation.nodes]

    assert run() == run()
