"""The launcher: the goal, the summary, and that no child is left whatever happens."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.errors import DataError, TestnetError, UsageError
from node.report import (
    LINE_BYTES_MAX,
    Failed,
    Finalized,
    Notice,
    Progress,
    Report,
    ReportError,
    Started,
    Stopped,
    decode_report,
    encode_report,
)
from node.testnet import NetworkProgress, Outcome, Plan, launch, table

FAKE = (sys.executable, "-m", "tests.node.fake_node")


def plan(directory: Path, *misbehave: str, **changes: object) -> Plan:
    options = ("--misbehave", *misbehave) if misbehave else ()
    values = {
        "nodes": 3,
        "blocks": 10,
        "directory": directory,
        "timeout_s": 60.0,
        "seed": 1,
        "command": (*FAKE, *options),
    }
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


async def test_a_network_reaches_its_goal(tmp_path: Path) -> None:
    shown = []
    outcome = await launch(plan(tmp_path), show=lambda progress, _: shown.append(progress))
    summary = outcome.summary
    assert outcome.missing is None
    assert not outcome.interrupted
    assert summary["nodes"] == 3
    assert summary["finalized"] >= 10
    assert summary["state_root"] == f"{summary['finalized']:064x}"
    assert summary["state_roots_equal"] is True
    assert summary["transactions"] == 2 * summary["finalized"]
    assert summary["exchanges_min_pair"] >= 3
    assert summary["exchanges"] > 6 * 3
    assert summary["loss_end"] < summary["loss_start"] == 5.0
    assert all(end < start for start, end in summary["losses"])
    assert summary["exit_codes"] == [0, 0, 0]
    assert 0 < summary["first_final_s"] < summary["duration_s"]
    assert set(summary) == {
        *("nodes", "finalized", "state_root", "state_roots_equal", "transactions", "exchanges"),
        *("exchanges_min_pair", "loss_start", "loss_end", "losses", "duration_s"),
        *("first_final_s", "exit_codes"),
    }
    json.dumps(summary, allow_nan=False)
    assert shown
    assert "no report" in (tmp_path / "node-0.log").read_text()
    assert (tmp_path / "genesis.json").exists()
    assert (tmp_path / "node-2" / "peer.key").exists()


async def test_the_same_seed_gives_the_same_identities(tmp_path: Path) -> None:
    for name in ("a", "b"):
        await launch(plan(tmp_path / name, nodes=1, blocks=1))
    first, second = (
        json.loads((tmp_path / name / "node-0" / "peer.key").read_text()) for name in ("a", "b")
    )
    assert first == second


async def test_a_killed_child_is_survived_and_reported(tmp_path: Path) -> None:
    notes: list[str] = []
    outcome = await launch(plan(tmp_path, "dies"), note=notes.append)
    assert outcome.missing is None
    assert outcome.summary["exit_codes"] == [0, -9, 0]
    assert outcome.summary["finalized"] >= 10
    assert any("node 1 was killed by signal 9" in note for note in notes)


async def test_nodes_killed_by_chance_are_started_again(tmp_path: Path) -> None:
    notes: list[str] = []
    planned = plan(tmp_path, nodes=2, blocks=120, kill_every_s=0.8)
    outcome = await launch(planned, note=notes.append)
    assert outcome.missing is None
    assert outcome.summary["exit_codes"] == [0, 0]
    assert outcome.summary["state_roots_equal"] is True
    assert any(note.startswith("killing node") for note in notes)
    assert not outcome.failures


async def test_a_child_that_fails_by_itself_is_a_failure(tmp_path: Path) -> None:
    outcome = await launch(plan(tmp_path, "fails"))
    assert outcome.summary["exit_codes"] == [0, 1, 0]
    assert outcome.missing == "node 1 failed: agora: no disk"


async def test_time_runs_out(tmp_path: Path) -> None:
    outcome = await launch(plan(tmp_path, "dull", nodes=2, timeout_s=6.0))
    assert outcome.missing is not None
    assert "lower loss at node 1" in outcome.missing
    assert outcome.summary["exit_codes"] == [0, 0]


async def test_disagreement_is_seen(tmp_path: Path) -> None:
    outcome = await launch(plan(tmp_path, "forks"))
    assert outcome.summary["state_roots_equal"] is False


async def test_node_0_that_never_starts(tmp_path: Path) -> None:
    broken = plan(tmp_path, command=(sys.executable, "-c", "raise SystemExit('agora: no port')"))
    with pytest.RaisesGroup(TestnetError) as raised:
        await launch(broken)
    assert "no port" in str(raised.value.exceptions[0])


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("misbehave", ["", "deaf"])
def test_an_interrupted_launcher_leaves_no_child(
    tmp_path: Path, signal_number: signal.Signals, misbehave: str
) -> None:
    with _launcher(tmp_path, misbehave) as launcher:
        children = _children_of(launcher)
        begin_s = time.monotonic()
        launcher.send_signal(signal_number)
        assert launcher.wait(timeout=5) == 130
        assert time.monotonic() - begin_s < 3.0
    assert not [pid for pid in children if _is_running(pid)]


def test_a_killed_launcher_leaves_no_child(tmp_path: Path) -> None:
    with _launcher(tmp_path, "") as launcher:
        children = _children_of(launcher)
        launcher.kill()
        launcher.wait()
    end_s = time.monotonic() + 5.0
    while any(_is_running(pid) for pid in children):
        assert time.monotonic() < end_s
        time.sleep(0.01)  # other processes end in their own time; nothing tells us


LAUNCH = """
import sys, trio
from pathlib import Path
from tests.node.test_testnet import plan
from node.testnet import launch
misbehave = [sys.argv[2]] if sys.argv[2] else []
def show(progress, _):
    if all(node.finalized for node in progress.nodes):
        print("running", flush=True)
