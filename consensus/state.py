"""The ledger's state: a sorted map of keys to values under one root, and its fast form in memory.

Rule: the root commits to everything that can influence a later block, and to nothing else. A key
is u8 table || u32 uid; singletons stand in table 0; every field of a live peer is always present
and its removal deletes its keys (ledger.md, State root and vectors).

In memory a table is a dict per field, so that the hot path moves integers. A sealed `State` is a
value that many may hold. Executing a block takes `draft()`, a shallow copy (dicts of references:
a fraction of a millisecond at 4,096 peers), changes it, and `seal()`s it: that is the undo overlay
of an unfinalised block. Forgetting a state is undoing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from consensus.account import Account, Announcement, Bond, Commitment, Departed
from consensus.errors import InvariantViolation
from consensus.fixed import TRUST_HALF
from consensus.incentive import Outcome, Snapshot
from consensus.merkle import MerkleTree
from consensus.params import SCALING_ONE, Parameters
from consensus.types import (
    AccountId,
    ChainId,
    Digest,
    Epoch,
    Height,
    Nonce,
    PeerKey,
    Uid,
    View,
)
from consensus.vote import VoterSet
from consensus.weights import Row

ANCESTORS_MAX: Final = 64
"""Block hashes kept for proofs of work (and attests): one minute of one-second blocks."""


OutcomeOf: TypeAlias = Callable[[Snapshot], Outcome]
"""Computes a mechanism step, or waits for a worker that does."""


class Table(IntEnum):
    """First byte of a key."""

    SINGLETON = 0
    ACCOUNT = 1
    BALANCE = 2
    NONCES = 3
    ROW = 4
    ANNOUNCEMENT = 5
    BOND = 6
    COMMITMENT = 7
    SNAPSHOT = 8
    RESULT = 9
    DEPARTED = 10
    RETIRED_KEY = 11
    EVIDENCE = 12


_ROOT_VIEW: Final = View(0)
PEER_TABLES: Final = (
    *(Table.ACCOUNT, Table.BALANCE, Table.NONCES, Table.ROW),
    *(Table.ANNOUNCEMENT, Table.BOND, Table.COMMITMENT),
)
"""Tables with one entry for each live peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attests:
    """Presence of the epoch's voters: what jailing is decided by."""

    view: View = _ROOT_VIEW
    """View of the newest attested block of the epoch, 0 for none."""
    blocks: int = 0
    appearances: tuple[int, ...] = ()
    """By index in the voter set; empty means all zero."""


NO_ATTESTS: Final = Attests()


