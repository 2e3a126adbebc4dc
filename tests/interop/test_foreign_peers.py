"""Trials with foreign peers: a quick part always, all of them with AGORA_INTEROP=1.

py-libp2p is there wherever this project is; the others are tried where `make interop` has
installed them.
"""

import os
from pathlib import Path

import pytest

import interop.matrix as matrix
from interop.matrix import KNOWN_FAULTS, PEERS, Outcome, Result, hold, publish, render
from interop.peers import installation
from interop.peers.installation import daemon_is_installed, js_is_installed
from interop.peers.pairing import Trial
from interop.peers.trials import TRIALS

INSTALLED = {
    "js-libp2p 3.3.11": js_is_installed(),
    "go-libp2p (p2pd)": daemon_is_installed(),
    "py-libp2p 0.8.1": True,
}
QUICK = {
    "ping, both ways",
    "echo 10 MiB with half-close, they open",
    "read to the end, then answer",
}
ALL = os.environ.get("AGORA_INTEROP") == "1"


@pytest.mark.network
@pytest.mark.timeout(120)
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("title", "trial"), TRIALS, ids=[title for title, _ in TRIALS])
async def test_a_trial_with_a_foreign_peer(title: str, trial: Trial, peer: str) -> None:
    if not INSTALLED[peer]:
        pytest.skip("not installed: run make interop")
    if not ALL and not (title in QUICK and peer.startswith("py-")):
        pytest.skip("AGORA_INTEROP=1 runs it")
    outcome = await hold(title, trial, peer)
    if (title, peer) in KNOWN_FAULTS:
        assert outcome.result is Result.FAILED, "no longer a fault: take it off the list"
    else:
        assert outcome.result is not Result.FAILED, outcome.reason


def test_every_peer_can_be_looked_for() -> None:
    assert INSTALLED.keys() == PEERS.keys()
    assert {peer for _, peer in KNOWN_FAULTS} <= PEERS.keys()
    assert {title for title, _ in KNOWN_FAULTS} | QUICK <= {title for title, _ in TRIALS}


def test_the_table_shows_every_cell_and_each_reason_once() -> None:
    (first, _), (second, _) = TRIALS[:2]
    outcomes = [
        Outcome(trial=first, peer=peer, result=Result.PASSED, reason="so to speak")
        for peer in PEERS
    ]
    outcomes += [Outcome(trial=second, peer=peer, result=Result.FAILED) for peer in PEERS]
    lines = render(outcomes).splitlines()
    assert lines[2] == f"| {first} |" + " yes (1) |" * len(PEERS)
    assert lines[3] == f"| {second} |" + " no |" * len(PEERS)
    assert lines[4:] == ["", "1. so to speak"]


def test_the_table_replaces_the_one_between_its_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    monkeypatch.setattr(matrix, "README", readme)
    readme.write_text("# Title\n\ntext\n")
    assert publish("| one |", check=False)
    assert publish("| two |", check=False)
    text = readme.read_text()
    assert text.startswith("# Title\n\ntext\n\n## ")
    assert "| two |" in text
    assert "| one |" not in text
    readme.write_text(text + "more\n")
    assert publish("| two |", check=True)
    assert not publish("| three |", check=True)
    assert readme.read_text() == text + "more\n"
    assert publish("| three |", check=False)
    assert readme.read_text().endswith("more\n")


def test_what_cannot_be_installed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "npm").write_text("#!/bin/sh\necho unreachable >&2\nexit 7\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setattr(installation, "INSTALLED_LOCK", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert matrix.main(["--check"]) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "unreachable"
    assert "npm ci --no-audit --no-fund` ended with 7" in said[1]
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert matrix.main(["--check"]) == 1
    assert "sudo apt-get install -y npm" in capfd.readouterr().err


def test_a_daemon_that_is_not_the_pinned_one_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "DAEMON", tmp_path / "p2pd")
    assert not installation.daemon_is_installed()
    (tmp_path / "p2pd").write_bytes(b"another")
    assert not installation.daemon_is_installed()


def test_the_committed_matrix_has_every_trial() -> None:
    text = matrix.README.read_text()
    table = text.partition(matrix.BEGIN)[2].partition(matrix.END)[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows == ["", *(title for title, _ in TRIALS)]
