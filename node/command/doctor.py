"""`doctor`: look for what keeps a node from working, and say what to do about it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from node import keystore
from node.chain_view import read_chain
from node.command.directory import find_directory
from node.command.option import data_dir_option, json_option, print_json
from node.data_directory import DataDirectory, claim
from node.errors import KeyLocked, NodeError, NodeNotRunning
from node.local_api import open_local_api

FREE_BYTES_MIN: Final = 1 << 30
"""A day of full blocks is a few hundred MiB."""
LAG_BLOCKS_MAX: Final = 5
SKEW_MS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `advice` is empty when all is well."""

    name: str
    fact: str
    advice: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing needs to be done."""
        return not self.advice


@click.command()
@data_dir_option
@json_option
def doctor(data_dir: Path | None, as_json: bool) -> int:
    """Look for what keeps a node from working; exits with 1 when something does."""
    findings = list(examine(find_directory(data_dir)))
    if as_json:
        print_json(
            [
                {"name": each.name, "ok": each.is_well, "fact": each.fact, "advice": each.advice}
                for each in findings
            ]
        )
    else:
        for each in findings:
            click.echo(f"{'ok  ' if each.is_well else 'LOOK'} {each.name}: {each.fact}")
            if each.advice:
                click.echo(f"     {each.advice}")
    return 0 if all(each.is_well for each in findings) else 1


def examine(directory: DataDirectory) -> Iterator[Finding]:
    """Everything that can be looked at without changing anything."""
    yield _python()
    yield _disk(directory)
    yield _keys(directory)
    yield _chain(directory)
    yield _votes(directory)
    yield from _running(directory)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if importlib.util.find_spec("torch") is None:
        return Finding(
            name="python",
            fact=f"{version}, without torch",
            advice="to train: pip install 'agora-node[neuron]'; else run with --no-train",
        )
    return Finding(name="python", fact=f"{version}, with torch")


def _disk(directory: DataDirectory) -> Finding:
    free = shutil.disk_usage(directory.path).free
    advice = "make room: a node that cannot write stops" if free < FREE_BYTES_MIN else ""
    return Finding(name="disk", fact=f"{free / (1 << 30):.1f} GiB free", advice=advice)


def _keys(directory: DataDirectory) -> Finding:
    try:
        sealed = keystore.is_sealed(directory.peer_key, "peer")
        keystore.load_public_key(directory.peer_key, "peer")
        directory.load_owner_public_key()
    except NodeError as error:
        return Finding(
            name="keys", fact=str(error), advice="restore the key file; it is never made anew here"
        )
    return Finding(name="keys", fact="sealed" if sealed else "not sealed (local network)")


def _chain(directory: DataDirectory) -> Finding:
    if not directory.chain.exists():
        return Finding(name="chain", fact="none yet")
    try:
        view = read_chain(directory)
    except NodeError as error:
        return Finding(
            name="chain",
            fact=str(error),
            advice=f"move {directory.chain.name} away and let the node fetch the chain again",
        )
    fact = f"{view.genesis.network}, height {view.tip.height}, the state has its root"
    advice = "" if view.state.is_open else "the network is closed (loss >= 0): nothing is earned"
    return Finding(name="chain", fact=fact, advice=advice)


def _votes(directory: DataDirectory) -> Finding:
    if directory.chain.exists() and not directory.votes.exists():
        return Finding(
            name="votes",
            fact=f"{directory.votes.name} is missing",
            advice="restore it, or start once with --fresh-vote-log",
        )
    return Finding(name="votes", fact="in place" if directory.votes.exists() else "none yet")


def _running(directory: DataDirectory) -> Iterator[Finding]:
    """What the running node itself says."""
    try:
        status = open_local_api(directory).get("/status")
    except NodeNotRunning as error:
        yield Finding(name="node", fact=_holder(directory) or str(error))
        return
    except NodeError as error:
        yield Finding(name="node", fact=str(error), advice="look at what it logs")
        return
    if not isinstance(status, Mapping):
        yield Finding(name="node", fact="it answers something unknown", advice="same version?")
        return
    yield Finding(name="node", fact=f"running, height {status.get('height')}")
    yield from _told(status)


def _told(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings for those figures that this node reports."""
    if isinstance(peers := status.get("peers"), int):
        advice = "no connection: check --bootstrap, and that others can dial --listen"
        yield Finding(name="peers", fact=f"{peers} connected", advice="" if peers else advice)
    if isinstance(addresses := status.get("addresses"), list):
        loopback = bool(addresses) and all("/127." in each or "/::1/" in each for each in addresses)
        fact = ", ".join(addresses) or "none"
        if loopback:
            fact += " (this machine only)"
        yield Finding(name="listening", fact=fact, advice="" if addresses else "give --listen")
    height, top = status.get("height"), status.get("network_height")
    if isinstance(height, int) and isinstance(top, int):
        lag = max(0, top - height)
        advice = "it is catching up; if this does not shrink, it lacks peers or processor time"
        yield Finding(
            name="lag", fact=f"{lag} blocks behind", advice=advice if lag > LAG_BLOCKS_MAX else ""
        )
    if isinstance(skew_ms := status.get("clock_skew_ms"), int | float):
        advice = "set the system clock: blocks too early are not accepted"
        yield Finding(
            name="clock",
            fact=f"{skew_ms:.0f} ms off",
            advice=advice if abs(skew_ms) > SKEW_MS_MAX else "",
        )
    if halted := status.get("halted"):
        yield Finding(name="ordering", fact=f"halted: {halted}", advice="see docs on recovery")


def _holder(directory: DataDirectory) -> str:
    """Who holds the directory although no interface answers."""
    try:
        with claim(directory.path):
            return ""
    except KeyLocked as error:
        return str(error)
