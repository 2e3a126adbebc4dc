"""The tensor vectors, and a js-libp2p client that asks the fixed model for a representation."""

import json
from functools import partial
from pathlib import Path

import pytest
import trio

import p2p
from interop import tensor
from interop.peers.installation import js_is_installed
from interop.peers.lines import JS, NODE
from node.exchange import Server
from node.test_model import TestModel
from tensorwire import RequestHead, ServerExchange

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


@pytest.mark.network
@pytest.mark.timeout(120)
async def test_a_js_client_gets_a_text_representation_over_js_libp2p() -> None:
    if not js_is_installed():
        pytest.skip("not installed: run python -m interop.matrix")
    identity = p2p.Identity.generate()
    listen = ["/ip4/127.0.0.1/tcp/0"]
    async with p2p.open_network(identity, listen=listen) as network, trio.open_nursery() as nursery:
        server = Server(network, TestModel(), weight_of=lambda _: 0, sign=identity.sign)
        await nursery.start(server.run)
        command = [str(NODE), "tensor.js", network.addresses[0]]
        run = partial(trio.run_process, cwd=JS, capture_stdout=True, capture_stderr=True)
        finished = await run(command, check=False)
        nursery.cancel_scope.cancel()
    assert finished.returncode == 0, finished.stderr.decode()
    answers = [json.loads(line) for line in finished.stdout.decode().splitlines()]
    assert answers
    assert all(answer["equal"] for answer in answers)
