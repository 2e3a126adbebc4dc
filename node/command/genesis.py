"""`genesis`: write the genesis of a network, check one, or continue a halted chain."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from consensus.errors import ConsensusError
from consensus.genesis import Genesis, GenesisAccount
from consensus.params import PRESETS
from consensus.types import Amount, Digest, Uid
from consensus.weights import Row, self_row
from node import keystore
from node.chain_view import ChainView, read_chain
from node.command.directory import find_directory
from node.command.option import data_dir_option, json_option, print_json
from node.data_directory import DataDirectory
from node.errors import GenesisError, UsageError
from node.genesis_file import Allocation, load_genesis, local_genesis, write_genesis
from p2p.identity import PeerId


@click.group(invoke_without_command=True)
@click.option(
    "--from-final", is_flag=True, help="Continue a halted chain's final state under a new id."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--voter",
    "voters",
    multiple=True,
    metavar="PEER",
    help="With --from-final: who votes there [all that did]; repeatable. Others keep their stake.",
)
@data_dir_option
@json_option
@click.pass_context
def genesis(
    context: click.Context,
    from_final: bool,
    out: Path | None,
    voters: tuple[str, ...],
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Write or check the genesis of a network."""
    if context.invoked_subcommand is not None:
        return
    if not from_final or out is None:
        raise UsageError("give --from-final with --out FILE, or one of: genesis new, genesis check")
    made = continued(read_chain(find_directory(data_dir)), voters=voters)
    write_genesis(out, made)
    _print_genesis(made, as_json=as_json)


@genesis.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE")
@click.option("--network", default="local", show_default=True, help="Its name: [a-z0-9-]{1,32}.")
@click.option(
    "--preset", type=click.Choice(["local", "testnet"]), default="local", show_default=True
)
@click.option(
    "--founder",
    "founders",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory with the keys of a founding voter; repeatable.",
)
@click.option(
    "--founder-keys",
    "founder_keys",
    multiple=True,
    metavar="OWNER:PEER",
    help="Public keys (hex) of a founder elsewhere; repeatable.",
)
@json_option
def new(
    out: Path,
    network: str,
    preset: str,
    founders: tuple[Path, ...],
    founder_keys: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write a genesis whose founders all vote and trust each other alike."""
    allocations = [_of_directory(path) for path in founders]
    allocations += [_of_text(text) for text in founder_keys]
    if not allocations:
        raise UsageError("give at least one --founder or --founder-keys")
    made = local_genesis(allocations, network=network, parameters=PRESETS[preset])
    write_genesis(out, made)
    _print_genesis(made, as_json=as_json)


@genesis.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check a genesis file and show its chain id."""
    _print_genesis(load_genesis(file), as_json=as_json)


def continued(view: ChainView, *, voters: Sequence[str] = ()) -> Genesis:
    """A genesis that starts where a chain's last final block stands (ordering.md, safe halt).

    Stake, scaling, rows, bonds, announcements and pool carry over; pending emission lapses, uids
    are given anew in the same order. With `voters` (peer ids) only these keep their bonds, or a
    chain that lost a third of its power for good would halt again. Raises GenesisError when nobody
    could vote, UsageError for a voter that the chain does not have.
    """
    state = view.state
    chosen = {_peer_key(text) for text in voters}
    if strangers := chosen - {account.peer_key for account in state.accounts.values()}:
        raise UsageError(f"--voter: the chain has no peer {_named(min(strangers))}")
    uids = sorted(state.accounts)
    new_uid = {uid: Uid(position) for position, uid in enumerate(uids)}
    accounts = []
    for uid in uids:
        bond = state.bonds[uid]
        votes = bond.validating and not (bond.jailed or bond.tombstoned)
        if chosen and state.accounts[uid].peer_key not in chosen:
            votes = False
        accounts.append(
            GenesisAccount(
                owner=state.accounts[uid].owner,
                peer_key=state.accounts[uid].peer_key,
                stake=Amount(state.stake[uid]),
                scaling=state.scaling[uid],
                bond=Amount(min(bond.amount, state.stake[uid])) if votes else None,
                announcement=state.announcements[uid],
                row=_renumbered(state.rows[uid], uid, new_uid),
            )
        )
    try:
        return Genesis(
            network=view.genesis.network,
            time_ms=max(time.time_ns() // 1_000_000, state.time_ms),
            modality=view.genesis.modality,
            parameters=dataclasses.replace(view.genesis.parameters),
            accounts=tuple(accounts),
            pool=Amount(state.pool),
            prev_chain_id=Digest(view.genesis.chain_id),
        )
    except ConsensusError as error:
        raise GenesisError(f"genesis: {error}") from None


def _renumbered(row: Row, own: Uid, new_uid: dict[Uid, Uid]) -> Row:
    """A row under the new uids; weight to peers that left returns to the self edge."""
    kept = row.without(frozenset(uid for uid, _ in row.entries if uid not in new_uid), own)
    entries = sorted((new_uid[uid], weight) for uid, weight in kept.entries)
    return Row(tuple(entries)) if entries else self_row(new_uid[own])


def _peer_key(text: str) -> bytes:
    try:
        return PeerId(text).public_key
    except ValueError:
        raise UsageError(f"--voter {text}: not a peer id") from None


def _named(peer_key: bytes) -> PeerId:
    return PeerId.from_public_key(peer_key)


def _of_directory(path: Path) -> Allocation:
    directory = DataDirectory(path)
    return Allocation(
        owner=directory.load_owner_public_key(),
        peer=keystore.load_public_key(directory.peer_key, "peer"),
    )


def _of_text(text: str) -> Allocation:
    owner, _, peer = text.partition(":")
    try:
        keys = bytes.fromhex(owner), bytes.fromhex(peer)
    except ValueError:
        keys = b"", b""
    if [len(key) for key in keys] != [32, 32]:
        raise UsageError(f"--founder-keys {text}: expected OWNER:PEER, 64 hex digits each")
    return Allocation(owner=keys[0], peer=keys[1])


def _print_genesis(made: Genesis, *, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "chain_id": made.chain_id.hex(),
        "network": made.network,
        "accounts": len(made.accounts),
        "voters": sum(account.bond is not None for account in made.accounts),
        "stake": sum(account.stake for account in made.accounts),
        "pool": made.pool,
        "prev_chain_id": made.prev_chain_id.hex(),
    }
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):13} {value}")
