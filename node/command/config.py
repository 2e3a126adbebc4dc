"""`config`: the configuration a node would get, and where each value comes from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from node.command.option import config_options, json_option, print_json
from node.config import GatheredConfig


@click.command()
@config_options
@click.option("--show-origin", is_flag=True, help="Say where each value comes from.")
@json_option
def config(gathered: GatheredConfig, show_origin: bool, as_json: bool) -> None:
    """Show the configuration that these options, the environment and the file give."""
    values = {
        field.name: _plain(getattr(gathered.config, field.name))
        for field in dataclasses.fields(gathered.config)
    }
    if as_json:
        with_origin = {
            name: {"value": value, "origin": gathered.origins[name]}
            for name, value in values.items()
        }
        print_json(with_origin if show_origin else values)
        return
    width = max(map(len, values))
    for name, value in values.items():
        text = f"{name:{width}} = {_toml(value)}"
        click.echo(f"{text:60}  # {gathered.origins[name]}" if show_origin else text)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    """As it would stand in a file; a value that is not set cannot stand there."""
    if value is None:
        return "(not set)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(f'"{each}"' for each in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'
