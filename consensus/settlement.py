"""Emission: how new stake comes into being between boundaries (paper, Figure 8; eq. 5).

Rule: stake + pool = issued <= cap after every event. A peer's claim e_i grows with its scaled
stake per block *while the network is open*,

    e_i += tau * floor(s_i * a_i / 2^30)      (2^-32 base units; text before Figure 8)

and is brought up to date lazily, before s_i or a_i changes. Publishing weights settles it under
the *old* row: every named peer j receives E * w_ij * T_j, and what trust holds back goes to the
pool, which the next boundary pays out in proportion to I = R * T. When everybody settles in every
block the sum of both is eq. 5. E is not normalised by sum_k w_ik T_k: T would cancel inside a
disjoint cabal, which would keep its share for ever.

The fee comes from the self edge (paper, *Transactions and Token Inflation*), then from the stake.
Products reach 2^117: Python integers.
"""

from __future__ import annotations

from consensus.errors import InvalidTransaction, TransactionFault
from consensus.fixed import TRUST_HALF
from consensus.params import Parameters
from consensus.state import State, Table
from consensus.types import Uid

_FRACTION = 2**32 - 1


def pending_of(state: State, uid: Uid, parameters: Parameters) -> int:
    """e_i as of now, 2^-32 base units."""
    blocks = state.open_blocks - state.accrued[uid]
    if not blocks:
        return state.pending[uid]
    scaled = state.stake[uid] * state.scaling[uid] >> 30
    return state.pending[uid] + blocks * parameters.inflation * scaled


def accrue(state: State, uid: Uid, parameters: Parameters) -> None:
    """Bring e_i up to date: s_i or a_i is about to change."""
    if state.accrued[uid] != state.open_blocks:
        state.pending[uid] = pending_of(state, uid, parameters)
        state.accrued[uid] = state.open_blocks
    state.touch(Table.BALANCE, uid)


def credit(state: State, uid: Uid, amount: int, parameters: Parameters) -> None:
    """Change the stake of `uid` by `amount`, which may be negative."""
    accrue(state, uid, parameters)
    state.stake[uid] += amount
    state.staked += amount


def charge(state: State, uid: Uid, amount: int, parameters: Parameters) -> None:
    """Move `amount` from the stake of `uid` into the pool. The caller has checked the stake."""
    credit(state, uid, -amount, parameters)
    state.pool += amount


def settle(state: State, uid: Uid, fee: int, parameters: Parameters) -> int:
    """Emit what `uid` has pending under its row, less the fee; give the base units issued.

    Raises InvalidTransaction(FEE_NOT_COVERED), nothing changed, when the self edge and the stake
    together are below the fee.
    """
    pending = pending_of(state, uid, parameters)
    emitted = min(pending >> 32, parameters.supply_cap - state.issued)
    row = state.rows[uid]
    own = emitted * row.weight_to(uid) >> 16
    fee_from_stake = max(fee - own, 0)
    if fee_from_stake > state.stake[uid]:
        raise InvalidTransaction(TransactionFault.FEE_NOT_COVERED)

    given = 0
    if emitted:
        given = _give(state, uid, emitted, parameters)
        if not parameters.self_edge_to_pool:
            kept = (own - min(own, fee)) * state.trust_of(uid) >> 30
            state.stake[uid] += kept
            given += kept
    # The claim was computed from the stake before any of this changed it.
    state.pending[uid], state.accrued[uid] = pending & _FRACTION, state.open_blocks
    state.touch(Table.BALANCE, uid)
    state.stake[uid] -= fee_from_stake
    state.staked += given - fee_from_stake
    state.issued += emitted
    state.pool += emitted - given + fee_from_stake
    return emitted


def _give(state: State, uid: Uid, emitted: int, parameters: Parameters) -> int:
    """Pay every live peer that the row of `uid` names, except itself; give the sum."""
    given = 0
    stake, trust = state.stake, state.trust
    for other, weight in state.rows[uid].entries:
        if other == uid or other not in stake:
            continue
        part = emitted * weight * trust.get(other, TRUST_HALF) >> 46
        if part:
            accrue(state, other, parameters)
            stake[other] += part
            given += part
    return given
