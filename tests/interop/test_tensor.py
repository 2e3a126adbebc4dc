"""The tensor vectors, and a js-libp2p client that asks the fixed model for a representation."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from interop import tensor
from interop.peers.installation import js_is_installed
from interop.peers.representation import ask_in_js, askable, open_node
from tensorwire import RequestHead, ServerExchange

ALTERATIONS: list[tuple[str, str, Any]] = [
    ("text of one token", "values", [-1.0] * 16),
    ("text", "shape", [3, 2, 16]),
    ("another version", "code", "MALFORMED"),
]
CASES = json.loads(tensor.PATH.read_text())["cases"]


def test_the_vectors_are_this_implementations() -> None:
    assert tensor.main(["--check"]) == 0
    assert tensor.main(["--wrong"]) == 2


def test_drift_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensor, "PATH", tmp_path / "tensor.json")
    assert tensor.main([]) == 0
    assert tensor.main(["--check"]) == 0
    tensor.PATH.write_text("{}")
    assert tensor.main(["--check"]) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_every_frame_is_understood(case: dict[str, dict[str, str]]) -> None:
    frame = case["output"].get("request_frame")
    if frame is not None:
        (head,) = ServerExchange().receive_data(bytes.fromhex(frame))
        assert isinstance(head, RequestHead)


def altered_vectors(folder: Path, name: str, field: str, value: object) -> Path:
    """The vectors with one field of one case's output changed."""
    cases = copy.deepcopy(CASES)
    (case,) = (case for case in cases if case["name"] == name)
    assert case["output"][field] != value
    case["output"][field] = value
    path = folder / "vectors.json"
    path.write_text(json.dumps({"cases": cases}))
    return path


@pytest.mark.network
@pytest.mark.timeout(120)
async def test_a_js_client_compares_a_running_node_with_the_vectors(tmp_path: Path) -> None:
    if not js_is_installed():
        pytest.skip("not installed: run make interop")
    async with open_node() as address:
        ended, lines = await ask_in_js(address)
        assert ended.returncode == 0, ended.stderr.decode()
        assert {line["name"] for line in lines if line["equal"]} == askable()

        for name, field, value in ALTERATIONS:
            altered = altered_vectors(tmp_path, name, field, value)
            ended, lines = await ask_in_js(address, altered)
            assert ended.returncode == 1
            assert {line["name"] for line in lines if not line["equal"]} == {name}
            assert b"otherwise than the vectors" in ended.stderr

        (tmp_path / "vectors.json").write_text("{}")
        ended, lines = await ask_in_js(address, tmp_path / "vectors.json")
        assert (ended.returncode, lines) == (1, [])
        assert b"no TEXT cases" in ended.stderr
    ended, lines = await ask_in_js(address)
    assert (ended.returncode, lines) == (1, [])
    assert ended.stderr.startswith(b"tensor.js: cannot connect to " + address.encode())


async def test_a_js_client_without_an_address_says_how_it_is_used() -> None:
    if not js_is_installed():
        pytest.skip("not installed: run make interop")
    ended, lines = await ask_in_js("--help")
    assert (ended.returncode, lines) == (2, [])
    assert ended.stderr.startswith(b"usage: node tensor.js MULTIADDR")
