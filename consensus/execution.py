"""Execution of one transaction on a draft: checked first, then applied, never half.

Rule: `apply_transaction` either raises InvalidTransaction and leaves the draft as it was, or
changes it and keeps stake + pool = issued. So a proposer may try transactions one after another
and drop the refused ones (ledger.md, Between boundaries).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from consensus import bonding, registry
from consensus.account import Commitment
from consensus.codec import Writer
from consensus.crypto import Domain, Verifier
from consensus.errors import InvalidTransaction, TransactionFault
from consensus.params import FEE_RATIO_MAX, Parameters
from consensus.settlement import charge, credit, settle
from consensus.state import State, Table
from consensus.transaction import (
    EXPIRY_HEIGHTS_MAX,
    FREE,
    Announce,
    CommitWeights,
    RevealWeights,
    Role,
    RotatePeerKey,
    SetWeights,
    Subscribe,
    SubscribeFor,
    Transaction,
    Transfer,
    Unjail,
    Unsubscribe,
    Unvalidate,
    Validate,
    commitment_of,
    named_peer_key,
)
from consensus.types import DIGEST_BYTES, Amount, Digest, Epoch, Nonce, Uid
from consensus.weights import Row

REVEAL_DELAY_EPOCHS: Final = 1
"""A commitment is opened in the epoch after it, and only then."""


Request: TypeAlias = (
    Transfer
    | RotatePeerKey
    | SubscribeFor
    | Unsubscribe
    | Validate
    | Unvalidate
    | SetWeights
    | CommitWeights
    | RevealWeights
    | Announce
    | Unjail
)
"""What needs an account that exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a transaction did to the supply."""

    transaction: Digest
    issued: Amount
    """Base units that came into being by settlement."""
    fee: Amount

    def encode(self) -> bytes:
        """digest (32), u64 issued, u64 fee."""
        writer = Writer().fixed(self.transaction, DIGEST_BYTES)
        return writer.u64(self.issued).u64(self.fee).done()


def apply_transaction(
    state: State, transaction: Transaction, parameters: Parameters, verifier: Verifier
) -> Receipt:
    """Execute on a draft whose `height` is that of the block. Raises InvalidTransaction."""
    content = transaction.content
    if transaction.chain_id != state.chain_id:
        raise InvalidTransaction(TransactionFault.WRONG_CHAIN)
    if isinstance(content, Subscribe):
        _admit(state, transaction, parameters, verifier)
        registry.subscribe(state, transaction, content, parameters)
        issued = 0
    else:
        uid = state.uid_of_owner.get(transaction.account)
        if uid is None:
            raise InvalidTransaction(TransactionFault.UNKNOWN_ACCOUNT)
        _admit(state, transaction, parameters, verifier)
        issued = _apply(state, uid, transaction, content, parameters)
    state.check_supply(parameters)
    return Receipt(transaction=transaction.hash, issued=Amount(issued), fee=transaction.fee)


def expected_nonce(state: State, transaction: Transaction) -> Nonce:
    """The next nonce of the sequence that `transaction` uses."""
    uid = state.uid_of_owner.get(transaction.account)
    if uid is not None:
        by_peer = transaction.role is Role.PEER
        return (state.peer_nonce if by_peer else state.owner_nonce)[uid]
    former = state.departed_uid.get(transaction.account)
    return Nonce(0) if former is None else state.departed[former].owner_nonce


def check_signatures(state: State, transaction: Transaction, verifier: Verifier) -> None:
    """Raise InvalidTransaction unless the account's key (and the key it names) has signed."""
    key: bytes = transaction.account
    if transaction.role is Role.PEER:
        key = state.accounts[state.uid_of_owner[transaction.account]].peer_key
    domain, payload = transaction.role.value, transaction.payload
    chain_id = transaction.chain_id
    if not verifier.verify(key, domain, chain_id, payload, transaction.signature):
        raise InvalidTransaction(TransactionFault.BAD_SIGNATURE)
    named, second = named_peer_key(transaction.content), transaction.countersignature
    if named is None or second is None:
        return
    if not verifier.verify(named, Domain.KEY_POSSESSION, chain_id, payload, second):
        raise InvalidTransaction(TransactionFault.BAD_PROOF_OF_KEY)


def _admit(
    state: State, transaction: Transaction, parameters: Parameters, verifier: Verifier
) -> None:
    """What every transaction has to fulfil, cheapest first."""
    _check_time(state, transaction)
    _check_nonce(transaction.nonce, expected_nonce(state, transaction))
    _check_fee_range(transaction, parameters)
    check_signatures(state, transaction, verifier)


def _apply(
    state: State,
    uid: Uid,
    transaction: Transaction,
    content: Request,
    parameters: Parameters,
) -> int:
    """Do what an account asks, count the nonce, and give the base units issued."""
    issued = 0
    match content:
        case SetWeights():
            issued = _set_weights(state, uid, transaction, content, parameters)
        case CommitWeights():
            issued = _commit_weights(state, uid, transaction, content, parameters)
        case RevealWeights():
            _reveal_weights(state, uid, content, parameters)
        case Transfer():
            _transfer(state, uid, transaction, content, parameters)
        case Announce():
            registry.check_fee(state, uid, transaction.fee)
            charge(state, uid, transaction.fee, parameters)
            state.announcements[uid] = content.announcement
            state.touch(Table.ANNOUNCEMENT, uid)
        case RotatePeerKey():
            registry.rotate_peer_key(state, uid, transaction, content, parameters)
        case SubscribeFor():
            registry.subscribe_for(state, uid, transaction, content, parameters)
        case Unsubscribe():
            registry.unsubscribe(state, uid, transaction, content, parameters)
        case Validate():
            bonding.validate(state, uid, transaction, content, parameters)
        case Unvalidate():
            bonding.unvalidate(state, uid, transaction, parameters)
        case Unjail():
            bonding.unjail(state, uid, transaction, parameters)
        case _:
            assert_never(content)
    if uid in state.accounts:
        _count_nonce(state, uid, transaction)
    return issued


