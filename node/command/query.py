"""`status`, `peers`, `metagraph`: what the node and its ledger say.

`status` and `peers` ask the running node; `metagraph` reads the final state from disk and needs
none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from node.command.directory import find_directory
from node.command.option import data_dir_option, json_option, print_json
from node.local_api import open_local_api


@click.command()
@data_dir_option
@json_option
def status(data_dir: Path | None, as_json: bool) -> None:
    """What the running node is doing."""
    _show(open_local_api(find_directory(data_dir)).get("/status"), as_json=as_json)


@click.command()
@data_dir_option
@json_option
def peers(data_dir: Path | None, as_json: bool) -> None:
    """Whom the running node is connected to."""
    _show(open_local_api(find_directory(data_dir)).get("/peers"), as_json=as_json)


@click.command()
@data_dir_option
@json_option
def metagraph(data_dir: Path | None, as_json: bool) -> None:
    """Stake, rank, trust and weights of every peer after the last final block."""
    from node import chain_view

    view = chain_view.read_chain(find_directory(data_dir))
    facts = chain_view.metagraph(view)
    if as_json:
        print_json(facts)
        return
    state = "open" if facts["open"] else "closed: nothing is emitted"
    click.echo(f"network {facts['network']}, height {facts['height']}, epoch {facts['epoch']}")
    issued, pool = (chain_view.tokens(facts[name]) for name in ("issued", "pool"))
    click.echo(f"{state}, {issued} tokens issued, {pool} of them in the pool")
    _print_table(
        [
            {
                "uid": row["uid"],
                "peer": row["peer_id"],
                "stake": chain_view.tokens(row["stake"]),
                "scaling": f"{row['scaling']:.3f}",
                "rank": f"{row['rank']:.4f}",
                "trust": f"{row['trust']:.4f}",
                "weights": len(row["weights"]),
                "votes": "jailed" if row["jailed"] else ("yes" if row["power"] else ""),
            }
            for row in facts["peers"]
        ]
    )


def _show(value: Any, *, as_json: bool) -> None:
    """A view of the node's interface: mappings as lines, lists of mappings as a table."""
    if as_json:
        print_json(value)
    elif isinstance(value, Mapping):
        _print_mapping(value)
    elif isinstance(value, Sequence) and all(isinstance(row, Mapping) for row in value):
        _print_table(value)
    else:
        click.echo(str(value))


def _print_mapping(value: Mapping[str, Any]) -> None:
    width = max((len(name) for name in value), default=0)
    for name, item in value.items():
        if isinstance(item, list) and item and all(isinstance(row, Mapping) for row in item):
            click.echo(f"{name}:")
            _print_table(item)
        else:
            click.echo(f"{name.replace('_', ' '):{width}}  {_text(item)}")


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Aligned columns, never folded: a peer id that is cut in two cannot be copied."""
    if not rows:
        click.echo("none")
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[name.replace("_", " ") for name in names]]
    lines += [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    for line in lines:
        cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list():
            return " ".join(_text(each) for each in value) or "-"
        case dict():
            return ", ".join(f"{name} {_text(each)}" for name, each in value.items()) or "-"
        case _:
            return str(value)
