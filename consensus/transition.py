"""`state_transition`: one block on one state, executed identically by every node.

Rule: the header's roots commit to the result, so a block is valid only where execution gives
exactly them. A normal block is: count emission, transactions in order, evidence, attest; and, when
it is the boundary of an epoch, in this order,

    1. jailing of the silent
    2. the outcome of the previous snapshot: its trust and openness, scaling, payouts from the pool
    3. weights to departed peers return to the self edge; the new snapshot of S, A and W
    4. the next voter set, the next target for proofs of work

so the mechanism (seconds at 4,096 peers) has a whole epoch of wall time and delays no block
(ledger.md, Pipeline). A closing block changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from consensus.block import (
    BLOCK_VERSION,
    BODY_BYTES_MAX,
    EMPTY_BODY,
    EVIDENCE_MAX,
    Block,
    BlockKind,
    Body,
    Evidence,
    Header,
    evidence_offence,
)
from consensus.bonding import (
    check_evidence,
    choose_voters,
    count_attest,
    forget_old_evidence,
    jail_silent,
    punish,
)
from consensus.crypto import Ed25519Verifier, Verifier
from consensus.entries import seal
from consensus.epoch import boundary_height
from consensus.errors import (
    BlockFault,
    DecodeError,
    InvalidBlock,
    InvalidTransaction,
)
from consensus.execution import Receipt, apply_transaction
from consensus.incentive import Outcome, Snapshot, mechanism_step, payouts
from consensus.merkle import root_of_list
from consensus.params import Parameters
from consensus.settlement import accrue
from consensus.state import ANCESTORS_MAX, NO_ATTESTS, OutcomeOf, State, Table
from consensus.transaction import Transaction, decode_transaction
from consensus.types import ZERO_DIGEST, Digest, Epoch, Uid
from consensus.vote import Certificate
from consensus.work import next_target

TRANSACTION_ENTRY_BYTES: Final = 4
"""Length prefix of a transaction in a body."""
BODY_ROOM_BYTES: Final = BODY_BYTES_MAX - 64 * 1024
"""For a proposer's transactions; the rest is for evidence and an attest of 128 signatures."""
_DECODED_MAX: Final = 16_384
"""Decoded transactions remembered: what a full mempool and a few blocks repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """What a block does, and what its header has to say about it."""

    state: State
    receipts: tuple[Receipt, ...]
    receipts_root: Digest
    next_vset_hash: Digest
    """Hash of the next voter set after a boundary block, ZERO_DIGEST otherwise."""


@dataclass(slots=True, kw_only=True)
class Execution:
    """One block being executed on a draft: `apply` transactions, then `finish`.

    `header` needs everything but the roots, so that a proposer can execute before it knows them.
    """

    parent: State
    header: Header
    parameters: Parameters
    verifier: Verifier
    outcome_of: OutcomeOf
    draft: State = field(init=False)
    receipts: list[Receipt] = field(init=False)

    def __post_init__(self) -> None:
        self.receipts = []
        self.draft = draft = self.parent.draft()
        draft.height, draft.time_ms = self.header.height, self.header.time_ms
        ancestor = (self.parent.height, self.header.parent_hash)
        draft.ancestors = (*draft.ancestors, ancestor)[-ANCESTORS_MAX:]
        oldest = draft.ancestors[0][0]
        draft.works = tuple(work for work in draft.works if work[0] >= oldest)
        if draft.is_open:
            draft.open_blocks += 1

    def apply(self, transaction: Transaction) -> Receipt:
        """Execute one transaction. Raises InvalidTransaction, the draft is then as before."""
        receipt = apply_transaction(self.draft, transaction, self.parameters, self.verifier)
        self.receipts.append(receipt)
        return receipt

    def finish(self, body: Body) -> Executed:
        """Evidence, attest and the boundary; seal. Raises InvalidBlock."""
        draft, parameters = self.draft, self.parameters
        if len(body.evidence) > EVIDENCE_MAX:
            raise InvalidBlock(BlockFault.TOO_MUCH_EVIDENCE, f"{len(body.evidence)} pieces")
        for evidence in body.evidence:
            punish(draft, evidence, parameters, self.verifier)
            draft.check_supply(parameters)
        if body.attest is not None:
            count_attest(draft, body.attest, self.header, self.verifier)
        next_vset_hash = ZERO_DIGEST
        if draft.height == boundary_height(draft.epoch, parameters.blocks_per_epoch):
            end_epoch(draft, parameters, self.outcome_of)
            next_vset_hash = draft.voters.hash
        draft.check_supply(parameters)
        return Executed(
            state=seal(draft),
            receipts=tuple(self.receipts),
            receipts_root=root_of_list(receipt.encode() for receipt in self.receipts),
            next_vset_hash=next_vset_hash,
        )


def state_transition(
    state: State,
    block: Block,
    parameters: Parameters,
    *,
    verifier: Verifier | None = None,
    outcome_of: OutcomeOf | None = None,
) -> State:
    """The state after `block` on `state`, which is not changed. Raises InvalidBlock.

    Checks everything that follows from the state: chain, epoch, height, kind, time, voter set,
    transactions, evidence, attest and roots. That the parent is notarized and the proposer leads
    the view is the engine's to check. `outcome_of` computes a mechanism step or waits for one.
    """
    header, body = block.header, block.body
    check_header(state, header, parameters)
    if header.kind is BlockKind.CLOSING:
        if body.root != EMPTY_BODY.root:
            raise InvalidBlock(BlockFault.CLOSING_NOT_EMPTY)
        executed = closing(state)
    else:
        executed = execute(
            state, header, body, parameters, verifier=verifier, outcome_of=outcome_of
        )
    for claimed, actual, fault in (
        (header.state_root, executed.state.root, BlockFault.STATE_ROOT),
        (header.receipts_root, executed.receipts_root, BlockFault.RECEIPTS_ROOT),
        (header.next_vset_hash, executed.next_vset_hash, BlockFault.NEXT_VOTER_SET),
    ):
        if claimed != actual:
            raise InvalidBlock(fault, f"{claimed.hex()[:16]}, not {actual.hex()[:16]}")
    return executed.state


def execute(
    state: State,
    header: Header,
    body: Body,
    parameters: Parameters,
    *,
    verifier: Verifier | None = None,
    outcome_of: OutcomeOf | None = None,
) -> Executed:
    """Execute a normal block, whatever roots its header claims. Raises InvalidBlock."""
    if body.size_bytes > BODY_BYTES_MAX:
        raise InvalidBlock(BlockFault.TOO_LARGE, f"{body.size_bytes} bytes")
    execution = begin(state, header, parameters, verifier=verifier, outcome_of=outcome_of)
    for number, encoded in enumerate(body.transactions):
        try:
            execution.apply(_decoded(encoded))
        except (DecodeError, InvalidTransaction) as error:
            detail = f"transaction {number}: {error}"
            raise InvalidBlock(BlockFault.TRANSACTION, detail) from error
    return execution.finish(body)


def begin(
    state: State,
    header: Header,
    parameters: Parameters,
    *,
    verifier: Verifier | None = None,
    outcome_of: OutcomeOf | None = None,
) -> Execution:
    """Start a normal block, for a proposer that chooses transactions as it executes them."""
    return Execution(
        parent=state,
        header=header,
        parameters=parameters,
        verifier=verifier or Ed25519Verifier(),
        outcome_of=outcome_of or step_of(parameters),
    )


def choose(
    execution: Execution, offered: Iterable[bytes], bytes_max: int
) -> tuple[list[bytes], list[tuple[bytes, InvalidTransaction]]]:
    """Apply what fits of the encoded transactions `offered`, in order.

    Gives those applied and those refused with the reason; ones that did not fit are in neither.
    """
    taken: list[bytes] = []
    refused: list[tuple[bytes, InvalidTransaction]] = []
    for encoded in offered:
        size = len(encoded) + TRANSACTION_ENTRY_BYTES
        if size > bytes_max:
            continue
        try:
            execution.apply(_decoded(encoded))
        except InvalidTransaction as error:
            refused.append((encoded, error))
        else:
            taken.append(encoded)
            bytes_max -= size
    return taken, refused


def choose_evidence(execution: Execution, offered: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """The first EVIDENCE_MAX of `offered` that the block being executed may carry."""
    chosen: dict[object, Evidence] = {}
    for evidence in offered:
        offence = evidence_offence(evidence)
        if len(chosen) == EVIDENCE_MAX or offence in chosen:
            continue
        try:
            check_evidence(execution.draft, evidence, execution.parameters, execution.verifier)
        except InvalidBlock:
            continue
        chosen[offence] = evidence
    return tuple(chosen.values())


def propose(
    parent: State,
    template: Header,
    offered: Iterable[bytes],
    evidence: Iterable[Evidence],
    attest: Certificate | None,
    parameters: Parameters,
    *,
    verifier: Verifier | None = None,
    outcome_of: OutcomeOf | None = None,
) -> tuple[Block, State]:
    """A block on `parent` with what fits and holds of what is offered, and the state after it.

    `template` has everything but the roots. Raises InvalidBlock when the attest does not hold.
    """
    execution = begin(parent, template, parameters, verifier=verifier, outcome_of=outcome_of)
    taken, _ = choose(execution, offered, BODY_ROOM_BYTES)
    chosen = choose_evidence(execution, evidence)
    body = Body(transactions=tuple(taken), evidence=chosen, attest=attest)
    executed = execution.finish(body)
    header = dataclasses.replace(
        template,
        body_root=body.root,
        state_root=executed.state.root,
        receipts_root=executed.receipts_root,
        next_vset_hash=executed.next_vset_hash,
    )
    return Block(header=header, body=body), executed.state


def closing(state: State) -> Executed:
    """What a closing block does: nothing."""
    return Executed(
        state=state, receipts=(), receipts_root=root_of_list(()), next_vset_hash=ZERO_DIGEST
    )


def check_header(state: State, header: Header, parameters: Parameters) -> None:
    """Raise InvalidBlock unless `header` may stand on `state`, roots and body aside."""
    closes = header.kind is BlockKind.CLOSING
    # After a boundary block the state is the next epoch's, while closing blocks end the old one.
    epoch = Epoch(state.epoch - 1) if closes else state.epoch
    if header.version != BLOCK_VERSION:
        raise InvalidBlock(BlockFault.WRONG_VERSION, str(header.version))
    if header.chain_id != state.chain_id:
        raise InvalidBlock(BlockFault.WRONG_CHAIN)
    if closes and state.height != boundary_height(epoch, parameters.blocks_per_epoch):
        raise InvalidBlock(BlockFault.CLOSING_TOO_EARLY)
    if header.epoch != epoch:
        raise InvalidBlock(BlockFault.WRONG_EPOCH, f"{header.epoch}, not {epoch}")
    if header.height <= state.height or (not closes and header.height != state.height + 1):
        raise InvalidBlock(BlockFault.WRONG_HEIGHT, f"{header.height} on {state.height}")
    if header.time_ms <= state.time_ms:
        raise InvalidBlock(BlockFault.TIME_NOT_INCREASING)
    if not closes and header.vset_hash != state.voters.hash:
        raise InvalidBlock(BlockFault.VOTER_SET)


def end_epoch(draft: State, parameters: Parameters, outcome_of: OutcomeOf) -> None:
    """The boundary, in the order of this module's docstring."""
    jail_silent(draft)
    apply_outcome(draft, draft.outcome(outcome_of), parameters)
    draft.check_supply(parameters)
    _return_weights_of_departed(draft)
    draft.take_snapshot()
    draft.voters = choose_voters(draft, parameters)
    draft.work_target = next_target(draft.work_target, draft.work_found, parameters)
    draft.work_found, draft.attests = 0, NO_ATTESTS
    draft.epoch = Epoch(draft.epoch + 1)
    forget_old_evidence(draft, parameters)


