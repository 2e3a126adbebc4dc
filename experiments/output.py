"""How an experiment shows itself: a table for people, JSON for programs, a figure for the docs."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"

Rows = Sequence[Sequence[object]]
Draw = Callable[[Any], None]


def show(
    result: Mapping[str, Any],
    *,
    as_json: bool,
    title: str,
    columns: Sequence[str],
    rows: Rows,
    notes: Sequence[str] = (),
) -> None:
    """Print `result` as one JSON object, or `rows` as a table with its notes."""
    if as_json:
        click.echo(json.dumps(result))
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column != columns[0] else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def save_figure(name: str, draw: Draw, *, size_in: tuple[float, float] = (6.4, 4.0)) -> Path:
    """Let `draw(axes)` fill one set of axes and write it to docs/figures/NAME.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=size_in, layout="constrained")
    draw(axes)
    FIGURES.mkdir(parents=True, exist_ok=True)
    path = FIGURES / f"{name}.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return path


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
