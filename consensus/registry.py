"""The table of peers: who enters, who leaves, whose key is replaced (ledger.md, table of rules).

Rule: uids are given in order and never reused; a peer key is unique for ever, so the proof of
possession (countersignature) protects a stranger's key from being taken first. When the table is
full the idle account with the least stake makes room: unbonded, without rank from others, and
older than EVICTION_AGE_EPOCHS.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from consensus.account import Account, Announcement
from consensus.epoch import epoch_of
from consensus.errors import InvalidTransaction, TransactionFault
from consensus.params import Parameters
from consensus.settlement import charge, credit
from consensus.state import State, Table
from consensus.transaction import (
    RotatePeerKey,
    Subscribe,
    SubscribeFor,
    Transaction,
    Unsubscribe,
)
from consensus.types import AccountId, Nonce, PeerKey, Uid
from consensus.weights import self_row
from consensus.work import (
    ANCESTOR_DEPTH_MAX,
    ANCESTOR_DEPTH_MIN,
    SUBSCRIPTIONS_PER_BLOCK_MAX,
    is_enough,
    work_digest,
)

EVICTION_AGE_EPOCHS: Final = 8
"""Epochs a newcomer has to find somebody who values it."""


def subscribe(
    state: State, transaction: Transaction, content: Subscribe, parameters: Parameters
) -> None:
    """Enter by proof of work, with stake 0."""
    owner = transaction.account
    if state.subscriptions >= SUBSCRIPTIONS_PER_BLOCK_MAX:
        raise InvalidTransaction(TransactionFault.SUBSCRIPTIONS_FULL)
    _check_new(state, owner, content.peer_key)
    depth = state.height - content.ancestor
    ancestor = dict(state.ancestors).get(content.ancestor)
    if ancestor is None or not ANCESTOR_DEPTH_MIN <= depth <= ANCESTOR_DEPTH_MAX:
        raise InvalidTransaction(TransactionFault.WORK_ANCESTOR_UNKNOWN)
    digest = work_digest(state.chain_id, owner, content.peer_key, ancestor, content.work)
    if not is_enough(digest, state.work_target):
        raise InvalidTransaction(TransactionFault.WORK_TOO_LITTLE)
    if any(digest == used for _, used in state.works):
        raise InvalidTransaction(TransactionFault.WORK_REUSED)
    _make_room(state, parameters)
    state.works = (*state.works, (content.ancestor, digest))
    state.work_found += 1
    state.subscriptions += 1
    uid = _enter(state, owner, content.peer_key, content.announcement)
    state.owner_nonce[uid] = Nonce(transaction.nonce + 1)


def subscribe_for(
    state: State,
    uid: Uid,
    transaction: Transaction,
    content: SubscribeFor,
    parameters: Parameters,
) -> None:
    """Pay somebody else's entrance into the pool."""
    _check_new(state, content.owner, content.peer_key)
    cost = parameters.subscription_price + transaction.fee
    check_free(state, uid, cost, parameters)
    _make_room(state, parameters, keep=uid)
    charge(state, uid, cost, parameters)
    _enter(state, content.owner, content.peer_key, content.announcement)


def unsubscribe(
    state: State,
    uid: Uid,
    transaction: Transaction,
    content: Unsubscribe,
    parameters: Parameters,
) -> None:
    """Leave; the stake goes to the recipient, the pending emission lapses."""
    recipient = recipient_uid(state, uid, content.recipient)
    if state.bonds[uid].is_locked(state.epoch, parameters.bond_window_epochs):
        raise InvalidTransaction(TransactionFault.STAKE_LOCKED)
    check_free(state, uid, transaction.fee, parameters)
    charge(state, uid, transaction.fee, parameters)
    rest = state.stake[uid]
    credit(state, uid, -rest, parameters)
    credit(state, recipient, rest, parameters)
    # Departure remembers the nonce: this very transaction must not work again after a return.
    state.owner_nonce[uid] = Nonce(transaction.nonce + 1)
    state.remove_account(uid)


