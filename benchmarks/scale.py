"""Gossip and DHT at scale: the product's machines, thousands of nodes, one process, virtual time.

    python -m benchmarks.scale --nodes 1000 --json
    python -m benchmarks.scale --growth --json      # 100 to 10,000 nodes, each in its own process

The rule: everything but the wall-clock and memory figures is a function of the seed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from math import log2
from typing import Any

from benchmarks.measure import Stopwatch, environment, print_json, print_table
from benchmarks.scale_dht import measure_dht
from benchmarks.scale_gossip import measure_gossip
from p2p.gossipsub.parameters import MeshParameters

GROWTH_NODES = (100, 300, 1000, 3000, 10_000)
GROWTH_MESSAGES = 10
DEAD_SHARE = 0.2
HOPS_P99_GOAL, HOPS_GOAL_NODES = 5, 1000
"""Hops grow with the logarithm of the nodes; the goal is stated for a thousand."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print; see `--help`."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000, help="nodes of the network")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn")
    parser.add_argument("--messages", type=int, default=30, help="published, and again in churn")
    parser.add_argument("--growth", action="store_true", help="the curve from 100 to 10,000 nodes")
    parser.add_argument("--growth-max", type=int, default=10_000, help="largest size of the curve")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.nodes < 20:
        parser.error("--nodes must be at least 20")
    if options.growth:
        sizes = [nodes for nodes in GROWTH_NODES if nodes <= options.growth_max]
        curve = [_measure_apart(nodes, options.seed) for nodes in sizes]
        report: dict[str, Any] = {**environment(), "seed": options.seed, "growth": curve}
    else:
        report = {**environment(), **measure(options.nodes, options.seed, options.messages)}
    (print_json if options.json else _print_tables)(report)


def measure(nodes: int, seed: int, messages: int) -> dict[str, Any]:
    """All figures of one size: the quiet network's at the top, those under churn beside."""
    with Stopwatch() as gossip_time:
        quiet, churning = measure_gossip(
            nodes=nodes, seed=seed, messages=messages, dead_share=DEAD_SHARE
        )
    with Stopwatch() as dht_time:
        dht = measure_dht(nodes=nodes, seed=seed, dead_share=DEAD_SHARE)
    degree = MeshParameters().degree
    return {
        "nodes": nodes,
        "seed": seed,
        "degree": degree,
        **quiet.as_dict(),
        "churn": {"dead_share": DEAD_SHARE, **churning.as_dict()},
        "dht_success": dht.dht_success,
        "dht_rpcs_mean": dht.dht_rpcs_mean,
        "dht": dht.as_dict(),
        "peak_memory_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "gossip_wall_s": round(gossip_time.seconds, 2),
        "dht_wall_s": round(dht_time.seconds, 2),
        "goals": {
            "delivery_ratio": quiet.delivery_ratio == 1.0,
            "hops_p99": quiet.hops_p99 <= HOPS_P99_GOAL or nodes > HOPS_GOAL_NODES,
            "duplicates_per_message": quiet.duplicates_per_message <= degree,
            "dht_success": dht.dht_success >= 0.99,
            "dht_rpcs_mean": dht.dht_rpcs_mean <= 2 * log2(nodes),
        },
    }


def _measure_apart(nodes: int, seed: int) -> dict[str, Any]:
    """One size in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--json"]
    command += ["--nodes", str(nodes), "--seed", str(seed), "--messages", str(GROWTH_MESSAGES)]
    result: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
    return {name: value for name, value in result.items() if name not in environment()}


def _print_tables(report: dict[str, Any]) -> None:
    rows = report.get("growth", [report])
    print_table(
        "Gossip",
        ("nodes", "delivered", "churn", "hops p99", "p50 ms", "p99 ms", "duplicates", "control"),
        [
            (
                row["nodes"],
                row["delivery_ratio"],
                round(row["churn"]["delivery_ratio"], 5),
                row["hops_p99"],
                row["latency_p50_ms"],
                row["latency_p99_ms"],
                row["duplicates_per_message"],
                row["control_overhead"],
            )
            for row in rows
        ],
        caption="churn: delivered among the living while a fifth of the nodes dies",
    )
    print_table(
        "DHT, a fifth of the nodes dead",
        ("nodes", "success", "requests mean", "2 log2 N", "peak MiB", "wall s"),
        [
            (
                row["nodes"],
                round(row["dht_success"], 4),
                round(row["dht_rpcs_mean"], 2),
                round(2 * log2(row["nodes"]), 2),
                row["peak_memory_MiB"],
                round(row["gossip_wall_s"] + row["dht_wall_s"], 1),
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
