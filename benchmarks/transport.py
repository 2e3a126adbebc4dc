"""Our transport beside raw TCP, TLS, gRPC and stock py-libp2p: `python -m benchmarks.transport`.

The rule: see `benchmarks.measure`; every contender has a server and a client process of its own on
the loopback interface, alive for the whole run and idle while others are measured.

Figures: round trips of 64 B, 64 KiB and 1 MiB in µs; the echo of 16 MiB in ms; one way in MB/s
(10^6 bytes, 16 MiB and its acknowledgement); CPU of both processes per 16 MiB one way in ms; a
connection from nothing to ready in ms. `ratios` are those of the goals: ours over theirs. `beside`
holds figures of contenders that no goal names (see `benchmarks.transport_contenders`).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import click
import trio

from benchmarks.measure import (
    Stopwatch,
    Worker,
    answer_commands,
    environment,
    median,
    print_json,
    print_table,
    tell,
    usage,
)

MODULE = "benchmarks.transport"
LARGE_BYTES = 16 * 2**20
ONE_WAY_COUNT = 4
IDLE_S = 2.0

ECHOES = {"rtt_64B_us": (64, 300), "rtt_64KiB_us": (65_536, 60), "rtt_1MiB_us": (2**20, 12)}
CONNECTS = 6
COLUMNS = (*ECHOES, "echo_16MiB_ms", "one_way_MBps", "cpu_ms_16MiB", "connect_ms")

GOALS = (  # figure, against, must, goal, whether more is better
    ("one_way_MBps", "tcp", 0.3, 0.5, True),
    ("one_way_MBps", "grpc_aio_tls", 4.0, 6.0, True),
    ("one_way_MBps", "py_libp2p", 3.0, 6.0, True),
    ("rtt_64B_us", "tcp", 2.5, 1.5, False),
    ("rtt_64B_us", "grpc_aio_tls", 0.7, 0.5, False),
)


def measure_round(client: Worker, server: Worker) -> dict[str, float]:
    """All figures of one contender, once."""
    figures = {}
    for name, (payload_bytes, count) in ECHOES.items():
        answer = client.ask(do="echo", payload_bytes=payload_bytes, count=count)
        figures[name] = answer["seconds"] / count * 1e6
    answer = client.ask(do="echo", payload_bytes=LARGE_BYTES, count=2)
    figures["echo_16MiB_ms"] = answer["seconds"] / 2 * 1e3
    cpu_before = client.ask(do="usage")["cpu_s"] + server.ask(do="usage")["cpu_s"]
    answer = client.ask(do="sink", payload_bytes=LARGE_BYTES, count=ONE_WAY_COUNT)
    cpu_after = client.ask(do="usage")["cpu_s"] + server.ask(do="usage")["cpu_s"]
    figures["one_way_MBps"] = LARGE_BYTES * ONE_WAY_COUNT / answer["seconds"] / 1e6
    figures["cpu_ms_16MiB"] = (cpu_after - cpu_before) / ONE_WAY_COUNT * 1e3
    figures["connect_ms"] = client.ask(do="connect", count=CONNECTS)["median_s"] * 1e3
    return figures


def measure_idle(workers: dict[str, tuple[Worker, Worker]]) -> dict[str, dict[str, float]]:
    """Memory and CPU of each contender's two processes while nothing is sent."""
    before = {name: [each.ask(do="usage") for each in pair] for name, pair in workers.items()}
    trio.run(trio.sleep, IDLE_S)
    after = {name: [each.ask(do="usage") for each in pair] for name, pair in workers.items()}
    return {
        name: {
            "rss_MiB": round(sum(each["rss_MiB"] for each in after[name]) / 2, 1),
            "cpu_percent": round(
                sum(
                    now["cpu_s"] - then["cpu_s"]
                    for then, now in zip(before[name], after[name], strict=True)
                )
                / (2 * IDLE_S)
                * 100,
                2,
            ),
        }
        for name in workers
    }


def measure(rounds: int, names: list[str], beside: set[str]) -> dict[str, Any]:
    """The whole run, in the shape that `--json` prints."""
    result: dict[str, Any] = environment()
    with ExitStack() as stack:
        workers = {}
        for name in names:
            server = stack.enter_context(Worker(MODULE, "--serve", name))
            address = json.dumps(server.read()["address"])
            client = stack.enter_context(Worker(MODULE, "--drive", name, "--address", address))
            client.read()
            workers[name] = (client, server)
        for pair in workers.values():
            measure_round(*pair)  # warms up windows, caches and compiled code
        samples: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
        for _ in range(rounds):
            for name, pair in workers.items():
                for figure, value in measure_round(*pair).items():
                    samples[name][figure].append(value)
        idle = measure_idle(workers)
    medians = {
        name: {figure: median(samples[name][figure]) for figure in COLUMNS} for name in names
    }
    result["contenders"] = {name: medians[name] for name in names if name not in beside}
    result["beside"] = {name: medians[name] for name in names if name in beside}
    result["rounds"] = rounds
    result["ratios"] = ratios(result["contenders"])
    result["idle"] = idle
    return result


