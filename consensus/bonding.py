"""Voters in the state: bonds, presence, jail, evidence, and the candidates of the next set.

Rule: the voter set is a function of a boundary block's post-state. During an epoch an account only
*asks* (Validate, Unvalidate, Unjail); the set itself changes at the boundary, and an equivocator
is slashed and tombstoned at once but keeps its seat until then, or quorums would no longer
intersect (ordering.md, Epochs and voters). Which of the silent and of the leaving may go at one
boundary is decided in `epoch`; here it is read from and written to the state.
"""

from __future__ import annotations

import dataclasses

from consensus.account import Bond
from consensus.block import Evidence, Header, evidence_is_valid, evidence_offence
from consensus.crypto import Verifier
from consensus.epoch import (
    Candidate,
    check_attest,
    jailed_voters,
    leaving_voters,
    next_voter_set,
)
from consensus.errors import BlockFault, InvalidBlock, InvalidTransaction, TransactionFault
from consensus.params import Parameters
from consensus.registry import check_fee
from consensus.settlement import charge
from consensus.state import Attests, State, Table
from consensus.transaction import Transaction, Validate
from consensus.types import Amount, Epoch, Uid
from consensus.vote import Certificate, VoterSet


def validate(
    state: State,
    uid: Uid,
    transaction: Transaction,
    content: Validate,
    parameters: Parameters,
) -> None:
    """Lock a bond and become a candidate; again, to raise the bond or to withdraw a leave."""
    bond = _standing(state, uid)
    if bond.jailed:
        raise InvalidTransaction(TransactionFault.JAILED)
    if content.bond < parameters.bond_min:
        raise InvalidTransaction(TransactionFault.BOND_TOO_SMALL)
    if content.bond + transaction.fee > state.stake[uid]:
        raise InvalidTransaction(TransactionFault.STAKE_TOO_SMALL)
    same = bond.validating and not bond.leaving and content.bond <= bond.amount
    if same or content.bond < state.locked(uid, parameters):
        raise InvalidTransaction(TransactionFault.BOND_NOT_RAISED)
    charge(state, uid, transaction.fee, parameters)
    _put(state, uid, dataclasses.replace(bond, amount=content.bond, validating=True, leaving=0))


def unvalidate(state: State, uid: Uid, transaction: Transaction, parameters: Parameters) -> None:
    """Ask to leave; who goes at a boundary is limited, first come first served."""
    bond = state.bonds[uid]
    if not bond.validating:
        raise InvalidTransaction(TransactionFault.NOT_VALIDATING)
    if bond.leaving:
        raise InvalidTransaction(TransactionFault.ALREADY_LEAVING)
    check_fee(state, uid, transaction.fee)
    charge(state, uid, transaction.fee, parameters)
    state.leaving_next += 1
    _put(state, uid, dataclasses.replace(bond, leaving=state.leaving_next))


def unjail(state: State, uid: Uid, transaction: Transaction, parameters: Parameters) -> None:
    """Be a candidate again."""
    bond = _standing(state, uid)
    if not bond.jailed:
        raise InvalidTransaction(TransactionFault.NOT_JAILED)
    check_fee(state, uid, transaction.fee)
    charge(state, uid, transaction.fee, parameters)
    _put(state, uid, dataclasses.replace(bond, jailed=False))


def punish(state: State, evidence: Evidence, parameters: Parameters, verifier: Verifier) -> None:
    """Tombstone and slash the account of a key that equivocated. Raises InvalidBlock."""
    uid = check_evidence(state, evidence, parameters, verifier)
    key, epoch, view = offence = evidence_offence(evidence)
    number = state.evidence_next
    state.evidence_next += 1
    state.evidence[number] = (key, epoch, view)
    state.offences[offence] = number
    state.touch(Table.EVIDENCE, number)
    slashed = state.locked(uid, parameters) * parameters.slash >> 16
    charge(state, uid, slashed, parameters)
    bond = state.bonds[uid]
    rest = Amount(max(bond.amount - slashed, 0))
    _put(state, uid, dataclasses.replace(bond, amount=rest, tombstoned=True))


