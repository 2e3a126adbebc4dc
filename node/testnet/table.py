"""The live table of a local network: one row a node, and how far the goal is."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from consensus.types import TOKEN
from node.testnet.progress import NetworkProgress, NodeProgress


def render(progress: NetworkProgress, *, blocks: int, elapsed_s: float) -> RenderableType:
    """What the terminal shows at this moment."""
    title = f"agora testnet, {elapsed_s:.0f} s"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ("node", "final", "epoch", "peers", "loss", "exchanges", "served", "stake", "state")
    for column in columns:
        table.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
    for node in progress.nodes:
        table.add_row(*_cells(node))
    done = min(blocks, min((node.finalized for node in progress.live), default=0))
    missing = progress.missing(blocks)
    text = f"{done} of {blocks} blocks final" + (f"; waiting for {missing}" if missing else "")
    goal = Table.grid(padding=(0, 1))
    goal.add_row(ProgressBar(total=blocks, completed=done, width=24), Text(text))
    return Group(table, goal)


def line(progress: NetworkProgress, *, blocks: int, elapsed_s: float) -> str:
    """The same in one line, for a terminal that cannot redraw and for logs."""
    live = progress.live
    final = min((node.finalized for node in live), default=0)
    losses = [node.loss for node in live if node.loss is not None]
    loss = f"{sum(losses) / len(losses):.3f}" if losses else "-"
    return (
        f"{elapsed_s:5.0f} s  {len(live)} nodes  final {final}/{blocks}  loss {loss}  "
        f"exchanges {progress.exchanges_total()}"
    )


def _cells(node: NodeProgress) -> list[str]:
    latest = node.latest
    if latest is None:
        return [str(node.index), *[""] * 7, _state(node)]
    return [
        str(node.index),
        str(node.finalized),
        str(latest.epoch),
        str(latest.peers),
        "" if latest.loss is None else f"{latest.loss:.3f}",
        str(sum(latest.exchanges.values())),
        str(latest.served),
        f"{latest.stake / TOKEN:,.2f}",
        _state(node),
    ]


def _state(node: NodeProgress) -> str:
    if node.exit_code is not None:
        return f"killed by signal {-node.exit_code}" if node.exit_code < 0 else "ended"
    if node.started is None:
        return "starting"
    if node.latest is not None and node.latest.halted:
        return f"halted: {node.latest.halted}"
    return "running"
