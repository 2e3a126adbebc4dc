"""One run of one seed: who takes part, what goes wrong, and whether all invariants held.

Rule upheld: a seed decides everything. A run has 60 virtual seconds of faults and 60 of calm; then
finality must have come back within its bound, everybody must have caught up, at least 40 blocks
must be committed and at least one epoch must have ended.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from consensus.crypto import Signer
from consensus.engine import Engine
from consensus.errors import ConsensusError
from node.simulator.chain_ledger import (
    SPARE_ACCOUNTS,
    ChainLedger,
    simulated_genesis,
    simulated_keys,
    simulated_parameters,
)
from node.simulator.fault import FAULTS_MS, SKEW_MS_MAX, schedule_faults
from node.simulator.liars import LIARS, Liar
from node.simulator.network import Network, Setup
from node.simulator.replica import Replica
from node.simulator.watch import Violation
from node.simulator.world import Livelock, World

SIZES: Final = (1, 4, 5, 7)
CALM_MS: Final = 60_000
BLOCKS_MIN: Final = 40
REAL_SIGNATURES_EVERY: Final = 20
"""One seed in so many uses Ed25519 and shares no results of execution."""

STEP_MS: Final = 1_000
STALL_MS: Final = 15_000
"""Resends come back at least so often, whatever happened before."""

VIEW_MS_MAX: Final = 60_000
LAG_MAX: Final = 4
"""Heights that a replica may be behind another at the end: some blocks are in flight."""


class Verdict(enum.Enum):
    """How a run ended."""

    SOUND = "sound"
    VIOLATION = "violation"
    STALL = "stall"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run. `latencies_ms` are of blocks born in the calm, at each honest replica."""

    seed: int
    verdict: Verdict
    reason: str
    height: int
    epoch: int
    events: int
    latencies_ms: tuple[int, ...]
    lines: tuple[str, ...] = ()


def run_seed(
    seed: int,
    *,
    nodes: int | None = None,
    engine_type: type[Engine] = Engine,
    liars: tuple[type[Liar], ...] = LIARS,
    tracing: bool = False,
) -> Result:
    """Run `seed`; `nodes` fixes the number of replicas, else it is drawn from SIZES."""
    network = make_network(seed, nodes=nodes, engine_type=engine_type, liars=liars, tracing=tracing)
    try:
        reason = _run(network)
        verdict = Verdict.STALL if reason else Verdict.SOUND
    except Violation as violation:
        verdict, reason = Verdict.VIOLATION, str(violation)
    except (ConsensusError, Livelock, KeyError, ValueError, AssertionError) as error:
        verdict = Verdict.VIOLATION
        reason = f"{network.world.now_ms} ms: {type(error).__name__}: {error}"
    return Result(
        seed=seed,
        verdict=verdict,
        reason=reason,
        height=len(network.watch.chain),
        epoch=max(network.watch.sets),
        events=network.world.events,
        latencies_ms=tuple(
            latency for born, latency in network.watch.latencies if born >= FAULTS_MS
        ),
        lines=tuple(network.lines),
    )


def make_network(
    seed: int,
    *,
    nodes: int | None = None,
    engine_type: type[Engine] = Engine,
    liars: tuple[type[Liar], ...] = LIARS,
    tracing: bool = False,
) -> Network:
    """The network of a seed, started."""
    world = World(seed)
    chance = world.random
    count = chance.choice(SIZES)
    count = count if nodes is None else nodes
    real = seed % REAL_SIGNATURES_EVERY == REAL_SIGNATURES_EVERY - 1
    world.links.delay_ms = chance.choice((2, 10, 40, 80))
    world.links.jitter_ms = chance.choice((2, 20, 80))
    powers = _powers(count, world)
    interval_ms = chance.choice((500, 500, 1_000))
    keys, verifier = simulated_keys(2 * (count + SPARE_ACCOUNTS), seed, real=real)
    peers, owners = keys[::2], keys[1::2]
    genesis = simulated_genesis(
        powers,
        parameters=simulated_parameters(interval_ms, 2 * interval_ms, chance.choice((3, 5, 8))),
        owners=owners,
        peers=peers,
    )
    ledger = ChainLedger(genesis, verifier, shares=not real)
    setup = Setup(
        ledger=ledger, verifier=verifier, signers=peers, owners=owners, engine_type=engine_type
    )
    network = Network(world, setup, tracing=tracing)
    liar_of = _choose_liars(powers, world, liars)
    network.trace(None, f"powers {powers}, epochs of {genesis.parameters.blocks_per_epoch} blocks")
    for index, kind in sorted(liar_of.items()):
        network.trace(None, f"replica {index} is a {kind.__name__}")
    schedule_faults(network)
    network.populate(
        [
            _maker(liar_of.get(index, Replica), peers[index], chance.randint(0, SKEW_MS_MAX))
            for index in range(count)
        ]
    )
    return network


def _run(network: Network) -> str:
    """Run to the end; what stalled, or nothing."""
    network.world.run(FAULTS_MS)
    exponents = [r.engine.view - r.engine.tip.view - 2 for r in network.honest() if r.alive]
    grown = any(exponent > 0 for exponent in exponents)
    base_ms = network.parameters.view_timeout_ms
    faulty = sum(not replica.honest for replica in network.replicas)
    bound_ms = 8 * base_ms if not grown else STALL_MS + VIEW_MS_MAX * (faulty + 1)
    bound_ms = max(bound_ms, STALL_MS)
    back_ms = _first_finality(network, FAULTS_MS + bound_ms)
    if back_ms is None:
        return f"no finality within {bound_ms} ms of calm"
    end_ms = max(FAULTS_MS, back_ms) + CALM_MS
    network.world.run(end_ms)
    patience_ms = end_ms + STALL_MS + VIEW_MS_MAX * (faulty + 1)
    while (reason := _unfinished(network)) and network.world.now_ms < patience_ms:
        network.world.run(network.world.now_ms + STEP_MS)
    return reason


def _first_finality(network: Network, until_ms: int) -> int | None:
    """When every honest replica has committed something since the faults ended."""
    while network.world.now_ms < until_ms:
        network.world.run(network.world.now_ms + STEP_MS)
        final_ms = network.watch.final_ms
        if all(final_ms.get(r.index, 0) > FAULTS_MS for r in network.honest()):
            return network.world.now_ms
    return None


def _unfinished(network: Network) -> str:
    heights = [len(replica.disk.blocks) for replica in network.honest()]
    if max(heights) - min(heights) > LAG_MAX:
        return f"somebody stays behind: heights {heights}"
    if max(heights) < BLOCKS_MIN:
        return f"only {max(heights)} blocks"
    if len(network.watch.sets) < 2:
        return "no epoch ended"
    return ""


def _powers(count: int, world: World) -> list[int]:
    if world.random.random() < 0.4:
        return [10] * count
    return [world.random.randint(5, 20) for _ in range(count)]


def _choose_liars(
    powers: list[int], world: World, kinds: tuple[type[Liar], ...]
) -> dict[int, type[Liar]]:
    """Liars of less than a third of the power, as many as fit; none in some runs."""
    chosen: dict[int, type[Liar]] = {}
    if not kinds or world.random.random() < 0.15:
        return chosen
    indices = list(range(len(powers)))
    world.random.shuffle(indices)
    power = 0
    for index in indices:
        if 3 * (power + powers[index]) < sum(powers):
            power += powers[index]
            chosen[index] = world.random.choice(kinds)
    return chosen


def _maker(kind: type[Replica], signer: Signer, skew_ms: int) -> Callable[[Network, int], Replica]:
    return lambda network, index: kind(network, index, signer, skew_ms)
