"""`replay`: execute a stored chain again from genesis and compare every state root.

The proof that a node's state is what its blocks say: the same code that judged the blocks runs on
them once more, from genesis, and has to arrive at the root each block carries and at the state on
disk. It writes nothing and may run beside the node.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

import click

from consensus.entries import entries_of
from consensus.errors import InvalidBlock
from consensus.genesis import genesis_state
from consensus.transition import state_transition
from node.chain_view import decoded_block, genesis_of
from node.command.directory import find_directory
from node.command.option import data_dir_option, json_option, print_json
from node.data_directory import DataDirectory
from node.errors import NodeError, StoreCorrupt, UsageError
from node.store import open_chain_reader
from node.verifier import RememberingVerifier

LINE_S: Final = 1.0


@click.command()
@click.argument("db", required=False, type=click.Path(exists=True, path_type=Path))
@data_dir_option
@click.option("--to", type=int, metavar="HEIGHT", help="Stop after this height.")
@json_option
def replay(db: Path | None, data_dir: Path | None, to: int | None, as_json: bool) -> None:
    """Execute a stored chain again and compare the roots.

    DB is a chain's file (chain.db) or a node's data directory; without it, the one of --data-dir.
    """
    directory, chain = _place(db, data_dir)
    if not chain.exists():
        raise NodeError(f"{directory.path} holds no chain yet")
    begin_s = last_s = time.monotonic()
    store = open_chain_reader(chain)
    try:
        if store.base_height():
            raise NodeError(
                f"the chain on disk begins at height {store.base_height()}: blocks before it were "
                "pruned or never fetched, so there is nothing to execute from"
            )
        genesis = genesis_of(directory, store)
        state, verifier = genesis_state(genesis), RememberingVerifier()
        transactions = 0
        for stored in store.iterate(first=1):
            if to is not None and stored.height > to:
                break
            block = decoded_block(stored)
            try:
                state = state_transition(state, block, genesis.parameters, verifier=verifier)
            except InvalidBlock as error:
                raise StoreCorrupt(f"block {stored.height} is invalid: {error}") from None
            if state.root != stored.state_root:
                raise StoreCorrupt(f"block {stored.height} is stored with another state root")
            transactions += len(block.body.transactions)
            if time.monotonic() - last_s > LINE_S and not as_json:
                last_s = time.monotonic()
                print(f"height {stored.height}", file=sys.stderr)
        tip, leaves = store.tip_and_leaves()
    finally:
        store.close()
    # A node that runs may have moved on meanwhile; then there is nothing to compare with.
    if tip.height == state.height and dict(entries_of(state)) != leaves:
        raise StoreCorrupt("the state on disk is not what the blocks give")
    facts = {
        "height": int(state.height),
        "state_root": state.root.hex(),
        "transactions": transactions,
        "duration_s": round(time.monotonic() - begin_s, 3),
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(
            f"{facts['height']} blocks and {transactions} transactions executed again: "
            f"every root agrees, state root {facts['state_root']}"
        )


def _place(db: Path | None, data_dir: Path | None) -> tuple[DataDirectory, Path]:
    """The data directory (for a genesis that the file lacks) and the chain's file."""
    if db is not None and data_dir is not None:
        raise UsageError("give DB or --data-dir, not both")
    if db is not None and not db.is_dir():
        return DataDirectory(db.parent), db
    directory = find_directory(db or data_dir)
    return directory, directory.chain
