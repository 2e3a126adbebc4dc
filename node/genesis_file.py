"""Genesis files: made for local networks, read from disk with one clear line for what is wrong.

The rule: a genesis on disk is never overwritten by another one; a node whose directory already
holds a genesis runs that chain or none (`GenesisError`). The text form and its checks are
`consensus.genesis_text`; the chain id is the hash of the canonical form, never of the text.

A local network starts with everybody trusting everybody else alike: measured weights replace these
rows within an epoch, and the mechanism is open from the first block.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consensus import params
from consensus.account import Announcement
from consensus.errors import ConsensusError
from consensus.genesis import GENESIS_BYTES_MAX, Genesis, GenesisAccount
from consensus.genesis_text import genesis_from_json, genesis_to_json
from consensus.params import Parameters
from consensus.types import TOKEN, AccountId, Amount, Modality, PeerKey, Uid
from consensus.weights import rounded_row, self_row
from node.errors import GenesisError, KeyExists, KeystoreError
from node.keystore import write_once

LOCAL_STAKE: Final = 1_000 * TOKEN
"""Of each founder of a local network; half of it is the voter's bond."""
MODEL_DIM: Final = 64
MODEL_VOCABULARY: Final = 256
"""What the byte model announces; a node with another model announces that when it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A founder: owner and peer key (32 bytes each), stake and bond in base units."""

    owner: bytes
    peer: bytes
    stake: int = LOCAL_STAKE
    bond: int | None = LOCAL_STAKE // 2


def local_genesis(
    founders: Sequence[Allocation],
    *,
    network: str = "local",
    parameters: Parameters = params.LOCAL,
    modality: Modality = Modality.TEXT,
    time_ms: int | None = None,
) -> Genesis:
    """A genesis in which every founder votes and trusts all others alike.

    Raises GenesisError when the founders cannot start a chain.
    """
    accounts = []
    for uid, founder in enumerate(founders):
        others = {Uid(other): 1 for other in range(len(founders)) if other != uid}
        accounts.append(
            GenesisAccount(
                owner=AccountId(founder.owner),
                peer_key=PeerKey(founder.peer),
                stake=Amount(founder.stake),
                bond=None if founder.bond is None else Amount(founder.bond),
                announcement=own_announcement(modality),
                row=rounded_row(others) if others else self_row(Uid(uid)),
            )
        )
    try:
        return Genesis(
            network=network,
            time_ms=time.time_ns() // 1_000_000 if time_ms is None else time_ms,
            modality=modality,
            parameters=parameters,
            accounts=tuple(accounts),
            pool=Amount(0),
        )
    except ConsensusError as error:
        raise GenesisError(f"genesis: {error}") from None


def own_announcement(modality: Modality = Modality.TEXT) -> Announcement:
    """What a node with the byte model announces before it runs."""
    return Announcement(modality=modality, dim=MODEL_DIM, vocabulary=MODEL_VOCABULARY)


def write_genesis(path: Path, genesis: Genesis) -> None:
    """Write a genesis to a new file. Raises GenesisError when the name is taken."""
    try:
        write_once(path, genesis_to_json(genesis).encode())
    except KeystoreError as error:
        raise GenesisError(str(error)) from None


def load_genesis(path: Path) -> Genesis:
    """The genesis of a file, checked. Raises GenesisError with the file and what is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(GENESIS_BYTES_MAX + 1)
    except OSError as error:
        raise GenesisError(f"genesis file {path}: {error.strerror}") from None
    try:
        return genesis_from_json(text)
    except (ConsensusError, ValueError) as error:
        raise GenesisError(f"genesis file {path}: {error}") from None


def save_genesis(path: Path, genesis: Genesis) -> None:
    """Write a genesis, or find the same one there. Raises GenesisError for another one."""
    try:
        write_once(path, genesis_to_json(genesis).encode())
    except KeyExists:
        check_genesis(path, genesis.chain_id)


def check_genesis(path: Path, chain_id: bytes) -> Genesis:
    """The genesis of a file that must be of a chain. Raises GenesisError, changes nothing."""
    genesis = load_genesis(path)
    if genesis.chain_id != chain_id:
        raise GenesisError(
            f"{path} is of chain {genesis.chain_id.hex()[:16]}…, not {chain_id.hex()[:16]}…: "
            "name another --data-dir"
        )
    return genesis
