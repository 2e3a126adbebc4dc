"""Our transport beside raw TCP, TLS, gRPC and stock py-libp2p: `python -m benchmarks.transport`.

The rule: see `benchmarks.measure`; every contender has a server and a client process of its own on
the loopback interface, alive for the whole run and idle while others are measured.

Figures: round trips of 64 B, 64 KiB and 1 MiB in µs; the echo of 16 MiB in ms; one way in MB/s
(10^6 bytes, 16 MiB and its acknowledgement); CPU of both processes per 16 MiB one way in ms; a
connection from nothing to ready in ms. `ratios` are those of the goals: ours over theirs. `beside`
holds figures of contenders that no goal names (see `benchmarks.transport_contenders`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from benchmarks.contest import Pairs, contest, medians, open_pairs
from benchmarks.measure import (
    Stopwatch,
    Worker,
    environment,
    median,
    print_table,
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


def measure_idle(workers: Pairs) -> dict[str, dict[str, float]]:
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


def measure(rounds: int, names: list[str]) -> dict[str, Any]:
    """The whole run, in the shape that `--json` prints; no names: all contenders."""
    from benchmarks.transport_contenders import BESIDE

    result: dict[str, Any] = environment()
    with open_pairs(MODULE, names or list(_contenders())) as pairs:
        figures = medians(pairs, measure_round, rounds, COLUMNS)
        idle = measure_idle(pairs)
    result["contenders"] = {name: figures[name] for name in figures if name not in BESIDE}
    result["beside"] = {name: figures[name] for name in figures if name in BESIDE}
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


def _contenders() -> dict[str, Any]:
    from benchmarks.transport_contenders import ALL

    return ALL


main = contest(
    "Measure our transport beside its alternatives, on this machine, in this run.",
    contenders=_contenders,
    obey=obey,
    measure=measure,
    print_result=print_result,
)

if __name__ == "__main__":
    main()
