"""The ledger behind a simulated network: executes and builds blocks for all of its replicas.

Rule upheld: a ledger is a pure function of (state, block), so replicas share its results; a
replica still asks for each block that its engine wants executed, on the state that *it* holds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from consensus.block import Block, Body, Header
from consensus.crypto import H
from consensus.engine_port import Anchor, Build, EpochStart, Invalid, Outcome, Valid
from consensus.epoch import boundary_height
from consensus.types import ZERO_DIGEST, AccountId, ChainId, Digest, Epoch, Height, View
from consensus.vote import VoterSet

State: TypeAlias = Any
"""Whatever the ledger makes of it; only handed back to the same ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltBlock:
    """A block that was made, the state after it, and the set that a boundary elects."""

    block: Block
    state: State
    next_voters: VoterSet | None


class Ledger(Protocol):
    """What a simulated network needs of a ledger."""

    @property
    def chain_id(self) -> ChainId:
        """Of the simulated chain."""
        ...

    def genesis(self) -> tuple[State, EpochStart]:
        """The first state and how epoch 0 begins."""
        ...

    def execute(self, state: State, block: Block) -> tuple[State, Outcome]:
        """The state after a block, or the same one and what is wrong."""
        ...

    def build(self, state: State, order: Build, transactions: tuple[bytes, ...]) -> BuiltBlock:
        """Fill a block; transactions and evidence that the state refuses are left out."""
        ...

    def attested_view(self, state: State) -> View:
        """The newest view attested in the current epoch, 0 for none."""
        ...

    def jailed(self, state: State) -> frozenset[AccountId]:
        """Accounts in jail."""
        ...

    def fault(self, state: State) -> str | None:
        """What is wrong with a state that should be impossible, such as supply not conserved."""
        ...


class SketchLedger:
    """A ledger of nothing but its history: the state is a hash, the voters never change.

    For measurements and model checks of the engine alone.
    """

    def __init__(self, chain_id: ChainId, voters: VoterSet, blocks_per_epoch: int) -> None:
        self._chain_id = chain_id
        self._voters = voters
        self._blocks_per_epoch = blocks_per_epoch

    @property
    def chain_id(self) -> ChainId:
        """Of the simulated chain."""
        return self._chain_id

    def genesis(self) -> tuple[State, EpochStart]:
        """State: the chain id as a digest, with no attest."""
        root = Anchor(
            hash=Digest(self._chain_id),
            view=View(0),
            height=Height(0),
            time_ms=0,
            state_root=Digest(self._chain_id),
        )
        return (Digest(self._chain_id), View(0)), EpochStart(voters=self._voters, root=root)

    def execute(self, state: State, block: Block) -> tuple[State, Outcome]:
        """Valid exactly when it is what `build` makes of the same body."""
        built = self._fill(state, block.header, block.body)
        if built.block.hash != block.hash:
            return state, Invalid(fault="not what execution gives")
        return built.state, Valid(next_voters=built.next_voters)

    def build(self, state: State, order: Build, transactions: tuple[bytes, ...]) -> BuiltBlock:
        """All transactions, the attest, no evidence."""
        body = Body(transactions=transactions, attest=order.attest)
        return self._fill(state, order.template, body)

    def attested_view(self, state: State) -> View:
        """The second part of the state."""
        view: View = state[1]
        return view

    def jailed(self, state: State) -> frozenset[AccountId]:
        """Nobody."""
        return frozenset()

    def fault(self, state: State) -> str | None:
        """Nothing can be wrong."""
        return None

    def _fill(self, state: State, template: Header, body: Body) -> BuiltBlock:
        at_boundary = template.height == boundary_height(template.epoch, self._blocks_per_epoch)
        next_voters = (
            VoterSet(epoch=Epoch(template.epoch + 1), voters=self._voters.voters)
            if at_boundary
            else None
        )
        root = H(b"sketch-state", state[0] + body.root)
        header = dataclasses.replace(
            template,
            body_root=body.root,
            state_root=root,
            receipts_root=H(b"sketch-receipts", body.root),
            next_vset_hash=next_voters.hash if next_voters is not None else ZERO_DIGEST,
        )
        attested = body.attest.view if body.attest is not None else state[1]
        after = (root, View(0) if at_boundary else attested)
        return BuiltBlock(
            block=Block(header=header, body=body), state=after, next_voters=next_voters
        )
