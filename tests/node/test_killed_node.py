"""Real node processes: killed at random moments they restart, keep what was final, sign once.

`AGORA_TEST_SCALE=50` kills a hundred times; the default is a sample.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from consensus import params
from node.data_directory import DataDirectory, claim
from node.genesis_file import Allocation, local_genesis, save_genesis
from node.report import Finalized, Report, Started, Stopped, decode_report
from node.store import open_chain_reader
from node.vote_log import Record, open_vote_log

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
QUICK = dataclasses.replace(params.LOCAL, block_interval_ms=50)
"""Blocks as quick as a genesis allows: most of the node's time is then writing to disk."""

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(120 + 30 * SCALE)]


def make_node(path: Path) -> DataDirectory:
    with claim(path) as directory:
        directory.create_keys(passphrase=None)
        keys = directory.load_keys(passphrase=None)
        founder = Allocation(owner=keys.owner_public_key, peer=keys.peer.public_key)
        save_genesis(directory.genesis, local_genesis([founder], parameters=QUICK))
    return DataDirectory(path)


def start(directory: DataDirectory, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "node", "run", "--json", "--until-eof"),
            *("--data-dir", str(directory.path), "--no-train", "--model", "none", *options),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def next_final(process: subprocess.Popen[bytes]) -> Finalized:
    assert process.stdout is not None
    for line in process.stdout:
        report = decode_report(line)
        if isinstance(report, Finalized):
            return report
    assert process.stderr is not None
    raise AssertionError(process.stderr.read().decode())


def rest(process: subprocess.Popen[bytes]) -> list[Report]:
    """Whole lines that were still in the pipe of an ended process."""
    assert process.stdout is not None
    lines = process.stdout.read().split(b"\n")[:-1]
    return [decode_report(line) for line in lines]


def logged_votes(directory: DataDirectory) -> dict[tuple[int, int, int], Record]:
    chain_id = json.loads(directory.genesis.read_text())["chain_id"]
    log = open_vote_log(
        directory.votes,
        chain_id=bytes.fromhex(chain_id),
        signer=directory.load_keys(passphrase=None).peer.public_key,
        chain_exists=True,
    )
    records = log.records()
    log.close()
    return {(each.epoch, each.view, each.kind): each for each in records}


def test_a_node_killed_at_any_moment(tmp_path: Path) -> None:
    directory = make_node(tmp_path / "node")
    moments = random.Random(11)
    roots: dict[int, str] = {}
    votes: dict[tuple[int, int, int], Record] = {}
    for _ in range(2 * SCALE):
        process = start(directory)
        with process:
            finals = [next_final(process) for _ in range(moments.randrange(1, 25))]
            # Not a wait for anything: the kill falls anywhere inside a block.
            time.sleep(moments.random() * 0.06)
            process.kill()
            finals += [each for each in rest(process) if isinstance(each, Finalized)]
        store = open_chain_reader(directory.chain)
        for final in finals:
            # What was reported final is on disk, and was never anything else.
            assert roots.setdefault(final.height, final.state_root) == final.state_root
            assert store.state_root(final.height) == bytes.fromhex(final.state_root)
        tip = store.tip()
        assert tip.height >= max(roots)
        assert set(roots) <= set(range(1, tip.height + 1))
        store.close()
        newer = logged_votes(directory)
        for place in set(votes) & set(newer):
            assert newer[place] == votes[place]
        votes |= newer
    assert len(roots) > 2 * SCALE


def test_a_node_that_is_asked_to_stop(tmp_path: Path) -> None:
    directory = make_node(tmp_path / "node")
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        with start(directory) as process:
            height = next_final(process).height
            process.send_signal(number)
            reports = rest(process)
            assert process.wait() == code
        assert any(isinstance(each, Stopped) for each in reports)
        assert height >= 1
        assert not directory.api.exists()
    with start(directory) as process:
        assert next_final(process).height > height
        assert process.stdin is not None
        process.stdin.close()  # whoever started it is gone
        rest(process)
        assert process.wait() == 0


def test_one_key_runs_once(tmp_path: Path) -> None:
    directory = make_node(tmp_path / "node")
    with start(directory) as first:
        next_final(first)
        with start(directory) as second:
            assert second.wait() == 1
            assert second.stderr is not None
            said = second.stderr.read().decode()
        assert f"in use by process {first.pid}" in said
        assert said.count("\n") == 1
        next_final(first)
        first.terminate()
        rest(first)


def test_a_lost_vote_log_is_not_replaced(tmp_path: Path) -> None:
    directory = make_node(tmp_path / "node")
    with start(directory) as process:
        next_final(process)
        process.kill()
        rest(process)
    for path in directory.path.glob("vote.db*"):
        path.unlink()
    with start(directory) as process:
        assert process.wait() == 1
        assert process.stderr is not None
        assert b"--fresh-vote-log" in process.stderr.read()
    with start(directory, "--fresh-vote-log") as process:
        assert process.stdout is not None
        assert isinstance(decode_report(process.stdout.readline()), Started)
        process.terminate()
        rest(process)
        assert process.wait() == 0
    assert logged_votes(directory) == {}


def test_a_real_network_of_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "node", "testnet", "--nodes", "3", "--blocks", "7"),
            *("--no-train", "--json", "--timeout", "100", "--data-dir", str(tmp_path / "net")),
        ],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout)
    assert done.stdout.count(b"\n") == 1
    assert summary["finalized"] >= 7
    assert summary["state_roots_equal"] is True
    assert summary["exit_codes"] == [0, 0, 0]
    # The blocks on disk, executed again, give the root that the processes agreed on.
    replayed = subprocess.run(
        [
            *(sys.executable, "-m", "node", "replay", "--json", "--to", str(summary["finalized"])),
            *("--data-dir", str(tmp_path / "net" / "node-1")),
        ],
        capture_output=True,
        check=True,
    )
    assert json.loads(replayed.stdout)["state_root"] == summary["state_root"]