def rotate_peer_key(
    state: State,
    uid: Uid,
    transaction: Transaction,
    content: RotatePeerKey,
    parameters: Parameters,
) -> None:
    """Replace the peer key; an open commitment was made by the old one and is void."""
    account = state.accounts[uid]
    if content.peer_key == account.peer_key:
        raise InvalidTransaction(TransactionFault.PEER_KEY_UNCHANGED)
    if content.peer_key in state.owner_of_key:
        raise InvalidTransaction(TransactionFault.PEER_KEY_TAKEN)
    check_fee(state, uid, transaction.fee)
    charge(state, uid, transaction.fee, parameters)
    state.retire_key(account)
    state.accounts[uid] = dataclasses.replace(account, peer_key=content.peer_key)
    state.owner_of_key[content.peer_key] = account.owner
    state.touch(Table.ACCOUNT, uid)
    state.commitments[uid] = None
    state.touch(Table.COMMITMENT, uid)


def recipient_uid(state: State, uid: Uid, recipient: AccountId) -> Uid:
    """The live account that receives. Raises InvalidTransaction for oneself and for strangers."""
    found = state.uid_of_owner.get(recipient)
    if found is None:
        raise InvalidTransaction(TransactionFault.RECIPIENT_UNKNOWN)
    if found == uid:
        raise InvalidTransaction(TransactionFault.RECIPIENT_SELF)
    return found


def check_fee(state: State, uid: Uid, fee: int) -> None:
    """A fee may use up a bond: otherwise one who locked everything could never ask to leave."""
    if fee > state.stake[uid]:
        raise InvalidTransaction(TransactionFault.FEE_NOT_COVERED)


def check_free(state: State, uid: Uid, amount: int, parameters: Parameters) -> None:
    """Whether `amount` can be taken without touching what is locked."""
    if amount > state.stake[uid]:
        raise InvalidTransaction(TransactionFault.STAKE_TOO_SMALL)
    if amount > state.stake[uid] - state.locked(uid, parameters):
        raise InvalidTransaction(TransactionFault.STAKE_LOCKED)


def _check_new(state: State, owner: AccountId, peer_key: PeerKey) -> None:
    if owner in state.uid_of_owner:
        raise InvalidTransaction(TransactionFault.ACCOUNT_EXISTS)
    if state.owner_of_key.get(peer_key, owner) != owner:
        raise InvalidTransaction(TransactionFault.PEER_KEY_TAKEN)


def _enter(state: State, owner: AccountId, peer_key: PeerKey, announcement: Announcement) -> Uid:
    account = Account(owner=owner, peer_key=peer_key, registered=state.height)
    return state.add_account(account, announcement, self_row(Uid(state.uid_next)))


def _make_room(state: State, parameters: Parameters, keep: Uid | None = None) -> None:
    """Nothing while there is room; else the idle account with the least stake leaves.

    Its stake goes to the pool. Raises InvalidTransaction(TABLE_FULL) when nobody is idle.
    """
    if len(state.accounts) < parameters.accounts_max:
        return
    idle = [
        (state.stake[uid], uid)
        for uid in sorted(state.accounts)
        if uid != keep and _is_idle(state, uid, parameters)
    ]
    if not idle:
        raise InvalidTransaction(TransactionFault.TABLE_FULL)
    stake, uid = min(idle)
    charge(state, uid, stake, parameters)
    state.remove_account(uid)


def _is_idle(state: State, uid: Uid, parameters: Parameters) -> bool:
    registered = epoch_of(state.accounts[uid].registered, parameters.blocks_per_epoch)
    return (
        state.epoch - registered > EVICTION_AGE_EPOCHS
        and not state.rank_received.get(uid, 0)
        and not state.bonds[uid].is_locked(state.epoch, parameters.bond_window_epochs)
    )
