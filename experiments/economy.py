"""An economy of peers on the product's own ledger: every peer settles in every epoch.

Rule: nothing of the mechanism is written here. Stake moves only by `consensus.settlement` and
`consensus.transition`; this module makes genesis rows and turns epochs, without blocks or keys.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from consensus import params
from consensus.account import Announcement
from consensus.genesis import Genesis, GenesisAccount, genesis_state
from consensus.params import Parameters
from consensus.settlement import settle
from consensus.transition import end_epoch, step_of
from consensus.types import TOKEN, AccountId, Amount, Modality, PeerKey, Uid
from consensus.weights import Row, rounded_row

Matrix = NDArray[np.float64]
STAKE_TOTAL = 10_000 * TOKEN
"""Small beside the cap: 300 epochs of 2 % multiply it by 380, and the cap must not bind."""


def per_epoch(preset: Parameters, inflation: float) -> Parameters:
    """`preset` with one block per epoch, that inflation in it, and no fees."""
    return dataclasses.replace(
        preset,
        blocks_per_epoch=1,
        inflation=round(inflation * 2**32),
        fee=0,
        bond_min=0,
        commit_reveal=False,
        supply_cap=params.PAPER.supply_cap,
    )


class Economy:
    """Peers with stakes (fractions of the total) and rows of weights (each summing to 1)."""

    def __init__(self, stakes: Sequence[float], weights: Matrix, parameters: Parameters) -> None:
        self.parameters = parameters
        self.state = genesis_state(_genesis(stakes, weights, parameters)).draft()
        self._compute = step_of(parameters)

    def epoch(self) -> None:
        """One block that is an epoch: emission, everybody's settlement, the boundary."""
        state = self.state
        state.height += 1  # type: ignore[assignment]
        if state.is_open:
            state.open_blocks += 1
        for uid in sorted(state.accounts):
            settle(state, uid, 0, self.parameters)
        end_epoch(state, self.parameters, self._compute)

    def share(self, members: Sequence[int]) -> float:
        """The part of all stake that `members` (by position) hold."""
        return sum(self.state.stake[Uid(member)] for member in members) / self.state.staked


def row_of(weights: Sequence[float]) -> Row:
    """The ledger's row nearest to float weights."""
    return rounded_row({Uid(i): round(w * 2**40) for i, w in enumerate(weights) if w > 0})


def _genesis(stakes: Sequence[float], weights: Matrix, parameters: Parameters) -> Genesis:
    announcement = Announcement(modality=Modality.TEXT, dim=1, vocabulary=1)
    total = sum(stakes)
    return Genesis(
        network="experiment",
        time_ms=0,
        modality=Modality.TEXT,
        parameters=parameters,
        pool=Amount(0),
        accounts=tuple(
            GenesisAccount(
                owner=AccountId(b"o" + uid.to_bytes(31, "big")),
                peer_key=PeerKey(b"p" + uid.to_bytes(31, "big")),
                stake=Amount(round(stake / total * STAKE_TOTAL)),
                bond=Amount(0) if uid else Amount(1),
                announcement=announcement,
                row=row_of(weights[uid]),
            )
            for uid, stake in enumerate(stakes)
        ),
    )
