"""What a node shows of itself and of the ledger, as plain values for JSON; pure.

Amounts are base units, shares are fractions of the total, keys and hashes hex, peers their ids.
"""

from typing import Any

from consensus.params import WEIGHT_ONE
from consensus.state import State
from consensus.types import Uid
from p2p.identity import PeerId

RANK_ONE = 2**52
TRUST_ONE = 2**30


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
