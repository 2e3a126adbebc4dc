"""The product's own state transition behind a simulated network, and a genesis for it.

Rule upheld: replicas execute with `consensus.transition` alone. Results are shared between the
replicas of one run, because a sealed state is a value and the hash of a block names its whole
history; one seed in twenty runs without sharing and with real signatures.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Final

from consensus.account import Announcement
from consensus.block import Block
from consensus.crypto import (
    Ed25519Signer,
    Ed25519Verifier,
    KeyedHashSigner,
    KeyedHashVerifier,
    Signer,
    Verifier,
)
from consensus.engine_port import Anchor, Build, EpochStart, Invalid, Outcome, Valid
from consensus.errors import InvalidBlock, InvariantViolation
from consensus.genesis import Genesis, GenesisAccount, genesis_state
from consensus.params import LOCAL, Parameters
from consensus.state import State
from consensus.transaction import (
    Content,
    Role,
    SetWeights,
    Transfer,
    Unjail,
    Unvalidate,
    Validate,
    role_of,
)
from consensus.transition import propose, state_transition
from consensus.types import (
    TOKEN,
    AccountId,
    Amount,
    ChainId,
    Digest,
    Height,
    Modality,
    PeerKey,
    Uid,
    View,
)
from consensus.vote import VoterSet
from consensus.wallet import draft_of
from consensus.weights import Row, rounded_row, self_row
from node.simulator.ledger import BuiltBlock

SPARE_ACCOUNTS: Final = 2
"""Accounts beside the replicas', so that stake has somewhere to go."""


class ChainLedger:
    """Executes with the product's transition; keeps what it computed while `shares`."""

    def __init__(self, genesis: Genesis, verifier: Verifier, *, shares: bool) -> None:
        self.parameters: Parameters = genesis.parameters
        self._genesis = genesis
        self._verifier = verifier
        self._shares = shares
        self._done: dict[Digest, tuple[State, Outcome]] = {}
        self.chain_id: ChainId = genesis.chain_id

    def genesis(self) -> tuple[State, EpochStart]:
        """The state at height 0, and epoch 0 with genesis as its root."""
        state = genesis_state(self._genesis)
        root = Anchor(
            hash=Digest(self.chain_id),
            view=View(0),
            height=Height(0),
            time_ms=self._genesis.time_ms,
            state_root=state.root,
        )
        return state, EpochStart(voters=state.voters, root=root)

    def execute(self, state: State, block: Block) -> tuple[State, Outcome]:
        """The state after `block`, or the same one and the reason."""
        if self._shares and block.hash in self._done:
            return self._done[block.hash]
        try:
            after = state_transition(state, block, self.parameters, verifier=self._verifier)
            result: tuple[State, Outcome] = after, Valid(next_voters=_elected(block, after))
        except InvalidBlock as error:
            result = state, Invalid(fault=str(error))
        self._done[block.hash] = result
        return result

    def build(self, state: State, order: Build, transactions: tuple[bytes, ...]) -> BuiltBlock:
        """What fits of the transactions, the evidence the state accepts, the attest."""
        block, after = propose(
            state,
            order.template,
            transactions,
            order.evidence,
            order.attest,
            self.parameters,
            verifier=self._verifier,
        )
        elected = _elected(block, after)
        self._done[block.hash] = after, Valid(next_voters=elected)
        return BuiltBlock(block=block, state=after, next_voters=elected)

    def attested_view(self, state: State) -> View:
        """The newest view attested in the current epoch, 0 for none."""
        return state.attests.view

    def jailed(self, state: State) -> frozenset[AccountId]:
        """Owners of the bonds in jail."""
        return frozenset(
            state.accounts[uid].owner for uid, bond in sorted(state.bonds.items()) if bond.jailed
        )

    def fault(self, state: State) -> str | None:
        """Whether stake and pool still sum to what was issued, counted from the start."""
        total = sum(state.stake.values()) + state.pool
        if total != state.issued:
            return f"stake and pool are {total}, issued {state.issued}"
        try:
            state.check_supply(self.parameters)
        except InvariantViolation as error:
            return str(error)
        return None


