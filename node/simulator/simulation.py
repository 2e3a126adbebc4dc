"""Many seeds, on all processors, and what they say together.

Rule upheld: the report is a function of (seeds, first seed, nodes); processors only change how long
it takes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from node.simulator.run import Result, Verdict, run_seed

SEEDS_PER_TASK: Final = 2
"""Handed to a process at a time: runs differ in length by a factor of ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationReport:
    """`violations` and `stalls` count seeds. Finality is measured from the moment a block is first
    sent to its commit at each honest replica, over the blocks of the calm phases.
    """

    seeds: int
    violations: int
    stalls: int
    finalized_p50_ms: int
    finalized_p99_ms: int
    failing_seeds: tuple[int, ...]
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """The machine-readable form."""
        return {
            "seeds": self.seeds,
            "violations": self.violations,
            "stalls": self.stalls,
            "finalized_p50_ms": self.finalized_p50_ms,
            "finalized_p99_ms": self.finalized_p99_ms,
            "failing_seeds": list(self.failing_seeds),
        }


def simulate(seeds: int, seed: int = 0, nodes: int | None = None) -> SimulationReport:
    """Run `seeds` seeds from `seed` on."""
    return summarize(list(results(seeds, seed, nodes)))


def results(seeds: int, seed: int = 0, nodes: int | None = None) -> Iterator[Result]:
    """The results of the runs, in order of seed, as they come."""
    numbers = range(seed, seed + seeds)
    processors = min(os.cpu_count() or 1, seeds)
    if processors <= 1:
        yield from (run_seed(number, nodes=nodes) for number in numbers)
        return
    with multiprocessing.get_context("fork").Pool(processors) as pool:
        yield from pool.imap(partial(run_seed, nodes=nodes), numbers, chunksize=SEEDS_PER_TASK)


def summarize(runs: list[Result]) -> SimulationReport:
    """Count verdicts, take percentiles."""
    latencies = sorted(latency for run in runs for latency in run.latencies_ms)
    failing = [run for run in runs if run.verdict is not Verdict.SOUND]
    return SimulationReport(
        seeds=len(runs),
        violations=sum(run.verdict is Verdict.VIOLATION for run in runs),
        stalls=sum(run.verdict is Verdict.STALL for run in runs),
        finalized_p50_ms=_percentile(latencies, 50),
        finalized_p99_ms=_percentile(latencies, 99),
        failing_seeds=tuple(run.seed for run in failing),
        reasons=tuple(f"seed {run.seed}: {run.verdict.value}: {run.reason}" for run in failing),
    )


def _percentile(ordered: list[int], percent: int) -> int:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0
