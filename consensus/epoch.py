"""Epochs: which heights belong to one, who votes in it, who leads, who leaves.

Rules upheld: the voters of an epoch are a function of the final boundary block before it, so every
node that finalises a boundary computes the same set; no member of four or more holds a third; the
honest power that one boundary can remove is limited, because removing a part d of the power raises
a Byzantine share b to b / (1 - d).

Epoch e covers heights ``e*E + 1 ... (e+1)*E``; the last is its boundary block, and the root of the
epoch, its view 0, is the boundary block of epoch e - 1 (genesis for epoch 0). Leaders follow a
smooth weighted round-robin (``priority += power; leader = greatest; priority -= total``): over any
``total`` views everybody leads exactly as often as its power, and there is nothing worth grinding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from consensus.block import ATTEST_DEPTH_MAX, ATTEST_LAG_VIEWS, BlockKind, Header
from consensus.crypto import H, Verifier
from consensus.errors import BlockFault, InvalidBlock
from consensus.params import SCALING_ONE
from consensus.types import AccountId, Digest, Epoch, Height, PeerKey, View
from consensus.vote import (
    VOTERS_MAX,
    Certificate,
    Voter,
    VoterSet,
    signatures_are_valid,
)

SCALING_FLOOR: Final = SCALING_ONE // 4
"""Least scaling that counts for power: with raw a*s a network with A = 0 would be dead for ever."""

CAPPED_FROM_MEMBERS: Final = 4
"""Smaller sets tolerate no faulty member anyway, so the largest is not capped."""

MEMBERS_KEPT: Final = 4
"""Jailing never leaves fewer members than this (or than there were)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Who may vote next: sent Validate, bond at least the minimum, not jailed or tombstoned.

    `stake_locked` in base units, `scaling` in Q30.
    """

    account: AccountId
    peer_key: PeerKey
    stake_locked: int
    scaling: int


class LeaderRotation:
    """The leaders of one epoch, view after view: deterministic in the set and the root's hash."""

    __slots__ = ("_leaders", "_priorities", "_ties", "_voters")

    def __init__(self, voters: VoterSet, root_hash: Digest) -> None:
        self._voters = voters
        self._priorities = [0] * len(voters)
        self._ties = [H(b"leader-tie", root_hash + voter.account) for voter in voters]
        self._leaders: list[int] = []

    def leader(self, view: View) -> int:
        """Index of the leader of `view` (from 1). Costs one step per view not asked for yet."""
        if view < 1:
            raise ValueError("view 0 has no leader")
        while len(self._leaders) < view:
            self._leaders.append(self._step())
        return self._leaders[view - 1]

    def _step(self) -> int:
        for index, voter in enumerate(self._voters):
            self._priorities[index] += voter.power
        chosen = max(range(len(self._ties)), key=lambda i: (self._priorities[i], self._ties[i]))
        self._priorities[chosen] -= self._voters.total
        return chosen


