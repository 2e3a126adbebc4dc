"""What a node shows of itself and of the ledger, as plain values for JSON.

Rule: a view reads one sealed state and changes nothing but in `submit_encoded`. Amounts are base
units, shares are fractions of the total, keys and hashes hex, peers their ids.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import trio

from consensus.errors import DecodeError
from consensus.params import WEIGHT_ONE
from consensus.state import State
from consensus.transaction import decode_transaction
from consensus.types import PeerKey, Uid
from node.api import Json
from node.chain import Chain
from node.errors import TransactionRefused
from node.market import Market
from node.report import Progress
from p2p.identity import PeerId
from p2p.network import Network

RANK_ONE = 2**52
TRUST_ONE = 2**30


class NodeViews:
    """The `Views` of one node for its local interface."""

    def __init__(
        self,
        chain: Chain,
        market: Market,
        network: Network,
        progress: Callable[[], Progress],
    ) -> None:
        self._chain = chain
        self._market = market
        self._network = network
        self._progress = progress
        self._started_s = time.time()

    def status(self) -> Json:
        """Where the node stands."""
        return {
            "peer_id": str(self._network.peer_id),
            "chain_id": self._chain.chain_id.hex(),
            "addresses": list(self._network.addresses),
            "uptime_s": round(time.time() - self._started_s, 1),
            "state_root": self._chain.state.root.hex(),
            **dataclasses.asdict(self._progress()),
        }

    def peers(self) -> Json:
        """The connected peers; `height` is None for one that has not greeted."""
        heights = self._chain.greeter.heights()
        return [
            {
                "peer_id": str(peer),
                "addresses": list(self._network.addresses_of(peer)),
                "height": heights.get(peer),
                "uid": self._chain.state.uid_of_peer(PeerKey(peer.public_key)),
            }
            for peer in sorted(self._network.peers)
        ]

    def metagraph(self) -> Json:
        """Every peer of the ledger."""
        return metagraph(self._chain.state)

    def weights(self) -> Json:
        """Every row of the ledger."""
        return weights(self._chain.state)

    def gauges(self) -> dict[str, float]:
        """Figures that go up and down."""
        progress = self._progress()
        figures: dict[str, float] = {
            "height": progress.height,
            "epoch": progress.epoch,
            "peers": progress.peers,
            "mempool_transactions": progress.mempool,
            "stake_base_units": progress.stake,
        }
        return figures if progress.loss is None else {**figures, "loss_nats": progress.loss}

    def counters(self) -> dict[str, int]:
        """Figures that only go up."""
        server = self._market.server
        served = {} if server is None else server.counters
        calls = self._market.dendrite.counters
        return {
            **self._network.counters(),
            **self._chain.propagation.counters,
            **self._chain.greeter.counters,
            **{f"calls_{name}": count for name, count in calls.items()},
            **{f"served_{name}": count for name, count in served.items()},
        }

    async def submit_encoded(self, data: bytes) -> Json:
        """Take a transaction signed elsewhere; raises ValueError with the reason."""
        await trio.lowlevel.checkpoint()
        try:
            transaction = decode_transaction(data)
            self._chain.admit(transaction)
        except (DecodeError, TransactionRefused) as error:
            raise ValueError(str(error)) from None
        return {"transaction": transaction.hash.hex()}


def metagraph(state: State) -> list[dict[str, Any]]:
    """Every peer of the ledger: stake, scaling a, trust T, rank from others R, bond, address."""
    total = max(1, state.staked)
    return [
        {
            "uid": uid,
            "peer_id": str(PeerId.from_public_key(account.peer_key)),
            "owner": account.owner.hex(),
            "registered": account.registered,
            "stake": state.stake[uid],
            "stake_share": state.stake[uid] / total,
            "scaling": state.scaling[uid] / TRUST_ONE,
            "trust": state.trust_of(uid) / TRUST_ONE,
            "rank": state.rank_received.get(uid, 0) / RANK_ONE,
            "voter": state.voters.index_of(account.peer_key) is not None,
            "jailed": state.bonds[uid].jailed,
            "modality": str(state.announcements[uid].modality.name),
            "dim": state.announcements[uid].dim,
        }
        for uid, account in sorted(state.accounts.items())
    ]


def weights(state: State) -> list[dict[str, Any]]:
    """Every row of weights, each weight a fraction of 1."""
    return [
        {
            "uid": uid,
            "peer_id": _peer_of(state, Uid(uid)),
            "weights": [
                {"uid": other, "peer_id": _peer_of(state, other), "weight": weight / WEIGHT_ONE}
                for other, weight in row.entries
            ],
        }
        for uid, row in sorted(state.rows.items())
    ]


def _peer_of(state: State, uid: Uid) -> str | None:
    account = state.accounts.get(uid)
    return None if account is None else str(PeerId.from_public_key(account.peer_key))
