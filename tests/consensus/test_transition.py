"""Blocks: every reason to refuse one, the order of the boundary, voters, evidence, presence."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from consensus.block import (
    EVIDENCE_MAX,
    Block,
    BlockKind,
    Body,
    Header,
    Proposal,
    evidence_of_proposals,
    evidence_of_votes,
)
from consensus.crypto import Domain
from consensus.errors import BlockFault as Fault
from consensus.errors import InvalidBlock, InvalidTransaction, InvariantViolation, TransactionFault
from consensus.incentive import Snapshot, mechanism_step
from consensus.transaction import RotatePeerKey, SetWeights, Transfer, Unsubscribe, Unvalidate
from consensus.transition import (
    begin,
    choose,
    choose_evidence,
    execute,
    forget_decoded,
    state_transition,
)
from consensus.types import (
    ZERO_DIGEST,
    Amount,
    ChainId,
    Digest,
    Epoch,
    Height,
    Nonce,
    Uid,
    View,
)
from consensus.vote import Ballot, Certificate, Vote, VoteKind, certificate_of
from consensus.weights import Row
from tests.consensus.ledger_chain import (
    TEST_PARAMETERS,
    VERIFIER,
    LedgerChain,
    account_id,
    block_refusal,
    even_row,
    make_genesis,
    peer_key,
    peer_signer,
)

TOKENS = 10**12
E = TEST_PARAMETERS.blocks_per_epoch


@pytest.fixture
def chain() -> LedgerChain:
    return LedgerChain(make_genesis([TOKENS] * 5))


def changed(block: Block, **changes: object) -> Block:
    header = dataclasses.replace(block.header, **changes)  # type: ignore[arg-type]
    return Block(header=header, body=block.body)


def with_body(block: Block, body: Body) -> Block:
    return Block(header=dataclasses.replace(block.header, body_root=body.root), body=body)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"version": 2}, Fault.WRONG_VERSION),
        ({"chain_id": ChainId(bytes(32))}, Fault.WRONG_CHAIN),
        ({"epoch": Epoch(1)}, Fault.WRONG_EPOCH),
        ({"height": Height(3)}, Fault.WRONG_HEIGHT),
        ({"height": Height(1)}, Fault.WRONG_HEIGHT),
        ({"kind": BlockKind.CLOSING}, Fault.CLOSING_TOO_EARLY),
        ({"time_ms": 1_500}, Fault.TIME_NOT_INCREASING),
        ({"vset_hash": ZERO_DIGEST}, Fault.VOTER_SET),
        ({"state_root": ZERO_DIGEST}, Fault.STATE_ROOT),
        ({"receipts_root": ZERO_DIGEST}, Fault.RECEIPTS_ROOT),
        ({"next_vset_hash": Digest(b"x" * 32)}, Fault.NEXT_VOTER_SET),
    ],
)
def test_a_header_that_lies(chain: LedgerChain, changes: dict[str, object], fault: Fault) -> None:
    chain.extend()
    assert block_refusal(chain, changed(chain.make_block(), **changes)) is fault


def test_an_invalid_transaction_makes_the_block_invalid(chain: LedgerChain) -> None:
    block = chain.make_block()
    good = chain.sign(1, SetWeights(row=even_row(5)))
    for transactions in ((b"garbage",), (good.encoded, good.encoded)):
        bad = with_body(block, Body(transactions=transactions))
        assert block_refusal(chain, bad) is Fault.TRANSACTION
    huge = with_body(block, Body(transactions=(bytes(600_000),)))
    assert block_refusal(chain, huge) is Fault.TOO_LARGE


def closing_of(chain: LedgerChain, body: Body | None = None, **changes: object) -> Block:
    body = body or Body()
    state = chain.state
    header = chain.header(
        epoch=Epoch(state.epoch - 1),
        kind=BlockKind.CLOSING,
        body_root=body.root,
        state_root=state.root,
        receipts_root=chain.make_block().header.receipts_root,
    )
    return changed(Block(header=header, body=body), **changes)


def test_a_closing_block_changes_nothing(chain: LedgerChain) -> None:
    chain.extend_to_boundary()
    after = state_transition(chain.state, closing_of(chain), TEST_PARAMETERS)
    assert after is chain.state
    later = closing_of(chain, height=Height(chain.state.height + 7))
    assert state_transition(chain.state, later, TEST_PARAMETERS) is chain.state


def test_closing_blocks_that_are_none(chain: LedgerChain) -> None:
    chain.extend_to_boundary()
    full = Body(transactions=(b"x",))
    assert block_refusal(chain, closing_of(chain, full)) is Fault.CLOSING_NOT_EMPTY
    for changes, fault in (
        ({"epoch": chain.state.epoch}, Fault.WRONG_EPOCH),
        ({"height": chain.state.height}, Fault.WRONG_HEIGHT),
        ({"time_ms": chain.state.time_ms}, Fault.TIME_NOT_INCREASING),
        ({"state_root": ZERO_DIGEST}, Fault.STATE_ROOT),
        ({"kind": BlockKind.NORMAL}, Fault.WRONG_EPOCH),
    ):
        assert block_refusal(chain, closing_of(chain, **changes)) is fault
    chain.extend()
    assert block_refusal(chain, closing_of(chain)) is Fault.CLOSING_TOO_EARLY


def test_the_boundary_commits_to_the_next_set(chain: LedgerChain) -> None:
    for _ in range(E - 1):
        assert chain.extend().header.next_vset_hash == ZERO_DIGEST
    boundary = chain.extend()
    assert boundary.header.next_vset_hash == chain.state.voters.hash
    assert chain.state.voters.epoch == chain.state.epoch == 1
    assert chain.extend().header.vset_hash == boundary.header.next_vset_hash


def test_the_result_of_a_snapshot_holds_one_epoch_later() -> None:
    """Trust in effect is that of the snapshot before; scaling and payouts come at the boundary."""
    chain = LedgerChain(make_genesis([TOKENS] * 5, pool=1_000))
    first = mechanism_step(chain.state.snapshot, TEST_PARAMETERS)
    assert tuple(chain.state.trust.values()) == first.trust
    lonely = Row(((Uid(0), 32_768), (Uid(1), 32_768)))
    chain.extend(*[chain.sign(i, SetWeights(row=lonely)) for i in range(5)])
    pool_before = chain.state.pool
    chain.extend_to_boundary()
    assert chain.state.pool < pool_before
    assert tuple(chain.state.trust.values()) == first.trust
    second = mechanism_step(chain.state.snapshot, TEST_PARAMETERS)
    assert second.trust != first.trust
    chain.extend_to_boundary()
    assert tuple(chain.state.trust.values()) == second.trust
    assert chain.state.is_open == second.open


def test_a_closed_network_steps_its_scaling_and_pays_nothing() -> None:
    islands = [Row(((Uid(i), 65_536),)) for i in range(5)]
    chain = LedgerChain(make_genesis([TOKENS] * 5, rows=islands, pool=1_000))
    assert not chain.state.is_open
    step = mechanism_step(chain.state.snapshot, TEST_PARAMETERS)
    chain.extend_to_boundary()
    assert tuple(chain.state.scaling.values()) == step.scaling_next
    assert chain.state.pool == 1_000
    chain.check_entries()


def test_scaling_recovers_while_open() -> None:
    chain = LedgerChain(make_genesis([TOKENS] * 5, scaling=[2**29] * 5))
    chain.extend_to_boundary()
    recovered = 2**29 + TEST_PARAMETERS.recovery
    assert set(chain.state.scaling.values()) == {recovered}


def test_who_left_since_the_snapshot_gets_nothing(chain: LedgerChain) -> None:
    parameters = dataclasses.replace(TEST_PARAMETERS, fee=0)
    chain = LedgerChain(
        make_genesis([TOKENS] * 5, parameters, bonds=[1_000] + [None] * 4, pool=5_000)
    )
    chain.extend(chain.sign(4, Unsubscribe(recipient=account_id(1))))
    chain.extend_to_boundary()
    # Five equal parts of the pool; the one of the peer that left stays.
    assert 1_000 <= chain.state.pool < 1_005
    assert Uid(4) not in chain.state.trust
    chain.check_entries()


def test_the_mechanism_is_computed_once_for_all_candidates(chain: LedgerChain) -> None:
    calls = []

    def compute(snapshot: Snapshot):
        calls.append(snapshot)
        return mechanism_step(snapshot, TEST_PARAMETERS)

    for _ in range(E - 1):
        chain.extend()
    chain.extend()
    for _ in range(E - 1):
        chain.extend()
    block = chain.make_block()
    chain.state.forget_outcome()
    for _ in range(3):
        state_transition(chain.state, block, TEST_PARAMETERS, verifier=VERIFIER, outcome_of=compute)
    assert len(calls) == 1


def test_a_proposer_keeps_what_is_valid_and_fits(chain: LedgerChain) -> None:
    good = chain.sign(1, SetWeights(row=even_row(5)))
    gap = chain.sign(2, SetWeights(row=even_row(5)), nonce=Nonce(1))
    other = chain.sign(3, SetWeights(row=even_row(5)))
    execution = begin(chain.state, chain.header(), TEST_PARAMETERS, verifier=VERIFIER)
    room = len(good.encoded) + 10
    taken, refused = choose(execution, [gap.encoded, good.encoded, other.encoded], room)
    assert taken == [good.encoded]
    assert [(each, error.reason) for each, error in refused] == [
        (gap.encoded, TransactionFault.NONCE_GAP)
    ]


def test_a_detail_explains_a_fault(chain: LedgerChain) -> None:
    bad = with_body(chain.make_block(), Body(transactions=(b"garbage",)))
    with pytest.raises(InvalidBlock, match="transaction 0: transaction kind 103"):
        execute(chain.state, bad.header, bad.body, TEST_PARAMETERS)
    assert str(InvalidTransaction(TransactionFault.EXPIRED)) == "expired"
    assert str(InvalidBlock(Fault.STATE_ROOT)) == "state-root"


# Presence and jail ------------------------------------------------------------------------------


def attest_of(chain: LedgerChain, block: Block, signers: list[int]) -> Certificate:
    """FINALIZE votes of these voters, by account number, on `block`."""
    ballot = Ballot(
        kind=VoteKind.FINALIZE,
        epoch=block.header.epoch,
        view=block.header.view,
        block_hash=block.hash,
    )
    voters = chain.state.voters
    signatures = {}
    for number in signers:
        index = voters.index_of(peer_key(number))
        assert index is not None
        signatures[index] = peer_signer(number).sign(
            Domain.VOTE, chain.state.chain_id, ballot.payload(voters.hash)
        )
    return certificate_of(ballot, voters, signatures)


def test_who_was_never_present_is_jailed() -> None:
    parameters = dataclasses.replace(TEST_PARAMETERS, blocks_per_epoch=8)
    bonds = [TOKENS // 2] * 12
    chain = LedgerChain(make_genesis([TOKENS] * 12, parameters, bonds=bonds))
    present = list(range(11))
    for _ in range(3):
        chain.extend()
    for age in range(4):
        attest = attest_of(chain, chain.blocks[age], present)
        chain.extend(attest=attest)
        assert chain.state.attests.blocks == age + 1
        assert sum(chain.state.attests.appearances) == 11 * (age + 1)
        chain.check_entries()
    chain.extend_to_boundary()
    assert chain.state.bonds[Uid(11)].jailed
    assert len(chain.state.voters) == 11
    assert chain.state.attests.blocks == 0
    from consensus.transaction import Unjail

    chain.extend(chain.sign(11, Unjail()))
    chain.extend_to_boundary()
    assert len(chain.state.voters) == 12


def test_attests_out_of_the_window_and_forged_ones(chain: LedgerChain) -> None:
    for _ in range(3):
        chain.extend()
    voters = [0, 1, 2]
    good = attest_of(chain, chain.blocks[0], voters)
    young = attest_of(chain, chain.blocks[2], voters)
    forged = dataclasses.replace(good, signatures=good.signatures[::-1])
    for attest, fault in (
        (young, Fault.ATTEST_OUT_OF_WINDOW),
        (forged, Fault.ATTEST_INVALID),
    ):
        with pytest.raises(InvalidBlock) as caught:
            chain.make_block(attest=attest)
        assert caught.value.reason is fault


def test_leaving_is_granted_within_the_limit() -> None:
    bonds = [TOKENS // 2] * 10
    chain = LedgerChain(make_genesis([TOKENS] * 10, bonds=bonds))
    chain.extend(chain.sign(3, Unvalidate()), chain.sign(4, Unvalidate()))
    chain.extend_to_boundary()
    # A tenth of the power: the first that asked.
    assert not chain.state.bonds[Uid(3)].validating
    assert chain.state.bonds[Uid(4)].validating
    assert len(chain.state.voters) == 9
    chain.extend_to_boundary()
    assert len(chain.state.voters) == 8
    chain.check_entries()


# Evidence ---------------------------------------------------------------------------------------


def vote(chain: LedgerChain, number: int, kind: VoteKind, block_hash: bytes, **at: int) -> Vote:
    ballot = Ballot(
        kind=kind,
        epoch=Epoch(at.get("epoch", 0)),
        view=View(at.get("view", 1)),
        block_hash=Digest(block_hash),
    )
    payload = ballot.payload(chain.state.voters.hash)
    signature = peer_signer(number).sign(Domain.VOTE, chain.state.chain_id, payload)
    return Vote(ballot=ballot, signer=peer_key(number), signature=signature)


def double_vote(chain: LedgerChain, number: int, **at: int):
    first = vote(chain, number, VoteKind.NOTARIZE, b"a" * 32, **at)
    second = vote(chain, number, VoteKind.NOTARIZE, b"b" * 32, **at)
    return evidence_of_votes(first, second, chain.state.voters.hash)


def test_an_equivocator_is_slashed_and_tombstoned_but_keeps_its_seat(chain: LedgerChain) -> None:
    before = chain.state.stake[Uid(1)]
    chain.extend(evidence=(double_vote(chain, 1),))
    slashed = (TOKENS // 2) * TEST_PARAMETERS.slash >> 16
    assert chain.state.stake[Uid(1)] == before - slashed
    assert chain.state.pool == slashed
    assert chain.state.bonds[Uid(1)].tombstoned
    assert chain.state.voters.index_of(peer_key(1)) is not None
    chain.check_entries()
    chain.extend_to_boundary()
    assert chain.state.voters.index_of(peer_key(1)) is None


def test_two_proposals_convict_as_well(chain: LedgerChain) -> None:
    def proposal(time_ms: int) -> Proposal:
        header: Header = chain.header(time_ms=time_ms)
        signature = peer_signer(2).sign(Domain.PROPOSAL, chain.state.chain_id, header.hash)
        return Proposal(header=header, signature=signature)

    evidence = evidence_of_proposals(proposal(5_000), proposal(6_000), peer_key(2))
    chain.extend(evidence=(evidence,))
    assert chain.state.bonds[Uid(2)].tombstoned


def refused_evidence(chain: LedgerChain, *evidence) -> Fault:
    with pytest.raises(InvalidBlock) as caught:
        chain.make_block(evidence=evidence)
    return caught.value.reason


def test_evidence_that_does_not_count(chain: LedgerChain) -> None:
    good = double_vote(chain, 1)
    assert refused_evidence(chain, good, good) is Fault.EVIDENCE_REPEATED
    many = [double_vote(chain, 1, view=view) for view in range(1, EVIDENCE_MAX + 2)]
    with pytest.raises(InvalidBlock) as caught:
        begin(chain.state, chain.header(), TEST_PARAMETERS, verifier=VERIFIER).finish(
            Body(evidence=tuple(many))
        )
    assert caught.value.reason is Fault.TOO_MUCH_EVIDENCE
    stranger = double_vote(chain, 77)
    assert refused_evidence(chain, stranger) is Fault.EVIDENCE_INVALID
    forged = dataclasses.replace(good, vset_hash=ZERO_DIGEST)
    assert refused_evidence(chain, forged) is Fault.EVIDENCE_INVALID
    future = double_vote(chain, 1, epoch=1)
    assert refused_evidence(chain, future) is Fault.EVIDENCE_OUT_OF_WINDOW
    chain.extend(evidence=(good,))
    assert refused_evidence(chain, good) is Fault.EVIDENCE_REPEATED
    while chain.state.epoch <= TEST_PARAMETERS.bond_window_epochs:
        chain.extend()
    assert refused_evidence(chain, good) is Fault.EVIDENCE_OUT_OF_WINDOW
    assert not chain.state.evidence
    chain.check_entries()


def test_evidence_follows_the_account_past_a_rotation(chain: LedgerChain) -> None:
    evidence = double_vote(chain, 1)
    chain.extend(chain.sign(1, RotatePeerKey(peer_key=peer_key(50))))
    chain.extend(evidence=(evidence,))
    assert chain.state.bonds[Uid(1)].tombstoned


def test_a_proposer_carries_only_evidence_that_counts(chain: LedgerChain) -> None:
    execution = begin(chain.state, chain.header(), TEST_PARAMETERS, verifier=VERIFIER)
    good = [double_vote(chain, 1, view=view) for view in range(1, 8)]
    offered = [double_vote(chain, 77), good[0], good[0], *good[1:]]
    assert choose_evidence(execution, offered) == tuple(good[:EVIDENCE_MAX])


def test_decoded_transactions_can_be_forgotten(chain: LedgerChain) -> None:
    block = chain.make_block(chain.sign(1, SetWeights(row=even_row(5))))
    forget_decoded()
    assert state_transition(chain.state, block, TEST_PARAMETERS, verifier=VERIFIER).height == 1


def test_a_state_is_a_value(chain: LedgerChain) -> None:
    with pytest.raises(InvariantViolation, match="draft of a draft"):
        chain.state.draft().draft()
    with pytest.raises(InvariantViolation, match="no root"):
        _ = chain.state.draft().root
    with pytest.raises(InvariantViolation, match="sealed"):
        chain.state.take_snapshot()


def test_a_supply_that_does_not_add_up_ends_the_node(chain: LedgerChain) -> None:
    draft = chain.state.draft()
    draft.pool += 1
    with pytest.raises(InvariantViolation, match="supply"):
        draft.check_supply(TEST_PARAMETERS)
    with pytest.raises(InvariantViolation, match="with stake"):
        chain.state.draft().remove_account(Uid(0))
    execution = begin(chain.state, chain.header(), TEST_PARAMETERS, verifier=VERIFIER)
    execution.draft.stake[Uid(0)] += 1
    with pytest.raises(InvariantViolation, match="its sum"):
        execution.finish(Body())


def test_every_reason_that_the_ledger_gives_is_reached_here() -> None:
    named = set(re.findall(r"\bFault\.([A-Z_]+)", Path(__file__).read_text()))
    assert {fault.name for fault in Fault} == named


def test_transfers_in_one_block_see_each_other(chain: LedgerChain) -> None:
    free = TOKENS - TOKENS // 2 - TEST_PARAMETERS.fee
    first = chain.sign(1, Transfer(recipient=account_id(2), amount=Amount(free)))
    second = chain.sign(
        2, Transfer(recipient=account_id(3), amount=Amount(2 * free)), nonce=Nonce(0)
    )
    chain.extend(first, second)
    assert chain.state.stake[Uid(3)] == TOKENS + 2 * free
