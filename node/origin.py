"""Which network a node belongs to and where its files lie, settled before anything is opened.

Rule: a directory that holds a genesis runs that chain or none; a genesis comes from the directory,
from a file, from the bootstrap peers, or is made new, in this order, and is then kept.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass

from consensus.genesis import Genesis
from node.config import Config
from node.data_directory import DataDirectory, Keys, claim, claim_default
from node.errors import ChainMismatch
from node.genesis_file import Allocation, load_genesis, local_genesis, save_genesis
from node.keystore import read_passphrase
from node.sync.genesis import NetworkOpener, fetch_genesis
from p2p.identity import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A claimed directory, its keys and its genesis."""

    directory: DataDirectory
    keys: Keys
    genesis: Genesis


@asynccontextmanager
async def open_origin(config: Config, *, opener: NetworkOpener) -> AsyncIterator[Origin]:
    """Claim the directory while the block lasts.

    Raises KeystoreError, GenesisError, ChainMismatch or JoinError; nothing is overwritten.
    """
    passphrase = read_passphrase(
        file=config.passphrase_file, fd=config.passphrase_fd, environ=os.environ
    )
    genesis = await _known_genesis(config, opener)
    peer, owner = Identity.generate(), Identity.generate()
    if config.data_dir is not None:
        claimed: AbstractContextManager[DataDirectory] = claim(config.data_dir)
    else:
        genesis = genesis or _new_network(config, peer.public_key, owner.public_key)
        claimed = claim_default(genesis.network, genesis.chain_id)
    with claimed as directory:
        if not directory.has_keys():
            directory.create_keys(passphrase=passphrase, peer=peer, owner=owner)
        keys = directory.load_keys(passphrase=passphrase)
        if genesis is None:
            genesis = _new_network(config, keys.peer.public_key, keys.owner_public_key)
        if config.chain_id is not None and genesis.chain_id.hex() != config.chain_id:
            raise ChainMismatch(
                f"the genesis is of chain {genesis.chain_id.hex()}, not {config.chain_id}"
            )
        save_genesis(directory.genesis, genesis)
        yield Origin(directory=directory, keys=keys, genesis=genesis)


async def _known_genesis(config: Config, opener: NetworkOpener) -> Genesis | None:
    if config.genesis is not None:
        return load_genesis(config.genesis)
    if config.data_dir is not None and DataDirectory(config.data_dir).genesis.exists():
        return load_genesis(DataDirectory(config.data_dir).genesis)
    if config.bootstrap:
        return await fetch_genesis(config.bootstrap, chain_id=config.chain_id, opener=opener)
    return None


def _new_network(config: Config, peer: bytes, owner: bytes) -> Genesis:
    return local_genesis([Allocation(owner=owner, peer=peer)], network=config.network)
