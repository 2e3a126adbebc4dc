"""Blocks: header, body, the leader's signed proposal, and evidence of equivocation.

Rule upheld: one block has one encoding and one hash. The header's hash covers everything: the body
through `body_root`, the state after it through `state_root`, the voters through `vset_hash`.

A **normal** block carries transactions. After the boundary block of an epoch leaders propose empty
**closing** blocks, which exist only to make the boundary final and are then discarded; so one
height has one committed normal block, while closing blocks count heights beyond it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TypeAlias

from consensus.codec import Reader, Writer
from consensus.crypto import Domain, H, Verifier
from consensus.errors import DecodeError
from consensus.types import (
    AccountId,
    ChainId,
    Digest,
    Epoch,
    Height,
    PeerKey,
    Signature,
    View,
)
from consensus.vote import Certificate, Vote, VoteKind, decode_whole

BLOCK_VERSION = 1
"""The only block format there is."""

BODY_BYTES_MAX = 512 * 1024
"""Encoded body: two of them per leader still pass a 10 Mbit/s link within one 1 s interval."""

EVIDENCE_MAX = 4
"""Pieces of evidence in a block: at most 8 header signatures to check, under 1 ms."""

ATTEST_LAG_VIEWS = 2
"""An attest is on an ancestor at least this many views old, so that slow voters are in it."""

ATTEST_DEPTH_MAX = 32
"""An attest is on an ancestor at most this many heights below."""


class BlockKind(enum.IntEnum):
    """Whether a block is part of the chain or only closes an epoch."""

    NORMAL = 0
    CLOSING = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is voted on. `hash` is that of the canonical bytes under the tag "header".

    `state_root` is after the block; `time_ms` is Unix milliseconds; `next_vset_hash` is ZERO_DIGEST
    except in a boundary block; `parent_view` is 0 when the parent is the root of the epoch.
    """

    version: int = BLOCK_VERSION
    chain_id: ChainId
    epoch: Epoch
    view: View
    height: Height
    kind: BlockKind
    parent_hash: Digest
    parent_view: View
    time_ms: int
    proposer: AccountId
    body_root: Digest
    state_root: Digest
    vset_hash: Digest
    next_vset_hash: Digest
    receipts_root: Digest
    hash: Digest = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", H(b"header", self.encode()))

    def encode(self) -> bytes:
        """Canonical bytes: the fields in order; integers u16, u64, u64, u64, u8, ..., u64."""
        writer = Writer()
        writer.u16(self.version)
        writer.fixed(self.chain_id, 32)
        writer.u64(self.epoch)
        writer.u64(self.view)
        writer.u64(self.height)
        writer.u8(self.kind)
        writer.fixed(self.parent_hash, 32)
        writer.u64(self.parent_view)
        writer.u64(self.time_ms)
        writer.fixed(self.proposer, 32)
        writer.fixed(self.body_root, 32)
        writer.fixed(self.state_root, 32)
        writer.fixed(self.vset_hash, 32)
        writer.fixed(self.next_vset_hash, 32)
        writer.fixed(self.receipts_root, 32)
        return writer.done()

    @classmethod
    def read(cls, reader: Reader) -> Header:
        """The next header of `reader`. Raises DecodeError."""
        try:
            return cls(
                version=reader.u16(),
                chain_id=ChainId(reader.fixed(32)),
                epoch=Epoch(reader.u64()),
                view=View(reader.u64()),
                height=Height(reader.u64()),
                kind=BlockKind(reader.u8()),
                parent_hash=Digest(reader.fixed(32)),
                parent_view=View(reader.u64()),
                time_ms=reader.u64(),
                proposer=AccountId(reader.fixed(32)),
                body_root=Digest(reader.fixed(32)),
                state_root=Digest(reader.fixed(32)),
                vset_hash=Digest(reader.fixed(32)),
                next_vset_hash=Digest(reader.fixed(32)),
                receipts_root=Digest(reader.fixed(32)),
            )
        except ValueError as error:
            raise DecodeError(str(error)) from None

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """The header that `data` is exactly. Raises DecodeError."""
        return decode_whole(data, cls.read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A header signed by the peer key of its leader."""

    header: Header
    signature: Signature

    @property
    def hash(self) -> Digest:
        """The header's hash."""
        return self.header.hash

    def encode(self) -> bytes:
        """Canonical bytes: header, signature (64)."""
        return self.header.encode() + self.signature

    @classmethod
    def read(cls, reader: Reader) -> Proposal:
        """The next proposal of `reader`. Raises DecodeError."""
        return cls(header=Header.read(reader), signature=Signature(reader.fixed(64)))

    @classmethod
    def decode(cls, data: bytes) -> Proposal:
        """The proposal that `data` is exactly. Raises DecodeError."""
        return decode_whole(data, cls.read)


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteConflict:
    """Two votes by one key in one view that no one who follows the rules signs."""

    first: Vote
    second: Vote
    vset_hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalConflict:
    """Two different proposals by one leader in one view."""

    first: Proposal
    second: Proposal
    signer: PeerKey


Evidence: TypeAlias = VoteConflict | ProposalConflict


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a block carries. `attest` has a certificate's form without needing a quorum.

    `transactions` are encoded transactions in order of execution, not checked here.
    """

    transactions: tuple[bytes, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    attest: Certificate | None = None
    root: Digest = field(init=False, repr=False)
    size_bytes: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        encoded = self.encode()
        object.__setattr__(self, "root", H(b"body", encoded))
        object.__setattr__(self, "size_bytes", len(encoded))

    def encode(self) -> bytes:
        """Canonical bytes: u32 count of transactions, each u32-prefixed; evidence; attest."""
        writer = Writer()
        writer.u32(len(self.transactions))
        for transaction in self.transactions:
            writer.long(transaction)
        writer.u8(len(self.evidence))
        for piece in self.evidence:
            writer.raw(encode_evidence(piece))
        writer.flag(self.attest is not None)
        if self.attest is not None:
            writer.raw(self.attest.encode())
        return writer.done()

    @classmethod
    def read(cls, reader: Reader) -> Body:
        """The next body of `reader`. Raises DecodeError."""
        count = reader.count(reader.u32(), BODY_BYTES_MAX // 4)
        transactions = tuple(reader.long(BODY_BYTES_MAX) for _ in range(count))
        evidence_count = reader.count(reader.u8(), EVIDENCE_MAX)
        evidence = tuple(read_evidence(reader) for _ in range(evidence_count))
        attest = Certificate.read(reader) if reader.flag() else None
        if attest is not None and (attest.kind is not VoteKind.FINALIZE or not attest.signers):
            raise DecodeError("an attest is of FINALIZE signatures, at least one")
        return cls(transactions=transactions, evidence=evidence, attest=attest)

    @classmethod
    def decode(cls, data: bytes) -> Body:
        """The body that `data` is exactly. Raises DecodeError, also above BODY_BYTES_MAX."""
        if len(data) > BODY_BYTES_MAX:
            raise DecodeError(f"a body of {len(data)} bytes")
        return decode_whole(data, cls.read)


EMPTY_BODY = Body()
"""The body of every closing block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A header with its body. Raises ValueError when the body is not the header's."""

    header: Header
    body: Body

    def __post_init__(self) -> None:
        if self.header.body_root != self.body.root:
            raise ValueError("the body is not the one that the header commits to")

    @property
    def hash(self) -> Digest:
        """The header's hash."""
        return self.header.hash

    @property
    def height(self) -> Height:
        """The header's height."""
        return self.header.height

    def encode(self) -> bytes:
        """Canonical bytes: header, body."""
        return self.header.encode() + self.body.encode()

    @classmethod
    def decode(cls, data: bytes) -> Block:
        """The block that `data` is exactly. Raises DecodeError."""

        def read(reader: Reader) -> Block:
            header, body = Header.read(reader), Body.read(reader)
            if body.size_bytes > BODY_BYTES_MAX:
                raise DecodeError(f"a body of {body.size_bytes} bytes")
            try:
                return cls(header=header, body=body)
            except ValueError as error:
                raise DecodeError(str(error)) from None

        return decode_whole(data, read)


def proposal_is_valid(proposal: Proposal, leader: PeerKey, verifier: Verifier) -> bool:
    """Whether `leader` signed the header's hash in Domain.PROPOSAL for the header's chain."""
    header = proposal.header
    return verifier.verify(
        leader, Domain.PROPOSAL, header.chain_id, header.hash, proposal.signature
    )


def votes_conflict(first: Vote, second: Vote) -> bool:
    """Whether one key broke a rule by signing both: N+N', F+F' or F+S in one view."""
    a, b = first.ballot, second.ballot
    if (first.signer, a.epoch, a.view) != (second.signer, b.epoch, b.view):
        return False
    if a.kind is b.kind:
        return a.block_hash != b.block_hash
    return {a.kind, b.kind} == {VoteKind.FINALIZE, VoteKind.NULLIFY}


def evidence_of_votes(first: Vote, second: Vote, vset_hash: Digest) -> VoteConflict:
    """The evidence in its one order (by encoding), so that one offence has one form."""
    low, high = sorted((first, second), key=Vote.encode)
    return VoteConflict(first=low, second=high, vset_hash=vset_hash)


def evidence_of_proposals(first: Proposal, second: Proposal, signer: PeerKey) -> ProposalConflict:
    """The evidence in its one order (by encoding)."""
    low, high = sorted((first, second), key=Proposal.encode)
    return ProposalConflict(first=low, second=high, signer=signer)


def evidence_offence(evidence: Evidence) -> tuple[PeerKey, Epoch, View]:
    """The key that offended and where: evidence counts once per such triple."""
    match evidence:
        case VoteConflict():
            ballot = evidence.first.ballot
            return evidence.first.signer, ballot.epoch, ballot.view
        case ProposalConflict():
            header = evidence.first.header
            return evidence.signer, header.epoch, header.view


def evidence_is_valid(evidence: Evidence, chain_id: ChainId, verifier: Verifier) -> bool:
    """Whether both signatures hold on this chain, conflict, and stand in their one order."""
    if evidence.first.encode() >= evidence.second.encode():
        return False
    match evidence:
        case VoteConflict(first=first, second=second, vset_hash=vset_hash):
            return votes_conflict(first, second) and all(
                verifier.verify(
                    vote.signer,
                    Domain.VOTE,
                    chain_id,
                    vote.ballot.payload(vset_hash),
                    vote.signature,
                )
                for vote in (first, second)
            )
        case ProposalConflict(first=one, second=other, signer=signer):
            a, b = one.header, other.header
            return (
                (a.chain_id, a.epoch, a.view) == (chain_id, b.epoch, b.view)
                and b.chain_id == chain_id
                and a.hash != b.hash
                and proposal_is_valid(one, signer, verifier)
                and proposal_is_valid(other, signer, verifier)
            )


def encode_evidence(evidence: Evidence) -> bytes:
    """Canonical bytes: u8 form (1 votes, 2 proposals), both statements, vset hash or key (32)."""
    writer = Writer()
    match evidence:
        case VoteConflict():
            writer.u8(1).raw(evidence.first.encode()).raw(evidence.second.encode())
            writer.fixed(evidence.vset_hash, 32)
        case ProposalConflict():
            writer.u8(2).raw(evidence.first.encode()).raw(evidence.second.encode())
            writer.fixed(evidence.signer, 32)
    return writer.done()


def read_evidence(reader: Reader) -> Evidence:
    """The next evidence of `reader`; its truth is not checked. Raises DecodeError."""
    match reader.u8():
        case 1:
            return VoteConflict(
                first=Vote.read(reader),
                second=Vote.read(reader),
                vset_hash=Digest(reader.fixed(32)),
            )
        case 2:
            return ProposalConflict(
                first=Proposal.read(reader),
                second=Proposal.read(reader),
                signer=PeerKey(reader.fixed(32)),
            )
        case other:
            raise DecodeError(f"evidence form {other}")
