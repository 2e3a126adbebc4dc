"""A state in pieces, each of which proves itself against a certified state root.

Rule: piece k of a state holds its leaves k·PIECE_LEAVES … in order, whoever cuts it, with the
Merkle path on either side; so pieces of several peers fit together and a liar is known at once.

    piece   count u64 | first u64 | siblings left u8, right u8, 32 bytes each
            | entries u32, each key 5 bytes and value as u16 length and bytes
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from consensus.codec import Reader, Writer
from consensus.entries import KEY_LENGTH, value_of
from consensus.errors import DecodeError
from consensus.merkle import PROOF_NODES_MAX, RangeProof, verify_range
from consensus.state import State
from consensus.types import Digest

PIECE_LEAVES: Final = 1_536  # at most 600 bytes each: below 1 MiB
VALUE_BYTES_MAX: Final = 65_535
PIECES_MAX: Final = 4_096  # six million leaves: a hundred times the largest table


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of the state's entries with its proof."""

    proof: RangeProof
    entries: tuple[tuple[bytes, bytes], ...]

    @property
    def pieces(self) -> int:
        """How many pieces the whole state has."""
        return -(-self.proof.count // PIECE_LEAVES)


def cut(state: State) -> Iterator[bytes]:
    """The pieces of a sealed state, in order."""
    keys = state.tree.keys
    for first in range(0, len(keys), PIECE_LEAVES):
        part = keys[first : first + PIECE_LEAVES]
        proof = state.tree.proof(first, first + len(part) - 1)
        entries = tuple((key, value_of(state, key)) for key in part)
        yield _encode(Piece(proof=proof, entries=entries))


def read_piece(data: bytes, number: int, root: Digest) -> Piece:
    """Piece `number` of the state under `root`. Raises DecodeError for anything else."""
    reader = Reader(data)
    count, first = reader.u64(), reader.u64()
    left_count = reader.count(reader.u8(), PROOF_NODES_MAX)
    right_count = reader.count(reader.u8(), PROOF_NODES_MAX)
    left = tuple(reader.fixed(32) for _ in range(left_count))
    right = tuple(reader.fixed(32) for _ in range(right_count))
    length = reader.count(reader.u32(), PIECE_LEAVES)
    entries = tuple(
        (reader.fixed(KEY_LENGTH), reader.short(VALUE_BYTES_MAX)) for _ in range(length)
    )
    reader.end()
    if count > PIECES_MAX * PIECE_LEAVES:
        raise DecodeError(f"a state of {count} entries")
    if first != number * PIECE_LEAVES or length != min(PIECE_LEAVES, count - first):
        raise DecodeError(f"not piece {number}: {length} entries from {first} of {count}")
    proof = RangeProof(count=count, first=first, left=left, right=right)
    if not verify_range(root, entries, proof):
        raise DecodeError(f"piece {number} is not of the certified state")
    return Piece(proof=proof, entries=entries)


def encode_offer(height: int, pieces: int) -> bytes:
    """A snapshot that can be had: u64 height, u32 number of pieces."""
    return Writer().u64(height).u32(pieces).done()


def decode_offer(data: bytes) -> tuple[int, int]:
    """The inverse of `encode_offer`. Raises DecodeError."""
    reader = Reader(data)
    height, pieces = reader.u64(), reader.u32()
    reader.end()
    return height, pieces


def _encode(piece: Piece) -> bytes:
    proof = piece.proof
    writer = Writer().u64(proof.count).u64(proof.first).u8(len(proof.left)).u8(len(proof.right))
    _write_all(writer, proof.left)
    _write_all(writer, proof.right)
    writer.u32(len(piece.entries))
    for key, value in piece.entries:
        writer.fixed(key, KEY_LENGTH).short(value)
    return writer.done()


def _write_all(writer: Writer, digests: Sequence[bytes]) -> None:
    for digest in digests:
        writer.fixed(digest, 32)
