"""Options that several verbs share; those of a node are derived from `Config` itself.

The rule: what is a field of `Config` is an option, with the same name, help and type, and only what
was really typed counts as a flag, so that environment and file keep their rank.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from node.config import Config, GatheredConfig, field_kind, gather_config

json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs."
)
data_dir_option: Final = click.option(
    "--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="The node's directory."
)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every option of a node; it receives them gathered, as `gathered`.

    Raises ConfigError and AddressError from inside the command's call.
    """

    @functools.wraps(command)
    def call(config_file: Path | None, **values: Any) -> Any:
        names = {field.name for field in dataclasses.fields(Config)}
        flags = {
            name: value
            for name, value in values.items()
            if name in names and value is not None and value != ()
        }
        others = {name: value for name, value in values.items() if name not in names}
        gathered: GatheredConfig = gather_config(flags=flags, config_file=config_file)
        return command(gathered=gathered, **others)

    decorated: Callable[..., Any] = call
    for field in reversed(dataclasses.fields(Config)):
        decorated = _option_of(field)(decorated)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="TOML file with any of these options as keys.",
    )(decorated)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    click.echo(json.dumps(value, separators=(",", ":")))


def _option_of(field: dataclasses.Field[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = "--" + field.name.replace("_", "-")
    kind = field_kind(field.name)
    choices = field.metadata.get("choices")
    extra: dict[str, Any] = {}
    if kind is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    elif choices:
        extra["type"] = click.Choice(choices)
    elif kind is tuple:
        extra |= {"multiple": True, "metavar": field.metadata.get("metavar")}
    else:
        extra["type"] = click.Path(path_type=Path) if kind is Path else kind
        extra["metavar"] = field.metadata.get("metavar")
    return click.option(flag, field.name, default=None, help=field.metadata["help"], **extra)
