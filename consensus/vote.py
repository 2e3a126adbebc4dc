"""Votes, voter sets and certificates: what a quorum of stake has signed.

Rule upheld: a certificate stands for more than two thirds of one voter set's power, each signer
counted once, every signature valid over this chain, this epoch and exactly this set. So any two
quorums of a set share a voter that follows the rules, while less than a third of the power breaks
them. Powers are Python integers; the quorum of a total power W is ``2 * W // 3 + 1``.

A vote signs ``DOMAIN(16) || chain id(32) || kind || epoch || view || block hash || vset hash``:
the set is bound, so that a signature never counts in a set of the same epoch computed differently.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from consensus.codec import Reader, Writer
from consensus.crypto import Domain, H, Verifier
from consensus.errors import DecodeError
from consensus.types import (
    ZERO_DIGEST,
    AccountId,
    ChainId,
    Digest,
    Epoch,
    PeerKey,
    Signature,
    View,
)

VOTERS_MAX = 128
"""Members of a voter set: 67 x 56 us a certificate at 100 members is what two cores carry."""

POWER_TOTAL_MAX = 2**63 - 1
"""Total power of a set; issued stake is below 2**55, so this is never reached honestly."""

NO_BLOCK = ZERO_DIGEST
"""The block hash of a NULLIFY vote: it names a view only."""

T = TypeVar("T")


class VoteKind(enum.IntEnum):
    """What a voter says of a view: its block is valid; it has none; its block is decided."""

    NOTARIZE = 1
    NULLIFY = 2
    FINALIZE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """A member of a set: its account, the peer key that signs, its power (at least 1)."""

    account: AccountId
    peer_key: PeerKey
    power: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VoterSet:
    """The voters of one epoch in ascending order of account; indices refer to that order.

    Raises ValueError when empty, too large, unsorted, with a key twice, or a power below 1.
    """

    epoch: Epoch
    voters: tuple[Voter, ...]
    total: int = field(init=False)
    hash: Digest = field(init=False)
    _index_of_key: Mapping[PeerKey, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        accounts = [voter.account for voter in self.voters]
        index_of_key = {voter.peer_key: index for index, voter in enumerate(self.voters)}
        if not 1 <= len(accounts) <= VOTERS_MAX:
            raise ValueError(f"a voter set has 1 to {VOTERS_MAX} members, not {len(accounts)}")
        if any(a >= b for a, b in itertools.pairwise(accounts)):
            raise ValueError("voters are not in strictly ascending order of account")
        if len(index_of_key) != len(accounts):
            raise ValueError("a peer key occurs twice in the voter set")
        if any(voter.power < 1 for voter in self.voters):
            raise ValueError("a voter has no power")
        total = sum(voter.power for voter in self.voters)
        if total > POWER_TOTAL_MAX:
            raise ValueError("total power out of range")
        object.__setattr__(self, "total", total)
        object.__setattr__(self, "hash", H(b"vset", self.encode()))
        object.__setattr__(self, "_index_of_key", index_of_key)

    @property
    def quorum(self) -> int:
        """The least power that is more than two thirds of the total."""
        return quorum(self.total)

    def index_of(self, peer_key: PeerKey) -> int | None:
        """The index of the voter that signs with `peer_key`, None for a stranger."""
        return self._index_of_key.get(peer_key)

    def power_of(self, indices: Iterable[int]) -> int:
        """The summed power of distinct indices."""
        return sum(self.voters[index].power for index in indices)

    def __len__(self) -> int:
        return len(self.voters)

    def __iter__(self) -> Iterator[Voter]:
        return iter(self.voters)

    def encode(self) -> bytes:
        """Canonical bytes: epoch u64, count u16, then account, peer key, power u64 of each."""
        writer = Writer()
        writer.u64(self.epoch)
        writer.u16(len(self.voters))
        for voter in self.voters:
            writer.fixed(voter.account, 32)
            writer.fixed(voter.peer_key, 32)
            writer.u64(voter.power)
        return writer.done()

    @classmethod
    def read(cls, reader: Reader) -> VoterSet:
        """The next set of `reader`. Raises DecodeError."""
        epoch = Epoch(reader.u64())
        count = reader.u16()
        if count > VOTERS_MAX:
            raise DecodeError(f"{count} voters")
        voters = tuple(
            Voter(
                account=AccountId(reader.fixed(32)),
                peer_key=PeerKey(reader.fixed(32)),
                power=reader.u64(),
            )
            for _ in range(count)
        )
        try:
            return cls(epoch=epoch, voters=voters)
        except ValueError as error:
            raise DecodeError(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """What a vote says, unsigned: kind, epoch, view and the block (NO_BLOCK for NULLIFY)."""

    kind: VoteKind
    epoch: Epoch
    view: View
    block_hash: Digest

    def __post_init__(self) -> None:
        if (self.kind is VoteKind.NULLIFY) != (self.block_hash == NO_BLOCK):
            raise ValueError("exactly the NULLIFY votes name no block")
        if self.view < 1:
            raise ValueError("view 0 is the root of the epoch and is never voted on")

    def payload(self, vset_hash: Digest) -> bytes:
        """What a voter of the set `vset_hash` signs in Domain.VOTE: encoding, then the set."""
        return self.encode() + vset_hash

    def encode(self) -> bytes:
        """Canonical bytes: kind u8, epoch u64, view u64, block hash (32)."""
        writer = Writer()
        writer.u8(self.kind)
        writer.u64(self.epoch)
        writer.u64(self.view)
        writer.fixed(self.block_hash, 32)
        return writer.done()

    @classmethod
    def read(cls, reader: Reader) -> Ballot:
        """The next ballot of `reader`. Raises DecodeError."""
        try:
            return cls(
                kind=VoteKind(reader.u8()),
                epoch=Epoch(reader.u64()),
                view=View(reader.u64()),
                block_hash=Digest(reader.fixed(32)),
            )
        except ValueError as error:
            raise DecodeError(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A ballot signed by the peer key `signer`."""

    ballot: Ballot
    signer: PeerKey
    signature: Signature

    def encode(self) -> bytes:
        """Canonical bytes: the ballot, the signer's key (32), the signature (64)."""
        return self.ballot.encode() + self.signer + self.signature

    @classmethod
    def read(cls, reader: Reader) -> Vote:
        """The next vote of `reader`. Raises DecodeError."""
        return cls(
            ballot=Ballot.read(reader),
            signer=PeerKey(reader.fixed(32)),
            signature=Signature(reader.fixed(64)),
        )

    @classmethod
    def decode(cls, data: bytes) -> Vote:
        """The vote that `data` is exactly. Raises DecodeError."""
        return decode_whole(data, cls.read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Signatures on one ballot by members of the epoch's set, in ascending order of index.

    `voter_count` is the size of that set. An attest has the same form without needing a quorum.
    Raises ValueError when the indices are not strictly ascending below `voter_count`.
    """

    ballot: Ballot
    voter_count: int
    signers: tuple[int, ...]
    signatures: tuple[Signature, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.voter_count <= VOTERS_MAX:
            raise ValueError(f"a set of {self.voter_count} voters")
        if len(self.signers) != len(self.signatures):
            raise ValueError("not one signature for each signer")
        if any(a >= b for a, b in itertools.pairwise(self.signers)):
            raise ValueError("signers are not strictly ascending")
        if self.signers and (self.signers[0] < 0 or self.signers[-1] >= self.voter_count):
            raise ValueError("a signer outside the set")

    @property
    def kind(self) -> VoteKind:
        """The ballot's kind."""
        return self.ballot.kind

    @property
    def view(self) -> View:
        """The ballot's view."""
        return self.ballot.view

    @property
    def block_hash(self) -> Digest:
        """The ballot's block."""
        return self.ballot.block_hash

    def encode(self) -> bytes:
        """Canonical bytes: ballot, set size u16, bitmap (bit i of byte i // 8), signatures."""
        writer = Writer()
        writer.raw(self.ballot.encode())
        writer.u16(self.voter_count)
        bitmap = bytearray((self.voter_count + 7) // 8)
        for index in self.signers:
            bitmap[index // 8] |= 1 << (index % 8)
        writer.raw(bytes(bitmap))
        for signature in self.signatures:
            writer.fixed(signature, 64)
        return writer.done()

    @classmethod
    def read(cls, reader: Reader) -> Certificate:
        """The next certificate of `reader`. Raises DecodeError, also for bits past the set."""
        ballot = Ballot.read(reader)
        voter_count = reader.u16()
        if not 1 <= voter_count <= VOTERS_MAX:
            raise DecodeError(f"a set of {voter_count} voters")
        bitmap = reader.fixed((voter_count + 7) // 8)
        signers = tuple(i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> (i % 8) & 1)
        if signers and signers[-1] >= voter_count:
            raise DecodeError("a signer outside the set")
        signatures = tuple(Signature(reader.fixed(64)) for _ in signers)
        return cls(ballot=ballot, voter_count=voter_count, signers=signers, signatures=signatures)

    @classmethod
    def decode(cls, data: bytes) -> Certificate:
        """The certificate that `data` is exactly. Raises DecodeError."""
        return decode_whole(data, cls.read)


def quorum(total: int) -> int:
    """The least power above two thirds of `total`."""
    return 2 * total // 3 + 1


def vote_is_valid(vote: Vote, voters: VoterSet, chain_id: ChainId, verifier: Verifier) -> bool:
    """Whether a member of `voters` signed this ballot of this epoch."""
    if vote.ballot.epoch != voters.epoch or voters.index_of(vote.signer) is None:
        return False
    payload = vote.ballot.payload(voters.hash)
    return verifier.verify(vote.signer, Domain.VOTE, chain_id, payload, vote.signature)


def signatures_are_valid(
    certificate: Certificate, voters: VoterSet, chain_id: ChainId, verifier: Verifier
) -> bool:
    """Whether it is of this set and every signature holds; says nothing about a quorum."""
    if certificate.ballot.epoch != voters.epoch or certificate.voter_count != len(voters):
        return False
    payload = certificate.ballot.payload(voters.hash)
    return all(
        verifier.verify(voters.voters[i].peer_key, Domain.VOTE, chain_id, payload, signature)
        for i, signature in zip(certificate.signers, certificate.signatures, strict=True)
    )


def certificate_is_valid(
    certificate: Certificate, voters: VoterSet, chain_id: ChainId, verifier: Verifier
) -> bool:
    """Whether it is of this set, carries a quorum of its power, and every signature holds."""
    return (
        certificate.ballot.epoch == voters.epoch
        and certificate.voter_count == len(voters)
        and voters.power_of(certificate.signers) >= voters.quorum
        and signatures_are_valid(certificate, voters, chain_id, verifier)
    )


def certificate_of(
    ballot: Ballot, voters: VoterSet, signatures: Mapping[int, Signature]
) -> Certificate:
    """The certificate of the given signatures, by index, on `ballot`."""
    signers = tuple(sorted(signatures))
    return Certificate(
        ballot=ballot,
        voter_count=len(voters),
        signers=signers,
        signatures=tuple(signatures[index] for index in signers),
    )


def decode_whole(data: bytes, read: Callable[[Reader], T]) -> T:
    """What `read` finds in `data` and nothing more. Raises DecodeError."""
    reader = Reader(data)
    value = read(reader)
    reader.end()
    return value
