"""The ledger of a directory as its owner sees it: read from disk, whether a node runs or not.

The rule: what is shown is the state after the last final block, and it has the root that this block
carries; otherwise it is not shown. Nothing here writes, so every verb built on it is harmless
beside a running node. Values for people are floats and texts; they never go back into a ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from consensus.block import Block, Body, Header
from consensus.entries import state_of_entries
from consensus.errors import DecodeError, Refused
from consensus.fixed import RANK_ONE, SHARE_ONE, TRUST_ONE
from consensus.genesis import Genesis, decode_genesis
from consensus.incentive import Outcome
from consensus.params import SCALING_ONE, WEIGHT_ONE
from consensus.settlement import pending_of
from consensus.state import State
from consensus.transition import step_of
from consensus.types import TOKEN, AccountId, Modality, PeerKey, Uid
from node.data_directory import DataDirectory
from node.earnings import Earnings, trace_earnings
from node.errors import NodeError, StoreCorrupt, UsageError
from node.genesis_file import load_genesis
from node.store import ChainStore, StoredBlock, open_chain_reader
from node.verifier import JudgedBefore
from p2p.errors import MalformedPeerId
from p2p.identity import PeerId

PENDING_ONE: Final = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainView:
    """One moment of a chain: genesis, last final block, the state after it."""

    genesis: Genesis
    tip: StoredBlock
    state: State

    def uid_of(self, name: str) -> Uid:
        """The live peer that a peer id, an account (64 hex digits) or a uid names.

        Raises UsageError when it names none.
        """
        state = self.state
        uid: Uid | None = None
        if name.isascii() and name.isdecimal() and len(name) < 10:
            uid = Uid(int(name)) if Uid(int(name)) in state.accounts else None
        elif len(name) == 64:
            try:
                uid = state.uid_of_owner.get(AccountId(bytes.fromhex(name)))
            except ValueError:
                uid = None
        else:
            try:
                uid = state.uid_of_peer(PeerKey(PeerId(name).public_key))
            except MalformedPeerId as error:
                raise UsageError(f"{name!r} is no peer id, account or uid: {error}") from None
        if uid is None:
            raise UsageError(f"no peer {name!r} at height {self.tip.height}")
        return uid

    def peer_id(self, uid: Uid) -> PeerId:
        """The network name of a live peer."""
        return PeerId.from_public_key(self.state.accounts[uid].peer_key)

    def outcome(self) -> Outcome:
        """The mechanism's step on the newest snapshot: it takes effect at the next boundary."""
        return self.state.outcome(step_of(self.genesis.parameters))


def read_chain(directory: DataDirectory) -> ChainView:
    """The newest final moment of a directory's chain. Raises NodeError, StoreError, GenesisError.

    Raises StoreCorrupt when the stored state is not that of the stored block.
    """
    if not directory.chain.exists():
        raise NodeError(f"{directory.path} holds no chain yet")
    store = open_chain_reader(directory.chain)
    try:
        tip, leaves = store.tip_and_leaves()
        genesis = genesis_of(directory, store)
    finally:
        store.close()
    try:
        state = state_of_entries(leaves.items())
    except DecodeError as error:
        raise StoreCorrupt(f"{directory.chain}: the state does not decode: {error}") from None
    if state.root != tip.state_root:
        raise StoreCorrupt(f"{directory.chain}: the state is not that of block {tip.height}")
    return ChainView(genesis=genesis, tip=tip, state=state)


def genesis_of(directory: DataDirectory, store: ChainStore) -> Genesis:
    """The chain's genesis: block 0 carries it, after a join by snapshot the file does."""
    origin = store.block(0)
    if origin is None or not origin.body:
        return load_genesis(directory.genesis)
    try:
        return decode_genesis(origin.body)
    except DecodeError as error:
        raise StoreCorrupt(f"{directory.chain}: genesis does not decode: {error}") from None


def decoded_block(stored: StoredBlock) -> Block:
    """The block that a row of the chain holds. Raises StoreCorrupt when it holds another."""
    try:
        header, body = Header.decode(stored.header), Body.decode(stored.body)
    except DecodeError as error:
        raise StoreCorrupt(f"block {stored.height} does not decode: {error}") from None
    block = Block(header=header, body=body)
    if block.hash != stored.hash or header.height != stored.height:
        raise StoreCorrupt(f"block {stored.height} is stored under another hash or height")
    return block


def history(directory: DataDirectory, view: ChainView, uid: Uid) -> Earnings | None:
    """Every change of a peer's stake since genesis, by executing the stored blocks up to `view`.

    None when the blocks do not reach back to genesis (pruned, or joined by snapshot). Raises
    StoreCorrupt when they do not lead to the state of `view`.
    """
    store = open_chain_reader(directory.chain)
    try:
        if store.base_height():
            return None
        blocks = (
            decoded_block(each) for each in store.iterate(first=1) if each.height <= view.tip.height
        )
        account = view.state.accounts[uid].owner
        earnings = trace_earnings(view.genesis, blocks, account, JudgedBefore())
    except Refused as error:
        raise StoreCorrupt(f"a stored block is invalid: {error}") from None
    finally:
        store.close()
    if earnings.end != view.state.stake[uid]:
        raise StoreCorrupt("the stored blocks do not lead to the stored stake")
    return earnings


