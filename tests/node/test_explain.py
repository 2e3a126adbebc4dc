"""`explain` and `replay` on a stored chain with earnings: the sums add up, as text and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from consensus.entries import entries_of
from consensus.genesis import encode_genesis, genesis_state
from consensus.types import TOKEN, Uid
from node.cli import main
from node.earnings import Cause
from node.genesis_file import save_genesis
from node.store import ChainStore, EpochChange, StoredBlock, open_chain_store
from tests.consensus.ledger_chain import LedgerChain, account_id
from tests.node.test_earnings import make_chain


def open_store(path: Path, chain: LedgerChain) -> ChainStore:
    state = genesis_state(chain.genesis)
    origin = StoredBlock(
        height=0,
        hash=chain.genesis.chain_id,
        epoch=0,
        view=0,
        state_root=state.root,
        header=b"",
        body=encode_genesis(chain.genesis),
    )
    return open_chain_store(
        path,
        chain_id=chain.genesis.chain_id,
        genesis=origin,
        leaves=dict(entries_of(state)),
        epoch=EpochChange(epoch=0, voter_set=state.voters.encode()),
    )


@pytest.fixture(scope="module")
def chain() -> LedgerChain:
    return make_chain()


@pytest.fixture
def directory(tmp_path: Path, chain: LedgerChain) -> Path:
    store = open_store(tmp_path / "chain.db", chain)
    store.commit(
        [
            StoredBlock(
                height=block.header.height,
                hash=block.hash,
                epoch=block.header.epoch,
                view=block.header.view,
                state_root=block.header.state_root,
                header=block.header.encode(),
                body=block.body.encode(),
                transactions=len(block.body.transactions),
            )
            for block in chain.blocks
        ],
        leaves=dict.fromkeys(dict(entries_of(genesis_state(chain.genesis))))
        | dict(entries_of(chain.state)),
    )
    store.close()
    return tmp_path


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line; exit code and standard output."""

    def invoke(*arguments: object) -> tuple[int, str]:
        code = main([str(each) for each in arguments])
        return code, capsys.readouterr().out

    return invoke


def test_the_columns_of_the_history_add_up(directory: Path, chain: LedgerChain, run: Run) -> None:
    code, text = run("explain", "--peer", 2, "--data-dir", directory)
    assert code == 0
    happened = text.split("What it earned (")[1].split("\n\n")[0].splitlines()[1:]
    column = [line[:26] for line in happened if line[:26].strip()]
    sums = [Decimal(cell.strip().replace(",", "")) for cell in column]
    assert sum(sums[:-1]) == sums[-1] == Decimal(chain.state.stake[Uid(2)]) / TOKEN
    assert "slashed" not in text
    assert re.search(r"from uid 0 \(\d+ times\)", text)
    assert "(gone)" in text  # who left paid it too
    assert "trust" in text


def test_the_facts_name_every_change(directory: Path, chain: LedgerChain, run: Run) -> None:
    facts = json.loads(run("explain", "--peer", 2, "--data-dir", directory, "--json")[1])
    history = facts["history"]
    assert history["start"] + sum(entry["amount"] for entry in history["entries"]) == history["end"]
    assert history["end"] == chain.state.stake[Uid(2)]
    assert history["totals"][Cause.SETTLED_BY_OTHER] == sum(history["from"].values())
    assert account_id(0).hex() in history["from"]
    assert all(0 <= source["amount"] <= source["accrues"] for source in facts["emission"])
    brief = run("explain", "--peer", 2, "--data-dir", directory, "--json", "--no-history")
    assert json.loads(brief[1])["history"] is None


def test_a_chain_that_does_not_reach_back_has_no_history(
    directory: Path, chain: LedgerChain, run: Run
) -> None:
    store = open_store(directory / "chain.db", chain)
    store.prune(below=chain.state.height)
    store.close()
    save_genesis(directory / "genesis.json", chain.genesis)
    code, text = run("explain", "--peer", 2, "--data-dir", directory)
    assert code == 0
    assert "do not reach back to genesis" in text
    assert run("replay", directory / "chain.db")[0] == 1


def test_replay_wants_one_place(directory: Path, run: Run) -> None:
    assert run("replay", directory, "--data-dir", directory)[0] == 2
    assert run("replay", directory / "absent.db")[0] == 2
