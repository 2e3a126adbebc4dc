"""What engines tell each other: proposals, votes, certificates, status and proofs of epochs.

Rule upheld: every message is self-contained; a receiver judges it with its own knowledge of the
chain and never has to trust the sender. One byte names the form, the rest is canonical.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final, TypeAlias

from consensus.block import BODY_BYTES_MAX, BlockKind, Body, Header, Proposal
from consensus.codec import Reader, Writer
from consensus.crypto import Verifier
from consensus.epoch import boundary_height
from consensus.errors import DecodeError
from consensus.types import ChainId, Digest, Epoch, Height, View
from consensus.vote import (
    Certificate,
    Vote,
    VoteKind,
    VoterSet,
    certificate_is_valid,
    decode_whole,
)

PROOF_HEADERS_MAX: Final = 1024
"""Headers in a proof: a boundary and its closing blocks; 330 KiB, far above any honest run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalMessage:
    """A signed header, beside it its body; without one the receiver fetches it by hash."""

    proposal: Proposal
    body: Body | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a node stands: epoch, current view, last final view (0: the root), height and hash."""

    epoch: Epoch
    view: View
    final_view: View
    final_height: Height
    final_hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochProof:
    """That an epoch ended: its set's FINALIZE certificate, the headers from the boundary block to
    the certified one (the same block, or a closing one), and the next set in full.
    """

    certificate: Certificate
    headers: tuple[Header, ...]
    next_voters: VoterSet

    @property
    def epoch(self) -> Epoch:
        """The epoch that ended."""
        return self.certificate.ballot.epoch

    @property
    def boundary(self) -> Header:
        """The header of the boundary block, the root of the next epoch."""
        return self.headers[0]


Message: TypeAlias = ProposalMessage | Vote | Certificate | Status | EpochProof


def epoch_proof_is_valid(
    proof: EpochProof,
    voters: VoterSet,
    chain_id: ChainId,
    blocks_per_epoch: int,
    verifier: Verifier,
) -> bool:
    """Whether `voters` finalised a boundary block that commits to `proof.next_voters`."""
    first, last = proof.headers[0], proof.headers[-1]
    linked = all(
        child.parent_hash == parent.hash
        and child.kind is BlockKind.CLOSING
        and child.height == parent.height + 1
        for parent, child in itertools.pairwise(proof.headers)
    )
    return (
        linked
        and proof.certificate.kind is VoteKind.FINALIZE
        and proof.epoch == voters.epoch
        and all(header.epoch == proof.epoch for header in proof.headers)
        and all(header.chain_id == chain_id for header in proof.headers)
        and first.kind is BlockKind.NORMAL
        and first.height == boundary_height(proof.epoch, blocks_per_epoch)
        and (last.hash, last.view) == (proof.certificate.block_hash, proof.certificate.view)
        and proof.next_voters.epoch == proof.epoch + 1
        and proof.next_voters.hash == first.next_vset_hash
        and certificate_is_valid(proof.certificate, voters, chain_id, verifier)
    )


def message_epoch(message: Message) -> Epoch:
    """The epoch that a message is about."""
    match message:
        case ProposalMessage():
            return message.proposal.header.epoch
        case Vote() | Certificate():
            return message.ballot.epoch
        case Status() | EpochProof():
            return message.epoch


def encode_message(message: Message) -> bytes:
    """One byte for the form, then the canonical encoding."""
    writer = Writer()
    match message:
        case ProposalMessage(proposal=proposal, body=body):
            writer.u8(1).raw(proposal.encode()).flag(body is not None)
            if body is not None:
                writer.raw(body.encode())
        case Vote():
            writer.u8(2).raw(message.encode())
        case Certificate():
            writer.u8(3).raw(message.encode())
        case Status():
            writer.u8(4).u64(message.epoch).u64(message.view).u64(message.final_view)
            writer.u64(message.final_height).fixed(message.final_hash, 32)
        case EpochProof():
            writer.u8(5).raw(message.certificate.encode()).u16(len(message.headers))
            for header in message.headers:
                writer.raw(header.encode())
            writer.raw(message.next_voters.encode())
    return writer.done()


def decode_message(data: bytes) -> Message:
    """The message that `data` is exactly; truths are not checked. Raises DecodeError."""
    return decode_whole(data, _read_message)


def _read_message(reader: Reader) -> Message:
    match reader.u8():
        case 1:
            return _read_proposal(reader)
        case 2:
            return Vote.read(reader)
        case 3:
            return Certificate.read(reader)
        case 4:
            return Status(
                epoch=Epoch(reader.u64()),
                view=View(reader.u64()),
                final_view=View(reader.u64()),
                final_height=Height(reader.u64()),
                final_hash=Digest(reader.fixed(32)),
            )
        case 5:
            return _read_epoch_proof(reader)
        case other:
            raise DecodeError(f"message form {other}")


def _read_proposal(reader: Reader) -> ProposalMessage:
    proposal = Proposal.read(reader)
    body = Body.read(reader) if reader.flag() else None
    if body is not None and body.size_bytes > BODY_BYTES_MAX:
        raise DecodeError(f"a body of {body.size_bytes} bytes")
    if body is not None and body.root != proposal.header.body_root:
        raise DecodeError("the body is not the one that the header commits to")
    return ProposalMessage(proposal=proposal, body=body)


def _read_epoch_proof(reader: Reader) -> EpochProof:
    certificate = Certificate.read(reader)
    count = reader.count(reader.u16(), PROOF_HEADERS_MAX)
    if count < 1:
        raise DecodeError("a proof without headers")
    headers = tuple(Header.read(reader) for _ in range(count))
    return EpochProof(certificate=certificate, headers=headers, next_voters=VoterSet.read(reader))
