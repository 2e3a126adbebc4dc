"""Tensors between two processes, ours beside three others: `python -m benchmarks.tensor`.

The rule: see `benchmarks.measure`; what is timed is a whole exchange, from a numpy array to the
answer as a numpy array, served by the identity model. Figures: the median of an exchange of 64 KiB
and 1 MiB in µs and of 16 MiB in ms, and CPU of all processes per exchange of 16 MiB in ms. `ratios`
are those of the goals: theirs over ours for 16 MiB (more is better), ours over theirs else.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np

from benchmarks.contest import contest, medians, open_pairs
from benchmarks.measure import (
    Stopwatch,
    Worker,
    environment,
    median,
    print_table,
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
    """The whole run, in the shape that `--json` prints; no names: all that are here."""
    result: dict[str, Any] = environment()
    with open_pairs(MODULE, names or contender_names()) as pairs:
        result["contenders"] = medians(pairs, measure_round, rounds, COLUMNS)
    result["rounds"] = rounds
    result["ratios"] = ratios(result["contenders"])
    result["missing"] = sorted(set(contender_names(everything=True)) - set(result["contenders"]))
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


def _contenders() -> dict[str, Any]:
    from benchmarks.tensor_contenders import CONTENDERS

    return CONTENDERS


main = contest(
    "Measure a tensor exchange beside its alternatives, on this machine, in this run.",
    contenders=_contenders,
    obey=obey,
    measure=measure,
    print_result=print_result,
)

if __name__ == "__main__":
    main()