class Workload:
    """Transactions of the accounts, at random: the sets, stakes and rows keep moving.

    Only accounts with a replica vote, and `steady` ones (of liars) neither raise their bonds nor
    leave, so that what is assumed of the voters stays true as far as transactions go.
    """

    def __init__(
        self, ledger: ChainLedger, owners: list[Signer], peers: list[Signer], chance: random.Random
    ) -> None:
        self._ledger = ledger
        self._owners = owners
        self._peers = peers
        self._chance = chance
        self.steady: set[int] = set(range(len(owners) - SPARE_ACCOUNTS, len(owners)))

    def transaction(self, state: State) -> bytes | None:
        """A signed transaction that fits on `state`, or None this time."""
        who = self._chance.randrange(len(self._owners))
        owner = AccountId(self._owners[who].public_key)
        uid = state.uid_of_owner[owner]
        content = self._content(state, uid, who)
        signer = self._peers[who] if role_of(content) is Role.PEER else self._owners[who]
        draft = draft_of(state, self._ledger.parameters, owner, content)
        return draft.sign(signer).encoded

    def _content(self, state: State, uid: Uid, who: int) -> Content:
        bond = state.bonds[uid]
        if who not in self.steady and self._chance.random() < 0.5:
            if bond.jailed:
                return Unjail()
            if bond.validating and len(state.voters) > 4 and self._chance.random() < 0.3:
                return Unvalidate()
            return Validate(bond=Amount(bond.amount + self._chance.randrange(2 * TOKEN)))
        if self._chance.random() < 0.5:
            scores = {Uid(u): self._chance.randint(1, 9) for u in state.accounts if u != uid}
            return SetWeights(row=rounded_row(scores))
        recipient = self._chance.choice([o for i, o in enumerate(self._owners) if i != who])
        amount = Amount(self._chance.randint(1, TOKEN))
        return Transfer(recipient=AccountId(recipient.public_key), amount=amount)


def simulated_genesis(
    powers: list[int], *, parameters: Parameters, owners: list[Signer], peers: list[Signer]
) -> Genesis:
    """Account i bonds `powers[i]` tokens; the spare accounts bond nothing. Weights in a ring."""
    count = len(owners)
    accounts = tuple(
        GenesisAccount(
            owner=AccountId(owners[i].public_key),
            peer_key=PeerKey(peers[i].public_key),
            stake=Amount((powers[i] if i < len(powers) else 1) * 10 * TOKEN),
            bond=Amount(powers[i] * TOKEN) if i < len(powers) else None,
            announcement=Announcement(modality=Modality.TEXT, dim=8, vocabulary=256),
            row=_ring_row(i, count),
        )
        for i in range(count)
    )
    return Genesis(
        network="simulated",
        time_ms=0,
        modality=Modality.TEXT,
        parameters=parameters,
        accounts=accounts,
        pool=Amount(0),
    )


def simulated_keys(count: int, seed: int, *, real: bool) -> tuple[list[Signer], Verifier]:
    """Signers from a seed: keyed hashes, or Ed25519 when `real`."""
    seeds = [
        b"simulated-key" + seed.to_bytes(8, "big") + i.to_bytes(11, "big") for i in range(count)
    ]
    if real:
        return [Ed25519Signer(each) for each in seeds], Ed25519Verifier()
    return [KeyedHashSigner(each) for each in seeds], KeyedHashVerifier()


def simulated_parameters(block_interval_ms: int, view_timeout_ms: int, blocks: int) -> Parameters:
    """LOCAL with other times."""
    return dataclasses.replace(
        LOCAL,
        block_interval_ms=block_interval_ms,
        view_timeout_ms=view_timeout_ms,
        blocks_per_epoch=blocks,
    )


def _ring_row(index: int, count: int) -> Row:
    if count == 1:
        return self_row(Uid(0))
    return rounded_row({Uid((index + step) % count): 3 - step for step in (1, 2) if step < count})


def _elected(block: Block, after: State) -> VoterSet | None:
    return after.voters if after.epoch != block.header.epoch else None
