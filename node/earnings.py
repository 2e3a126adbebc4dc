"""Where a peer's stake came from: its chain executed again, every change of its stake named.

The rule: the entries add up. Stake at the start plus all entries is the stake at the end, exactly;
a change that no cause explains would be a fault of the ledger and raises. Pure: a genesis and its
blocks in, facts out. `explain` says what the *next* outcome will be; this says what happened.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from consensus.block import Block, BlockKind
from consensus.crypto import Verifier
from consensus.errors import InvariantViolation
from consensus.execution import Receipt
from consensus.genesis import Genesis, genesis_state
from consensus.state import State
from consensus.transaction import (
    CommitWeights,
    SetWeights,
    Subscribe,
    SubscribeFor,
    Transaction,
    Transfer,
    Unsubscribe,
    decode_transaction,
)
from consensus.transition import begin
from consensus.types import TOKEN, AccountId, Epoch, Height


class Cause(StrEnum):
    """Why the stake of a peer changed."""

    SETTLED_BY_OTHER = "settled-by-other"
    """Another peer published weights: it paid this one by its row and this one's trust."""
    SETTLED_BY_SELF = "settled-by-self"
    """It published weights itself: the self edge, less what the fee took from the stake."""
    PAYOUT = "payout"
    """The pool at a boundary, by rank times trust."""
    RECEIVED = "received"
    SENT = "sent"
    FEE = "fee"
    SUBSCRIPTION = "subscription"
    """Paid somebody else's entrance."""
    LEFT = "left"
    """Unsubscribed or evicted: the stake went to its recipient or the pool."""
    SLASHED = "slashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change of stake."""

    height: Height
    epoch: Epoch
    cause: Cause
    amount: int
    """Base units, negative where the stake fell."""
    other: AccountId | None = None
    """Whose transaction it was, where it was another's."""


@dataclass(slots=True, kw_only=True)
class Earnings:
    """The history of one account from genesis to `height`."""

    account: AccountId
    start: int
    """Base units at genesis."""
    end: int
    height: Height
    entries: list[Entry] = field(default_factory=list)

    def total(self, cause: Cause) -> int:
        """Base units of all entries with this cause."""
        return sum(entry.amount for entry in self.entries if entry.cause is cause)

    def by_payer(self) -> dict[AccountId, int]:
        """Base units received by settlement, by the peer whose row paid, largest first."""
        sums: dict[AccountId, int] = {}
        for entry in self.entries:
            if entry.cause is Cause.SETTLED_BY_OTHER and entry.other is not None:
                sums[entry.other] = sums.get(entry.other, 0) + entry.amount
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def trace_earnings(
    genesis: Genesis,
    blocks: Iterable[Block],
    account: AccountId,
    verifier: Verifier | None = None,
) -> Earnings:
    """Execute `blocks` (heights 1, 2, ... without gap) and name every change of `account`'s stake.

    Raises InvalidTransaction or InvalidBlock when a block is not valid, InvariantViolation when
    the entries do not add up.
    """
    state = genesis_state(genesis)
    earnings = Earnings(account=account, start=_stake(state, account), end=0, height=state.height)
    for block in blocks:
        if block.header.kind is not BlockKind.CLOSING:
            state = _trace_block(earnings, state, genesis, block, verifier)
    earnings.end, earnings.height = _stake(state, account), state.height
    if earnings.start + sum(entry.amount for entry in earnings.entries) != earnings.end:
        raise InvariantViolation("earnings do not add up")
    return earnings


def describe(earnings: Earnings) -> str:
    """The history in words and numbers."""
    lines = [
        f"account {earnings.account.hex()}",
        f"  {_tokens(earnings.start)} at genesis",
        f"  {_tokens(earnings.end)} at height {earnings.height}",
    ]
    words = {
        Cause.SETTLED_BY_OTHER: "earned from peers that gave it weight",
        Cause.SETTLED_BY_SELF: "by its own settlements (self edge, less fees from the stake)",
        Cause.PAYOUT: "paid out of the pool by rank times trust",
        Cause.RECEIVED: "received from others",
        Cause.SENT: "sent to others",
        Cause.FEE: "paid in fees",
        Cause.SUBSCRIPTION: "paid for other peers' entrance",
        Cause.LEFT: "given up by leaving",
        Cause.SLASHED: "slashed for equivocation",
    }
    for cause, text in words.items():
        total = earnings.total(cause)
        if total:
            lines.append(f"  {_tokens(total):>24} {text}")
    for payer, amount in earnings.by_payer().items():
        lines.append(f"  {_tokens(amount):>24}   of it from {payer.hex()[:16]}")
    return "\n".join(lines)


