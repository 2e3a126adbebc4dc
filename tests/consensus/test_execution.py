"""Every transaction does what it says, and every reason to refuse one is reached."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from consensus.account import NO_BOND
from consensus.errors import TransactionFault as Fault
from consensus.params import PAPER
from consensus.transaction import (
    EXPIRY_HEIGHTS_MAX,
    Announce,
    CommitWeights,
    RevealWeights,
    RotatePeerKey,
    SetWeights,
    SubscribeFor,
    Transfer,
    Unjail,
    Unsubscribe,
    Unvalidate,
    Validate,
    commitment_of,
)
from consensus.types import Amount, ChainId, Digest, Epoch, Height, Nonce, PeerKey, Signature, Uid
from consensus.weights import Row, self_row
from consensus.work import find_work, is_enough, next_target, work_digest
from tests.consensus.ledger_chain import (
    ANNOUNCEMENT,
    TEST_PARAMETERS,
    LedgerChain,
    account_id,
    even_row,
    make_genesis,
    owner_signer,
    peer_key,
    peer_signer,
)

TOKENS = 10**12
FEE = TEST_PARAMETERS.fee


@pytest.fixture
def chain() -> LedgerChain:
    return LedgerChain(make_genesis([TOKENS] * 4, bonds=[TOKENS // 2, None, None, None]))


@pytest.fixture
def hiding() -> LedgerChain:
    parameters = dataclasses.replace(TEST_PARAMETERS, commit_reveal=True)
    return LedgerChain(make_genesis([TOKENS] * 4, parameters))


def refused(chain: LedgerChain, fault: Fault, number: int, content, *before, **changes) -> None:
    transaction = chain.sign(number, content, **changes)
    assert chain.refusal(transaction, *before) is fault


def pay(amount: int = 5, to: int = 2) -> Transfer:
    return Transfer(recipient=account_id(to), amount=Amount(amount))


def test_a_transfer_moves_stake_and_the_fee_goes_to_the_pool(chain: LedgerChain) -> None:
    before = dict(chain.state.stake)
    chain.extend(chain.sign(1, pay(7)))
    assert chain.state.stake[Uid(1)] == before[Uid(1)] - 7 - FEE
    assert chain.state.stake[Uid(2)] == before[Uid(2)] + 7
    assert chain.state.pool == FEE
    assert chain.state.owner_nonce[Uid(1)] == 1
    assert chain.state.peer_nonce[Uid(1)] == 0


def test_what_every_transaction_has_to_fulfil(chain: LedgerChain) -> None:
    refused(chain, Fault.WRONG_CHAIN, 1, pay(), chain_id=ChainId(bytes(32)))
    refused(chain, Fault.UNKNOWN_ACCOUNT, 9, pay())
    chain.extend(chain.sign(1, pay()))
    refused(chain, Fault.NONCE_USED, 1, pay(), nonce=Nonce(0))
    refused(chain, Fault.NONCE_GAP, 1, pay(), nonce=Nonce(2))
    chain.extend(chain.sign(1, pay(), expiry=Height(2)))
    refused(chain, Fault.EXPIRED, 1, pay(), expiry=Height(2))
    refused(chain, Fault.EXPIRY_TOO_FAR, 1, pay(), expiry=Height(3 + EXPIRY_HEIGHTS_MAX + 1))
    refused(chain, Fault.FEE_OUT_OF_RANGE, 1, pay(), fee=Amount(FEE - 1))
    refused(chain, Fault.FEE_OUT_OF_RANGE, 1, pay(), fee=Amount(FEE * 1_000 + 1))
    chain.extend(chain.sign(1, pay(), expiry=Height(3 + EXPIRY_HEIGHTS_MAX)))


def test_signatures_of_the_wrong_key_are_refused(chain: LedgerChain) -> None:
    transaction = chain.draft(1, pay()).sign(peer_signer(1))
    assert chain.refusal(transaction) is Fault.BAD_SIGNATURE
    weights = chain.draft(1, SetWeights(row=even_row(2))).sign(owner_signer(1))
    assert chain.refusal(weights) is Fault.BAD_SIGNATURE
    good = chain.sign(1, RotatePeerKey(peer_key=peer_key(9)))
    bad = dataclasses.replace(good, countersignature=good.signature)
    assert chain.refusal(bad) is Fault.BAD_PROOF_OF_KEY


def test_a_replay_is_refused(chain: LedgerChain) -> None:
    transaction = chain.sign(1, pay())
    chain.extend(transaction)
    assert chain.refusal(transaction) is Fault.NONCE_USED


def test_transfers_that_cannot_be(chain: LedgerChain) -> None:
    refused(chain, Fault.AMOUNT_ZERO, 1, pay(0))
    refused(chain, Fault.RECIPIENT_SELF, 1, pay(5, to=1))
    refused(chain, Fault.RECIPIENT_UNKNOWN, 1, pay(5, to=9))
    refused(chain, Fault.STAKE_TOO_SMALL, 1, pay(TOKENS - FEE + 1))
    refused(chain, Fault.STAKE_LOCKED, 0, pay(TOKENS // 2 - FEE + 1))
    chain.extend(chain.sign(0, pay(TOKENS // 2 - FEE)), chain.sign(1, pay(TOKENS - FEE)))
    assert chain.state.stake[Uid(1)] == 0
    refused(chain, Fault.FEE_NOT_COVERED, 1, Announce(announcement=ANNOUNCEMENT))


def test_weights_replace_the_row(chain: LedgerChain) -> None:
    row = Row(((Uid(1), 32_768), (Uid(2), 32_768)))
    chain.extend(chain.sign(1, SetWeights(row=row)))
    assert chain.state.rows[Uid(1)] == row
    assert chain.state.peer_nonce[Uid(1)] == 1


def test_weights_that_cannot_be(chain: LedgerChain, hiding: LedgerChain) -> None:
    refused(chain, Fault.WEIGHT_TO_UNKNOWN, 1, SetWeights(row=self_row(Uid(4))))
    selfish = Row(((Uid(1), 32_769), (Uid(2), 32_767)))
    refused(chain, Fault.SELF_WEIGHT_TOO_LARGE, 1, SetWeights(row=selfish))
    refused(hiding, Fault.WEIGHTS_MUST_BE_COMMITTED, 1, SetWeights(row=even_row(4)))
    chain.extend(chain.sign(1, pay(TOKENS - FEE)))
    chain.extend(chain.sign(2, SetWeights(row=self_row(Uid(3)))))
    lone = dataclasses.replace(TEST_PARAMETERS, inflation=0)
    poor = LedgerChain(make_genesis([TOKENS, 0], lone))
    refused(poor, Fault.FEE_NOT_COVERED, 1, SetWeights(row=even_row(2)))


def test_a_lone_peer_may_name_only_itself() -> None:
    chain = LedgerChain(make_genesis([TOKENS]))
    chain.extend(chain.sign(0, SetWeights(row=self_row(Uid(0)))))


def commitment(chain: LedgerChain, number: int, row: Row, salt: bytes, epoch: int) -> Digest:
    return commitment_of(
        chain_id=chain.state.chain_id,
        peer_key=peer_key(number),
        registered=chain.state.accounts[Uid(number)].registered,
        epoch=Epoch(epoch),
        salt=salt,
        row=row,
    )


def test_a_row_is_committed_and_revealed_one_epoch_later(hiding: LedgerChain) -> None:
    row, salt = Row(((Uid(2), 65_536),)), b"s" * 32
    reveal = RevealWeights(salt=salt, row=row)
    commit = CommitWeights(commitment=commitment(hiding, 1, row, salt, 0))
    refused(hiding, Fault.COMMIT_MISSING, 1, reveal)
    hiding.extend(hiding.sign(1, commit))
    assert hiding.state.stake[Uid(1)] < TOKENS + 10**10
    refused(hiding, Fault.COMMIT_ALREADY_OPEN, 1, commit)
    refused(hiding, Fault.REVEAL_OUT_OF_TIME, 1, reveal)
    hiding.extend_to_boundary()
    refused(hiding, Fault.COMMIT_ALREADY_OPEN, 1, commit)
    refused(hiding, Fault.COMMIT_MISMATCH, 1, RevealWeights(salt=b"t" * 32, row=row))
    refused(hiding, Fault.FEE_OUT_OF_RANGE, 1, reveal, fee=Amount(FEE))
    stake = hiding.state.stake[Uid(1)]
    hiding.extend(hiding.sign(1, reveal))
    assert hiding.state.stake[Uid(1)] == stake
    assert hiding.state.rows[Uid(1)] == row
    hiding.extend(hiding.sign(1, commit))


def test_a_missed_reveal_lapses_and_the_old_row_stays(hiding: LedgerChain) -> None:
    row, salt = Row(((Uid(2), 65_536),)), b"s" * 32
    old = hiding.state.rows[Uid(1)]
    commit = CommitWeights(commitment=commitment(hiding, 1, row, salt, 0))
    hiding.extend(hiding.sign(1, commit))
    hiding.extend_to_boundary()
    hiding.extend_to_boundary()
    refused(hiding, Fault.REVEAL_OUT_OF_TIME, 1, RevealWeights(salt=salt, row=row))
    assert hiding.state.rows[Uid(1)] == old
    hiding.extend(hiding.sign(1, commit))


def test_a_revealed_row_keeps_the_rules_of_rows(hiding: LedgerChain) -> None:
    row, salt = self_row(Uid(1)), b"s" * 32
    hiding.extend(hiding.sign(1, CommitWeights(commitment=commitment(hiding, 1, row, salt, 0))))
    hiding.extend_to_boundary()
    refused(hiding, Fault.SELF_WEIGHT_TOO_LARGE, 1, RevealWeights(salt=salt, row=row))


def test_commitments_where_they_are_not_in_use(chain: LedgerChain) -> None:
    refused(chain, Fault.COMMITS_NOT_IN_USE, 1, CommitWeights(commitment=Digest(bytes(32))))
    refused(chain, Fault.COMMITS_NOT_IN_USE, 1, RevealWeights(salt=bytes(32), row=even_row(2)))


def test_a_rotation_voids_an_open_commitment_and_keeps_the_rest(hiding: LedgerChain) -> None:
    row, salt = Row(((Uid(2), 65_536),)), b"s" * 32
    hiding.extend(hiding.sign(1, CommitWeights(commitment=commitment(hiding, 1, row, salt, 0))))
    old_row = hiding.state.rows[Uid(1)]
    hiding.extend(hiding.sign(1, RotatePeerKey(peer_key=peer_key(9))))
    state = hiding.state
    assert state.accounts[Uid(1)].peer_key == peer_key(9)
    assert state.commitments[Uid(1)] is None
    assert state.rows[Uid(1)] == old_row
    assert state.uid_of_peer(peer_key(9)) == 1
    assert state.uid_of_peer(peer_key(1)) is None
    assert state.uid_of_peer(PeerKey(bytes(32))) is None
    # The set of this epoch still counts the old key; the next one has the new.
    assert state.voters.index_of(peer_key(1)) is not None
    hiding.extend_to_boundary()
    assert hiding.state.voters.index_of(peer_key(9)) is not None
    hiding.check_entries()


def test_peer_keys_are_unique_for_ever(chain: LedgerChain) -> None:
    refused(chain, Fault.PEER_KEY_UNCHANGED, 1, RotatePeerKey(peer_key=peer_key(1)))
    refused(chain, Fault.PEER_KEY_TAKEN, 1, RotatePeerKey(peer_key=peer_key(2)))
    chain.extend(chain.sign(1, RotatePeerKey(peer_key=peer_key(9))))
    refused(chain, Fault.PEER_KEY_TAKEN, 1, RotatePeerKey(peer_key=peer_key(1)))
    refused(chain, Fault.PEER_KEY_TAKEN, 2, RotatePeerKey(peer_key=peer_key(1)))
    taken = SubscribeFor(owner=account_id(8), peer_key=peer_key(1), announcement=ANNOUNCEMENT)
    refused(chain, Fault.PEER_KEY_TAKEN, 2, taken)


def test_subscribing_somebody_costs_the_price(chain: LedgerChain) -> None:
    content = SubscribeFor(owner=account_id(9), peer_key=peer_key(9), announcement=ANNOUNCEMENT)
    before = chain.state.stake[Uid(1)]
    chain.extend(chain.sign(1, content))
    price = chain.parameters.subscription_price
    assert chain.state.stake[Uid(1)] == before - price - FEE
    assert chain.state.pool == price + FEE
    assert chain.state.stake[Uid(4)] == 0
    assert chain.state.rows[Uid(4)] == self_row(Uid(4))
    assert chain.state.bonds[Uid(4)] == NO_BOND
    refused(chain, Fault.ACCOUNT_EXISTS, 2, content)
    chain.extend(chain.sign(1, pay(chain.state.stake[Uid(1)] - FEE)))
    other = SubscribeFor(owner=account_id(8), peer_key=peer_key(8), announcement=ANNOUNCEMENT)
    refused(chain, Fault.STAKE_TOO_SMALL, 1, other)


def test_work_lets_a_stranger_in(chain: LedgerChain) -> None:
    chain.extend()
    chain.extend()
    subscription = chain.subscription(9)
    refused_early = chain.subscription(10, ancestor=chain.state.height)
    assert chain.refusal(refused_early) is Fault.WORK_ANCESTOR_UNKNOWN
    ghost = chain.subscription(10, ancestor=Height(77))
    assert chain.refusal(ghost) is Fault.WORK_ANCESTOR_UNKNOWN
    chain.extend(subscription)
    assert chain.state.accounts[Uid(4)].owner == account_id(9)
    assert chain.state.owner_nonce[Uid(4)] == 1
    assert chain.state.work_found == 1
    assert chain.refusal(subscription) is Fault.NONCE_USED
    assert chain.refusal(chain.subscription(9)) is Fault.ACCOUNT_EXISTS


def test_too_little_work_and_too_many_subscriptions(chain: LedgerChain) -> None:
    hard = dataclasses.replace(TEST_PARAMETERS, work_target=2**252)
    difficult = LedgerChain(make_genesis([TOKENS] * 2, hard))
    difficult.extend()
    difficult.extend()
    good = difficult.subscription(9)
    poor = next(
        each
        for work in range(100)
        if (each := difficult.subscription(9, work=work)).content != good.content
    )
    assert difficult.refusal(poor) is Fault.WORK_TOO_LITTLE
    difficult.extend(good)
    chain.extend()
    chain.extend()
    four = [chain.subscription(number) for number in range(10, 14)]
    assert chain.refusal(chain.subscription(14), *four) is Fault.SUBSCRIPTIONS_FULL
    chain.extend(*four)
    chain.extend(chain.subscription(14))


def test_who_returns_continues_its_nonces_and_cannot_reuse_its_work() -> None:
    parameters = dataclasses.replace(TEST_PARAMETERS, blocks_per_epoch=50)
    chain = LedgerChain(make_genesis([TOKENS] * 4, parameters))
    chain.extend()
    chain.extend()
    first = chain.subscription(9)
    chain.extend(first)
    chain.extend(chain.sign(2, pay(10 * FEE, to=9)))
    leave = chain.sign(9, Unsubscribe(recipient=account_id(3)))
    chain.extend(leave)
    assert Uid(4) not in chain.state.accounts
    assert chain.refusal(leave) is Fault.UNKNOWN_ACCOUNT
    assert chain.refusal(first) is Fault.NONCE_USED
    reused = chain.sign(9, first.content, nonce=Nonce(2))
    assert chain.refusal(reused) is Fault.WORK_REUSED
    chain.extend(chain.subscription(9))
    assert chain.state.uid_of_owner[account_id(9)] == 5
    assert chain.state.owner_nonce[Uid(5)] == 3
    assert chain.refusal(leave) is Fault.NONCE_USED
    chain.check_entries()


def test_leaving_hands_the_stake_over(chain: LedgerChain) -> None:
    refused(chain, Fault.STAKE_LOCKED, 0, Unsubscribe(recipient=account_id(1)))
    refused(chain, Fault.RECIPIENT_SELF, 1, Unsubscribe(recipient=account_id(1)))
    refused(chain, Fault.RECIPIENT_UNKNOWN, 1, Unsubscribe(recipient=account_id(9)))
    row_before = chain.state.rows[Uid(2)]
    chain.extend(chain.sign(1, Unsubscribe(recipient=account_id(2))))
    assert chain.state.stake[Uid(2)] == 2 * TOKENS - FEE
    assert chain.state.removed == (1,)
    assert chain.state.rows[Uid(2)] == row_before
    # Settlement towards a uid that is gone goes to the pool.
    chain.extend(chain.sign(2, SetWeights(row=Row(((Uid(2), 32_768), (Uid(3), 32_768))))))
    chain.extend_to_boundary()
    assert chain.state.removed == ()
    moved = chain.state.rows[Uid(3)]
    assert moved.weight_to(Uid(1)) == 0
    assert moved.weight_to(Uid(3)) == 2 * row_before.weight_to(Uid(3))
    chain.extend_to_boundary()
    chain.check_entries()


def test_coming_and_going_in_one_block_leaves_only_a_memory() -> None:
    chain = LedgerChain(make_genesis([TOKENS] * 2, dataclasses.replace(TEST_PARAMETERS, fee=0)))
    enter = SubscribeFor(owner=account_id(9), peer_key=peer_key(9), announcement=ANNOUNCEMENT)
    leave = chain.sign(9, Unsubscribe(recipient=account_id(0)))
    chain.extend(chain.sign(1, enter), leave)
    assert sorted(chain.state.accounts) == [0, 1]
    assert chain.state.departed[Uid(2)].owner_nonce == 1
    chain.check_entries()


def test_a_full_table_makes_room_only_for_the_idle() -> None:
    parameters = dataclasses.replace(TEST_PARAMETERS, accounts_max=3, blocks_per_epoch=2)
    rows = [Row(((Uid(0), 32_768), (Uid(1), 32_768)))] * 3
    chain = LedgerChain(make_genesis([TOKENS, TOKENS, 0], parameters, rows=rows))
    chain.extend()
    chain.extend()
    assert chain.refusal(chain.subscription(9)) is Fault.TABLE_FULL
    while chain.state.epoch < 8:
        chain.extend()
    chain.extend(chain.subscription(9))
    assert sorted(chain.state.accounts) == [0, 1, 3]
    paid = SubscribeFor(owner=account_id(8), peer_key=peer_key(8), announcement=ANNOUNCEMENT)
    refused(chain, Fault.TABLE_FULL, 1, paid)
    chain.check_entries()


def test_an_announcement_replaces_the_last(chain: LedgerChain) -> None:
    new = dataclasses.replace(ANNOUNCEMENT, addresses=("/ip4/127.0.0.1/tcp/1",))
    chain.extend(chain.sign(1, Announce(announcement=new)))
    assert chain.state.announcements[Uid(1)] == new
    chain.check_entries()


def test_bonds(chain: LedgerChain) -> None:
    refused(chain, Fault.BOND_TOO_SMALL, 1, Validate(bond=Amount(999)))
    refused(chain, Fault.STAKE_TOO_SMALL, 1, Validate(bond=Amount(TOKENS)))
    refused(chain, Fault.NOT_VALIDATING, 1, Unvalidate())
    refused(chain, Fault.NOT_JAILED, 1, Unjail())
    refused(chain, Fault.BOND_NOT_RAISED, 0, Validate(bond=Amount(TOKENS // 2)))
    chain.extend(chain.sign(1, Validate(bond=Amount(1_000))))
    assert len(chain.state.voters) == 1
    chain.extend_to_boundary()
    assert len(chain.state.voters) == 2
    chain.extend(chain.sign(1, Validate(bond=Amount(2_000))))
    chain.extend(chain.sign(1, Unvalidate()))
    refused(chain, Fault.ALREADY_LEAVING, 1, Unvalidate())
    refused(chain, Fault.BOND_NOT_RAISED, 1, Validate(bond=Amount(1_999)))
    chain.extend_to_boundary()
    assert len(chain.state.voters) == 1
    refused(chain, Fault.STAKE_LOCKED, 1, pay(chain.state.stake[Uid(1)] - FEE))
    refused(chain, Fault.STAKE_LOCKED, 1, Unsubscribe(recipient=account_id(2)))
    while chain.state.epoch < 4:
        chain.extend()
    chain.extend(chain.sign(1, pay(chain.state.stake[Uid(1)] - FEE)))


def test_a_leave_can_be_withdrawn(chain: LedgerChain) -> None:
    chain.extend(chain.sign(0, Unvalidate()))
    chain.extend(chain.sign(0, Validate(bond=Amount(TOKENS // 2))))
    chain.extend_to_boundary()
    assert chain.state.bonds[Uid(0)].validating


def test_a_fee_may_use_up_the_bond() -> None:
    chain = LedgerChain(make_genesis([FEE + 1_000], bonds=[FEE + 1_000]))
    chain.extend(chain.sign(0, Unvalidate()))
    assert chain.state.locked(Uid(0), chain.parameters) == 1_000


def test_the_jailed_and_the_tombstoned_have_no_standing(chain: LedgerChain) -> None:
    draft = chain.state.draft()
    draft.bonds[Uid(1)] = dataclasses.replace(NO_BOND, jailed=True)
    draft.bonds[Uid(2)] = dataclasses.replace(NO_BOND, tombstoned=True)
    draft.touched = None
    chain.state = draft
    refused(chain, Fault.JAILED, 1, Validate(bond=Amount(5_000)))
    refused(chain, Fault.TOMBSTONED, 2, Validate(bond=Amount(5_000)))
    refused(chain, Fault.TOMBSTONED, 2, Unjail())
    chain.state = chain.state.draft()
    chain.state.touched = None
    block = chain.make_block(chain.sign(1, Unjail()))
    assert block.body.transactions


def test_a_search_for_work_ends() -> None:
    keys = (ChainId(bytes(32)), account_id(1), peer_key(1), Digest(bytes(32)))
    assert find_work(*keys, 1, tries=3) is None
    found = find_work(*keys, 2**248, start=5)
    assert found is not None
    assert found >= 5
    assert is_enough(work_digest(*keys, found), 2**248)
    assert not is_enough(work_digest(*keys, found), 0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [(0, 4.0), (1, 4.0), (2, 2.0), (4, 1.0), (8, 0.5), (16, 0.25), (1_000, 0.25)],
)
def test_the_target_follows_demand(found: int, expected: float) -> None:
    parameters = dataclasses.replace(TEST_PARAMETERS, blocks_per_epoch=40, work_target=2**250)
    assert next_target(2**240, found, parameters) == int(2**240 * expected)
    assert next_target(2**250, 0, parameters) == 2**250
    assert next_target(1, 1_000, parameters) == 1


def test_paper_charges_nothing() -> None:
    chain = LedgerChain(make_genesis([TOKENS] * 3, PAPER, bonds=[TOKENS, None, None]))
    chain.extend(chain.sign(1, pay(TOKENS)))
    chain.extend(chain.sign(1, SetWeights(row=self_row(Uid(1)))))
    assert chain.state.stake[Uid(1)] >= 0
    bad = chain.sign(1, pay(1), fee=Amount(1))
    assert chain.refusal(bad) is Fault.FEE_OUT_OF_RANGE


def test_a_signature_is_64_bytes_or_the_transaction_is_none(chain: LedgerChain) -> None:
    good = chain.sign(1, pay())
    bad = dataclasses.replace(good, signature=Signature(bytes(64)))
    assert chain.refusal(bad) is Fault.BAD_SIGNATURE


def test_every_reason_is_reached_here() -> None:
    """A reason that no assertion of this file names is dead or untested."""
    named = set(re.findall(r"Fault\.([A-Z_]+)", Path(__file__).read_text()))
    assert named == {fault.name for fault in Fault}
