"""Tensors between two processes, ours beside three others: `python -m benchmarks.tensor`.

The rule: see `benchmarks.measure`; what is timed is a whole exchange, from a numpy array to the
answer as a numpy array, served by the identity model. Figures: the median of an exchange of 64 KiB
and 1 MiB in µs and of 16 MiB in ms, and CPU of all processes per exchange of 16 MiB in ms. `ratios`
are those of the goals: theirs over ours for 16 MiB (more is better), ours over theirs else.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import click
import numpy as np
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
)

MODULE = "benchmarks.tensor"
SHAPES = {"64KiB": (16, 1, 1024), "1MiB": (16, 16, 1024), "16MiB": (16, 256, 1024)}
COUNTS = {"64KiB": 40, "1MiB": 10, "16MiB": 2}
COLUMNS = ("64KiB_us", "1MiB_us", "16MiB_ms", "cpu_ms_16MiB")

GOALS = (  # figure, against, must, goal, whether the ratio is theirs over ours
    ("64KiB_us", "grpc_aio_tls", 1.0, 0.7, False),
    ("16MiB_ms", "grpc_aio_tls", 3.0, 4.5, True),
    ("16MiB_ms", "hivemind", 8.0, 12.0, True),
    ("16MiB_ms", "http_bittensor", 9.0, 15.0, True),
    ("cpu_ms_16MiB", "grpc_aio_tls", 0.5, 0.35, False),
)


def measure_round(client: Worker, server: Worker) -> dict[str, float]:
    """All figures of one contender, once."""
    figures = {}
    for size in ("64KiB", "1MiB"):
        answer = client.ask(size=size, count=COUNTS[size])
        figures[f"{size}_us"] = answer["median_s"] * 1e6
    before_s = server.ask(size=None)["cpu_s"] + client.ask(size=None)["cpu_s"]
    answer = client.ask(size="16MiB", count=COUNTS["16MiB"])
    after_s = server.ask(size=None)["cpu_s"] + client.ask(size=None)["cpu_s"]
    figures["16MiB_ms"] = answer["median_s"] * 1e3
    figures["cpu_ms_16MiB"] = (after_s - before_s) / COUNTS["16MiB"] * 1e3
    return figures


def measure(rounds: int, names: list[str]) -> dict[str, Any]:
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
    result["contenders"] = {
        name: {figure: median(samples[name][figure]) for figure in COLUMNS} for name in names
    }
    result["rounds"] = rounds
    result["ratios"] = ratios(result["contenders"])
    result["missing"] = sorted(set(contender_names(everything=True)) - set(names))
    return result


def ratios(contenders: dict[str, dict[str, float]]) -> dict[str, float]:
    """The ratios that have goals."""
    found = {}
    for figure, other, _, _, theirs_over_ours in GOALS:
        if other in contenders and "agora" in contenders:
            ours, theirs = contenders["agora"][figure], contenders[other][figure]
            ratio = theirs / ours if theirs_over_ours else ours / theirs
            found[f"{figure}_vs_{other}"] = round(ratio, 3)
    return found


def contender_names(*, everything: bool = False) -> list[str]:
    """The contenders that can be measured here."""
    from benchmarks.tensor_contenders import CONTENDERS

    present = "AGORA_HIVEMIND" in os.environ or importlib.util.find_spec("hivemind") is not None
    return [name for name in CONTENDERS if everything or present or name != "hivemind"]


def print_result(result: dict[str, Any]) -> None:
    """The tables for people."""
    print_table(
        f"Tensor exchanges, medians of {result['rounds']} rounds",
        ("", *COLUMNS),
        ((name, *figures.values()) for name, figures in result["contenders"].items()),
        caption=f"load average {result['load_average']}, {result['cpus']} CPUs; "
        f"not measured: {', '.join(result['missing']) or 'none'}",
    )
    rows = []
    for figure, other, must, goal, is_more_better in GOALS:
        ratio = result["ratios"].get(f"{figure}_vs_{other}")
        if ratio is not None:
            reached = [(ratio >= bar) if is_more_better else (ratio <= bar) for bar in (must, goal)]
            verdict = "goal" if reached[1] else "must" if reached[0] else "MISSED"
            rows.append((f"{figure} vs {other}", ratio, must, goal, verdict))
    print_table("Ratios", ("", "ratio", "must", "goal", ""), rows)


async def drive(name: str, address: dict[str, Any]) -> None:
    """The client worker, on trio or asyncio."""
    from benchmarks.tensor_contenders import CONTENDERS

    async with CONTENDERS[name].drive(address) as ask:
        tell(ready=True)
        if CONTENDERS[name].runs_on == "trio":
            await answer_commands(lambda command: obey(ask, command))
            return
        while line := await asyncio.to_thread(sys.stdin.readline):
            tell(**await obey(ask, json.loads(line)))


async def obey(ask: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Ask `count` times with one size; None only tells the CPU used."""
    from benchmarks.tensor_contenders import cpu_s

    if command["size"] is None:
        return {"cpu_s": cpu_s()}
    array = np.random.default_rng(1).standard_normal(SHAPES[command["size"]]).astype(np.float32)
    samples = []
    for _ in range(command["count"]):
        with Stopwatch() as watch:
            answer = await ask(array)
        if answer.shape != array.shape or answer[0, 0, 0] != array[0, 0, 0]:
            raise RuntimeError("the answer is not the input")
        samples.append(watch.seconds)
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
    """Measure a tensor exchange beside its alternatives, on this machine, in this run."""
    from benchmarks.tensor_contenders import CONTENDERS

    if serve is not None:
        _run(CONTENDERS[serve].runs_on, CONTENDERS[serve].serve)
    elif driven is not None:
        _run(CONTENDERS[driven].runs_on, drive, driven, json.loads(address))
    else:
        result = measure(rounds, list(only) or contender_names())
        (print_json if as_json else print_result)(result)


def _run(runs_on: str, task: Any, *arguments: Any) -> None:
    if runs_on == "trio":
        trio.run(task, *arguments)
    else:
        asyncio.run(task(*arguments))


if __name__ == "__main__":
    main()
