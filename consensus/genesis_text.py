"""The JSON form of a genesis, for people: readable, checked field by field, bytes as hex.

Rule: reading what was written gives the same genesis and chain id; an unknown, missing or
mistyped field is an error that names it. The hash is never of this text but of the canonical form.
"""

from __future__ import annotations

import dataclasses
import json

from consensus.account import Announcement
from consensus.errors import GenesisError
from consensus.genesis import GENESIS_BYTES_MAX, GENESIS_VERSION, Genesis, GenesisAccount
from consensus.params import ACCOUNTS_LIMIT, Parameters
from consensus.types import (
    DIGEST_BYTES,
    KEY_BYTES,
    ZERO_DIGEST,
    AccountId,
    Amount,
    Digest,
    Modality,
    PeerKey,
    Uid,
)
from consensus.weights import Row


def genesis_to_json(genesis: Genesis) -> str:
    """For people: indented, keys in order, bytes as hex, the chain id first."""
    document = {
        "chain_id": genesis.chain_id.hex(),
        "version": GENESIS_VERSION,
        "network": genesis.network,
        "time_ms": genesis.time_ms,
        "modality": int(genesis.modality),
        "prev_chain_id": genesis.prev_chain_id.hex(),
        "parameters": dataclasses.asdict(genesis.parameters),
        "pool": genesis.pool,
        "accounts": [
            {
                "owner": account.owner.hex(),
                "peer": account.peer_key.hex(),
                "stake": account.stake,
                "scaling": account.scaling,
                "bond": account.bond,
                "modality": int(account.announcement.modality),
                "dim": account.announcement.dim,
                "vocabulary": account.announcement.vocabulary,
                "addresses": list(account.announcement.addresses),
                "row": [list(entry) for entry in account.row.entries],
            }
            for account in genesis.accounts
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def genesis_from_json(text: str | bytes) -> Genesis:
    """The genesis that a JSON document describes. Raises GenesisError naming the wrong field.

    Unknown and missing fields are errors; a `chain_id` that is present must be the right one.
    """
    if len(text) > GENESIS_BYTES_MAX:
        raise GenesisError(f"genesis of {len(text)} bytes, at most {GENESIS_BYTES_MAX}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GenesisError(f"genesis is not JSON: {error}") from None
    fields = _Fields(document, "genesis")
    if fields.integer("version") != GENESIS_VERSION:
        raise GenesisError("genesis version is not 1")
    parameters = _parameters(fields.take("parameters"))
    accounts = fields.take("accounts")
    if not isinstance(accounts, list) or len(accounts) > ACCOUNTS_LIMIT:
        raise GenesisError(f"accounts must be a list of at most {ACCOUNTS_LIMIT}")
    claimed = fields.optional_hex("chain_id", DIGEST_BYTES)
    genesis = Genesis(
        network=fields.text("network"),
        time_ms=fields.integer("time_ms"),
        modality=_modality(fields.integer("modality")),
        parameters=parameters,
        accounts=tuple(_account(each, uid) for uid, each in enumerate(accounts)),
        pool=Amount(fields.integer("pool")),
        prev_chain_id=Digest(fields.optional_hex("prev_chain_id", DIGEST_BYTES) or ZERO_DIGEST),
    )
    fields.end()
    if claimed is not None and claimed != genesis.chain_id:
        raise GenesisError(f"chain id is {genesis.chain_id.hex()}, not {claimed.hex()}")
    return genesis


class _Fields:
    """The fields of one JSON object, each taken once and checked."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, dict):
            raise GenesisError(f"{where} must be a JSON object")
        self._left = dict(document)
        self._where = where

    def take(self, name: str) -> object:
        if name not in self._left:
            raise GenesisError(f"{self._where}: field {name} is missing")
        return self._left.pop(name)

    def integer(self, name: str) -> int:
        value = self.take(name)
        if type(value) is not int:
            raise GenesisError(f"{self._where}: {name} must be an integer")
        return value

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str):
            raise GenesisError(f"{self._where}: {name} must be a string")
        return value

    def hex(self, name: str, size: int) -> bytes:
        try:
            value = bytes.fromhex(self.text(name))
        except ValueError:
            raise GenesisError(f"{self._where}: {name} must be hex") from None
        if len(value) != size:
            raise GenesisError(f"{self._where}: {name} must be {size} bytes")
        return value

    def optional_hex(self, name: str, size: int) -> bytes | None:
        return self.hex(name, size) if name in self._left else None

    def end(self) -> None:
        if self._left:
            raise GenesisError(f"{self._where}: unknown field {min(self._left)}")


def _parameters(document: object) -> Parameters:
    fields = _Fields(document, "parameters")
    values = {field.name: fields.take(field.name) for field in dataclasses.fields(Parameters)}
    fields.end()
    return Parameters(**values)  # type: ignore[arg-type]  # checked by the constructor


def _modality(value: int) -> Modality:
    if not 1 <= value <= 15:
        raise GenesisError(f"modality {value}, allowed 1 to 15")
    return Modality(value)


def _account(document: object, uid: int) -> GenesisAccount:
    where = f"account {uid}"
    fields = _Fields(document, where)
    bond, addresses, entries = fields.take("bond"), fields.take("addresses"), fields.take("row")
    if bond is not None and type(bond) is not int:
        raise GenesisError(f"{where}: bond must be an integer or null")
    if not isinstance(addresses, list) or not all(isinstance(each, str) for each in addresses):
        raise GenesisError(f"{where}: addresses must be a list of strings")
    try:
        account = GenesisAccount(
            owner=AccountId(fields.hex("owner", KEY_BYTES)),
            peer_key=PeerKey(fields.hex("peer", KEY_BYTES)),
            stake=Amount(fields.integer("stake")),
            scaling=fields.integer("scaling"),
            bond=None if bond is None else Amount(bond),
            announcement=Announcement(
                modality=_modality(fields.integer("modality")),
                dim=fields.integer("dim"),
                vocabulary=fields.integer("vocabulary"),
                addresses=tuple(addresses),
            ),
            row=_row(entries),
        )
    except ValueError as error:
        raise GenesisError(f"{where}: {error}") from None
    fields.end()
    return account


def _row(entries: object) -> Row:
    if not isinstance(entries, list) or not all(
        isinstance(each, list) and [type(part) for part in each] == [int, int] for each in entries
    ):
        raise ValueError("row must be a list of [uid, weight]")
    return Row(tuple((Uid(uid), weight) for uid, weight in entries))
