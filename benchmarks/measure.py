"""Measuring processes side by side: workers that take commands, medians, and how to print them.

The rule: contenders are measured in turn within one round, never one after the other in blocks,
so that whatever else the machine does falls on all of them; a figure is the median over the
rounds, and only ratios of figures of the same run mean anything. Every result carries the load
average that it began with.

A worker is this interpreter running one module of `benchmarks`; commands and answers are JSON, one
object a line, on its standard input and output:

    with Worker("benchmarks.transport", "drive", "tcp", address) as worker:
        seconds = worker.ask(do="echo", payload_bytes=64)["seconds"]
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import trio
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

CLOSE_TIMEOUT_S = 5.0
"""A worker that has not ended by then is killed."""


class Worker:
    """A child process that answers commands; ends with its block."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = " ".join((module, *arguments))

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def read(self) -> dict[str, Any]:
        """The next object that the child prints; `RuntimeError` when it ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **command: object) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # a worker ends with its input
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def tell(**answer: object) -> None:
    """Within a worker: print one answer."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def answer_commands(answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Within a worker on trio: answer every command until the input ends."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        tell(**await answer(json.loads(line)))


def usage() -> dict[str, float]:
    """Within a worker: CPU seconds used so far, and memory resident now in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "cpu_s": used.ru_utime + used.ru_stime,
        "rss_MiB": pages * resource.getpagesize() / 2**20,
    }


class Stopwatch:
    """Seconds of the wall clock within a `with` block."""

    seconds = 0.0

    def __enter__(self) -> Self:
        self._began_at = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began_at


def median(samples: Iterable[float]) -> float:
    """The median, rounded to what a benchmark can tell."""
    return round(statistics.median(samples), 3)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` % of the samples do not exceed."""
    ordered = sorted(samples)
    index = -(-len(ordered) * percent // 100) - 1
    return ordered[max(0, int(index))]


def environment() -> dict[str, Any]:
    """What a reader must know to judge the figures; take it before measuring."""
    return {
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def print_json(result: Mapping[str, object]) -> None:
    """The result as one JSON object."""
    print(json.dumps(result, indent=2))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = ""
) -> None:
    """The result for people; the first column is left-aligned, the others are numbers.

    Nothing is cut: columns that do not fit beside each other follow below, each time with the
    first one, and a table that is too wide even then is as wide as it has to be.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [
        max(cell_len(row[index]) for row in (columns, *texts)) for index in range(len(columns))
    ]
    blocks = _blocks(widths, Console().width)
    width = max(Console().width, *(_table_width(widths, block) for block in blocks))
    console = Console(width=width, highlight=False)
    console.print(title, style="italic", markup=False)
    for block in blocks:
        table = Table()
        for index in block:
            table.add_column(escape(columns[index]), justify="right" if index else "left")
        for row in texts:
            table.add_row(*(escape(row[index]) for index in block))
        console.print(table)
    if caption:
        console.print(caption, style="dim italic", markup=False)


def _blocks(widths: Sequence[int], width_max: int) -> list[list[int]]:
    """The columns in groups that fit into `width_max`, each led by the first column."""
    blocks = [[0]]
    for index in range(1, len(widths)):
        if len(blocks[-1]) > 1 and _table_width(widths, [*blocks[-1], index]) > width_max:
            blocks.append([0])
        blocks[-1].append(index)
    return blocks


def _table_width(widths: Sequence[int], block: Sequence[int]) -> int:
    """Of a table of these columns: each has a space on either side and a line, and one ends it."""
    return sum(widths[index] + 3 for index in block) + 1


__all__ = [
    "Stopwatch",
    "Worker",
    "answer_commands",
    "environment",
    "median",
    "percentile",
    "print_json",
    "print_table",
    "tell",
    "usage",
]
