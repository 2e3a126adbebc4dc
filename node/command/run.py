"""`run`: one node in this process, until it is asked to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import click
import trio

from node.command.option import config_options, json_option
from node.config import Config, GatheredConfig
from node.report import (
    Failed,
    Finalized,
    Notice,
    Progress,
    Report,
    ReportSink,
    Started,
    Stopped,
    encode_report,
)

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs that mypy finds for trio lack the name

STOP_GRACE_S: Final = 10.0
"""From being asked to stop to being ended: a training step and two database closes take < 3 s."""
PEOPLE_LINE_S: Final = 5.0
TOKEN: Final = 10**9


@click.command()
@config_options
@click.option("--until-eof", is_flag=True, help="Stop when standard input closes.")
@json_option
def run(gathered: GatheredConfig, until_eof: bool, as_json: bool) -> int:
    """Start a node.

    Without options it opens a new local network and prints the line with which others join it;
    with --bootstrap it joins the network of that peer; with --data-dir it goes on where that
    directory stopped.
    """
    sink = write_report if as_json else PeopleView()
    try:
        return trio.run(_serve, gathered.config, sink, until_eof)
    except BaseException as error:
        sink(Failed(t_s=time.time(), error=_one_line(error), exit_code=1))
        raise


async def _serve(config: Config, sink: ReportSink, until_eof: bool) -> int:
    """Run the node until a signal, or until standard input closes; returns the exit code."""
    from node.node import open_node

    with trio.CancelScope() as scope:
        stop = _Stop(scope, sink)
        async with trio.open_nursery() as nursery:
            await nursery.start(stop.obey_signals)
            if until_eof:
                nursery.start_soon(stop.obey_standard_input)
            async with open_node(config, report=sink):
                await trio.sleep_forever()
    return stop.exit_code


class _Stop:
    """Who asked the node to stop first; Ctrl-C after that ends the process at once."""

    def __init__(self, scope: trio.CancelScope, sink: ReportSink) -> None:
        self.exit_code = 0
        self._scope = scope
        self._sink = sink
        self._asked = False

    async def obey_signals(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """SIGTERM and SIGHUP end with 0, Ctrl-C with 130."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if self._asked and number == signal.SIGINT:
                    os._exit(130)
                self._ask(130 if number == signal.SIGINT else 0, signal.Signals(number).name)

    async def obey_standard_input(self) -> None:
        """A closed standard input means that whoever started us is gone."""
        source = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
        async with source:
            while await source.receive_some(1024):
                pass
        self._ask(0, "standard input closed")

    def _ask(self, exit_code: int, reason: str) -> None:
        if self._asked:
            return
        self._asked = True
        self.exit_code = exit_code
        self._sink(Stopped(t_s=time.time(), reason=reason))
        # A thread, because the event loop may be what does not end.
        watchdog = threading.Timer(STOP_GRACE_S, _end_now)
        watchdog.daemon = True
        watchdog.start()
        self._scope.cancel()


def _end_now() -> None:
    print(f"agora: did not stop within {STOP_GRACE_S:g} s; ended", file=sys.stderr, flush=True)
    os._exit(1)


def write_report(report: Report) -> None:
    """One JSON line on standard output; a reader that has gone does not stop the node."""
    try:
        sys.stdout.buffer.write(encode_report(report))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class PeopleView:
    """Reports as lines for a terminal: where the node is, how others join, and that it lives."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._first_final = True

    def __call__(self, report: Report) -> None:
        """Print what a person wants to know of a report."""
        match report:
            case Started():
                self._started(report)
            case Finalized():
                if self._first_final and report.height > 0:
                    self._first_final = False
                    _print(f"first final block: height {report.height}")
            case Progress():
                if report.t_s - self._last_s >= PEOPLE_LINE_S:
                    self._last_s = report.t_s
                    _print(_progress_line(report))
            case Notice():
                _print(report.text)
            case Stopped():
                _print(f"stopping ({report.reason})")
            case Failed():
                pass  # the command line prints its error

    def _started(self, report: Started) -> None:
        _print(f"node {report.peer_id}")
        _print(f"network {report.network}, chain {report.chain_id}, height {report.height}")
        _print(f"data in {report.data_dir}" + (f", interface {report.api}" if report.api else ""))
        for address in report.addresses:
            _print(f"listening on {address}")
        if report.addresses:
            _print("another node joins with")
            _print(
                f"  python -m node --bootstrap {report.addresses[0]} --chain-id {report.chain_id}"
            )


def _progress_line(report: Progress) -> str:
    parts = [
        f"final {report.finalized}",
        f"epoch {report.epoch}",
        f"{report.peers} peers",
        f"{report.transactions} transactions",
        f"{sum(report.exchanges.values())} exchanges",
        f"stake {report.stake / TOKEN:,.3f}",
    ]
    if report.loss is not None:
        parts.append(f"loss {report.loss:.3f}")
    if report.network_height > report.finalized + 1:
        parts.append(f"{report.network_height - report.finalized} blocks behind")
    if report.halted:
        parts.append(f"HALTED: {report.halted}")
    return ", ".join(parts)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(str(error).split()) or type(error).__name__
