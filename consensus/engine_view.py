"""One view: its proposals, the votes on it, its certificates, and what this voter said itself.

Rules upheld: a signer's vote counts once per kind and hash, also when it equivocates (otherwise
quorums would no longer intersect); a signer can occupy at most two NOTARIZE, one NULLIFY and two
FINALIZE places, and a leader two proposals. Signatures are checked before they come here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from consensus.block import Block, Evidence, Proposal, evidence_of_votes
from consensus.types import Digest, Signature, View
from consensus.vote import (
    Ballot,
    Certificate,
    Vote,
    VoteKind,
    VoterSet,
    certificate_of,
)

HASHES_PER_SIGNER: Final = {VoteKind.NOTARIZE: 2, VoteKind.NULLIFY: 1, VoteKind.FINALIZE: 2}
"""The second hash of an equivocator may be the one that a quorum needs; a third never is."""

PROPOSALS_MAX: Final = 2
"""Two conflicting proposals prove the offence; more add nothing."""


@dataclass(slots=True)
class Tally:
    """The signatures on one ballot, by voter index, with their summed power."""

    ballot: Ballot
    signatures: dict[int, Signature] = field(default_factory=dict)
    power: int = 0


@dataclass(slots=True)
class ViewRecord:
    """Everything known of `view`. Mutable; owned by the engine."""

    view: View
    proposals: dict[Digest, Proposal] = field(default_factory=dict)
    tallies: dict[tuple[VoteKind, Digest], Tally] = field(default_factory=dict)
    certificates: dict[VoteKind, Certificate] = field(default_factory=dict)
    own_ballots: dict[VoteKind, Ballot] = field(default_factory=dict)
    own_votes: dict[VoteKind, Vote] = field(default_factory=dict)
    own_block: Block | None = None
    own_proposal: Proposal | None = None
    build_asked: bool = False
    proposal_sent: bool = False

    @property
    def certified_hash(self) -> Digest | None:
        """The block that a NOTARIZE or FINALIZE certificate of this view is on."""
        for kind in (VoteKind.FINALIZE, VoteKind.NOTARIZE):
            if kind in self.certificates:
                return self.certificates[kind].block_hash
        return None

    @property
    def nullified(self) -> bool:
        """Whether a NULLIFY certificate is known."""
        return VoteKind.NULLIFY in self.certificates

    def signature(self, ballot: Ballot, index: int) -> Signature | None:
        """The checked signature of voter `index` on `ballot`, if it is held."""
        tally = self.tallies.get((ballot.kind, ballot.block_hash))
        return tally.signatures.get(index) if tally is not None else None

    def has_room(self, ballot: Ballot, index: int) -> bool:
        """Whether voter `index` may still occupy a place with this new ballot."""
        held = sum(
            index in tally.signatures
            for (kind, _), tally in self.tallies.items()
            if kind is ballot.kind
        )
        return held < HASHES_PER_SIGNER[ballot.kind]

    def count(self, ballot: Ballot, index: int, signature: Signature, power: int) -> Tally:
        """Count a checked signature, once."""
        tally = self.tallies.setdefault((ballot.kind, ballot.block_hash), Tally(ballot=ballot))
        if index not in tally.signatures:
            tally.signatures[index] = signature
            tally.power += power
        return tally

    def conflict(self, vote: Vote, index: int, voters: VoterSet) -> Evidence | None:
        """Evidence against voter `index`, when `vote` contradicts one that is held."""
        for (kind, block_hash), tally in self.tallies.items():
            same_kind = kind is vote.ballot.kind and block_hash != vote.ballot.block_hash
            pair = {kind, vote.ballot.kind} == {VoteKind.FINALIZE, VoteKind.NULLIFY}
            if index in tally.signatures and (same_kind or pair):
                other = Vote(
                    ballot=tally.ballot, signer=vote.signer, signature=tally.signatures[index]
                )
                return evidence_of_votes(vote, other, voters.hash)
        return None

    def certificate(self, kind: VoteKind, block_hash: Digest, voters: VoterSet) -> Certificate:
        """The certificate, or attest, of all signatures held on that ballot."""
        tally = self.tallies[kind, block_hash]
        return certificate_of(tally.ballot, voters, tally.signatures)