def check_evidence(
    state: State, evidence: Evidence, parameters: Parameters, verifier: Verifier
) -> Uid:
    """The live account that the evidence convicts. Raises InvalidBlock.

    Evidence follows the account: a key that was replaced since still convicts its owner.
    """
    key, epoch, _ = offence = evidence_offence(evidence)
    if offence in state.offences:
        raise InvalidBlock(BlockFault.EVIDENCE_REPEATED)
    if not state.epoch - parameters.bond_window_epochs <= epoch <= state.epoch:
        raise InvalidBlock(BlockFault.EVIDENCE_OUT_OF_WINDOW)
    owner = state.owner_of_key.get(key)
    uid = None if owner is None else state.uid_of_owner.get(owner)
    if uid is None or not evidence_is_valid(evidence, state.chain_id, verifier):
        raise InvalidBlock(BlockFault.EVIDENCE_INVALID)
    return uid


def count_attest(state: State, attest: Certificate, header: Header, verifier: Verifier) -> None:
    """Note which voters were present. Raises InvalidBlock."""
    check_attest(
        attest,
        header=header,
        ancestors={digest: height for height, digest in state.ancestors},
        attested_view=state.attests.view,
        voters=state.voters,
        verifier=verifier,
    )
    counts = list(state.attests.appearances or (0,) * len(state.voters))
    for index in attest.signers:
        counts[index] += 1
    state.attests = Attests(
        view=attest.view, blocks=state.attests.blocks + 1, appearances=tuple(counts)
    )


def jail_silent(state: State) -> None:
    """Jail who was silent in this epoch, within the limits of `epoch.jailed_voters`."""
    attests = state.attests
    for account in jailed_voters(state.voters, attests.blocks, attests.appearances):
        uid = state.uid_of_owner[account]
        _put(state, uid, dataclasses.replace(state.bonds[uid], jailed=True))


def choose_voters(state: State, parameters: Parameters) -> VoterSet:
    """The voter set of the epoch after `state.epoch`; grants leaves and dates the bonds."""
    members = [state.uid_of_owner[voter.account] for voter in state.voters]
    for uid in members:
        served = Epoch(state.epoch + 1)
        _put(state, uid, dataclasses.replace(state.bonds[uid], served_until=served))
    asked = sorted((bond.leaving, uid) for uid, bond in state.bonds.items() if bond.leaving)
    requests = [state.accounts[uid].owner for _, uid in asked]
    granted = frozenset(leaving_voters(state.voters, requests))
    for _, uid in asked:
        if uid not in members or state.accounts[uid].owner in granted:
            released = dataclasses.replace(state.bonds[uid], validating=False, leaving=0)
            _put(state, uid, released)
    return next_voter_set(candidates(state, parameters), state.voters)


def candidates(state: State, parameters: Parameters) -> list[Candidate]:
    """Who may be in the next set: validating, bond at least the minimum, not jailed, not dead."""
    return [
        Candidate(
            account=state.accounts[uid].owner,
            peer_key=state.accounts[uid].peer_key,
            stake_locked=state.locked(uid, parameters),
            scaling=state.scaling[uid],
        )
        for uid, bond in sorted(state.bonds.items())
        if bond.validating
        and not (bond.jailed or bond.tombstoned)
        and state.locked(uid, parameters) >= parameters.bond_min
    ]


def forget_old_evidence(state: State, parameters: Parameters) -> None:
    """Drop what no block may repeat any more."""
    for number, offence in sorted(state.evidence.items()):
        if offence[1] + parameters.bond_window_epochs < state.epoch:
            del state.evidence[number], state.offences[offence]
            state.touch(Table.EVIDENCE, number)


def _standing(state: State, uid: Uid) -> Bond:
    bond = state.bonds[uid]
    if bond.tombstoned:
        raise InvalidTransaction(TransactionFault.TOMBSTONED)
    return bond


def _put(state: State, uid: Uid, bond: Bond) -> None:
    state.bonds[uid] = bond
    state.touch(Table.BOND, uid)
