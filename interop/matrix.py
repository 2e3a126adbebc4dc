"""The matrix: every trial with every foreign peer, run and written into `interop/README.md`.

The rule: the table is the outcome of a run and is never edited by hand: it stands between two
markers. `python -m interop.matrix` installs what is missing, runs all and exits with 1 if a trial
that can be held has failed or a peer cannot be installed. `--check` writes nothing and exits with 1
also when the table would change; `--json` prints the outcomes; `--only TEXT` runs some and writes
nothing.
"""

from __future__ import annotations

import argparse
import enum
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from interop.peers.daemon import open_daemon_peer
from interop.peers.installation import InstallationFailed, install
from interop.peers.lines import open_js_peer, open_stock_peer
from interop.peers.pairing import OpenPeer, Trial
from interop.peers.port import NotOffered
from interop.peers.trials import TRIAL_TIMEOUT_S, TRIALS

README = Path(__file__).resolve().parent / "README.md"
BEGIN = "<!-- matrix: begin (written by python -m interop.matrix) -->"
END = "<!-- matrix: end -->"

PEERS: dict[str, OpenPeer] = {
    "js-libp2p 3.3.11": open_js_peer,
    "go-libp2p (p2pd)": open_daemon_peer,
    "py-libp2p 0.8.1": open_stock_peer,
}

KNOWN_FAULTS: dict[tuple[str, str], str] = {
    ("we pause reading for 8 s", "py-libp2p 0.8.1"): (
        "py-libp2p resets a stream of its own whose window has been shut for 5 s"
    ),
    ("gossip in mesh, unsigned with content ids, both ways", "py-libp2p 0.8.1"): (
        "py-libp2p writes author and sequence number into unsigned messages, which StrictNoSign "
        "forbids: they are rejected here; ours arrive there"
    ),
}
"""Trials that a foreign peer fails by a fault of its own, with the reason shown in the table."""


class Result(enum.Enum):
    """How a trial ended."""

    PASSED = "yes"
    FAILED = "no"
    NOT_OFFERED = "—"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One cell of the matrix."""

    trial: str
    peer: str
    result: Result
    reason: str = ""


async def hold(title: str, trial: Trial, peer: str) -> Outcome:
    """Run one trial with one peer."""
    try:
        with trio.fail_after(TRIAL_TIMEOUT_S):
            remark = await trial(PEERS[peer])
    except BaseException as error:  # noqa: BLE001 - the guard: any fault is an outcome
        return _outcome_of(title, peer, error)
    return Outcome(trial=title, peer=peer, result=Result.PASSED, reason=remark or "")


def render(outcomes: Sequence[Outcome]) -> str:
    """The table as Markdown, with the reasons below it."""
    cells = {(outcome.trial, outcome.peer): outcome for outcome in outcomes}
    peers = [peer for peer in PEERS if any(outcome.peer == peer for outcome in outcomes)]
    lines = [f"| | {' | '.join(peers)} |", f"|---|{'---|' * len(peers)}"]
    reasons: list[str] = []
    for title, _ in TRIALS:
        row = []
        for peer in peers:
            outcome = cells.get((title, peer))
            if outcome is None:
                row.append("")
                continue
            mark = outcome.result.value
            if outcome.reason:
                if outcome.reason not in reasons:
                    reasons.append(outcome.reason)
                mark += f" ({reasons.index(outcome.reason) + 1})"
            row.append(mark)
        if any(row):
            lines.append(f"| {title} | {' | '.join(row)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    if notes:
        lines += ["", *notes]
    return "\n".join(lines)


def with_table(text: str, table: str) -> str:
    """The README's text with the table between its markers; at its end when there are none yet."""
    section = f"{BEGIN}\n\n{table}\n\n{END}"
    before, found, rest = text.partition(BEGIN)
    if found:
        return before + section + rest.partition(END)[2]
    return f"{text.rstrip()}\n\n## Matrix of foreign peers\n\n{section}\n"


def publish(table: str, *, check: bool) -> bool:
    """Write the table into the README, or only look; whether it stands there now."""
    text = README.read_text() if README.exists() else "# Interoperability\n"
    wanted = with_table(text, table)
    if not check:
        README.write_text(wanted)
    return wanted == text or not check


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m interop.matrix", description=__doc__)
    parser.add_argument("--only", help="run the cells whose trial or peer contains this text")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.add_argument("--check", action="store_true", help="fail when the table would change")
    options = parser.parse_args(arguments)
    try:
        install()
    except InstallationFailed as error:
        print(f"interop: {error}", file=sys.stderr)
        return 1
    outcomes = []
    for title, trial in TRIALS:
        for peer in PEERS:
            if options.only and options.only not in f"{title} / {peer}":
                continue
            outcome = trio.run(hold, title, trial, peer)
            outcomes.append(outcome)
            print(f"{outcome.result.value:4} {peer:18} {title}  {outcome.reason}", file=sys.stderr)
    if options.json:
        print(json.dumps([_as_dict(outcome) for outcome in outcomes], indent=2))
    if not options.only and not publish(render(outcomes), check=options.check):
        print(f"interop: {README.name} has another table; run: make interop", file=sys.stderr)
        return 1
    failed = [o for o in outcomes if o.result is Result.FAILED]
    return 1 if any((o.trial, o.peer) not in KNOWN_FAULTS for o in failed) else 0


def _outcome_of(title: str, peer: str, error: BaseException) -> Outcome:
    """What an exception says: that there is no such feature, or what went wrong first."""
    while isinstance(error, BaseExceptionGroup):
        causes = error.exceptions
        error = next((e for e in causes if not isinstance(e, trio.Cancelled)), causes[0])
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, NotOffered):
        return Outcome(trial=title, peer=peer, result=Result.NOT_OFFERED, reason=str(error))
    reason = KNOWN_FAULTS.get((title, peer)) or f"{type(error).__name__}: {error}"
    return Outcome(trial=title, peer=peer, result=Result.FAILED, reason=reason)


def _as_dict(outcome: Outcome) -> dict[str, str]:
    return {
        "trial": outcome.trial,
        "peer": outcome.peer,
        "result": outcome.result.value,
        "reason": outcome.reason,
    }


if __name__ == "__main__":
    sys.exit(main())
