"""What a local network has reached, put together from its nodes' reports; pure.

The rule: a figure is what the nodes said themselves. The shared height is the highest one for
which every live node has reported a final block, and the network agrees when the state roots
reported there, and at every lower height that two of them reported, are equal. A node that was
lost is no longer asked for anything; its earlier roots still have to agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from node.report import Failed, Finalized, Notice, Progress, Report, Started, Stopped

EXCHANGES_PER_PAIR: Final = 3
"""Answers that every node must have received from every other one."""
HEIGHTS_KEPT: Final = 10_000
"""Newest heights whose roots are kept for a node: over an hour of half-second blocks."""


@dataclass(slots=True)
class NodeProgress:
    """The newest figures of one node; written only by `NetworkProgress.take`."""

    index: int
    started: Started | None = None
    latest: Progress | None = None
    roots: dict[int, str] = field(default_factory=dict)
    transactions: dict[int, int] = field(default_factory=dict)
    finalized: int = 0
    loss_start: float | None = None
    loss: float | None = None
    failure: str | None = None
    exit_code: int | None = None
    is_lost: bool = False
    """Its process ended before it was asked to."""
    exchanges_before: Counter[str] = field(default_factory=Counter)
    """Answers received by earlier processes of this node."""

    def restart(self) -> None:
        """A new process takes the node's place; what the old one reached still counts."""
        if self.latest is not None:
            self.exchanges_before.update(self.latest.exchanges)
        self.started = self.latest = self.exit_code = None

    def exchanges(self) -> Counter[str]:
        """Answers received from each peer id."""
        latest = {} if self.latest is None else self.latest.exchanges
        return self.exchanges_before + Counter(latest)

    @property
    def has_learned(self) -> bool:
        """Whether its loss is below the one at its start."""
        return self.loss is not None and self.loss_start is not None and self.loss < self.loss_start


class NetworkProgress:
    """All nodes of one run; `take` every report, then ask."""

    def __init__(self, nodes: int, *, trains: bool = True) -> None:
        self.nodes = [NodeProgress(index) for index in range(nodes)]
        self.first_final_s: float | None = None
        self._trains = trains

    def take(self, index: int, report: Report, *, elapsed_s: float) -> None:
        """Note what node `index` said, `elapsed_s` after the start of the run."""
        node = self.nodes[index]
        match report:
            case Started():
                node.started = report
                node.finalized = max(node.finalized, report.height)
            case Finalized():
                node.roots[report.height] = report.state_root
                node.transactions[report.height] = report.transactions
                node.roots.pop(report.height - HEIGHTS_KEPT, None)
                node.finalized = max(node.finalized, report.height)
                if self.first_final_s is None and report.height > 0:
                    self.first_final_s = elapsed_s
            case Progress():
                node.latest = report
                node.finalized = max(node.finalized, report.finalized)
                if node.loss_start is None:
                    node.loss_start = report.loss_start
                if report.loss is not None:
                    node.loss = report.loss
            case Failed():
                node.failure = report.error
            case Notice() | Stopped():
                pass
            case _:
                assert_never(report)

    @property
    def live(self) -> list[NodeProgress]:
        """Nodes whose process runs, or ran until it was asked to end."""
        return [node for node in self.nodes if not node.is_lost]

    def shared_height(self) -> int:
        """The highest height at which every live node has reported a final block; 0 if none."""
        live = self.live
        if not live:
            return 0
        shared = set(live[0].roots).intersection(*(node.roots for node in live[1:]))
        return max(shared, default=0)

    def roots_are_equal(self) -> bool:
        """Whether no two nodes ever reported different state roots at one height."""
        seen: dict[int, str] = {}
        return all(
            seen.setdefault(height, root) == root
            for node in self.nodes
            for height, root in node.roots.items()
        )

    def exchanges(self, asking: NodeProgress, answering: NodeProgress) -> int:
        """Answers that one node received from another."""
        return 0 if answering.started is None else asking.exchanges()[answering.started.peer_id]

    def exchanges_total(self) -> int:
        """Answers received by all nodes from anybody."""
        return sum(node.exchanges().total() for node in self.nodes)

    def exchanges_min_pair(self) -> int:
        """The fewest answers over all ordered pairs of live nodes; 0 for a single node."""
        live = self.live
        pairs = [self.exchanges(a, b) for a in live for b in live if a is not b]
        return min(pairs, default=0)

    def missing(self, blocks: int) -> str | None:
        """What the network still lacks, for a person; None when the goal is reached."""
        live = self.live
        if not live:
            return "every node has ended"
        if starting := [str(node.index) for node in live if node.started is None]:
            return f"the start of node {', '.join(starting)}"
        if (height := min(node.finalized for node in live)) < blocks:
            return f"final height {height} of {blocks}"
        if self.shared_height() < blocks:
            return f"a common final height of {blocks}"
        if not self._trains:
            return None
        if len(live) > 1 and (pair := self.exchanges_min_pair()) < EXCHANGES_PER_PAIR:
            return f"{EXCHANGES_PER_PAIR} exchanges of every pair (one has {pair})"
        if dull := [str(node.index) for node in live if not node.has_learned]:
            return f"a lower loss at node {', '.join(dull)}"
        return None

    def summary(self, *, duration_s: float, exit_codes: Sequence[int]) -> dict[str, Any]:
        """The JSON object of `testnet --json`."""
        height = self.shared_height()
        live = self.live or self.nodes
        best = max(live, key=lambda node: len(node.transactions))
        losses = [[node.loss_start, node.loss] for node in self.nodes]
        return {
            "nodes": len(self.nodes),
            "finalized": height,
            "state_root": live[0].roots.get(height),
            "state_roots_equal": self.roots_are_equal() and height > 0,
            "transactions": sum(count for at, count in best.transactions.items() if at <= height),
            "exchanges": self.exchanges_total(),
            "exchanges_min_pair": self.exchanges_min_pair(),
            "loss_start": _mean([start for start, _ in losses]),
            "loss_end": _mean([end for _, end in losses]),
            "losses": losses,
            "duration_s": round(duration_s, 3),
            "first_final_s": None if self.first_final_s is None else round(self.first_final_s, 3),
            "exit_codes": list(exit_codes),
        }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