def peer_row(view: ChainView, uid: Uid) -> dict[str, Any]:
    """Everything the ledger says of one peer."""
    state, parameters = view.state, view.genesis.parameters
    account, announcement, bond = state.accounts[uid], state.announcements[uid], state.bonds[uid]
    voters = state.voters
    index = voters.index_of(account.peer_key)
    return {
        "uid": uid,
        "peer_id": str(view.peer_id(uid)),
        "account": account.owner.hex(),
        "registered": account.registered,
        "stake": state.stake[uid],
        "locked": state.locked(uid, parameters),
        "pending": pending_of(state, uid, parameters) // PENDING_ONE,
        "scaling": state.scaling[uid] / SCALING_ONE,
        "trust": state.trust_of(uid) / TRUST_ONE,
        "rank": state.rank_received.get(uid, 0) / RANK_ONE,
        "power": 0 if index is None else voters.voters[index].power,
        "jailed": bond.jailed or bond.tombstoned,
        "modality": [each.name for each in Modality if each in announcement.modality],
        "dim": announcement.dim,
        "addresses": list(announcement.addresses),
        "weights": {
            str(view.peer_id(other)): weight / WEIGHT_ONE
            for other, weight in state.rows[uid].entries
            if other in state.accounts
        },
    }


def metagraph(view: ChainView) -> dict[str, Any]:
    """Every live peer, with the totals they share."""
    state = view.state
    return {
        "network": view.genesis.network,
        "chain_id": view.genesis.chain_id.hex(),
        "height": view.tip.height,
        "epoch": state.epoch,
        "open": state.is_open,
        "issued": state.issued,
        "pool": state.pool,
        "peers": [peer_row(view, uid) for uid in sorted(state.accounts)],
    }


def explain(view: ChainView, uid: Uid) -> dict[str, Any]:
    """Why a peer earns what it earns, by the mechanism's own quantities (paper, eq. 1 to 5).

    Taken from the newest snapshot, whose outcome takes effect at the next boundary: who gives the
    peer weight (and so rank), whose walks reach it (and so trust), what share of incentive follows.
    """
    state, outcome = view.state, view.outcome()
    position = state.snapshot.position(uid)
    facts: dict[str, Any] = {"peer": peer_row(view, uid), "height": view.tip.height}
    if position is None:
        return {**facts, "in_snapshot": False, "from": []}
    total = sum(outcome.incentive)
    givers = [
        {
            "uid": other,
            "peer_id": str(view.peer_id(other)) if other in state.accounts else "",
            "weight": weight / WEIGHT_ONE,
            "share": outcome.share[at] / SHARE_ONE,
            "rank": outcome.share[at] * weight / SHARE_ONE / WEIGHT_ONE,
        }
        for at, other in enumerate(state.snapshot.uids)
        if (weight := state.snapshot.rows[at].weight_to(uid))
    ]
    return {
        **facts,
        "in_snapshot": True,
        "rank": outcome.rank[position] / RANK_ONE,
        "rank_received": outcome.rank_received[position] / RANK_ONE,
        "connected_share": (outcome.tau[position] + sum(outcome.share)) / 2 / SHARE_ONE,
        "trust": outcome.trust[position] / TRUST_ONE,
        "incentive_share": outcome.incentive[position] / total if total else 0.0,
        "open": outcome.open,
        "scaling_next": outcome.scaling_next[position] / SCALING_ONE,
        "pool": state.pool,
        "from": sorted(givers, key=_by_rank),
        "emission": emission(view, uid),
    }


def emission(view: ChainView, uid: Uid) -> list[dict[str, Any]]:
    """What each row now in force adds to this peer's income per epoch, in base units.

    Every peer j accumulates inflation * s_j a_j per block while the network is open, and hands
    w_ji T_i of it to peer i when it next publishes weights (paper, *Token Inflation*, eq. 5).
    """
    state, parameters = view.state, view.genesis.parameters
    trust = state.trust_of(uid)
    sources = []
    for other in sorted(state.accounts) if state.is_open else ():
        weight = state.rows[other].weight_to(uid)
        if not weight or (other == uid and parameters.self_edge_to_pool):
            continue
        scaled = state.stake[other] * state.scaling[other] // SCALING_ONE
        accrued = scaled * parameters.inflation * parameters.blocks_per_epoch // PENDING_ONE
        sources.append(
            {
                "uid": other,
                "peer_id": str(view.peer_id(other)),
                "accrues": accrued,
                "weight": weight / WEIGHT_ONE,
                "amount": accrued * weight * trust // (WEIGHT_ONE * TRUST_ONE),
            }
        )
    return sources


def tokens(amount: int) -> str:
    """Base units as tokens for people, exact."""
    whole, fraction = divmod(amount, TOKEN)
    text = f"{whole:,}.{fraction:09d}".rstrip("0")
    return text.removesuffix(".")


def _by_rank(giver: dict[str, Any]) -> tuple[float, int]:
    return (-giver["rank"], giver["uid"])
