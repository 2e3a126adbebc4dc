"""The chain on real processes: block interval, finality, transactions, memory, rejoining, joining.

The rule: a block is final when a node *reports* it, and its age then is measured from the header's
time, which the leader takes when it proposes; all processes share this machine's clock. What `n`
says is measured without transactions, but for `tx_per_s`: that is a second run of the same network
under signed transfers at a fixed rate, and counts those in final blocks until the last second of
sending; interval and finality of that run stand under `loaded`. Memory is that after the load.

`rejoin_s` runs from the start of a killed voter's process until its log holds a vote of this start;
`snapshot_join_s` from the start of a process that knows only an address to its report of the tip
that its bootstrap node has then, on a chain of ten thousand blocks (`chain_history`).

    python -m benchmarks.chain [--json] [--nodes 1,4,10] [--seconds 20] [--rate 600] [--height N]
"""

from __future__ import annotations

import argparse
import itertools
import sqlite3
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks.chain_engine import measure_engines
from benchmarks.chain_history import History
from benchmarks.chain_nodes import (
    BATCH_MAX,
    LOOK_S,
    Network,
    RunningNode,
    Submitter,
    make_genesis,
    open_network_of,
    transfers,
)
from benchmarks.measure import environment, percentile, print_json, print_table
from consensus import params

WARM_UP_HEIGHT: Final = 6
"""Every node is connected and an epoch has passed."""
BLOCK_WAIT_S: Final = 60.0
PAYERS: Final = 128
"""With sixteen nonces each in the mempool's window: eight seconds at 256 transfers a second."""
EXPIRY: Final = 590
PULSE_S: Final = 0.1
"""How often the load hands over what is due."""
ENGINE_SIZES: Final = (20, 100)
ENGINE_BLOCKS: Final = 8
"""A hundred voters need three seconds each, most of them for engines that are not measured."""
PAST_MARGIN_MS: Final = 60_000
"""The long chain ends this long before now: room for views that took longer than an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure, and for how long."""

    nodes: tuple[int, ...]
    seconds: float
    rate: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Milliseconds between final blocks, and from proposal to a node's report, at all nodes."""

    intervals: list[float]
    finalities: list[float]

    def figures(self) -> dict[str, float]:
        """The medians and the 99th percentile."""
        return {
            "interval_p50_ms": round(statistics.median(self.intervals), 1),
            "finality_p50_ms": round(statistics.median(self.finalities), 1),
            "finality_p99_ms": round(percentile(self.finalities, 99), 1),
        }