def _set_weights(
    state: State,
    uid: Uid,
    transaction: Transaction,
    content: SetWeights,
    parameters: Parameters,
) -> int:
    if parameters.commit_reveal:
        raise InvalidTransaction(TransactionFault.WEIGHTS_MUST_BE_COMMITTED)
    _check_row(state, uid, content.row, parameters)
    issued = settle(state, uid, transaction.fee, parameters)
    state.rows[uid] = content.row
    state.touch(Table.ROW, uid)
    return issued


def _commit_weights(
    state: State,
    uid: Uid,
    transaction: Transaction,
    content: CommitWeights,
    parameters: Parameters,
) -> int:
    if not parameters.commit_reveal:
        raise InvalidTransaction(TransactionFault.COMMITS_NOT_IN_USE)
    open_commitment = state.commitments[uid]
    if open_commitment and open_commitment.epoch + REVEAL_DELAY_EPOCHS >= state.epoch:
        raise InvalidTransaction(TransactionFault.COMMIT_ALREADY_OPEN)
    issued = settle(state, uid, transaction.fee, parameters)
    digest = content.commitment
    state.commitments[uid] = Commitment(epoch=Epoch(state.epoch), digest=digest)
    state.touch(Table.COMMITMENT, uid)
    return issued


def _reveal_weights(state: State, uid: Uid, content: RevealWeights, parameters: Parameters) -> None:
    if not parameters.commit_reveal:
        raise InvalidTransaction(TransactionFault.COMMITS_NOT_IN_USE)
    commitment, account = state.commitments[uid], state.accounts[uid]
    if commitment is None:
        raise InvalidTransaction(TransactionFault.COMMIT_MISSING)
    if commitment.epoch + REVEAL_DELAY_EPOCHS != state.epoch:
        raise InvalidTransaction(TransactionFault.REVEAL_OUT_OF_TIME)
    digest = commitment_of(
        chain_id=state.chain_id,
        peer_key=account.peer_key,
        registered=account.registered,
        epoch=commitment.epoch,
        salt=content.salt,
        row=content.row,
    )
    if digest != commitment.digest:
        raise InvalidTransaction(TransactionFault.COMMIT_MISMATCH)
    _check_row(state, uid, content.row, parameters)
    state.rows[uid] = content.row
    state.commitments[uid] = None
    state.touch(Table.ROW, uid)
    state.touch(Table.COMMITMENT, uid)


def _transfer(
    state: State,
    uid: Uid,
    transaction: Transaction,
    content: Transfer,
    parameters: Parameters,
) -> None:
    recipient = registry.recipient_uid(state, uid, content.recipient)
    if not content.amount:
        raise InvalidTransaction(TransactionFault.AMOUNT_ZERO)
    registry.check_free(state, uid, content.amount + transaction.fee, parameters)
    charge(state, uid, transaction.fee, parameters)
    credit(state, uid, -content.amount, parameters)
    credit(state, recipient, content.amount, parameters)


def _check_row(state: State, uid: Uid, row: Row, parameters: Parameters) -> None:
    for other, _ in row.entries:
        if other not in state.accounts:
            raise InvalidTransaction(TransactionFault.WEIGHT_TO_UNKNOWN, f"uid {other}")
    # A lone peer has nobody else to name.
    if row.weight_to(uid) > parameters.self_weight_max and len(state.accounts) > 1:
        raise InvalidTransaction(TransactionFault.SELF_WEIGHT_TOO_LARGE)


def _check_time(state: State, transaction: Transaction) -> None:
    if transaction.expiry < state.height:
        raise InvalidTransaction(TransactionFault.EXPIRED)
    if transaction.expiry > state.height + EXPIRY_HEIGHTS_MAX:
        raise InvalidTransaction(TransactionFault.EXPIRY_TOO_FAR)


def _check_nonce(nonce: Nonce, expected: Nonce) -> None:
    if nonce < expected:
        raise InvalidTransaction(TransactionFault.NONCE_USED, f"next is {expected}")
    if nonce > expected:
        raise InvalidTransaction(TransactionFault.NONCE_GAP, f"next is {expected}")


def _check_fee_range(transaction: Transaction, parameters: Parameters) -> None:
    low, high = parameters.fee, parameters.fee * FEE_RATIO_MAX
    if isinstance(transaction.content, FREE):
        low = high = 0
    if not low <= transaction.fee <= high:
        raise InvalidTransaction(TransactionFault.FEE_OUT_OF_RANGE, f"{low} to {high}")


def _count_nonce(state: State, uid: Uid, transaction: Transaction) -> None:
    by_peer = transaction.role is Role.PEER
    (state.peer_nonce if by_peer else state.owner_nonce)[uid] = Nonce(transaction.nonce + 1)
    state.touch(Table.NONCES, uid)