async def run():
    return await launch(plan(Path(sys.argv[1]), *misbehave, blocks=10**6), show=show)
sys.exit(130 if trio.run(run).interrupted else 0)
"""


def _launcher(directory: Path, misbehave: str) -> subprocess.Popen[bytes]:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(directory), misbehave], stdout=subprocess.PIPE
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"running\n"
    return launcher


def _children_of(process: subprocess.Popen[bytes]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not path.exists():
        pytest.skip("needs Linux's list of children")
    children = [int(pid) for task in path.parents[1].iterdir() for pid in _tasks(task)]
    assert len(children) == 3
    return children


def _tasks(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


async def test_wrong_plans(tmp_path: Path) -> None:
    for changes in (
        {"nodes": 0},
        {"nodes": 65},
        {"blocks": 0},
        {"timeout_s": 0.0},
        {"kill_every_s": 0.0},
    ):
        with pytest.raises(UsageError):
            plan(tmp_path, **changes)
    (tmp_path / "empty").write_bytes(b"")
    for data in (tmp_path / "absent", tmp_path / "empty", tmp_path):
        with pytest.raises(DataError, match=str(data)):
            await launch(plan(tmp_path / "run", data=data))
    assert not (tmp_path / "run").exists()


def test_what_the_table_shows() -> None:
    progress = NetworkProgress(2)
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    progress.take(
        0,
        Progress(
            t_s=0,
            height=3,
            finalized=3,
            epoch=0,
            peers=1,
            transactions=0,
            loss=4.5,
            halted="state divergence",
        ),
        elapsed_s=1.0,
    )
    progress.take(
        0,
        Started(t_s=0, peer_id="p", addresses=(), chain_id="", network="", data_dir="", pid=1),
        elapsed_s=1.0,
    )
    console.print(table.render(progress, blocks=20, elapsed_s=2.0))
    text = console.export_text()
    assert "halted: state divergence" in text
    assert "4.500" in text
    assert "starting" in text
    assert "0 of 20 blocks final; waiting for the start of node 1" in text
    assert "final 0/20" in table.line(progress, blocks=20, elapsed_s=2.0)


REPORTS: list[Report] = [
    Started(
        t_s=1.5,
        peer_id="p",
        addresses=("a", "b"),
        chain_id="c",
        network="local",
        data_dir="d",
        pid=3,
        api="http://127.0.0.1:1",
    ),
    Finalized(t_s=1.0, height=3, epoch=1, state_root="ab", transactions=2),
    Progress(
        t_s=1.0,
        height=3,
        finalized=2,
        epoch=0,
        peers=1,
        transactions=5,
        loss=None,
        exchanges={"p": 3},
    ),
    Notice(t_s=1.0, level="info", text="ü"),
    Stopped(t_s=1.0, reason="asked"),
    Failed(t_s=1.0, error="no port", exit_code=1),
]


@pytest.mark.parametrize("report", REPORTS)
def test_reports_return_as_they_were_sent(report: Report) -> None:
    line = encode_report(report)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_report(line) == report


def test_losses_that_are_no_numbers() -> None:
    progress = Progress(
        t_s=1.0, height=1, finalized=1, epoch=0, peers=0, transactions=0, loss=float("nan")
    )
    decoded = decode_report(encode_report(progress))
    assert isinstance(decoded, Progress)
    assert decoded.loss is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"type":"unknown"}',
        b'{"type":"stopped"}',
        b'{"type":"stopped","t_s":1,"reason":1}',
        b'{"type":"stopped","t_s":true,"reason":"x"}',
        b'{"type":"stopped","t_s":1,"reason":"x","more":1}',
        b'{"type":"started","t_s":1,"addresses":[1]}',
        b'{"type":"progress","t_s":1,"exchanges":{"p":"3"}}',
        b" " * (LINE_BYTES_MAX + 1),
    ],
)
def test_what_is_no_report(line: bytes) -> None:
    with pytest.raises(ReportError):
        decode_report(line)


def test_an_outcome_without_any_node() -> None:
    progress = NetworkProgress(2)
    for node in progress.nodes:
        node.exit_code, node.is_lost = -9, True
    assert progress.missing(1) == "every node has ended"
    assert progress.shared_height() == 0
    outcome = Outcome(summary=progress.summary(duration_s=1.0, exit_codes=[-9, -9]), missing="all")
    assert outcome.summary["state_root"] is None
    assert outcome.summary["loss_start"] is None