def facts_of(earnings: Earnings) -> dict[str, Any]:
    """The history as JSON."""
    return {
        "account": earnings.account.hex(),
        "height": int(earnings.height),
        "start": earnings.start,
        "end": earnings.end,
        "totals": {str(cause): earnings.total(cause) for cause in Cause},
        "from": {payer.hex(): amount for payer, amount in earnings.by_payer().items()},
        "entries": [
            {
                "height": entry.height,
                "epoch": entry.epoch,
                "cause": str(entry.cause),
                "amount": entry.amount,
                "other": None if entry.other is None else entry.other.hex(),
            }
            for entry in earnings.entries
        ],
    }


def _trace_block(
    earnings: Earnings,
    state: State,
    genesis: Genesis,
    block: Block,
    verifier: Verifier | None,
) -> State:
    execution = begin(state, block.header, genesis.parameters, verifier=verifier)
    draft = execution.draft
    for encoded in block.body.transactions:
        transaction = decode_transaction(encoded)
        before = _stake(draft, earnings.account)
        receipt = execution.apply(transaction)
        change = _stake(draft, earnings.account) - before
        _note(earnings, draft, transaction, receipt, change)
    stake, bond = _stake(draft, earnings.account), _bond(draft, earnings.account)
    after = execution.finish(block.body).state
    # What is slashed leaves the bond as well as the stake; nothing else in `finish` does.
    slashed = _bond(after, earnings.account) - bond
    _add(earnings, draft, Cause.SLASHED, slashed)
    payout = _stake(after, earnings.account) - stake - slashed
    _add(earnings, draft, Cause.PAYOUT, payout)
    return after


def _note(
    earnings: Earnings, draft: State, transaction: Transaction, receipt: Receipt, change: int
) -> None:
    """Name what one transaction did to the stake."""
    own = transaction.account == earnings.account
    other = None if own else transaction.account
    match transaction.content:
        case SetWeights() | CommitWeights():
            cause = Cause.SETTLED_BY_SELF if own else Cause.SETTLED_BY_OTHER
            _add(earnings, draft, cause, change, other)
        case Transfer() if own:
            _add(earnings, draft, Cause.FEE, -receipt.fee)
            _add(earnings, draft, Cause.SENT, change + receipt.fee)
        case Transfer() | Unsubscribe() if not own and change > 0:
            _add(earnings, draft, Cause.RECEIVED, change, other)
        case SubscribeFor() if own:
            _add(earnings, draft, Cause.FEE, -receipt.fee)
            _add(earnings, draft, Cause.SUBSCRIPTION, change + receipt.fee)
        case Unsubscribe() | Subscribe() | SubscribeFor():
            _add(earnings, draft, Cause.LEFT, change, other)
        case _:
            _add(earnings, draft, Cause.FEE, change, other)


def _add(
    earnings: Earnings, at: State, cause: Cause, amount: int, other: AccountId | None = None
) -> None:
    if amount:
        entry = Entry(height=at.height, epoch=at.epoch, cause=cause, amount=amount, other=other)
        earnings.entries.append(entry)


def _stake(state: State, account: AccountId) -> int:
    uid = state.uid_of_owner.get(account)
    return 0 if uid is None else state.stake[uid]


def _bond(state: State, account: AccountId) -> int:
    uid = state.uid_of_owner.get(account)
    return 0 if uid is None else state.bonds[uid].amount


def _tokens(amount: int) -> str:
    sign, (whole, fraction) = "-" if amount < 0 else "", divmod(abs(amount), TOKEN)
    return f"{sign}{whole:,}.{fraction:09d}"
