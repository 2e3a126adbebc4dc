"""The state as sorted (key, value) bytes: what the root commits to and what snapshots carry.

Rule: `state_of_entries(entries_of(state))` is the same state with the same root, and every value
has one encoding. Sealing encodes only what a draft has touched.

    0 | 0 chain: chain id          0 | 1 head: u64 height, epoch, time_ms
    0 | 2 supply: u64 pool, issued 0 | 3 emission: flag open, u64 open blocks
    0 | 4 work: u256 target, u32 found, u16 count, (u64 height, digest)*
    0 | 5 counters: u32 uid, retired key, evidence, u64 leaving
    0 | 6 ancestors: u8 count, (u64 height, digest)*
    0 | 7 removed: u32 count, u32 uid*      0 | 8 voter set
    0 | 9 attests: u64 view, u32 blocks, u16 count, u32 appearances*
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from consensus.account import (
    encode_account,
    encode_bond,
    encode_commitment,
    encode_departed,
    read_account,
    read_announcement,
    read_bond,
    read_commitment,
    read_departed,
)
from consensus.codec import Reader, Writer
from consensus.errors import DecodeError, InvariantViolation
from consensus.fixed import RANK_ONE, TRUST_ONE
from consensus.incentive import Snapshot
from consensus.merkle import MerkleTree
from consensus.params import SCALING_ONE, SUPPLY_LIMIT
from consensus.state import ANCESTORS_MAX, PEER_TABLES, Attests, State, Table
from consensus.types import (
    DIGEST_BYTES,
    KEY_BYTES,
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
from consensus.vote import VOTERS_MAX, VoterSet
from consensus.weights import Row, read_row

KEY_LENGTH: Final = 5
WORKS_MAX: Final = 4 * ANCESTORS_MAX
"""Four subscriptions a block while their ancestors can be named."""
REMOVED_MAX: Final = 2**20
"""More removals than an epoch can pay for; also more than a reply of the sync protocol carries."""
_SINGLETONS: Final = 10


def entry_key(table: Table, uid: int) -> bytes:
    """u8 table || u32 uid."""
    return (table << 32 | uid).to_bytes(KEY_LENGTH, "big")


def seal(draft: State) -> State:
    """End a draft: check the supply in full, encode what changed, compute the root.

    `delta` of the result is what storage has to write. Raises InvariantViolation.
    """
    if draft.touched is None:
        raise InvariantViolation("sealing a sealed state")
    if sum(draft.stake.values()) != draft.staked:
        raise InvariantViolation("the stake column and its sum differ")
    delta: dict[bytes, bytes | None] = {}
    for table, uid in sorted(draft.touched):
        key, value = entry_key(Table(table), uid), _entry(draft, Table(table), uid)
        if value is not None or key in draft.tree:
            delta[key] = value
    for number in range(_SINGLETONS):
        value = _singleton(draft, number)
        if draft.singletons.get(number) != value:
            draft.singletons[number] = value
            delta[entry_key(Table.SINGLETON, number)] = value
    draft.tree = draft.tree.updated(delta)
    draft.delta = delta
    draft.touched = None
    return draft


def entries_of(state: State) -> Iterator[tuple[bytes, bytes]]:
    """Every entry of a sealed state in ascending order of key."""
    for key in state.tree.keys:
        yield key, value_of(state, key)


def value_of(state: State, key: bytes) -> bytes:
    """The value under `key` of a sealed state. Raises KeyError when there is none."""
    if key not in state.tree:
        raise KeyError(key)
    table, uid = Table(key[0]), int.from_bytes(key[1:], "big")
    if table is Table.SINGLETON:
        return state.singletons[uid]
    value = _entry(state, table, uid)
    if value is None:
        raise InvariantViolation(f"the tree has an entry that the state lacks: {key.hex()}")
    return value


def state_of_entries(entries: Iterable[tuple[bytes, bytes]]) -> State:
    """The state that has exactly these entries. Raises DecodeError for anything else.

    The caller compares its root with a certified one: decoding says nothing about truth.
    """
    items = list(entries)
    if any(a >= b for (a, _), (b, _) in pairwise(items)):
        raise DecodeError("entries are not in strictly ascending order of key")
    state = empty_state()
    snapshot: list[tuple[Uid, int, int, Row]] = []
    for key, value in items:
        if len(key) != KEY_LENGTH or key[0] > max(Table):
            raise DecodeError(f"key {key.hex()}")
        _load(state, Table(key[0]), int.from_bytes(key[1:], "big"), Reader(value), snapshot)
    state.snapshot = Snapshot(
        uids=tuple(uid for uid, _, _, _ in snapshot),
        stake=tuple(stake for _, stake, _, _ in snapshot),
        scaling=tuple(scaling for _, _, scaling, _ in snapshot),
        rows=tuple(row for _, _, _, row in snapshot),
    )
    _check_whole(state)
    state.tree = MerkleTree(dict(items))
    state.singletons = {number: _singleton(state, number) for number in range(_SINGLETONS)}
    state.touched = None
    return state


def empty_state() -> State:
    """A draft with no account and no voters, for genesis and for decoding to fill."""
    state = object.__new__(State)
    for name, zero in _EMPTY.items():
        setattr(state, name, dict(zero) if isinstance(zero, MappingProxyType) else zero)
    state.snapshot = Snapshot(uids=(), stake=(), scaling=(), rows=())
    state.attests = Attests()
    state.forget_outcome()
    state.tree = MerkleTree()
    state.touched = set()
    return state


_EMPTY: Final[dict[str, object]] = {
    **dict.fromkeys(
        (
            *("height", "epoch", "time_ms", "pool", "issued", "staked", "open_blocks"),
            *("work_target", "work_found", "uid_next", "retired_next", "evidence_next"),
            *("leaving_next", "subscriptions"),
        ),
        0,
    ),
    **dict.fromkeys(
        (
            *("accounts", "stake", "scaling", "pending", "accrued", "owner_nonce", "peer_nonce"),
            *("rows", "announcements", "bonds", "commitments", "departed", "retired", "evidence"),
            *("uid_of_owner", "owner_of_key", "departed_uid", "offences", "singletons", "delta"),
            *("trust", "rank_received"),
        ),
        MappingProxyType[object, object]({}),
    ),
    **dict.fromkeys(("works", "ancestors", "removed"), ()),
    "chain_id": b"",
    "is_open": False,
}


def _entry(state: State, table: Table, uid: int) -> bytes | None:
    """The value of one entry, None when there is none."""
    peer = Uid(uid)
    if table in PEER_TABLES and peer not in state.accounts:
        return None
    match table:
        case Table.BALANCE:
            packed = state.stake[peer] << 64 | state.scaling[peer]
            packed = packed << 128 | state.pending[peer]
            return (packed << 64 | state.accrued[peer]).to_bytes(40, "big")
        case Table.NONCES:
            return (state.owner_nonce[peer] << 64 | state.peer_nonce[peer]).to_bytes(16, "big")
        case Table.ROW:
            return state.rows[peer].encoded
        case Table.ACCOUNT:
            return encode_account(state.accounts[peer])
        case Table.ANNOUNCEMENT:
            return state.announcements[peer].encode()
        case Table.BOND:
            return encode_bond(state.bonds[peer])
        case Table.COMMITMENT:
            return encode_commitment(state.commitments[peer])
        case Table.SNAPSHOT:
            return _snapshot_entry(state.snapshot, peer)
        case Table.RESULT:
            if peer not in state.trust:
                return None
            return (state.trust[peer] << 64 | state.rank_received[peer]).to_bytes(16, "big")
        case Table.DEPARTED:
            departed = state.departed.get(peer)
            return None if departed is None else encode_departed(departed)
        case Table.RETIRED_KEY:
            return b"".join(state.retired[uid])
        case Table.EVIDENCE:
            if uid not in state.evidence:
                return None
            key, epoch, view = state.evidence[uid]
            return Writer().fixed(key, KEY_BYTES).u64(epoch).u64(view).done()
        case _:
            raise InvariantViolation("a singleton is never touched")


def _snapshot_entry(snapshot: Snapshot, uid: Uid) -> bytes | None:
    at = snapshot.position(uid)
    if at is None:
        return None
    packed = snapshot.stake[at] << 64 | snapshot.scaling[at]
    return packed.to_bytes(16, "big") + snapshot.rows[at].encoded


def _singleton(state: State, number: int) -> bytes:
    writer = Writer()
    match number:
        case 0:
            return writer.fixed(state.chain_id, DIGEST_BYTES).done()
        case 1:
            return writer.u64(state.height).u64(state.epoch).u64(state.time_ms).done()
        case 2:
            return writer.u64(state.pool).u64(state.issued).done()
        case 3:
            return writer.flag(state.is_open).u64(state.open_blocks).done()
        case 4:
            writer.u256(state.work_target).u32(state.work_found).u16(len(state.works))
            return writer.raw(_pairs(state.works)).done()
        case 5:
            writer.u32(state.uid_next).u32(state.retired_next).u32(state.evidence_next)
            return writer.u64(state.leaving_next).done()
        case 6:
            return writer.u8(len(state.ancestors)).raw(_pairs(state.ancestors)).done()
        case 7:
            writer.u32(len(state.removed))
            return writer.raw(b"".join(uid.to_bytes(4, "big") for uid in state.removed)).done()
        case 8:
            return state.voters.encode()
        case _:
            attests = state.attests
            writer.u64(attests.view).u32(attests.blocks).u16(len(attests.appearances))
            for count in attests.appearances:
                writer.u32(count)
            return writer.done()


def _load(
    state: State,
    table: Table,
    uid: int,
    reader: Reader,
    snapshot: list[tuple[Uid, int, int, Row]],
) -> None:
    peer = Uid(uid)
    match table:
        case Table.SINGLETON:
            _load_singleton(state, uid, reader)
        case Table.ACCOUNT:
            account = state.accounts[peer] = read_account(reader)
            state.uid_of_owner[account.owner] = peer
            state.owner_of_key[account.peer_key] = account.owner
        case Table.BALANCE:
            state.stake[peer] = reader.count(reader.u64(), SUPPLY_LIMIT)
            state.scaling[peer] = reader.count(reader.u64(), SCALING_ONE)
            state.pending[peer], state.accrued[peer] = reader.u128(), reader.u64()
        case Table.NONCES:
            state.owner_nonce[peer] = Nonce(reader.u64())
            state.peer_nonce[peer] = Nonce(reader.u64())
        case Table.ROW:
            state.rows[peer] = read_row(reader)
        case Table.ANNOUNCEMENT:
            state.announcements[peer] = read_announcement(reader)
        case Table.BOND:
            state.bonds[peer] = read_bond(reader)
        case Table.COMMITMENT:
            state.commitments[peer] = read_commitment(reader)
        case Table.SNAPSHOT:
            stake = reader.count(reader.u64(), SUPPLY_LIMIT)
            scaling = reader.count(reader.u64(), SCALING_ONE)
            snapshot.append((peer, stake, scaling, read_row(reader)))
        case Table.RESULT:
            state.trust[peer] = reader.count(reader.u64(), TRUST_ONE)
            state.rank_received[peer] = reader.count(reader.u64(), RANK_ONE)
        case Table.DEPARTED:
            departed = state.departed[peer] = read_departed(reader)
            state.departed_uid[departed.owner] = peer
        case Table.RETIRED_KEY:
            key, owner = PeerKey(reader.fixed(KEY_BYTES)), AccountId(reader.fixed(KEY_BYTES))
            state.retired[uid] = (key, owner)
            state.owner_of_key[key] = owner
        case _:  # Table.EVIDENCE
            offence = (PeerKey(reader.fixed(KEY_BYTES)), Epoch(reader.u64()), View(reader.u64()))
            state.evidence[uid] = offence
            state.offences[offence] = uid
    reader.end()


def _load_singleton(state: State, number: int, reader: Reader) -> None:
    match number:
        case 0:
            state.chain_id = ChainId(reader.fixed(DIGEST_BYTES))
        case 1:
            state.height, state.epoch = Height(reader.u64()), Epoch(reader.u64())
            state.time_ms = reader.u64()
        case 2:
            state.pool, state.issued = reader.u64(), reader.u64()
        case 3:
            state.is_open, state.open_blocks = reader.flag(), reader.u64()
        case 4:
            state.work_target, state.work_found = reader.u256(), reader.u32()
            state.works = _read_pairs(reader, reader.count(reader.u16(), WORKS_MAX))
        case 5:
            state.uid_next, state.retired_next = reader.u32(), reader.u32()
            state.evidence_next, state.leaving_next = reader.u32(), reader.u64()
        case 6:
            state.ancestors = _read_pairs(reader, reader.count(reader.u8(), ANCESTORS_MAX))
        case 7:
            count = reader.count(reader.u32(), REMOVED_MAX)
            state.removed = tuple(Uid(reader.u32()) for _ in range(count))
        case 8:
            state.voters = VoterSet.read(reader)
        case 9:
            view, blocks = View(reader.u64()), reader.u32()
            count = reader.count(reader.u16(), VOTERS_MAX)
            appearances = tuple(reader.u32() for _ in range(count))
            state.attests = Attests(view=view, blocks=blocks, appearances=appearances)
        case _:
            raise DecodeError(f"singleton {number}")


def _check_whole(state: State) -> None:
    """Raise DecodeError when a field of a live peer, or a singleton, is missing."""
    live = state.accounts.keys()
    columns = (
        *(state.stake, state.owner_nonce, state.rows, state.announcements),
        *(state.bonds, state.commitments),
    )
    if any(column.keys() != live for column in columns):
        raise DecodeError("an account with missing or surplus fields")
    if not hasattr(state, "voters") or not state.chain_id:
        raise DecodeError("a singleton is missing")
    state.staked = sum(state.stake.values())
    if state.staked + state.pool != state.issued:
        raise DecodeError("stake and pool are not what was issued")


def _pairs(pairs: tuple[tuple[Height, Digest], ...]) -> bytes:
    return b"".join(height.to_bytes(8, "big") + digest for height, digest in pairs)


def _read_pairs(reader: Reader, count: int) -> tuple[tuple[Height, Digest], ...]:
    return tuple((Height(reader.u64()), Digest(reader.fixed(DIGEST_BYTES))) for _ in range(count))
