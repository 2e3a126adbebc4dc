"""Contenders side by side, a server and a client process each: the command line of such benchmarks.

The rule: see `benchmarks.measure`. The benchmark starts its own module again as worker, with
`--serve NAME` (tells its address first) or `--drive NAME --address JSON` (tells that it is ready);
all workers live for the whole run and are idle while others are measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import click
import trio

from benchmarks.measure import Worker, answer_commands, median, print_json, tell

Pairs = dict[str, tuple[Worker, Worker]]
"""Client and server of every contender."""

Obey = Callable[[Any, dict[str, Any]], Awaitable[dict[str, Any]]]


class Contender(Protocol):
    """How one contender serves (telling its address) and how it is driven, on trio or asyncio."""

    @property
    def serve(self) -> Callable[[], Awaitable[None]]: ...
    @property
    def drive(self) -> Callable[[dict[str, Any]], AbstractAsyncContextManager[Any]]: ...
    @property
    def runs_on(self) -> str: ...


@contextmanager
def open_pairs(module: str, names: Sequence[str]) -> Iterator[Pairs]:
    """A client and a server process of each contender, ready."""
    with ExitStack() as stack:
        pairs = {}
        for name in names:
            server = stack.enter_context(Worker(module, "--serve", name))
            address = json.dumps(server.read()["address"])
            client = stack.enter_context(Worker(module, "--drive", name, "--address", address))
            client.read()
            pairs[name] = (client, server)
        yield pairs


def medians(
    pairs: Pairs,
    measure_round: Callable[[Worker, Worker], dict[str, float]],
    rounds: int,
    figures: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Measure all contenders in turn, `rounds` times after one that does not count."""
    for pair in pairs.values():
        measure_round(*pair)  # warms up windows, caches and compiled code
    samples: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in pairs}
    for _ in range(rounds):
        for name, pair in pairs.items():
            for figure, value in measure_round(*pair).items():
                samples[name][figure].append(value)
    return {name: {figure: median(samples[name][figure]) for figure in figures} for name in pairs}


def contest(
    help_text: str,
    *,
    contenders: Callable[[], Mapping[str, Contender]],
    obey: Obey,
    measure: Callable[[int, list[str]], dict[str, Any]],
    print_result: Callable[[dict[str, Any]], None],
) -> click.Command:
    """The benchmark's command, and its workers'; `contenders` imports what they need.

    `obey` carries out one command of the benchmark in a client; `measure` gets the rounds and the
    names asked for, none for all.
    """

    @click.command(help=help_text)
    @click.option("--rounds", default=11, show_default=True, help="Rounds to take medians over.")
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
        if serve is not None:
            contender = contenders()[serve]
            _run(contender.runs_on, contender.serve)
        elif driven is not None:
            contender = contenders()[driven]
            _run(contender.runs_on, _drive, contender, json.loads(address), obey)
        else:
            (print_json if as_json else print_result)(measure(rounds, list(only)))

    return main


async def _drive(contender: Contender, address: dict[str, Any], obey: Obey) -> None:
    async with contender.drive(address) as driver:
        tell(ready=True)
        if contender.runs_on == "trio":
            await answer_commands(lambda command: obey(driver, command))
            return
        while line := await asyncio.to_thread(sys.stdin.readline):
            tell(**await obey(driver, json.loads(line)))


def _run(runs_on: str, task: Callable[..., Any], *arguments: Any) -> None:
    if runs_on == "trio":
        trio.run(task, *arguments)
    else:
        asyncio.run(task(*arguments))
