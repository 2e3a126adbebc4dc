"""Genesis: the facts a chain starts from, and the state they make.

Rule: the chain id is the tagged hash of the canonical form, so it commits to every parameter,
account, row and voter; whoever signs anything signs for exactly this genesis. A genesis served by
a stranger is bounded before it is looked at, and parameters are range-checked first.

Genesis runs one mechanism step on its own rows: its trust and openness hold in epoch 0, and the
first boundary applies its scaling and payouts (ledger.md, Pipeline). Bytes are hex in JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from consensus.account import Account, Announcement, Bond, read_announcement
from consensus.bonding import candidates
from consensus.codec import Reader, Writer
from consensus.crypto import H
from consensus.entries import empty_state, seal
from consensus.epoch import next_voter_set, voting_power
from consensus.errors import DecodeError, GenesisError
from consensus.params import (
    ACCOUNTS_LIMIT,
    SCALING_ONE,
    Parameters,
    encode_parameters,
    read_parameters,
)
from consensus.state import OutcomeOf, State
from consensus.transition import step_of
from consensus.types import (
    DIGEST_BYTES,
    KEY_BYTES,
    ZERO_DIGEST,
    AccountId,
    Amount,
    ChainId,
    Digest,
    Epoch,
    Height,
    Modality,
    PeerKey,
)
from consensus.vote import Voter, VoterSet
from consensus.weights import Row, read_row

GENESIS_VERSION: Final = 1
GENESIS_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of either form: 4,096 accounts with full rows take about 6 MiB."""
NETWORK_NAME: Final = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenesisAccount:
    """A peer at height 0; its uid is its position."""

    owner: AccountId
    peer_key: PeerKey
    stake: Amount
    scaling: int = SCALING_ONE
    bond: Amount | None = None
    """Base units locked; None for an account that does not vote."""
    announcement: Announcement
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """A chain's beginning. Raises GenesisError when it cannot start a chain."""

    network: str
    """`[a-z0-9-]{1,32}`: names the data directory."""
    time_ms: int
    """Unix milliseconds; block 1 is later."""
    modality: Modality
    """What the network starts with; others need bridges."""
    parameters: Parameters
    accounts: tuple[GenesisAccount, ...]
    pool: Amount
    prev_chain_id: Digest = ZERO_DIGEST
    """The chain whose final state this one continues, zero for a new one."""

    def __post_init__(self) -> None:
        if not NETWORK_NAME.fullmatch(self.network):
            raise GenesisError(f"network name {self.network!r}, expected [a-z0-9-]{{1,32}}")
        if not 0 <= self.time_ms < 2**63:
            raise GenesisError(f"time_ms {self.time_ms}")
        if not 1 <= self.modality <= 15:
            raise GenesisError(f"modality {self.modality!r}")
        count = len(self.accounts)
        if not 1 <= count <= min(self.parameters.accounts_max, ACCOUNTS_LIMIT):
            raise GenesisError(f"{count} accounts, allowed 1 to {self.parameters.accounts_max}")
        if len({account.owner for account in self.accounts}) != count:
            raise GenesisError("two accounts have one owner key")
        if len({account.peer_key for account in self.accounts}) != count:
            raise GenesisError("two accounts have one peer key")
        for uid, account in enumerate(self.accounts):
            _check_account(uid, account, count)
        issued = sum(account.stake for account in self.accounts) + self.pool
        if self.pool < 0 or issued > self.parameters.supply_cap:
            raise GenesisError(f"{issued} base units at the start exceed the cap")
        _first_voters(self)

    @property
    def chain_id(self) -> ChainId:
        """Hash of the canonical form."""
        return ChainId(H(b"genesis", encode_genesis(self)))


def genesis_state(genesis: Genesis, *, outcome_of: OutcomeOf | None = None) -> State:
    """The sealed state at height 0."""
    state = _bare_state(genesis)
    state.voters = _first_voters(genesis)
    state.take_snapshot()
    compute = outcome_of or step_of(genesis.parameters)
    state.put_result(state.snapshot.uids, state.outcome(compute))
    state.check_supply(genesis.parameters)
    return seal(state)


