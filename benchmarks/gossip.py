"""Gossip throughput beside py-libp2p's gossipsub, and latency in a mesh of 20 nodes.

    python -m benchmarks.gossip --json

The rule: contenders run interleaved in the same run, in processes of their own, on the same
payloads and the same judge; figures are medians over rounds and the ratio is what counts. One
process publishes 1 KiB messages as fast as it can, all are connected to all; the throughput is that
of distinct messages up to the moment when the last receiver has its last one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import trio

from benchmarks.gossip_contenders import PAYLOAD_BYTES, TOPIC, is_valid, make_payload
from benchmarks.measure import Worker, environment, median, percentile, print_json, print_table

PROCESSES = (2, 5)
MESSAGES = {"agora": {2: 8000, 5: 4000}, "py_libp2p": {2: 400, 5: 200}}
"""A few seconds each at the speeds that were measured."""

MESH_NODES, MESH_DEGREE, MESH_RATE = 20, 6, 50
MESH_SECONDS = 10
MESH_SETTLE_S = 5.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print; see `--help`."""
    parser = argparse.ArgumentParser(prog="benchmarks.gossip", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per contender (default 3)")
    parser.add_argument("--skip-mesh20", action="store_true", help="only the process benchmark")
    parser.add_argument("--skip-processes", action="store_true", help="only the mesh of 20")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {**environment(), "rounds": options.rounds}
    if not options.skip_processes:
        report["processes"] = _measure_processes(options.rounds)
    if not options.skip_mesh20:
        report["mesh20"] = trio.run(_measure_mesh)
    (print_json if options.json else _print_tables)(report)


def _measure_processes(rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for count in PROCESSES:
        results: dict[str, list[dict[str, float]]] = {name: [] for name in MESSAGES}
        for _ in range(rounds):
            for contender, result in results.items():
                result.append(_run_processes(contender, count, MESSAGES[contender][count]))
        speeds = {name: median(one["per_s"] for one in ones) for name, ones in results.items()}
        figures[str(count)] = {
            "agora_per_s": round(speeds["agora"], 1),
            "py_libp2p_per_s": round(speeds["py_libp2p"], 1),
            "ratio": round(speeds["agora"] / speeds["py_libp2p"], 2),
            "lost": int(sum(one["lost"] for one in results["agora"])),
            "py_libp2p_lost": int(sum(one["lost"] for one in results["py_libp2p"])),
            "messages": {name: counts[count] for name, counts in MESSAGES.items()},
        }
    return figures


def _run_processes(contender: str, count: int, messages: int) -> dict[str, float]:
    """One round of one contender: messages per second, and how many did not arrive."""
    module = "benchmarks.gossip_contenders"
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(module, contender, str(index), str(count)))
            for index in range(count)
        ]
        hellos = [worker.read() for worker in workers]
        addresses = [hello["address"] for hello in hellos]
        ports = [hello["port"] for hello in hellos]
        for worker in workers:
            worker.ask(addresses=addresses, ports=ports)
        for worker in workers:
            worker.read()
        for worker in reversed(workers):  # the publisher last
            worker.ask(messages=messages)
        answers = [worker.read() for worker in workers]
    received = [answer["received"] for answer in answers[1:]]
    elapsed_s = max(answer["last"] for answer in answers[1:]) - answers[0]["started"]
    return {
        "per_s": statistics.mean(received) / elapsed_s,
        "lost": sum(messages - got for got in received),
    }


async def _measure_mesh() -> dict[str, Any]:
    """20 nodes of degree 6 in this process; each message published by one drawn at random."""
    from p2p.backend.switch import open_switch
    from p2p.gossipsub import open_gossip
    from p2p.identity import Identity
    from p2p.limits import Limits
    from p2p.network import Message, Subscription, Verdict

    def judge(message: Message) -> Verdict:
        return Verdict.ACCEPT if is_valid(message.data) else Verdict.REJECT

    rng = random.Random(20)
    published_at: dict[bytes, float] = {}
    latencies_s: list[float] = []

    async def read(messages: Subscription, own: set[bytes]) -> None:
        async for message in messages:
            if message.data not in own:
                now = time.perf_counter()
                latencies_s.append(now - published_at[message.data])

    async with AsyncExitStack() as stack:
        switches, nodes, readers = [], [], []
        for index in range(MESH_NODES):
            identity = Identity.generate()
            switch = await stack.enter_async_context(open_switch(identity, Limits()))
            await switch.listen(["/ip4/127.0.0.1/tcp/0"])
            gossip = await stack.enter_async_context(open_gossip(switch, rng=random.Random(index)))
            readers.append(await stack.enter_async_context(gossip.subscribe(TOPIC, validate=judge)))
            switches.append(switch)
            nodes.append(gossip)
        for index, switch in enumerate(switches):  # a circulant graph: every degree is 6
            for step in (1, 4, 7):
                await switch.connect(switches[(index + step) % MESH_NODES].addresses[0])
        with trio.move_on_after(30):
            while any(len(node.mesh_peers(TOPIC)) < MESH_DEGREE for node in nodes):  # noqa: ASYNC110 - set-up
                await trio.sleep(0.05)
        payloads = [make_payload(number) for number in range(MESH_RATE * MESH_SECONDS)]
        async with trio.open_nursery() as nursery:
            own: list[set[bytes]] = [set() for _ in nodes]
            for messages, mine in zip(readers, own, strict=True):
                nursery.start_soon(read, messages, mine)
            started = trio.current_time()
            for number, payload in enumerate(payloads):
                await trio.sleep_until(started + number / MESH_RATE)
                index = rng.randrange(MESH_NODES)
                own[index].add(payload)
                published_at[payload] = time.perf_counter()
                await nodes[index].publish(TOPIC, payload)
            await trio.sleep(MESH_SETTLE_S)
            nursery.cancel_scope.cancel()
    return {
        "expected": len(payloads) * (MESH_NODES - 1),
        "delivered": len(latencies_s),
        "p50_ms": round(1000 * percentile(latencies_s, 50), 2),
        "p99_ms": round(1000 * percentile(latencies_s, 99), 2),
        "payload_bytes": PAYLOAD_BYTES,
        "messages_per_s": MESH_RATE,
    }


def _print_tables(report: dict[str, Any]) -> None:
    print_table(
        "Gossip: 1 KiB signed messages, one publisher, all connected to all",
        ("processes", "agora/s", "py-libp2p/s", "ratio", "lost"),
        [
            (count, row["agora_per_s"], row["py_libp2p_per_s"], row["ratio"], row["lost"])
            for count, row in report.get("processes", {}).items()
        ],
    )
    if (mesh := report.get("mesh20")) is not None:
        print_table(
            f"20 nodes of degree 6 in one process, {MESH_RATE} messages/s",
            ("expected", "delivered", "p50 ms", "p99 ms"),
            [(mesh["expected"], mesh["delivered"], mesh["p50_ms"], mesh["p99_ms"])],
        )


if __name__ == "__main__":
    main()