class State:
    """One version of the ledger. Read its attributes; write only to a draft, by the functions of
    `settlement`, `registry`, `execution` and `transition`."""

    __slots__ = (
        *("chain_id", "height", "epoch", "time_ms", "pool", "issued", "staked"),
        *("is_open", "open_blocks"),
        *(
            "subscriptions",
            "work_target",
            "work_found",
            "works",
            "ancestors",
            "removed",
            "voters",
            "attests",
        ),
        *("uid_next", "retired_next", "evidence_next", "leaving_next"),
        *("accounts", "stake", "scaling", "pending", "accrued", "owner_nonce", "peer_nonce"),
        *("rows", "announcements", "bonds", "commitments", "departed", "retired", "evidence"),
        *("snapshot", "trust", "rank_received"),
        *("uid_of_owner", "owner_of_key", "departed_uid", "offences"),
        *("touched", "singletons", "tree", "delta", "_outcome"),
    )

    chain_id: ChainId
    height: Height
    epoch: Epoch
    """Of the next normal block: a boundary block's state already belongs to the next epoch."""
    time_ms: int
    pool: int
    """Base units that belong to nobody yet."""
    issued: int
    """Base units that exist: the sum of all stake and the pool."""
    staked: int
    """Sum of all stake, kept beside it so that every event can be checked at no cost."""
    is_open: bool
    """L < 0 in the result in effect: emission runs."""
    open_blocks: int
    """Blocks executed so far while the network was open."""
    subscriptions: int
    """By proof of work in the block of a draft; not part of the state."""
    work_target: int
    work_found: int
    """Subscriptions by proof of work in this epoch."""
    works: tuple[tuple[Height, Digest], ...]
    """Proofs used while their ancestor can still be named, with the ancestor's height."""
    ancestors: tuple[tuple[Height, Digest], ...]
    """Ascending heights and hashes of the newest blocks below the next one."""
    removed: tuple[Uid, ...]
    """Uids that left since the last boundary, ascending."""
    voters: VoterSet
    """Of `epoch`."""
    attests: Attests
    uid_next: int
    retired_next: int
    evidence_next: int
    leaving_next: int
    accounts: dict[Uid, Account]
    stake: dict[Uid, int]
    """s, base units."""
    scaling: dict[Uid, int]
    """a, Q30."""
    pending: dict[Uid, int]
    """e as of `accrued`, 2^-32 base units."""
    accrued: dict[Uid, int]
    """Value of `open_blocks` up to which `pending` counts."""
    owner_nonce: dict[Uid, Nonce]
    peer_nonce: dict[Uid, Nonce]
    """Next nonce of each sequence."""
    rows: dict[Uid, Row]
    announcements: dict[Uid, Announcement]
    bonds: dict[Uid, Bond]
    commitments: dict[Uid, Commitment | None]
    departed: dict[Uid, Departed]
    retired: dict[int, tuple[PeerKey, AccountId]]
    """Peer keys that were replaced or whose account left, with the account they belonged to."""
    evidence: dict[int, tuple[PeerKey, Epoch, View]]
    snapshot: Snapshot
    """S, A, W at the last boundary: its outcome is applied at the next one."""
    trust: dict[Uid, int]
    """T in effect, Q30."""
    rank_received: dict[Uid, int]
    """R without the self edge in the result in effect, Q52."""
    uid_of_owner: dict[AccountId, Uid]
    owner_of_key: dict[PeerKey, AccountId]
    """Every peer key ever used."""
    departed_uid: dict[AccountId, Uid]
    offences: dict[tuple[PeerKey, Epoch, View], int]
    touched: set[tuple[int, int]] | None
    """Keys changed in a draft; None in a sealed state."""
    singletons: dict[int, bytes]
    """Encoded singletons of the newest seal."""
    tree: MerkleTree
    delta: dict[bytes, bytes | None]
    """What the last block changed: key to new value, or None where the key is gone."""

    @property
    def root(self) -> Digest:
        """Of a sealed state."""
        if self.touched is not None:
            raise InvariantViolation("a draft has no root")
        return self.tree.root

    def uid_of_peer(self, peer_key: PeerKey) -> Uid | None:
        """The live account whose *current* peer key this is."""
        owner = self.owner_of_key.get(peer_key)
        uid = None if owner is None else self.uid_of_owner.get(owner)
        return uid if uid is not None and self.accounts[uid].peer_key == peer_key else None

    def trust_of(self, uid: Uid) -> int:
        """T in effect, Q30; one half for a peer younger than the result."""
        return self.trust.get(uid, TRUST_HALF)

    def locked(self, uid: Uid, parameters: Parameters) -> int:
        """Base units of the stake that neither a transfer nor leaving may take."""
        bond = self.bonds[uid]
        if not bond.is_locked(self.epoch, parameters.bond_window_epochs):
            return 0
        return min(bond.amount, self.stake[uid])

    def outcome(self, compute: OutcomeOf) -> Outcome:
        """The outcome of `snapshot`, computed once and shared by all states of the epoch."""
        if not self._outcome:
            self._outcome.append(compute(self.snapshot))
        return self._outcome[0]

    def forget_outcome(self) -> None:
        """The snapshot is a new one."""
        self._outcome: list[Outcome] = []

    def draft(self) -> State:
        """A copy to write to. Sealed tables are shared until written where they are replaced."""
        if self.touched is not None:
            raise InvariantViolation("a draft of a draft")
        copy = object.__new__(State)
        for name in State.__slots__:
            value = getattr(self, name)
            setattr(copy, name, value.copy() if name in _COPIED else value)
        copy.touched = set()
        copy.delta = {}
        copy.subscriptions = 0
        return copy

    def touch(self, table: Table, uid: int) -> None:
        """Note that an entry of a draft has changed."""
        if self.touched is None:
            raise InvariantViolation("write to a sealed state")
        self.touched.add((table, uid))

    def take_snapshot(self) -> None:
        """Replace the snapshot by S, A and W as they are now."""
        before = self.snapshot.uids
        uids = tuple(sorted(self.accounts))
        self.snapshot = Snapshot(
            uids=uids,
            stake=tuple(self.stake[uid] for uid in uids),
            scaling=tuple(self.scaling[uid] for uid in uids),
            rows=tuple(self.rows[uid] for uid in uids),
        )
        self.forget_outcome()
        for uid in (*before, *uids):
            self.touch(Table.SNAPSHOT, uid)

    def put_result(self, uids: tuple[Uid, ...], outcome: Outcome) -> None:
        """Put trust, received rank and openness of `outcome` into effect for live `uids`."""
        for uid in self.trust:
            self.touch(Table.RESULT, uid)
        live = [(at, uid) for at, uid in enumerate(uids) if uid in self.accounts]
        self.trust = {uid: outcome.trust[at] for at, uid in live}
        self.rank_received = {uid: outcome.rank_received[at] for at, uid in live}
        self.is_open = outcome.open
        for uid in self.trust:
            self.touch(Table.RESULT, uid)

    def add_account(self, account: Account, announcement: Announcement, row: Row) -> Uid:
        """A new live peer with stake 0 and scaling 1; a returning owner continues its nonces."""
        uid = Uid(self.uid_next)
        self.uid_next += 1
        self.accounts[uid] = account
        self.stake[uid], self.scaling[uid] = 0, SCALING_ONE
        self.pending[uid], self.accrued[uid] = 0, self.open_blocks
        former = self.departed_uid.pop(account.owner, None)
        self.owner_nonce[uid] = self.peer_nonce[uid] = Nonce(0)
        if former is not None:
            record = self.departed.pop(former)
            self.owner_nonce[uid] = record.owner_nonce
            self.peer_nonce[uid] = record.peer_nonce
            self.touch(Table.DEPARTED, former)
        self.rows[uid], self.announcements[uid] = row, announcement
        self.bonds[uid], self.commitments[uid] = Bond(), None
        self.uid_of_owner[account.owner] = uid
        self.owner_of_key[account.peer_key] = account.owner
        for table in PEER_TABLES:
            self.touch(table, uid)
        return uid

    def remove_account(self, uid: Uid) -> None:
        """Delete a live peer whose stake is 0; its keys and nonces are remembered."""
        if self.stake[uid]:
            raise InvariantViolation("removal of an account with stake")
        account = self.accounts[uid]
        self.departed[uid] = Departed(
            owner=account.owner,
            owner_nonce=self.owner_nonce[uid],
            peer_nonce=self.peer_nonce[uid],
        )
        self.departed_uid[account.owner] = uid
        self.touch(Table.DEPARTED, uid)
        self.retire_key(account)
        self.removed = tuple(sorted((*self.removed, uid)))
        del self.uid_of_owner[account.owner]
        for column in (
            *(self.accounts, self.stake, self.scaling, self.pending, self.accrued, self.rows),
            *(self.owner_nonce, self.peer_nonce, self.announcements, self.bonds),
            self.commitments,
        ):
            del column[uid]
        for table in PEER_TABLES:
            self.touch(table, uid)
        if uid in self.trust:
            del self.trust[uid], self.rank_received[uid]
            self.touch(Table.RESULT, uid)

    def retire_key(self, account: Account) -> None:
        """Remember the account's current peer key as used."""
        self.retired[self.retired_next] = (account.peer_key, account.owner)
        self.touch(Table.RETIRED_KEY, self.retired_next)
        self.retired_next += 1

    def check_supply(self, parameters: Parameters) -> None:
        """Stake + pool = issued <= cap. Raises InvariantViolation; called after every event."""
        held = self.staked + self.pool
        if held != self.issued or self.issued > parameters.supply_cap or self.pool < 0:
            raise InvariantViolation(f"supply: {held} held, {self.issued} issued")


_COPIED: Final = frozenset(
    {
        *("accounts", "stake", "scaling", "pending", "accrued", "owner_nonce", "peer_nonce"),
        *("rows", "announcements", "bonds", "commitments", "departed", "retired", "evidence"),
        *("uid_of_owner", "owner_of_key", "departed_uid", "offences", "singletons"),
        *("trust", "rank_received"),
    }
)