def encode_genesis(genesis: Genesis) -> bytes:
    """Canonical bytes, of any length: only hashes and peers that ask for it see them."""
    writer = Writer().u16(GENESIS_VERSION).short(genesis.network.encode("ascii"))
    writer.u64(genesis.time_ms).u8(int(genesis.modality))
    writer.fixed(genesis.prev_chain_id, DIGEST_BYTES)
    writer.raw(encode_parameters(genesis.parameters)).u64(genesis.pool)
    writer.u32(len(genesis.accounts))
    for account in genesis.accounts:
        writer.fixed(account.owner, KEY_BYTES).fixed(account.peer_key, KEY_BYTES)
        writer.u64(account.stake).u64(account.scaling).flag(account.bond is not None)
        if account.bond is not None:
            writer.u64(account.bond)
        writer.raw(account.announcement.encode()).raw(account.row.encoded)
    return writer.done()


def decode_genesis(data: bytes) -> Genesis:
    """The genesis that `data` is exactly. Raises DecodeError."""
    reader = Reader(data, GENESIS_BYTES_MAX)
    if reader.u16() != GENESIS_VERSION:
        raise DecodeError("genesis version")
    try:
        network = reader.short(32).decode("ascii")
        time_ms, modality = reader.u64(), Modality(reader.u8())
        prev_chain_id = Digest(reader.fixed(DIGEST_BYTES))
        parameters = read_parameters(reader)
        pool = Amount(reader.u64())
        count = reader.count(reader.u32(), ACCOUNTS_LIMIT)
        accounts = tuple(_read_account(reader) for _ in range(count))
        reader.end()
        return Genesis(
            network=network,
            time_ms=time_ms,
            modality=modality,
            parameters=parameters,
            accounts=accounts,
            pool=pool,
            prev_chain_id=prev_chain_id,
        )
    except (GenesisError, ValueError) as error:
        raise DecodeError(str(error)) from None


def _check_account(uid: int, account: GenesisAccount, count: int) -> None:
    if len(account.owner) != KEY_BYTES or len(account.peer_key) != KEY_BYTES:
        raise GenesisError(f"account {uid}: a key is {KEY_BYTES} bytes")
    if account.stake < 0:
        raise GenesisError(f"account {uid}: stake {account.stake}")
    if not 0 <= account.scaling <= SCALING_ONE:
        raise GenesisError(f"account {uid}: scaling {account.scaling}")
    if account.bond is not None and not 0 <= account.bond <= account.stake:
        raise GenesisError(f"account {uid}: bond {account.bond} of stake {account.stake}")
    if account.row.entries[-1][0] >= count:
        raise GenesisError(f"account {uid}: a weight to an unknown uid")


def _bare_state(genesis: Genesis) -> State:
    """A draft with the accounts, before voters, snapshot and first result."""
    state = empty_state()
    state.chain_id, state.time_ms = genesis.chain_id, genesis.time_ms
    state.work_target = genesis.parameters.work_target
    state.pool = state.issued = genesis.pool
    for each in genesis.accounts:
        account = Account(owner=each.owner, peer_key=each.peer_key, registered=Height(0))
        uid = state.add_account(account, each.announcement, each.row)
        state.stake[uid], state.scaling[uid] = each.stake, each.scaling
        state.staked += each.stake
        state.issued += each.stake
        if each.bond is not None:
            state.bonds[uid] = Bond(amount=each.bond, validating=True)
    return state


def _first_voters(genesis: Genesis) -> VoterSet:
    """The set of epoch 0. Raises GenesisError when nobody qualifies."""
    chosen = candidates(_bare_state(genesis), genesis.parameters)
    nobody = VoterSet(
        epoch=Epoch(0),
        voters=(
            Voter(
                account=genesis.accounts[0].owner, peer_key=genesis.accounts[0].peer_key, power=1
            ),
        ),
    )
    voters = next_voter_set(chosen, nobody).voters if chosen else ()
    if not any(voting_power(each.stake_locked, each.scaling) for each in chosen):
        raise GenesisError("no account has a bond that makes it a voter")
    return VoterSet(epoch=Epoch(0), voters=voters)


def _read_account(reader: Reader) -> GenesisAccount:
    owner = AccountId(reader.fixed(KEY_BYTES))
    peer_key = PeerKey(reader.fixed(KEY_BYTES))
    stake, scaling = Amount(reader.u64()), reader.u64()
    bond = Amount(reader.u64()) if reader.flag() else None
    return GenesisAccount(
        owner=owner,
        peer_key=peer_key,
        stake=stake,
        scaling=scaling,
        bond=bond,
        announcement=read_announcement(reader),
        row=read_row(reader),
    )
