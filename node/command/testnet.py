"""`testnet`: a local network of real processes, with a live table and a summary."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from node.command.option import json_option, print_json
from node.errors import UsageError

_TIMEOUT_BASE_S: Final = 120.0
_TIMEOUT_BLOCK_S: Final = 3.0
PLAIN_LINE_S: Final = 5.0
"""Between two lines of progress where the terminal cannot redraw."""


@click.command()
@click.option("--nodes", type=int, default=4, show_default=True, help="Node processes.")
@click.option("--blocks", type=int, default=20, show_default=True, help="Final blocks to reach.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="Text to learn from.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the nodes' directories here (new or empty) [a temporary directory].",
)
@click.option("--seed", type=int, help="Fixed identities, models and choices.")
@click.option("--train/--no-train", default=True, help="Train and exchange, or only order blocks.")
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="Give up after this long [two minutes and three seconds a block].",
)
@click.option(
    "--kill-every",
    type=float,
    metavar="SECONDS",
    help="Kill a node by chance this often and start it again.",
)
@json_option
def testnet(
    nodes: int,
    blocks: int,
    data: Path | None,
    data_dir: Path | None,
    seed: int | None,
    train: bool,
    timeout: float | None,
    kill_every: float | None,
    as_json: bool,
) -> int:
    """Run a whole local network of real processes until it has proved itself.

    It ends when every node has the wanted number of final blocks, every ordered pair of nodes has
    exchanged tensors three times and every loss has fallen.
    """
    import trio

    from node.testnet import Plan, launch

    with _directory(data_dir) as directory:
        plan = Plan(
            nodes=nodes,
            blocks=blocks,
            directory=directory,
            data=data,
            seed=seed,
            train=train,
            timeout_s=_TIMEOUT_BASE_S + _TIMEOUT_BLOCK_S * blocks if timeout is None else timeout,
            kill_every_s=kill_every,
        )
        with _display(blocks, quiet=as_json) as (show, note):

            async def run() -> Any:
                return await launch(plan, show=show, note=note)

            outcome = trio.run(run)
    if as_json:
        print_json(outcome.summary)
    else:
        _print_summary(outcome.summary)
    if outcome.interrupted:
        return 130
    if outcome.missing is not None:
        print(f"agora: {outcome.missing}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    """A new directory for the nodes; a temporary one is removed afterwards."""
    if wanted is not None:
        if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
            raise UsageError(f"--data-dir {wanted} exists and is not empty")
        yield wanted
        return
    path = Path(tempfile.mkdtemp(prefix="agora-testnet-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _display(
    blocks: int, *, quiet: bool
) -> Iterator[tuple[Callable[[Any, float], None], Callable[[str], None]]]:
    """How progress and news are shown; with `quiet` standard output stays free for the JSON."""
    from rich.console import Console
    from rich.live import Live

    from node.testnet import table

    console = Console(stderr=quiet)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=False) as live:

            def redraw(progress: Any, elapsed_s: float) -> None:
                live.update(table.render(progress, blocks=blocks, elapsed_s=elapsed_s))

            yield redraw, lambda text: console.print(text, markup=False, highlight=False)
        return
    last_s = -PLAIN_LINE_S

    def print_line(progress: Any, elapsed_s: float) -> None:
        nonlocal last_s
        if elapsed_s - last_s >= PLAIN_LINE_S:
            last_s = elapsed_s
            text = table.line(progress, blocks=blocks, elapsed_s=elapsed_s)
            print(text, file=sys.stderr, flush=True)

    yield print_line, lambda text: print(text, file=sys.stderr, flush=True)


def _print_summary(summary: dict[str, Any]) -> None:
    rows = {
        "final height of all": summary["finalized"],
        "state root": summary["state_root"],
        "state roots equal": "yes" if summary["state_roots_equal"] else "NO",
        "transactions": summary["transactions"],
        "exchanges": f"{summary['exchanges']} (fewest of a pair: {summary['exchanges_min_pair']})",
        "mean loss": f"{_figure(summary['loss_start'])} -> {_figure(summary['loss_end'])}",
        "first final block": f"{_figure(summary['first_final_s'])} s",
        "duration": f"{summary['duration_s']:.1f} s",
        "exit codes": " ".join(map(str, summary["exit_codes"])),
    }
    for name, value in rows.items():
        click.echo(f"{name:20} {value}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
