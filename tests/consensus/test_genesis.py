"""Genesis: two forms, one chain id, and every way in which it cannot start a chain."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from consensus.errors import DecodeError, GenesisError
from consensus.genesis import decode_genesis, encode_genesis, genesis_state
from consensus.genesis_text import genesis_from_json, genesis_to_json
from consensus.incentive import mechanism_step
from consensus.params import PAPER
from consensus.types import Amount, Modality, Uid
from consensus.weights import Row, self_row
from tests.consensus.ledger_chain import LedgerChain, account_id, make_genesis
from tests.consensus.ledger_strategies import SCALE
from tests.consensus.test_transaction import mutate

TOKENS = 10**12
GENESIS = make_genesis([TOKENS] * 3, bonds=[TOKENS, None, 5_000])


def test_both_forms_give_the_same_genesis() -> None:
    assert decode_genesis(encode_genesis(GENESIS)) == GENESIS
    again = genesis_from_json(genesis_to_json(GENESIS))
    assert again == GENESIS
    assert again.chain_id == GENESIS.chain_id


def test_every_field_is_in_the_chain_id() -> None:
    account = GENESIS.accounts[1]
    others = [
        dataclasses.replace(GENESIS, network="other"),
        dataclasses.replace(GENESIS, time_ms=5),
        dataclasses.replace(GENESIS, modality=Modality.IMAGE),
        dataclasses.replace(GENESIS, pool=Amount(1)),
        dataclasses.replace(GENESIS, prev_chain_id=GENESIS.chain_id),
        dataclasses.replace(
            GENESIS, parameters=dataclasses.replace(GENESIS.parameters, temperature=9)
        ),
    ]
    for change in (
        {"stake": 1},
        {"scaling": 5},
        {"bond": 0},
        {"row": self_row(Uid(1))},
        {"announcement": dataclasses.replace(account.announcement, dim=1)},
    ):
        accounts = (
            GENESIS.accounts[0],
            dataclasses.replace(account, **change),
            GENESIS.accounts[2],
        )
        others.append(dataclasses.replace(GENESIS, accounts=accounts))
    assert len({each.chain_id for each in [GENESIS, *others]}) == len(others) + 1


def test_the_first_step_holds_in_epoch_0_and_its_scaling_comes_at_the_boundary() -> None:
    genesis = make_genesis([TOKENS] * 3, scaling=[2**29] * 3)
    state = genesis_state(genesis)
    step = mechanism_step(state.snapshot, genesis.parameters)
    assert tuple(state.trust.values()) == step.trust
    assert state.is_open == step.open
    assert set(state.scaling.values()) == {2**29}
    assert state.work_target == genesis.parameters.work_target
    assert (state.height, state.epoch, state.root) == (0, 0, genesis_state(genesis).root)


def with_account(number: int, **changes: object) -> dict[str, object]:
    accounts = list(GENESIS.accounts)
    accounts[number] = dataclasses.replace(accounts[number], **changes)  # type: ignore[arg-type]
    return {"accounts": tuple(accounts)}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"network": "Upper"}, "network name"),
        ({"network": "a" * 33}, "network name"),
        ({"time_ms": -1}, "time_ms"),
        ({"modality": 0}, "modality"),
        ({"accounts": ()}, "0 accounts"),
        ({"pool": -1}, "base units"),
        ({"pool": 2**60}, "exceed the cap"),
        (with_account(1, owner=account_id(0)), "one owner key"),
        (with_account(1, peer_key=GENESIS.accounts[0].peer_key), "one peer key"),
        (with_account(1, owner=b"short"), "account 1: a key"),
        (with_account(1, stake=-1), "account 1: stake"),
        (with_account(1, scaling=2**30 + 1), "account 1: scaling"),
        (with_account(1, bond=TOKENS + 1), "account 1: bond"),
        (with_account(1, row=self_row(Uid(3))), "account 1: a weight"),
        (with_account(0, bond=None) | {}, None),
    ],
)
def test_a_genesis_that_cannot_start_a_chain(changes: dict[str, object], why: str | None) -> None:
    if why is None:
        assert dataclasses.replace(GENESIS, **changes).chain_id != GENESIS.chain_id
        return
    with pytest.raises(GenesisError, match=why):
        dataclasses.replace(GENESIS, **changes)  # type: ignore[arg-type]


def test_a_chain_needs_a_voter() -> None:
    for parameters, bonds in ((GENESIS.parameters, [None]), (PAPER, [0])):
        with pytest.raises(GenesisError, match="voter"):
            make_genesis([TOKENS], parameters, bonds=bonds)


def edited(**changes: object) -> str:
    document = json.loads(genesis_to_json(GENESIS))
    del document["chain_id"]
    for path, value in changes.items():
        target = document
        *way, last = path.split("__")
        for step in way:
            target = target[int(step) if step.isdigit() else step]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "JSON object"),
        ("9" * 5_000, "not JSON"),
        (edited(version=2), "version"),
        (edited(surplus=1), "unknown field surplus"),
        (edited(network=...), "network is missing"),
        (edited(network=5), "network must be a string"),
        (edited(time_ms="x"), "time_ms must be an integer"),
        (edited(modality=99), "modality 99"),
        (edited(chain_id="00" * 32), "chain id is"),
        (edited(chain_id="zz"), "must be hex"),
        (edited(chain_id="00"), "must be 32 bytes"),
        (edited(accounts={}), "accounts must be a list"),
        (edited(parameters=5), "parameters must be"),
        (edited(parameters__temperature=99), "temperature"),
        (edited(parameters__depth=...), "depth is missing"),
        (edited(parameters__more=1), "unknown field more"),
        (edited(accounts__0__bond="x"), "bond must be"),
        (edited(accounts__0__addresses="x"), "addresses must be"),
        (edited(accounts__0__addresses=["a b"]), "account 0: an address"),
        (edited(accounts__0__row=5), "row must be"),
        (edited(accounts__0__row=[[0, "x"]]), "row must be"),
        (edited(accounts__0__row=[[0, 5]]), "account 0: weights sum"),
        (edited(accounts__0__dim=0), "account 0: dim"),
        (edited(accounts__0__more=0), "account 0: unknown field more"),
    ],
)
def test_json_that_is_no_genesis(text: str, why: str) -> None:
    with pytest.raises(GenesisError, match=why):
        genesis_from_json(text)


def test_a_genesis_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(GenesisError, match="at most"):
        genesis_from_json(" " * (16 * 1024 * 1024 + 1))


def test_a_missing_predecessor_means_a_new_chain() -> None:
    assert genesis_from_json(edited(prev_chain_id=...)) == GENESIS


@pytest.mark.parametrize("seed", range(200 * SCALE))
def test_a_mutated_encoding_is_refused_or_is_another_genesis(seed: int) -> None:
    mutated = mutate(encode_genesis(GENESIS), random.Random(seed))
    try:
        back = decode_genesis(mutated)
    except DecodeError:
        return
    assert encode_genesis(back) == mutated


def test_decoding_checks_what_the_constructor_checks() -> None:
    good = encode_genesis(GENESIS)
    for bad in (b"\x00\x02" + good[2:], good[:4] + b"\xff" + good[5:], good + b"x"):
        with pytest.raises(DecodeError):
            decode_genesis(bad)


def test_a_chain_runs_from_its_canonical_bytes() -> None:
    chain = LedgerChain(decode_genesis(encode_genesis(GENESIS)))
    chain.extend()
    row = Row(((Uid(0), 65_536),))
    assert make_genesis([TOKENS], rows=[row]).accounts[0].row == row
