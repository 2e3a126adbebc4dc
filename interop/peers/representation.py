"""A running node asked for representations by a client that shares no code with it.

The rule: the node is the process that a user starts, `python -m node --model test`, with a network
of its own; the client is `interop/js/tensor.js`, started as a user starts it. What the client has
to ask is read from the vectors here, so that a client which skips cases does not pass.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from interop.peers.lines import JS, NODE
from interop.peers.port import ForeignFault
from interop.tensor import PATH
from node.report import Report, Started
from node.testnet.process import NodeProcess, start_node

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs that mypy finds for trio lack the name


@asynccontextmanager
async def open_node() -> AsyncIterator[str]:
    """The multiaddr of a fresh `python -m node --model test` process, which ends with the block.

    Raises `ForeignFault` (in a group) with the node's last words when it ends by itself.
    """
    with tempfile.TemporaryDirectory(prefix="agora-node-") as folder:
        options = ("--model", "test", "--data-dir", str(Path(folder) / "data"))
        node = await start_node(0, options, log=Path(folder) / "log")
        try:
            async with trio.open_nursery() as nursery:
                addresses: tuple[str, ...] = await nursery.start(_watch, node)
                yield addresses[0]
                nursery.cancel_scope.cancel()
        finally:
            node.kill()
            with trio.CancelScope(shield=True):
                await node.process.wait()
            for pipe in (node.process.stdin, node.process.stdout):
                assert pipe is not None
                await pipe.aclose()


async def ask_in_js(
    address: str, vectors: Path = PATH
) -> tuple[subprocess.CompletedProcess[bytes], list[dict[str, Any]]]:
    """Run the client; how it ended, and the line it printed for each case."""
    run = partial(trio.run_process, cwd=JS, capture_stdout=True, capture_stderr=True)
    ended = await run([str(NODE), "tensor.js", address, str(vectors)], check=False)
    return ended, [json.loads(line) for line in ended.stdout.decode().splitlines()]


def askable() -> set[str]:
    """The names of the vectors that the client must ask: TEXT alone, and frames to refuse."""
    cases = json.loads(PATH.read_text())["cases"]
    return {case["name"] for case in cases if _is_text(case) or "code" in case["output"]}


async def representation_in_js() -> None:
    """Raise `ForeignFault` unless the client finds every vector in a running node's answers."""
    async with open_node() as address:
        ended, lines = await ask_in_js(address)
    if ended.returncode != 0:
        raise ForeignFault(ended.stderr.decode().strip())
    equal = {line["name"] for line in lines if line["equal"]}
    if equal != askable():
        raise ForeignFault(f"not asked, or unequal: {sorted(askable() - equal)}")


def _is_text(case: dict[str, Any]) -> bool:
    modalities = [part["modality"] for part in case["input"].get("parts", ())]
    return modalities == ["TEXT"] and "values" in case["output"]


async def _watch(
    node: NodeProcess, *, task_status: TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Read the node's reports until it ends, which it must not."""
    listening = False

    def take(report: Report) -> None:
        nonlocal listening
        if isinstance(report, Started) and not listening:
            listening = True
            task_status.started(report.addresses)

    status = await node.watch(take)
    raise ForeignFault(f"the node ended with {status}: {node.last_words()}")