def epoch_of(height: Height, blocks_per_epoch: int) -> Epoch:
    """The epoch of a normal block at `height` (from 1)."""
    return Epoch((height - 1) // blocks_per_epoch)


def root_height(epoch: Epoch, blocks_per_epoch: int) -> Height:
    """Height of the root of `epoch`: the boundary block before it, 0 for genesis."""
    return Height(epoch * blocks_per_epoch)


def boundary_height(epoch: Epoch, blocks_per_epoch: int) -> Height:
    """Height of the last normal block of `epoch`."""
    return Height((epoch + 1) * blocks_per_epoch)


def block_kind(epoch: Epoch, height: Height, blocks_per_epoch: int) -> BlockKind:
    """What a block of `epoch` at `height` has to be: beyond the boundary it only closes."""
    beyond = height > boundary_height(epoch, blocks_per_epoch)
    return BlockKind.CLOSING if beyond else BlockKind.NORMAL


def voting_power(stake_locked: int, scaling: int) -> int:
    """``floor(stake * max(a, 1/4))`` in base units."""
    return stake_locked * max(scaling, SCALING_FLOOR) // SCALING_ONE


def next_voter_set(candidates: Iterable[Candidate], current: VoterSet) -> VoterSet:
    """The set of the epoch after `current`: at most VOTERS_MAX, by power, then account.

    When nobody qualifies the old members stay: a chain without voters could never have any again.
    """
    powers = [(voting_power(c.stake_locked, c.scaling), c) for c in candidates]
    ranked = sorted((-power, c.account, c.peer_key) for power, c in powers if power > 0)
    kept = [(account, key, -power) for power, account, key in ranked[:VOTERS_MAX]]
    epoch = Epoch(current.epoch + 1)
    if not kept:
        return VoterSet(epoch=epoch, voters=current.voters)
    capped = cap_powers([power for _, _, power in kept])
    voters = [
        Voter(account=account, peer_key=key, power=power)
        for (account, key, _), power in zip(kept, capped, strict=True)
    ]
    return VoterSet(epoch=epoch, voters=tuple(sorted(voters, key=lambda voter: voter.account)))


def cap_powers(powers: Sequence[int]) -> list[int]:
    """With four or more members, cut the largest to ``max(1, others // 2 - 1)`` until it fits.

    Keeps the order of `powers` (each at least 1). Cutting one by one could take as many steps as
    there are base units (three equal members and a tiny one), so this goes to the end at once:
    cutting is monotone, hence ends in the greatest powers that fit, whatever the order; there all
    cut members share the level c, the largest with ``c <= (total - 2) // 3``, and none is above it.
    """
    if len(powers) < CAPPED_FROM_MEMBERS:
        return list(powers)
    first, second, third, *smaller = sorted(powers, reverse=True)
    rest = sum(smaller)
    if first <= (second + third + rest) // 2 - 1:
        return list(powers)
    alone = (second + third + rest - 2) // 2
    level = alone if alone >= second else third + rest - 2
    if rest < 2:  # four members, one of power 1: nothing above it fits
        level = 1
    return [min(power, max(1, level)) for power in powers]


def jailed_voters(
    voters: VoterSet, attested_blocks: int, appearances: Sequence[int]
) -> tuple[AccountId, ...]:
    """Who leaves at the boundary for having been silent, the least present first.

    `appearances[i]` counts the epoch's `attested_blocks` whose attest has voter i. Silent is below
    ``max(1, attested / 10)``. Without a single attest nobody is known to be silent. See
    `departures` for the limit; at least ``min(MEMBERS_KEPT, n)`` members stay.
    """
    if attested_blocks == 0:
        return ()
    silent = [
        index
        for index, count in enumerate(appearances)
        if count < 1 or 10 * count < attested_blocks
    ]
    ordered = sorted(silent, key=lambda index: (appearances[index], index))
    removable = max(0, len(voters) - MEMBERS_KEPT)
    leaving = departures(voters, ordered, alone_max=voters.total // 3)[:removable]
    return tuple(voters.voters[index].account for index in leaving)


def leaving_voters(voters: VoterSet, requests: Sequence[AccountId]) -> tuple[AccountId, ...]:
    """Which of the members that asked to leave do so at this boundary: first come, first served.

    A member of any size may go alone: nobody can be made to serve.
    """
    index_of = {voter.account: index for index, voter in enumerate(voters)}
    ordered = [index_of[account] for account in requests if account in index_of]
    leaving = departures(voters, ordered, alone_max=voters.total)
    return tuple(voters.voters[index].account for index in leaving)


def departures(voters: VoterSet, ordered: Sequence[int], *, alone_max: int) -> list[int]:
    """The indices of `ordered` that may leave at once: together at most a tenth of the power.

    If not even the first that could go fits into the tenth, it goes alone up to `alone_max`. One
    that does not fit is passed over, so that it cannot shield those behind it.
    """
    budget = voters.total // 10
    leaving: list[int] = []
    for index in ordered:
        power = voters.voters[index].power
        if power <= budget:
            budget -= power
            leaving.append(index)
        elif not leaving and power <= alone_max:
            return [index]
    return leaving


def check_attest(
    attest: Certificate,
    *,
    header: Header,
    ancestors: Mapping[Digest, Height],
    attested_view: View,
    voters: VoterSet,
    verifier: Verifier,
) -> None:
    """Raise InvalidBlock unless a block with `header` may carry `attest`.

    It is on an ancestor of the same epoch (`ancestors`: hash to height of recent blocks), at least
    ATTEST_LAG_VIEWS views and at most ATTEST_DEPTH_MAX heights back, at a later view than the last
    attest of the epoch (`attested_view`, 0 for none), and all signatures hold. That the attested
    view is the ancestor's needs no check: nobody who follows the rules signs another.
    """
    height = ancestors.get(attest.block_hash)
    first = header.epoch, attested_view + 1
    last = header.epoch, header.view - ATTEST_LAG_VIEWS
    if height is None or not first <= (attest.ballot.epoch, attest.view) <= last:
        raise InvalidBlock(BlockFault.ATTEST_OUT_OF_WINDOW)
    if height < header.height - ATTEST_DEPTH_MAX:
        raise InvalidBlock(BlockFault.ATTEST_OUT_OF_WINDOW)
    if not signatures_are_valid(attest, voters, header.chain_id, verifier):
        raise InvalidBlock(BlockFault.ATTEST_INVALID)
