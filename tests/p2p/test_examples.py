"""The examples run as their docstrings say, each in processes of its own, and are short."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")
LINES_MAX = 40


class Program:
    """A running example: lines out, lines in."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._pending = b""

    async def line(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        while b"\n" not in self._pending:
            data = await self._process.stdout.receive_some()
            assert data, "the program has ended"
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    async def type(self, text: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(text.encode() + b"\n")


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Program]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                lambda task_status: trio.run_process(  # noqa: ASYNC105
                    [sys.executable, "-m", *arguments],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    check=False,
                    task_status=task_status,
                )
            )
            yield Program(process)
            nursery.cancel_scope.cancel()


def without_docstring(path: Path) -> list[str]:
    _, _, code = path.read_text().partition('"""')[2].partition('"""')
    return [line for line in code.splitlines() if line.strip()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(without_docstring(path)) < LINES_MAX
    assert len(path.read_text().splitlines()) <= LINES_MAX + 5


@pytest.mark.network
async def test_echo() -> None:
    async with running("examples.echo") as server:
        address = await server.line()
        async with running("examples.echo", address, "hello there") as client:
            assert await client.line() == "hello there"


@pytest.mark.network
async def test_chat() -> None:
    async with running("examples.chat") as alice:
        address = await alice.line()
        async with running("examples.chat", address) as bob, trio.open_nursery() as nursery:
            await bob.line()

            async def speak() -> None:
                for number in range(100):  # until the meshes have met
                    await bob.type(f"hello {number}")
                    await trio.sleep(0.2)

            nursery.start_soon(speak)
            assert ": hello" in await alice.line()
            nursery.cancel_scope.cancel()


@pytest.mark.network
async def test_lookup() -> None:
    async with running("examples.lookup", "provide", "a recipe") as first:
        bootstrap = await first.line()
        async with running("examples.lookup", "provide", "another", bootstrap) as second:
            address = await second.line()
            async with running("examples.lookup", "find", "another", bootstrap) as third:
                await third.line()
                found = await third.line()
    assert found.split()[0] == address.rpartition("/")[2]


@pytest.mark.network
async def test_plain_libp2p() -> None:
    async with running("examples.plain_libp2p") as program:
        await program.line()
        assert await program.line() == str(b"0123456789abcdef" * 2)
