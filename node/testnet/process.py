"""One node as a child process: its reports come on a pipe, and it cannot outlive its parent.

The rule: whatever ends the launcher ends the nodes. A child leads a session of its own, so that
the terminal's Ctrl-C reaches only the launcher, which then asks the children in order. Its
standard input is a pipe that only the launcher holds; `run --until-eof` ends when that pipe
closes, which the kernel sees to even when the launcher is killed. Standard output carries report
lines, standard error goes to a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from node.errors import InvariantViolation
from node.report import LINE_BYTES_MAX, Report, ReportError, decode_report

NODE_COMMAND: Final = (sys.executable, "-m", "node", "run", "--json", "--until-eof")
LOG_TAIL_BYTES: Final = 4_096


@dataclass(slots=True)
class NodeProcess:
    """A started child; `watch` it until it ends."""

    index: int
    process: trio.Process
    log: Path

    @property
    def pid(self) -> int:
        """The process id, also the id of its process group."""
        return self.process.pid

    async def watch(self, take: Callable[[Report], None]) -> int:
        """Pass on every report until the process has ended; returns its exit code.

        Lines that are no reports are a defect of the node; they are kept in its log.
        """
        stdout = self.process.stdout
        if stdout is None:
            raise InvariantViolation("a node was started without a pipe for its reports")
        buffer = bytearray()
        async for piece in stdout:
            buffer += piece
            *lines, rest = bytes(buffer).split(b"\n")
            buffer = bytearray(rest[:LINE_BYTES_MAX])
            for line in lines:
                try:
                    report = decode_report(line)
                except ReportError as error:
                    self._note(f"unreadable report ({error}): {line[:200]!r}\n")
                else:
                    take(report)
        return await self.process.wait()

    def ask_to_stop(self) -> None:
        """SIGTERM: the node finishes what it does, closes its databases and exits with 0."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def kill(self) -> None:
        """SIGKILL to the child and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The last line of its standard error, empty when it said nothing."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def _note(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(text)


async def start_node(
    index: int, options: Sequence[str], *, log: Path, command: Sequence[str] = NODE_COMMAND
) -> NodeProcess:
    """Start a node with the given options, its standard error going to `log`. Raises OSError."""
    with log.open("ab") as errors:
        process = await trio.lowlevel.open_process(
            [*command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env=_environment(),
        )
    return NodeProcess(index, process, log)


def _environment() -> dict[str, str]:
    """The launcher's, without configuration meant for a single node; one thread a library."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("AGORA_")}
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environ.setdefault(variable, "1")
    return environ
