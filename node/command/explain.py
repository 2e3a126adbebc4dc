"""`explain`: why a peer earned what it earned, from the ledger alone, in words and numbers.

Three answers, each of which adds up: what happened (every change of its stake since genesis, by
executing the stored blocks again), what its rows bring per epoch now, and why the mechanism values
it so (rank, trust, incentive of the newest snapshot; paper, eq. 1 to 5). No node needs to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from node.command.directory import find_directory
from node.command.option import data_dir_option, json_option, print_json

NAME_CHARS: Final = 16
"""Of a peer id in a table: its end, the beginning is the same for all."""

WORDS: Final = {
    "settled-by-other": "earned when others published weights: their emission x weight x its trust",
    "settled-by-self": "its own settlements: emission over the self edge, less fees from the stake",
    "payout": "paid out of the pool at boundaries, by rank x trust",
    "received": "received by transfers",
    "sent": "sent by transfers",
    "fee": "fees of other transactions",
    "subscription": "entrance paid for other peers",
    "left": "given up by leaving",
    "slashed": "slashed for equivocation",
}
"""Cause → what it means; the causes of `node.earnings`."""


@click.command()
@click.option("--peer", required=True, metavar="PEER", help="A peer id, account or uid.")
@click.option("--no-history", is_flag=True, help="Do not execute the stored blocks again.")
@data_dir_option
@json_option
def explain(peer: str, no_history: bool, data_dir: Path | None, as_json: bool) -> None:
    """Why a peer earned what it earned, from the ledger alone."""
    from node import chain_view
    from node.earnings import facts_of

    directory = find_directory(data_dir)
    view = chain_view.read_chain(directory)
    uid = view.uid_of(peer)
    facts = chain_view.explain(view, uid)
    earnings = None if no_history else chain_view.history(directory, view, uid)
    facts["history"] = None if earnings is None else facts_of(earnings)
    if as_json:
        print_json(facts)
        return
    names: dict[str, int] = {
        account.owner.hex(): each for each, account in view.state.accounts.items()
    }
    row = facts["peer"]
    click.echo(f"peer {row['peer_id']} (uid {row['uid']}) at height {facts['height']}")
    click.echo(
        f"stake {chain_view.tokens(row['stake'])} tokens, and {chain_view.tokens(row['pending'])} "
        "of emission that it hands out when it next publishes weights"
    )
    if facts["history"] is not None:
        _echo(_history_lines(facts["history"], names))
    elif not no_history:
        click.echo("\nIts history is not here: this node's blocks do not reach back to genesis")
    _echo(_income_lines(facts))
    _echo(_reason_lines(facts))


def _history_lines(history: dict[str, Any], names: dict[str, int]) -> Iterator[str]:
    """Stake at genesis, every cause's sum, stake now: the columns add up."""
    yield f"\nWhat it earned ({history['height']} blocks executed again)"
    yield f"{_signed(history['start'])}  stake at genesis"
    for cause, text in WORDS.items():
        entries = [entry for entry in history["entries"] if entry["cause"] == cause]
        if not entries:
            continue
        yield f"{_signed(history['totals'][cause])}  {text} ({_times(len(entries))})"
        if cause == "settled-by-other":
            for payer, amount in history["from"].items():
                who = f"uid {names[payer]}" if payer in names else f"{payer[:NAME_CHARS]} (gone)"
                times = sum(entry["other"] == payer for entry in entries)
                yield f"{'':26}{_signed(amount)}  from {who} ({_times(times)})"
    yield f"{_signed(history['end'])}  stake now"


def _income_lines(facts: dict[str, Any]) -> Iterator[str]:
    """What the rows in force bring per epoch."""
    sources = facts.get("emission", [])
    if not sources:
        return
    yield "\nWhat it earns per epoch now, when everybody publishes weights"
    for source in sources:
        yield (
            f"{_signed(source['amount'])}  from uid {source['uid']} = "
            f"{_short(source['accrues'])} of emission x weight {source['weight']:.4f} "
            f"x trust {facts['peer']['trust']:.4f}"
        )
    yield f"{_signed(sum(source['amount'] for source in sources))}  together"


def _reason_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Rank, trust and incentive by the newest snapshot."""
    yield "\nWhy: the newest snapshot, whose outcome takes effect at the next boundary"
    if not facts["in_snapshot"]:
        yield "it is younger than the newest snapshot: trust 1/2 until the next boundary"
        return
    for giver in facts["from"]:
        name = giver["peer_id"][-NAME_CHARS:]
        yield (
            f"  {giver['rank']:.4f} of rank = share {giver['share']:.4f} of the scaled stake x "
            f"weight {giver['weight']:.4f} from uid {giver['uid']} …{name}"
        )
    yield f"rank {facts['rank']:.4f}, of it from others {facts['rank_received']:.4f}"
    yield (
        f"trust {facts['trust']:.4f}: peers with {facts['connected_share']:.1%} of the scaled "
        "stake reach it (half of the stake would give one half)"
    )
    yield (
        f"incentive = rank x trust: {facts['incentive_share']:.2%} of everybody's, its part of "
        f"the pool ({_short(facts['pool'])} tokens now)"
    )
    if facts["peer"]["scaling"] < 1:
        yield (
            f"its stake counts by a factor of {facts['peer']['scaling']:.3f}: it was scaled down "
            "while the network was closed"
        )
    if not facts["open"]:
        yield "the network is closed (loss >= 0): nothing is emitted or paid out"


def _echo(lines: Iterator[str]) -> None:
    for line in lines:
        click.echo(line)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _signed(amount: int) -> str:
    """Base units as tokens with all nine digits, aligned."""
    from node.chain_view import tokens

    text = ("-" if amount < 0 else "+") + tokens(abs(amount))
    whole, _, fraction = text.partition(".")
    return f"{whole + '.' + fraction.ljust(9, '0'):>26}"


def _short(amount: int) -> str:
    from node.chain_view import tokens

    whole, _, fraction = tokens(amount).partition(".")
    return f"{whole}.{fraction[:4].ljust(4, '0')}"
