"""Proof of work for a subscription: how a peer without stake enters (paper, section 5).

Rule: digest = H(tag, chain id || owner key || peer key || hash of an ancestor 2 to 64 heights
below the block || u64) must be below the target. The ancestor makes work perishable, the keys make
it personal, and two heights of distance keep it valid while the newest block is still contested.
The target follows demand: wanted / found per epoch, clamped to a quarter and four times.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

from consensus.crypto import H
from consensus.params import Parameters
from consensus.types import AccountId, ChainId, Digest, PeerKey

SUBSCRIPTIONS_PER_BLOCK_MAX: Final = 4
ANCESTOR_DEPTH_MIN: Final = 2
ANCESTOR_DEPTH_MAX: Final = 64
BLOCKS_PER_SUBSCRIPTION: Final = 10
"""Wanted: one subscription by work in this many blocks."""
RETARGET_FACTOR_MAX: Final = 4
_TAG: Final = b"work"


def work_digest(
    chain_id: ChainId, owner: AccountId, peer_key: PeerKey, ancestor: Digest, work: int
) -> Digest:
    """What has to be below the target, as a big-endian integer."""
    return H(_TAG, chain_id + owner + peer_key + ancestor + work.to_bytes(8, "big"))


def is_enough(digest: Digest, target: int) -> bool:
    """Whether the work is done."""
    return int.from_bytes(digest, "big") < target


def find_work(
    chain_id: ChainId,
    owner: AccountId,
    peer_key: PeerKey,
    ancestor: Digest,
    target: int,
    *,
    start: int = 0,
    tries: int = 2**20,
) -> int | None:
    """The first number from `start` that is enough, None after `tries`; for clients.

    About two million tries a second: callers cut the search into slices, since the ancestor ages.
    """
    prefix = blake3(_TAG + b"\x00" + chain_id + owner + peer_key + ancestor)
    limit = target.to_bytes(33, "big")[1:] if target < 2**256 else b"\xff" * 32
    for work in range(start, min(start + tries, 2**64)):
        attempt = prefix.copy()
        attempt.update(work.to_bytes(8, "big"))
        if attempt.digest() < limit:
            return work
    return None


def next_target(target: int, found: int, parameters: Parameters) -> int:
    """The target of the next epoch: easier when fewer were found than wanted, harder when more.

    Never easier than the genesis target: an idle chain must not become free to flood.
    """
    wanted = parameters.blocks_per_epoch
    scaled = target * wanted // (found * BLOCKS_PER_SUBSCRIPTION) if found else 2**256
    low, high = target // RETARGET_FACTOR_MAX, target * RETARGET_FACTOR_MAX
    return max(1, min(max(scaled, low), high, parameters.work_target))
