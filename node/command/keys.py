"""`keys`: create and show the peer and owner key of a node."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from node import keystore
from node.command.directory import find_directory
from node.command.option import data_dir_option, json_option, print_json
from node.data_directory import DataDirectory, claim
from node.errors import PassphraseError, UsageError
from p2p.identity import PeerId


@click.group()
def keys() -> None:
    """Create and show keys: the peer key (hot, on the node) and the owner key (the account)."""


@keys.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The node's directory; made if needed.",
)
@click.option("--passphrase-file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--passphrase-fd", type=int, metavar="FD")
@click.option(
    "--no-passphrase", is_flag=True, help="Keep the keys unsealed; for networks without value."
)
@click.option(
    "--owner", metavar="HEX", help="Public key of an owner key that is kept elsewhere (watch-only)."
)
@json_option
def create(
    data_dir: Path,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    no_passphrase: bool,
    owner: str | None,
    as_json: bool,
) -> None:
    """Make a new peer key and owner key, sealed with a passphrase; never overwrites."""
    passphrase = None if no_passphrase else _new_passphrase(passphrase_file, passphrase_fd)
    with claim(data_dir) as directory:
        if owner is not None:
            _note_owner(directory, owner)
        directory.create_keys(passphrase=passphrase)
        _print_keys(directory, as_json=as_json)


@keys.command()
@data_dir_option
@json_option
def show(data_dir: Path | None, as_json: bool) -> None:
    """Show the public names of a node's keys; needs no passphrase."""
    _print_keys(find_directory(data_dir), as_json=as_json)


def _new_passphrase(file: Path | None, fd: int | None) -> bytes:
    given = keystore.read_passphrase(file=file, fd=fd, environ=os.environ)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise PassphraseError(
            "give --passphrase-file, --passphrase-fd or AGORA_PASSPHRASE, or --no-passphrase"
        )
    typed: str = click.prompt("passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return typed.encode()


def _note_owner(directory: DataDirectory, owner: str) -> None:
    try:
        public_key = bytes.fromhex(owner)
    except ValueError:
        public_key = b""
    if len(public_key) != 32:
        raise UsageError("--owner is not a public key of 64 hex digits")
    keystore.write_once(directory.owner_public_key, owner.encode() + b"\n")


def _print_keys(directory: DataDirectory, *, as_json: bool) -> None:
    peer_key = keystore.load_public_key(directory.peer_key, "peer")
    owner_here = directory.owner_key.exists()
    facts: dict[str, Any] = {
        "data_dir": str(directory.path),
        "peer_id": str(PeerId.from_public_key(peer_key)),
        "peer_key": peer_key.hex(),
        "account": directory.load_owner_public_key().hex(),
        "owner_key": "here" if owner_here else "elsewhere",
        "sealed": keystore.is_sealed(directory.peer_key, "peer"),
    }
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):9} {value}")
