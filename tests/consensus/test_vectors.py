"""The vectors: not drifted, the same under every hash seed and without asserts, able to fail."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from consensus.errors import TransactionFault
from interop import check, compute, generate

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, seed: str = "0", stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PYTHONHASHSEED": seed, "PATH": ""},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_vectors_have_not_drifted_under_any_hash_seed(seed: str) -> None:
    replay = run("-m", "interop.generate", "--check", seed=seed)
    assert (replay.returncode, replay.stderr) == (0, "")


def test_vectors_are_the_same_without_asserts() -> None:
    replay = run("-O", "-m", "interop.generate", "--check")
    assert (replay.returncode, replay.stderr) == (0, "")


def test_the_independent_check_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main() == 0
    assert "transition: 10 cases" in capsys.readouterr().out


def test_the_check_shares_no_code_with_the_packages() -> None:
    for name in ("check.py", "oracle.py"):
        text = (ROOT / "interop" / name).read_text()
        for package in ("consensus", "p2p", "tensorwire", "node"):
            assert f"import {package}" not in text
            assert f"from {package}" not in text


@pytest.mark.parametrize("kind", sorted(check.CHECKS))
def test_the_check_can_fail(kind: str) -> None:
    document = json.loads((generate.VECTORS / f"{kind}.json").read_text())
    caught = 0
    for case in document["cases"][:20]:
        output = copy.deepcopy(case["output"])
        spoil(output)
        caught += not check.CHECKS[kind](case["input"], output)
    assert caught


def spoil(output: dict[str, object]) -> None:
    if "blocks" in output:
        output["blocks"][-1]["pool"] += 1  # type: ignore[index]
        return
    name = next(iter(output))
    match output[name]:
        case bool(value):
            output[name] = not value
        case [int(), *_] as values:
            values[0] += 1
        case _:
            output[name] = "00"


def test_drift_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "VECTORS", tmp_path)
    monkeypatch.setattr(generate, "CASES", {"fixed": generate.CASES["fixed"]})
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "fixed.json").write_text("{}")
    assert generate.main(["--check"]) == 1
    assert "fixed.json" in capsys.readouterr().err
    assert generate.main(["--wrong"]) == 2


@pytest.mark.parametrize("kind", sorted(compute.KINDS_OF_CASE))
def test_compute_reads_what_the_vectors_hold(kind: str) -> None:
    case = json.loads((generate.VECTORS / f"{kind}.json").read_text())["cases"][0]
    answer = run("-m", "interop.compute", kind, stdin=json.dumps(case["input"]))
    assert json.loads(answer.stdout) == case["output"]


def test_the_vectors_show_every_refusal_that_a_case_can_reach() -> None:
    cases = json.loads((generate.VECTORS / "transition.json").read_text())["cases"]
    shown = {
        reason
        for case in cases
        for block in case["output"]["blocks"]
        for _, reason in block["refused"]
    }
    assert shown == set(TransactionFault) - {TransactionFault.JAILED, TransactionFault.TOMBSTONED}


@pytest.mark.parametrize("kind", ["mechanism", "transition"])
def test_the_documents_example_is_a_case(kind: str) -> None:
    document = (ROOT / "interop" / "README.md").read_text()
    section = document.split(f"## {kind}\n")[1]
    example = section.split("```json\n")[1].split("```")[0]
    answer = run("-m", "interop.compute", kind, stdin=example)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert not any(block["refused"] for block in json.loads(answer.stdout).get("blocks", []))


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        ([], "{}"),
        (["nothing"], "{}"),
        (["fixed"], "{"),
        (["fixed"], "[]"),
        (["codec"], "{}"),
        (["mechanism"], '{"params": {"nonsense": 1}}'),
        (["mechanism"], '{"params": {}, "stake": [1], "scaling": [], "rows": [], "pool": 0}'),
        (["transition"], '{"genesis": {}, "blocks": []}'),
    ],
)
def test_what_is_no_case_ends_with_a_line(arguments: list[str], stdin: str) -> None:
    answer = run("-m", "interop.compute", *arguments, stdin=stdin)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
