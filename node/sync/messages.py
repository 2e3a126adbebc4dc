"""The values of `/agora/status/1` and `/agora/sync/1`, in the canonical codec of the ledger.

A greeting is a `Status`, answered by a `Status` or a `Goodbye`. A question is a `Request`,
answered by one
`Reply`: how it went and a list of items, each the canonical bytes of a consensus value, which
only the asker decodes and checks. Nothing in a reply is believed.

    Status    version u16, chain id 32, epoch u64, height u64, final hash 32, payload max u32
    Goodbye   reason u8, version u16, chain id 32
    Request   question u8, number u64, first u64, count u16, hash 32
    Reply     outcome u8, items u16, then each item as u32 length and bytes
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self, TypeVar

from consensus.codec import Reader, Writer
from consensus.errors import DecodeError
from consensus.types import ZERO_DIGEST, ChainId, Digest, Epoch, Height

PROTOCOL_VERSION: Final = 1
REPLY_BYTES_MAX: Final = 4 * 1024 * 1024  # the codec's own bound: one reply fits in memory twice
ITEM_BYTES_MAX: Final = REPLY_BYTES_MAX - 64
ITEMS_MAX: Final = 1_024  # more than the blocks or proofs that fit in a reply
REQUEST_BYTES_MAX: Final = 64
GENESIS_PIECE_BYTES: Final = 1024 * 1024  # a shorter piece is the last; 16 MiB in all at most
GREETING_BYTES_MAX: Final = 128

E = TypeVar("E", bound=IntEnum)


class Question(IntEnum):
    """What can be asked; the arguments of a request mean what is said here."""

    GENESIS = 1  # piece `number` of the canonical genesis, GENESIS_PIECE_BYTES each
    EPOCH_PROOFS = 2  # `count` proofs, of epoch `number` and those after it
    BLOCKS = 3  # `count` final blocks from height `number` on
    ANCESTRY = 4  # the block with `hash` and its ancestors above height `number`, newest first
    CERTIFICATES = 5  # of `count` views of epoch `number` from view `first` on
    TIP = 6  # no arguments: the newest certificate of a final block
    SNAPSHOTS = 7  # no arguments: the snapshots that can be had
    SNAPSHOT_PIECE = 8  # piece `first` of the snapshot at height `number`


class Outcome(IntEnum):
    """How a question went."""

    FOUND = 0
    UNKNOWN = 1  # this node does not have it (any more)
    BUSY = 2  # over the quota of this asker; ask again later


class Parting(IntEnum):
    """Why a greeting is answered with a goodbye."""

    VERSION = 1
    CHAIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a node says of itself: its chain and how far it is."""

    version: int
    chain_id: ChainId
    epoch: Epoch
    height: Height
    final_hash: Digest
    payload_bytes_max: int

    def encode(self) -> bytes:
        """Canonical bytes, after a u8 that tells a status (0) from a goodbye (1)."""
        writer = Writer().u8(0).u16(self.version).fixed(self.chain_id, 32).u64(self.epoch)
        return writer.u64(self.height).fixed(self.final_hash, 32).u32(self.payload_bytes_max).done()


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """Why two nodes do not belong together, and what this one is."""

    reason: Parting
    version: int
    chain_id: ChainId

    def encode(self) -> bytes:
        """Canonical bytes, after a u8 that tells a status (0) from a goodbye (1)."""
        return Writer().u8(1).u8(self.reason).u16(self.version).fixed(self.chain_id, 32).done()


def decode_greeting(data: bytes) -> Status | Goodbye:
    """Decode what was said at a handshake. Raises DecodeError."""
    reader = Reader(data)
    greeting: Status | Goodbye
    if reader.flag():
        reason, version = _member(Parting, reader.u8()), reader.u16()
        greeting = Goodbye(reason=reason, version=version, chain_id=ChainId(reader.fixed(32)))
    else:
        greeting = Status(
            version=reader.u16(),
            chain_id=ChainId(reader.fixed(32)),
            epoch=Epoch(reader.u64()),
            height=Height(reader.u64()),
            final_hash=Digest(reader.fixed(32)),
            payload_bytes_max=reader.u32(),
        )
    reader.end()
    return greeting


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question; arguments that a question does not use are zero."""

    question: Question
    number: int = 0
    first: int = 0
    count: int = 0
    hash: Digest = ZERO_DIGEST

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = Writer().u8(self.question).u64(self.number).u64(self.first)
        return writer.u16(self.count).fixed(self.hash, 32).done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a request. Raises DecodeError."""
        reader = Reader(data)
        request = cls(
            question=_member(Question, reader.u8()),
            number=reader.u64(),
            first=reader.u64(),
            count=reader.u16(),
            hash=Digest(reader.fixed(32)),
        )
        reader.end()
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer: canonical bytes of consensus values, unchecked."""

    outcome: Outcome
    items: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = Writer().u8(self.outcome).u16(len(self.items))
        for item in self.items:
            writer.long(item)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a reply. Raises DecodeError."""
        reader = Reader(data)
        outcome = _member(Outcome, reader.u8())
        count = reader.count(reader.u16(), ITEMS_MAX)
        items = tuple(reader.long(ITEM_BYTES_MAX) for _ in range(count))
        reader.end()
        return cls(outcome=outcome, items=items)


def _member(kind: type[E], value: int) -> E:
    try:
        return kind(value)
    except ValueError:
        raise DecodeError(f"{value} is not a {kind.__name__}") from None