def ratios(contenders: dict[str, dict[str, float]]) -> dict[str, float]:
    """The ratios that have goals."""
    return {
        f"{figure}_vs_{other}": round(contenders["agora"][figure] / contenders[other][figure], 3)
        for figure, other, *_ in GOALS
        if other in contenders and "agora" in contenders
    }


def print_result(result: dict[str, Any]) -> None:
    """The tables for people."""
    contenders, idle = result["contenders"] | result["beside"], result["idle"]
    print_table(
        f"Transport, medians of {result['rounds']} rounds",
        ("", *COLUMNS, "idle RSS MiB", "idle CPU %"),
        (
            (name, *figures.values(), idle[name]["rss_MiB"], idle[name]["cpu_percent"])
            for name, figures in contenders.items()
        ),
        caption=f"load average {result['load_average']}, {result['cpus']} CPUs",
    )
    print_table(
        "Ours over theirs",
        ("", "ratio", "must", "goal", ""),
        (
            (
                f"{figure} vs {other}",
                ratio,
                f"{'≥' if is_more_better else '≤'} {must}",
                goal,
                _verdict(ratio, must, goal, is_more_better=is_more_better),
            )
            for (figure, other, must, goal, is_more_better) in GOALS
            if (ratio := result["ratios"].get(f"{figure}_vs_{other}")) is not None
        ),
    )


def _verdict(ratio: float, must: float, goal: float, *, is_more_better: bool) -> str:
    if (ratio >= goal) if is_more_better else (ratio <= goal):
        return "goal"
    return "must" if ((ratio >= must) if is_more_better else (ratio <= must)) else "MISSED"


async def drive(name: str, address: dict[str, Any]) -> None:
    """The client worker on trio."""
    from benchmarks.transport_contenders import ALL

    async with ALL[name].drive(address) as driver:
        tell(ready=True)
        await answer_commands(lambda command: obey(driver, command))


async def drive_on_asyncio(name: str, address: dict[str, Any]) -> None:
    """The client worker of a contender that needs asyncio."""
    from benchmarks.transport_contenders import ALL

    async with ALL[name].drive(address) as driver:
        tell(ready=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            tell(**await obey(driver, json.loads(line)))


async def obey(driver: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command of the benchmark."""
    if command["do"] == "usage":
        return dict(usage())
    if command["do"] == "connect":
        return await time_connects(driver, command["count"])
    exchange: Callable[[bytes], Awaitable[None]] = getattr(driver, command["do"])
    payload = bytes(command["payload_bytes"])
    with Stopwatch() as watch:
        for _ in range(command["count"]):
            await exchange(payload)
    return {"seconds": watch.seconds}


async def time_connects(driver: Any, count: int) -> dict[str, Any]:
    """Connect and disconnect `count` times; only the connecting is timed."""
    samples = []
    for _ in range(count):
        with Stopwatch() as watch:
            disconnect = await driver.connect()
        samples.append(watch.seconds)
        await disconnect()
    return {"median_s": median(sample * 1e6 for sample in samples) / 1e6}


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Rounds to take medians over.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--only", multiple=True, help="Measure only these contenders.")
@click.option("--serve", hidden=True)
@click.option("--drive", "driven", hidden=True)
@click.option("--address", hidden=True, default="{}")
def main(
    rounds: int,
    as_json: bool,
    only: tuple[str, ...],
    serve: str | None,
    driven: str | None,
    address: str,
) -> None:
    """Measure our transport beside its alternatives, on this machine, in this run."""
    from benchmarks.transport_contenders import ALL, BESIDE

    if serve is not None:
        contender = ALL[serve]
        run: Any = trio.run if contender.runs_on == "trio" else _run_on_asyncio
        run(contender.serve)
    elif driven is not None and ALL[driven].runs_on == "trio":
        trio.run(drive, driven, json.loads(address))
    elif driven is not None:
        _run_on_asyncio(drive_on_asyncio, driven, json.loads(address))
    else:
        result = measure(rounds, list(only) or list(ALL), set(BESIDE))
        (print_json if as_json else print_result)(result)


def _run_on_asyncio(main_task: Any, *arguments: Any) -> None:
    asyncio.run(main_task(*arguments))


if __name__ == "__main__":
    main()