async def measure_size(path: Path, nodes: int, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of a network at rest, and of the same network under load."""
    async with open_network_of(path, voters=nodes, accounts=PAYERS) as network:
        for index in range(nodes):
            await network.start(index)
        await network.height_of_all(WARM_UP_HEIGHT, timeout_s=BLOCK_WAIT_S)
        running = list(network.nodes.values())
        cpu_s, began_s = [node.cpu_s() for node in running], time.monotonic()
        rest = await observe(network, plan.seconds)
        wall_s = time.monotonic() - began_s
        used = [node.cpu_s() - before for node, before in zip(running, cpu_s, strict=True)]
        loaded = await measure_load(network, plan)
        figures = {
            **rest.figures(),
            "tx_per_s": loaded.pop("tx_per_s"),
            "rss_mb": round(max(node.rss_mb() for node in running), 1),
            "cpu_percent": round(statistics.mean(used) / wall_s * 100, 1),
        }
    return figures, loaded


async def observe(network: Network, seconds: float) -> Pace:
    """Watch a network for so long."""
    marks = {node.index: len(node.finals) for node in network.nodes.values()}
    await trio.sleep(seconds)
    return pace_since(network, marks)


def pace_since(network: Network, marks: dict[int, int]) -> Pace:
    """What the nodes have reported since `marks`, their numbers of reports then."""
    nodes = list(network.nodes.values())
    seen = {node.index: node.finals[marks[node.index] :] for node in nodes}
    heights = [final.height for finals in seen.values() for final in finals]
    if not heights:
        return Pace(intervals=[float("inf")], finalities=[float("inf")])
    proposed = network.proposed_ms(min(heights), max(heights))
    first = [final.t_s * 1_000 for final in seen[nodes[0].index]]
    return Pace(
        intervals=[later - sooner for sooner, later in itertools.pairwise(first)] or [float("inf")],
        finalities=[
            final.t_s * 1_000 - proposed[final.height]
            for finals in seen.values()
            for final in finals
            if final.height in proposed
        ],
    )


async def measure_load(network: Network, plan: Plan) -> dict[str, Any]:
    """Transfers at a fixed rate to all nodes; what became final in the meantime."""
    nodes = list(network.nodes.values())
    chain_id = network.genesis.chain_id
    each = int(plan.rate * plan.seconds / PAYERS) + 16
    queues = [
        [
            deque(transfers(chain_id, payer=payer, each=each, expiry=EXPIRY))
            for payer in range(index, PAYERS, len(nodes))
        ]
        for index in range(len(nodes))
    ]
    marks = {node.index: len(node.finals) for node in nodes}
    cpu_s = [node.cpu_s() for node in nodes]
    began_s = time.time()
    refused: list[str] = []
    async with trio.open_nursery() as nursery:
        for node, queue in zip(nodes, queues, strict=True):
            submitter = Submitter(network.directory(node.index))
            rate = plan.rate / len(nodes)
            nursery.start_soon(send_at, submitter, queue, rate, plan.seconds, refused)
    ended_s = time.time()
    wall_s = ended_s - began_s
    final = [each for each in nodes[0].finals[marks[0] :] if began_s <= each.t_s <= ended_s]
    used = [node.cpu_s() - before for node, before in zip(nodes, cpu_s, strict=True)]
    return {
        "tx_per_s": round(sum(each.transactions for each in final) / wall_s, 1),
        **pace_since(network, marks).figures(),
        "offered_per_s": plan.rate,
        "put_off": dict(Counter(refused)),
        "cpu_percent": round(statistics.mean(used) / wall_s * 100, 1),
    }


async def send_at(
    submitter: Submitter,
    queues: list[deque[bytes]],
    rate: float,
    seconds: float,
    refused: list[str],
) -> None:
    """Hand over the transfers of some payers at a rate; what is refused is handed over again."""
    began_s = time.monotonic()
    sent = turn = 0
    while (elapsed_s := time.monotonic() - began_s) < seconds:
        due = min(int(elapsed_s * rate) - sent, BATCH_MAX)
        sent += max(0, due)
        batch: list[tuple[deque[bytes], bytes]] = []
        for _ in range(due):
            queue = queues[turn % len(queues)]
            turn += 1
            if queue:
                batch.append((queue, queue.popleft()))
        if batch:
            encoded = [transfer for _, transfer in batch]
            results = await trio.to_thread.run_sync(submitter.submit, encoded)
            again = [each for each, fault in zip(batch, results, strict=True) if fault is not None]
            for queue, transfer in reversed(again):
                queue.appendleft(transfer)
            refused += [fault for fault in results if fault is not None]
        await trio.sleep(PULSE_S)
    submitter.close()


async def measure_rejoin(path: Path) -> float:
    """Seconds from the start of a killed voter's process to its first new vote."""
    async with open_network_of(path, voters=4) as network:
        for index in range(4):
            await network.start(index)
        await network.height_of_all(WARM_UP_HEIGHT, timeout_s=BLOCK_WAIT_S)
        await network.stop(3, kill=True)
        await network.height_of_all(network.nodes[0].height + 4, timeout_s=BLOCK_WAIT_S)
        votes = network.directory(3).votes
        before = newest_vote(votes)
        began_s = time.monotonic()
        await network.start(3)
        with trio.fail_after(BLOCK_WAIT_S):
            while newest_vote(votes) <= before:  # noqa: ASYNC110 - another process
                await trio.sleep(LOOK_S)
        return round(time.monotonic() - began_s, 2)


def newest_vote(path: Path) -> tuple[int, int]:
    """Epoch and view of the newest entry in a vote log."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        row = connection.execute(
            "SELECT epoch, view FROM records ORDER BY epoch DESC, view DESC LIMIT 1"
        ).fetchone()
    finally:
        connection.close()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


async def measure_snapshot_join(path: Path, height: int) -> tuple[float, dict[str, Any]]:
    """Seconds from a stranger's start to the tip of a long chain, and what the chain cost."""
    age_ms = height * params.LOCAL.block_interval_ms + PAST_MARGIN_MS
    genesis = make_genesis(path, voters=1, accounts=0, age_ms=age_ms)
    began_s = time.monotonic()
    history = History(path / "node-0", genesis)
    reached = history.grow(height)
    history.close()
    made_s = time.monotonic() - began_s
    async with trio.open_nursery() as nursery:
        network = Network(path, genesis, nursery)
        try:
            server = await network.start(0)
            await reached_by(server, reached + 1)
            began_s = time.monotonic()
            joiner = await network.start(1)
            while joiner.height < server.height or not joiner.height:  # noqa: ASYNC110 - another process
                await trio.sleep(LOOK_S)
            joined_s = time.monotonic() - began_s
        finally:
            with trio.CancelScope(shield=True):
                for index in list(network.nodes):
                    await network.stop(index)
    return round(joined_s, 2), {"height": reached, "made_in_s": round(made_s, 1)}


async def reached_by(node: RunningNode, height: int) -> None:
    """Return when a node has reported that height final."""
    with trio.fail_after(BLOCK_WAIT_S):
        while node.height < height:  # noqa: ASYNC110 - another process
            await trio.sleep(LOOK_S)


def measure_all(plan: Plan) -> dict[str, Any]:
    """Everything, one after the other, in directories that are removed."""
    result: dict[str, Any] = {"n": {}, "engine": {}, "loaded": {}}
    result["environment"] = environment()
    for nodes in plan.nodes:
        with tempfile.TemporaryDirectory() as name:
            run = partial(measure_size, Path(name), nodes, plan)
            result["n"][str(nodes)], result["loaded"][str(nodes)] = trio.run(run)
    with tempfile.TemporaryDirectory() as name:
        result["rejoin_s"] = trio.run(measure_rejoin, Path(name))
    result["engine"] = measure_engines(ENGINE_SIZES, ENGINE_BLOCKS)
    if plan.height:
        with tempfile.TemporaryDirectory() as name:
            join = partial(measure_snapshot_join, Path(name), plan.height)
            result["snapshot_join_s"], result["history"] = trio.run(join)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chain", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--nodes", default="1,4,10", help="network sizes [1,4,10]")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each watch [20]")
    parser.add_argument("--rate", type=int, default=600, help="transfers offered a second [600]")
    parser.add_argument("--height", type=int, default=10_000, help="of the long chain; 0: none")
    options = parser.parse_args(arguments)
    plan = Plan(
        nodes=tuple(int(each) for each in options.nodes.split(",") if each),
        seconds=options.seconds,
        rate=options.rate,
        height=options.height,
    )
    result = measure_all(plan)
    if options.json:
        print_json(result)
        return
    show(result)


def show(result: dict[str, Any]) -> None:
    """The result for people."""
    columns = list(next(iter(result["n"].values()), {}))
    caption = f"rejoin {result['rejoin_s']} s, snapshot join {result.get('snapshot_join_s')} s"
    print_table(
        f"The chain on real processes, load {result['environment']['load_average']}",
        ["nodes", *columns],
        [[nodes, *figures.values()] for nodes, figures in result["n"].items()],
        caption=caption,
    )
    print_table(
        "Under transfers",
        ["nodes", *next(iter(result["loaded"].values()), {})],
        [[nodes, *figures.values()] for nodes, figures in result["loaded"].items()],
    )
    print_table(
        "The engine alone",
        ["voters", "CPU ms per view"],
        [[voters, figures["cpu_ms_per_view"]] for voters, figures in result["engine"].items()],
    )


if __name__ == "__main__":
    main()