def apply_outcome(draft: State, outcome: Outcome, parameters: Parameters) -> None:
    """Put a snapshot's outcome into effect: scaling, payouts, trust, openness.

    Matched by uid: who left since gets nothing and its part stays in the pool; who came since
    keeps trust 1/2 and scaling 1.
    """
    uids = draft.snapshot.uids
    for uid, scaling, payout in zip(
        uids, outcome.scaling_next, payouts(outcome, draft.pool), strict=True
    ):
        if uid not in draft.accounts or (not payout and scaling == draft.scaling[uid]):
            continue
        accrue(draft, uid, parameters)
        draft.scaling[uid] = scaling
        draft.stake[uid] += payout
        draft.staked += payout
        draft.pool -= payout
    draft.put_result(uids, outcome)


def step_of(parameters: Parameters) -> OutcomeOf:
    """The mechanism under `parameters`, computed where it is asked for."""

    def compute(snapshot: Snapshot) -> Outcome:
        return mechanism_step(snapshot, parameters)

    return compute


def forget_decoded() -> None:
    """Empty the memory of decoded transactions, for measurements."""
    _decoded.cache_clear()


def _return_weights_of_departed(draft: State) -> None:
    """Entries to departed peers go to the self edge, exempt from its cap."""
    if not draft.removed:
        return
    gone = frozenset(draft.removed)
    for uid, row in draft.rows.items():
        kept = row.without(gone, uid)
        if kept is not row:
            draft.rows[uid] = kept
            draft.touch(Table.ROW, Uid(uid))
    draft.removed = ()


@lru_cache(maxsize=_DECODED_MAX)
def _decoded(encoded: bytes) -> Transaction:
    return decode_transaction(encoded)
