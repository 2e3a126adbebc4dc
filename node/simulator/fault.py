"""Faults of the environment: links, disks, clocks, processors, and crashes at awkward moments.

Rule upheld: faults happen only in the first part of a run; then everything heals and the protocol
has to make up for it. All of them are drawn from the run's one source of chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from consensus.engine_port import PeerConnected
from consensus.vote import Vote, VoteKind
from node.simulator.network import Network
from node.simulator.replica import Replica

FAULTS_MS: Final = 60_000
"""Faults begin only before this time."""

PARTITION_MS_MAX: Final = 30_000
DOWN_MS_MAX: Final = 10_000
SKEW_MS_MAX: Final = 900
"""Clocks differ by less than the 2 s that a block may be early."""


def schedule_faults(network: Network) -> None:
    """Draw the faults of a run and enter them into its world."""
    chance = network.world.random
    kinds: list[Callable[[Network, int], None]] = [
        _loss,
        _reordering,
        _partition,
        _one_way,
        _isolation,
        _crash,
        _crash,
        _crash_mid_effects,
        _crash_in_doubt,
        _crash_in_doubt,
        _blackout,
        _slow_execution,
        _slow_disk,
    ]
    for _ in range(chance.randint(4, 14)):
        kind = chance.choice(kinds)
        duration_ms = chance.randint(500, PARTITION_MS_MAX // chance.choice((1, 3, 10)))
        at_ms = chance.randint(1_000, FAULTS_MS - 1_000)
        network.world.after(at_ms, _starter(kind, network, duration_ms))
    network.world.after(FAULTS_MS, lambda: heal(network))


def heal(network: Network) -> None:
    """End every fault; what is down comes back."""
    network.trace(None, "heals")
    network.world.links.calm()
    for replica in network.replicas:
        replica.disk_ms, replica.execution_ms = 2, 3
        replica.effects_left = None
        replica.on_durable = None
        if not replica.alive:
            replica.start()
        for other in network.others(replica):
            _meet(replica, other)


def _starter(
    kind: Callable[[Network, int], None], network: Network, duration_ms: int
) -> Callable[[], None]:
    return lambda: kind(network, duration_ms)


def _loss(network: Network, duration_ms: int) -> None:
    links, chance = network.world.links, network.world.random
    links.loss, links.duplication = chance.uniform(0.02, 0.4), chance.uniform(0, 0.3)
    network.trace(None, f"loses {links.loss:.0%} for {duration_ms} ms")

    def end() -> None:
        links.loss = links.duplication = 0.0

    network.world.after(duration_ms, end)


def _reordering(network: Network, duration_ms: int) -> None:
    links = network.world.links
    before, links.jitter_ms = links.jitter_ms, network.world.random.choice((200, 600, 1_500))
    network.trace(None, f"jitters by {links.jitter_ms} ms")

    def end() -> None:
        links.jitter_ms = min(before, 100)

    network.world.after(duration_ms, end)


def _partition(network: Network, duration_ms: int) -> None:
    """Two sides that hear nothing of each other."""
    indices = list(range(len(network.replicas)))
    network.world.random.shuffle(indices)
    cut = network.world.random.randint(1, max(1, len(indices) // 2))
    left, right = indices[:cut], indices[cut:]
    _cut(network, {(a, b) for a in left for b in right} | {(b, a) for a in left for b in right})
    network.world.after(duration_ms, lambda: _mend(network))


def _one_way(network: Network, duration_ms: int) -> None:
    """Some hear others but are not heard."""
    indices = list(range(len(network.replicas)))
    network.world.random.shuffle(indices)
    cut = network.world.random.randint(1, max(1, len(indices) // 2))
    _cut(network, {(a, b) for a in indices[:cut] for b in indices[cut:]})
    network.world.after(duration_ms, lambda: _mend(network))


def _isolation(network: Network, duration_ms: int) -> None:
    """One replica alone."""
    one = network.world.random.randrange(len(network.replicas))
    others = [index for index in range(len(network.replicas)) if index != one]
    _cut(network, {(one, b) for b in others} | {(b, one) for b in others})
    network.world.after(duration_ms, lambda: _mend(network))


def _cut(network: Network, pairs: set[tuple[int, int]]) -> None:
    network.world.links.cut |= pairs
    network.trace(None, f"cuts {sorted(pairs)}")


def _mend(network: Network) -> None:
    cut = network.world.links.cut
    mended = sorted(cut)
    cut.clear()
    for a, b in mended:
        _meet(network.replicas[a], network.replicas[b])


def _meet(one: Replica, other: Replica) -> None:
    if one.alive and other.alive:
        one.hand(PeerConnected(source=str(other.index)))


def _crash(network: Network, duration_ms: int) -> None:
    """One replica, between two events."""
    replica = network.world.random.choice(network.replicas)
    _crash_now(network, replica, min(duration_ms, DOWN_MS_MAX))


def _crash_mid_effects(network: Network, duration_ms: int) -> None:
    """One replica, between two effects of one event: after a vote is durable, before it is sent."""
    replica = network.world.random.choice(network.replicas)
    replica.effects_left = network.world.random.randint(0, 30)
    network.world.after(
        min(duration_ms, DOWN_MS_MAX), lambda: None if replica.alive else replica.start()
    )


def _crash_in_doubt(network: Network, duration_ms: int) -> None:
    """One replica, just when a vote of some kind is durable and unsent; it comes back alone, so
    that nobody tells it how the view ended: the moment to forget what it had said.
    """
    chance = network.world.random
    replica = chance.choice(network.replicas)
    kind = chance.choice((VoteKind.NOTARIZE, VoteKind.FINALIZE, VoteKind.FINALIZE))
    others = [index for index in range(len(network.replicas)) if index != replica.index]
    alone_ms = min(duration_ms, DOWN_MS_MAX) + 4 * network.parameters.view_timeout_ms

    def strike(vote: Vote) -> bool:
        if vote.ballot.kind is not kind:
            return False
        one = replica.index
        _cut(network, {(one, b) for b in others} | {(b, one) for b in others})
        network.world.after(alone_ms, lambda: _mend(network))
        network.world.after(500, lambda: None if replica.alive else replica.start())
        return True

    replica.on_durable = strike


def _blackout(network: Network, duration_ms: int) -> None:
    """Everybody at once, soon after some replica has voted; all memory of certificates is gone."""
    down_ms = min(duration_ms, DOWN_MS_MAX)
    for replica in network.replicas:
        _crash_now(network, replica, down_ms + network.world.random.randint(0, 500))


def _crash_now(network: Network, replica: Replica, down_ms: int) -> None:
    if replica.alive:
        replica.crash()
        network.world.after(down_ms, lambda: None if replica.alive else replica.start())


def _slow_execution(network: Network, duration_ms: int) -> None:
    replica = network.world.random.choice(network.replicas)
    replica.execution_ms = network.world.random.randint(100, 1_200)

    def end() -> None:
        replica.execution_ms = 3

    network.world.after(duration_ms, end)


def _slow_disk(network: Network, duration_ms: int) -> None:
    replica = network.world.random.choice(network.replicas)
    replica.disk_ms = network.world.random.randint(50, 500)

    def end() -> None:
        replica.disk_ms = 2

    network.world.after(duration_ms, end)
