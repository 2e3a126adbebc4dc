"""Starts, watches and ends the processes of a local network.

The rule: the launcher gives each node an identity, the genesis and one address, that of node 0; the
nodes find each other by themselves. It ends them when the goal is reached (enough final blocks,
enough exchanges between every pair, every loss fallen), when the time is up, or when it is asked
to; however it ends, no child is left. A child that dies is reported and the others go on.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
from blake3 import blake3

from node import genesis_file
from node.data_directory import DataDirectory, claim
from node.errors import DataError, TestnetError, UsageError
from node.report import Failed, Report, Started
from node.testnet.process import NODE_COMMAND, NodeProcess, start_node
from node.testnet.progress import NetworkProgress
from p2p.identity import Identity

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs that mypy finds for trio lack the name

NODES_MAX: Final = 64
"""Processes one machine can start in reasonable time; a real network has its own machines."""
START_TIMEOUT_S: Final = 60.0
"""Until node 0 listens: ten times what a cold import takes on a slow machine."""
STOP_GRACE_S: Final = 15.0
"""After reaching the goal: a training step ends and the databases close."""
INTERRUPT_GRACE_S: Final = 1.5
"""After Ctrl-C: everything has ended within 3 s, killed if it must be."""
REFRESH_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run: `directory` exists and is empty; None for `data` means the stdlib's text."""

    nodes: int
    blocks: int
    directory: Path
    data: Path | None = None
    seed: int | None = None
    train: bool = True
    timeout_s: float = 300.0
    kill_every_s: float | None = None
    """Kill a node by chance this often, and start it again: the network has to bear it."""
    command: tuple[str, ...] = NODE_COMMAND

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= NODES_MAX:
            raise UsageError(f"--nodes is {self.nodes}; it must be 1 to {NODES_MAX}")
        if self.blocks < 1:
            raise UsageError(f"--blocks is {self.blocks}; it must be at least 1")
        if self.timeout_s <= 0:
            raise UsageError("--timeout must be above 0")
        if self.kill_every_s is not None and (self.kill_every_s <= 0 or self.nodes < 2):
            raise UsageError("--kill-every must be above 0 and needs at least two nodes")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How a run ended; `missing` says what the goal lacked, None when it was reached."""

    summary: dict[str, Any]
    missing: str | None
    interrupted: bool = False
    failures: list[str] = field(default_factory=list)


class Launcher:
    """One run. `show` is called with the progress a few times a second, `note` with news."""

    def __init__(
        self,
        plan: Plan,
        *,
        show: Callable[[NetworkProgress, float], None],
        note: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.progress = NetworkProgress(plan.nodes, trains=plan.train)
        self._show = show
        self._note = note
        self._processes: dict[int, NodeProcess] = {}
        self._failures: list[str] = []
        self._started = trio.Event()
        self._ended: dict[int, trio.Event] = {}
        self._restarting: set[int] = set()
        self._stopping = False
        self._interrupted = False
        self._begin_s = trio.current_time()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return trio.current_time() - self._begin_s

    async def run(self) -> Outcome:
        """Start the network, wait for its goal, end it. No process is left when this returns."""
        options = _prepare(self.plan)
        missing: str | None = None
        async with trio.open_nursery() as nursery:
            reached = trio.CancelScope()
            await nursery.start(self._obey_signals, reached)
            try:
                with reached:
                    await self._start_all(options, nursery)
                    async with trio.open_nursery() as chaos:
                        if self.plan.kill_every_s is not None:
                            chaos.start_soon(self._kill_by_chance, options, nursery)
                        missing = await self._wait_for_goal()
                        chaos.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await self._stop_all()
            duration_s = self.elapsed_s
            nursery.cancel_scope.cancel()
        codes = [
            node.exit_code if node.exit_code is not None else 1 for node in self.progress.nodes
        ]
        return Outcome(
            summary=self.progress.summary(duration_s=duration_s, exit_codes=codes),
            missing=missing or self._what_failed(codes),
            interrupted=self._interrupted,
            failures=self._failures,
        )

    async def _start_all(self, options: list[list[str]], nursery: trio.Nursery) -> None:
        await self._start(0, options[0], nursery)
        with trio.move_on_after(START_TIMEOUT_S) as waiting:
            await self._started.wait()
        first = self.progress.nodes[0].started
        if waiting.cancelled_caught or first is None:
            raise TestnetError(f"node 0 did not start: {self._failure_of(0) or 'no address'}")
        for index in range(1, self.plan.nodes):
            await self._start(index, [*options[index], *_joining(first)], nursery)

    async def _kill_by_chance(self, options: list[list[str]], nursery: trio.Nursery) -> None:
        """SIGKILL one node after the other, and start each again on its own directory."""
        chance = random.Random(self.plan.seed)
        while True:
            await trio.sleep(self.plan.kill_every_s or 0.0)
            up = [node for node in self.progress.live if node.started is not None]
            if len(up) < 2:
                continue
            victim, helper = chance.sample(up, 2)
            join = [] if helper.started is None else _joining(helper.started)
            self._note(f"killing node {victim.index} at height {victim.finalized}")
            self._restarting.add(victim.index)
            self._processes[victim.index].kill()
            await self._ended[victim.index].wait()
            self._restarting.discard(victim.index)
            victim.restart()
            await self._start(victim.index, [*options[victim.index], *join], nursery)

    async def _start(self, index: int, options: list[str], nursery: trio.Nursery) -> None:
        log = self.plan.directory / f"node-{index}.log"
        process = await start_node(index, options, log=log, command=self.plan.command)
        self._processes[index] = process
        self._ended[index] = trio.Event()
        nursery.start_soon(self._watch, process)

    async def _watch(self, process: NodeProcess) -> None:
        def take(report: Report) -> None:
            self.progress.take(process.index, report, elapsed_s=self.elapsed_s)
            if process.index == 0 and isinstance(report, Started | Failed):
                self._started.set()

        # Shielded: whoever cancels the launcher still learns how each child ended.
        with trio.CancelScope(shield=True):
            exit_code = await process.watch(take)
        self.progress.nodes[process.index].exit_code = exit_code
        self._ended[process.index].set()
        if process.index in self._restarting:
            return
        self.progress.nodes[process.index].is_lost = not self._stopping
        if process.index == 0:
            self._started.set()
        if not self._stopping:
            how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended: {exit_code}"
            self._report_failure(f"node {process.index} {how} {self._failure_of(process.index)}")
        elif exit_code > 0:
            self._report_failure(f"node {process.index}: {self._failure_of(process.index)}")

    async def _wait_for_goal(self) -> str | None:
        """None when it was reached, else what was missing when the time was up."""
        deadline_s = self._begin_s + self.plan.timeout_s
        while (missing := self.progress.missing(self.plan.blocks)) is not None:
            if not self.progress.live:
                return missing
            if trio.current_time() >= deadline_s:
                return f"not reached in {self.plan.timeout_s:g} s: {missing}"
            self._show(self.progress, self.elapsed_s)
            await trio.sleep(REFRESH_S)
        self._show(self.progress, self.elapsed_s)
        return None

    async def _stop_all(self) -> None:
        """Ask every child to end, kill what does not; their last reports are still taken."""
        self._stopping = True
        live = [self._processes[index] for index in self._processes if self._is_running(index)]
        for process in live:
            process.ask_to_stop()
        deadline_s = trio.current_time() + STOP_GRACE_S
        hurried = False
        while any(self._is_running(process.index) for process in live):
            if self._interrupted and not hurried:
                hurried = True
                deadline_s = min(deadline_s, trio.current_time() + INTERRUPT_GRACE_S)
            if trio.current_time() >= deadline_s:
                break
            if self.progress.nodes[0].started is not None:
                self._show(self.progress, self.elapsed_s)
            await trio.sleep(REFRESH_S / 5)
        for process in live:
            if self._is_running(process.index):
                self._note(f"node {process.index} did not end in time and was killed")
                process.kill()

    async def _obey_signals(
        self,
        reached: trio.CancelScope,
        task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """The first Ctrl-C or SIGTERM ends the run."""
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with trio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async for _ in signals:
                self._interrupted = True
                reached.cancel()

    def _is_running(self, index: int) -> bool:
        return self.progress.nodes[index].exit_code is None

    def _failure_of(self, index: int) -> str:
        process = self._processes.get(index)
        said = self.progress.nodes[index].failure
        return said or (process.last_words() if process is not None else "")

    def _report_failure(self, text: str) -> None:
        self._failures.append(text.strip())
        self._note(text.strip())

    def _what_failed(self, codes: list[int]) -> str | None:
        """A child that failed by itself is a failure; one that somebody killed is not."""
        failed = [index for index, code in enumerate(codes) if code > 0]
        if not failed:
            return None
        return f"node {failed[0]} failed: {self._failure_of(failed[0])}"


async def launch(
    plan: Plan,
    *,
    show: Callable[[NetworkProgress, float], None] = lambda _progress, _elapsed_s: None,
    note: Callable[[str], None] = lambda _text: None,
) -> Outcome:
    """Run a local network of processes to its goal. Raises TestnetError, DataError, UsageError."""
    return await Launcher(plan, show=show, note=note).run()


def _prepare(plan: Plan) -> list[list[str]]:
    """Identities and genesis on disk; the command-line options of every node."""
    _check_data(plan.data)
    plan.directory.mkdir(parents=True, exist_ok=True)
    accounts = []
    for index in range(plan.nodes):
        with claim(plan.directory / f"node-{index}") as directory:
            accounts.append(_create_node(directory, index, plan.seed))
    genesis = genesis_file.local_genesis(accounts)
    path = plan.directory / "genesis.json"
    genesis_file.save_genesis(path, genesis)
    return [_options(plan, index, path) for index in range(plan.nodes)]


def _create_node(directory: DataDirectory, index: int, seed: int | None) -> genesis_file.Allocation:
    def identity(kind: str) -> Identity:
        if seed is None:
            return Identity.generate()
        return Identity(blake3(f"agora testnet {seed} {index} {kind}".encode()).digest())

    peer, owner = identity("peer"), identity("owner")
    directory.create_keys(passphrase=None, peer=peer, owner=owner)
    return genesis_file.Allocation(owner=owner.public_key, peer=peer.public_key)


def _joining(helper: Started) -> list[str]:
    """The options by which a node joins through another one."""
    return ["--bootstrap", helper.addresses[0], "--chain-id", helper.chain_id]


def _options(plan: Plan, index: int, genesis: Path) -> list[str]:
    options = ["--data-dir", str(plan.directory / f"node-{index}"), "--genesis", str(genesis)]
    options += ["--listen", "/ip4/127.0.0.1/tcp/0", "--threads", "1"]
    options += ["--shard", f"{index + 1}/{plan.nodes}"]
    if plan.data is not None:
        options += ["--data", str(plan.data)]
    if plan.seed is not None:
        options += ["--seed", str(plan.seed + index)]
    if not plan.train:
        options += ["--no-train", "--model", "none"]
    return options


def _check_data(path: Path | None) -> None:
    """The data is looked at before anything is started."""
    if path is None:
        return
    with suppress(OSError):
        if path.stat().st_size == 0 and path.is_file():
            raise DataError(f"data file {path} is empty")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"data file {path}: {error.strerror}") from None
