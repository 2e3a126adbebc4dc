"""From disk to a running engine: what a node knows when it starts, checked before it is used.

Rule: the state is the one after the last final block or the node does not start; an engine is
always built from the last final block, the epoch it belongs to, and everything this key has signed
in that epoch or a later one. Genesis is the root of epoch 0: its hash is the chain id.
"""

from dataclasses import dataclass

from consensus.block import Block, Header
from consensus.codec import Reader
from consensus.crypto import Verifier
from consensus.engine import DRIFT_MS, Engine, EngineConfig
from consensus.engine_message import EpochProof, ProposalMessage, decode_message
from consensus.engine_port import Anchor, EpochStart
from consensus.entries import entries_of, state_of_entries
from consensus.epoch import root_height
from consensus.errors import DecodeError
from consensus.genesis import Genesis, decode_genesis, encode_genesis, genesis_state
from consensus.params import Parameters
from consensus.types import ChainId, Digest, Height, PeerKey, View
from consensus.vote import Certificate, Vote, VoterSet
from node.data_directory import DataDirectory
from node.errors import StoreCorrupt
from node.ledger import Ledger
from node.store import ChainStore, EpochChange, StoredBlock, chain_exists, open_chain_store
from node.vote_log import NEVER, VoteLog, open_vote_log

ROOT_VIEW = View(0)


@dataclass(slots=True, kw_only=True)
class Recovered:
    """The open databases and the ledger at the last final block."""

    store: ChainStore
    vote_log: VoteLog
    ledger: Ledger
    chain_id: ChainId
    parameters: Parameters
    is_new: bool

    def close(self) -> None:
        """Close both databases."""
        self.vote_log.close()
        self.store.close()


def recover(
    directory: DataDirectory,
    genesis: Genesis,
    *,
    peer_key: PeerKey,
    verifier: Verifier,
    fresh_vote_log: bool,
) -> Recovered:
    """Open, or make, the databases of a chain. Raises StoreError and its kinds."""
    chain_id = genesis.chain_id
    existed = chain_exists(directory.chain)
    store = _open_store(directory, genesis)
    try:
        ledger = _load_ledger(directory, store, genesis.parameters, verifier)
        vote_log = open_vote_log(
            directory.votes,
            chain_id=chain_id,
            signer=peer_key,
            chain_exists=existed,
            fresh=fresh_vote_log,
        )
    except BaseException:
        store.close()
        raise
    return Recovered(
        store=store,
        vote_log=vote_log,
        ledger=ledger,
        chain_id=chain_id,
        parameters=genesis.parameters,
        is_new=not existed,
    )


def start_engine(
    recovered: Recovered, *, own_key: PeerKey | None, verifier: Verifier, now_ms: int
) -> Engine:
    """An engine at the last final block; `own_key` None follows without voting.

    A vote log that was lost keeps this key silent until an epoch begins that it cannot have voted
    in; a node that voted before listens for one timeout, in which it would notice a twin.
    """
    parameters, store = recovered.parameters, recovered.store
    start = _epoch_start(recovered)
    tip = store.tip()
    records = recovered.vote_log.records()
    is_lost = recovered.vote_log.first_epoch == NEVER
    config = EngineConfig(
        chain_id=recovered.chain_id,
        blocks_per_epoch=parameters.blocks_per_epoch,
        block_interval_ms=parameters.block_interval_ms,
        view_timeout_ms=parameters.view_timeout_ms,
        own_key=own_key,
        no_vote_before_ms=now_ms + DRIFT_MS if is_lost else -1,
        listen_ms=0 if recovered.is_new or tip.height == 0 else parameters.view_timeout_ms,
    )
    own_log = tuple(
        message
        for record in records
        if isinstance(message := decode_message(record.data), Vote | ProposalMessage)
        and record.epoch >= start.epoch
    )
    in_epoch = tip.height > start.root.height
    state = recovered.ledger.final
    return Engine(
        config,
        verifier,
        start,
        tip=_anchor(tip, View(tip.view)) if in_epoch else None,
        attested_view=state.attests.view if in_epoch else ROOT_VIEW,
        certificate=_tip_certificate(store) if in_epoch else None,
        epoch_proof=_epoch_proof(store, start),
        own_log=own_log,
        # Whoever voted for a block must have it after a restart: it may be final by now.
        blocks=tuple(Block.decode(data) for data in recovered.vote_log.blocks(start.epoch)),
    )


def _open_store(directory: DataDirectory, genesis: Genesis) -> ChainStore:
    if chain_exists(directory.chain):
        return open_chain_store(directory.chain, chain_id=genesis.chain_id)
    state = genesis_state(genesis)
    return open_chain_store(
        directory.chain,
        chain_id=genesis.chain_id,
        genesis=StoredBlock(
            height=0,
            hash=genesis.chain_id,
            epoch=0,
            view=0,
            state_root=state.root,
            header=b"",
            body=encode_genesis(genesis),
        ),
        leaves=dict(entries_of(state)),
        epoch=EpochChange(epoch=0, voter_set=state.voters.encode()),
    )


def _load_ledger(
    directory: DataDirectory, store: ChainStore, parameters: Parameters, verifier: Verifier
) -> Ledger:
    tip = store.tip()
    try:
        state = state_of_entries(store.leaves().items())
    except DecodeError as error:
        raise StoreCorrupt(f"{directory.chain}: the state does not decode: {error}") from None
    if state.root != tip.state_root:
        raise StoreCorrupt(f"{directory.chain}: the state is not that of block {tip.height}")
    return Ledger(parameters, verifier, final=state, final_hash=Digest(tip.hash))


def _epoch_start(recovered: Recovered) -> EpochStart:
    """The epoch that the next block belongs to."""
    store, state = recovered.store, recovered.ledger.final
    height = root_height(state.epoch, recovered.parameters.blocks_per_epoch)
    root, change = store.block(height), store.epoch(state.epoch)
    if root is None or change is None:
        raise StoreCorrupt(f"the root of epoch {state.epoch} at height {height} is missing")
    voters = VoterSet.read(Reader(change.voter_set))
    if height > 0:
        return EpochStart(voters=voters, root=_anchor(root, ROOT_VIEW))
    genesis = decode_genesis(root.body)
    anchor = Anchor(
        hash=Digest(root.hash),
        view=ROOT_VIEW,
        height=Height(0),
        time_ms=genesis.time_ms,
        state_root=Digest(root.state_root),
    )
    return EpochStart(voters=voters, root=anchor)


def _anchor(block: StoredBlock, view: View) -> Anchor:
    header = Header.decode(block.header)
    return Anchor(
        hash=header.hash,
        view=view,
        height=header.height,
        time_ms=header.time_ms,
        state_root=header.state_root,
    )


def _tip_certificate(store: ChainStore) -> Certificate | None:
    newest = store.last_certificate()
    return None if newest is None else Certificate.decode(newest[1])


def _epoch_proof(store: ChainStore, start: EpochStart) -> EpochProof | None:
    change = store.epoch(start.epoch)
    if change is None or not change.proof:
        return None
    message = decode_message(change.proof)
    return message if isinstance(message, EpochProof) else None
