"""What this node can answer: its genesis, its final chain, and what the engine holds above it.

Each answerer follows the meaning that `messages.Question` gives its arguments; sizes and counts are
bounded by the store's own limits here and by the server's after.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import trio

from consensus.block import Block, Header
from consensus.types import Digest, Epoch, View
from consensus.vote import Certificate
from node.store import ChainStore

from .messages import GENESIS_PIECE_BYTES, REPLY_BYTES_MAX, Question, Request
from .server import Answerer
from .snapshot import encode_offer

BLOCKS_MAX: Final = 512
PROOFS_MAX: Final = 256
ANCESTRY_MAX: Final = 64  # blocks walked back from one hash


class Unfinished(Protocol):
    """The engine's queries for blocks and certificates that are not final."""

    def block(self, block_hash: Digest) -> Block | None:
        """A held block."""

    def certificates(self, epoch: Epoch, first: View, last: View) -> tuple[Certificate, ...]:
        """Held certificates of the current epoch."""


def answerers(
    genesis: bytes, store: ChainStore, unfinished: Unfinished | None
) -> Mapping[Question, Answerer]:
    """All answerers of a node; `unfinished` is None while it orders nothing yet."""

    async def answer_genesis(request: Request) -> Sequence[bytes]:
        await trio.lowlevel.checkpoint()
        first = request.number * GENESIS_PIECE_BYTES
        return [genesis[first : first + GENESIS_PIECE_BYTES]] if first <= len(genesis) else []

    async def answer_proofs(request: Request) -> Sequence[bytes]:
        count = min(request.count, PROOFS_MAX)
        changes = await trio.to_thread.run_sync(
            lambda: store.epochs(request.number + 1, count_max=count, bytes_max=REPLY_BYTES_MAX)
        )
        return [change.proof for change in changes if change.proof]

    async def answer_blocks(request: Request) -> Sequence[bytes]:
        count = min(request.count, BLOCKS_MAX)
        blocks = await trio.to_thread.run_sync(
            lambda: store.blocks(request.number, count_max=count, bytes_max=REPLY_BYTES_MAX)
        )
        return [block.header + block.body for block in blocks if block.height > 0]

    async def answer_ancestry(request: Request) -> Sequence[bytes]:
        found: list[bytes] = []
        block_hash, size = request.hash, 0
        while len(found) < ANCESTRY_MAX and size < REPLY_BYTES_MAX:
            held = unfinished.block(block_hash) if unfinished is not None else None
            if held is not None:
                header, encoded = held.header, held.encode()
            else:
                final = await trio.to_thread.run_sync(store.block_by_hash, block_hash)
                if final is None or final.height == 0:
                    break
                header, encoded = Header.decode(final.header), final.header + final.body
            if header.height <= request.number and found:
                break
            found.append(encoded)
            size += len(encoded)
            block_hash = header.parent_hash
        return found

    async def answer_certificates(request: Request) -> Sequence[bytes]:
        await trio.lowlevel.checkpoint()
        if unfinished is None or request.count < 1:
            return []
        last = View(request.first + request.count - 1)
        known = unfinished.certificates(Epoch(request.number), View(request.first), last)
        return [certificate.encode() for certificate in known]

    async def answer_tip(_request: Request) -> Sequence[bytes]:
        newest = await trio.to_thread.run_sync(store.last_certificate)
        return [] if newest is None else [newest[1]]

    async def answer_snapshots(_request: Request) -> Sequence[bytes]:
        kept = await trio.to_thread.run_sync(store.snapshots)
        return [encode_offer(height, pieces) for height, pieces in kept]

    async def answer_piece(request: Request) -> Sequence[bytes]:
        piece = await trio.to_thread.run_sync(store.snapshot_chunk, request.number, request.first)
        return [] if piece is None else [piece]

    return {
        Question.GENESIS: answer_genesis,
        Question.EPOCH_PROOFS: answer_proofs,
        Question.BLOCKS: answer_blocks,
        Question.ANCESTRY: answer_ancestry,
        Question.CERTIFICATES: answer_certificates,
        Question.TIP: answer_tip,
        Question.SNAPSHOTS: answer_snapshots,
        Question.SNAPSHOT_PIECE: answer_piece,
    }
