"""Hypothesis strategies and small factories for votes, certificates, headers, bodies, evidence."""

from __future__ import annotations

from hypothesis import strategies as st

from consensus.block import (
    Block,
    BlockKind,
    Body,
    Evidence,
    Header,
    Proposal,
    ProposalConflict,
    VoteConflict,
)
from consensus.crypto import Domain, H, KeyedHashSigner
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
from consensus.vote import NO_BLOCK, Ballot, Certificate, Vote, VoteKind, Voter, VoterSet

CHAIN = ChainId(H(b"genesis", b"ordering tests"))
U64 = st.integers(0, 2**64 - 1)

digests = st.binary(min_size=32, max_size=32).map(Digest)
signatures = st.binary(min_size=64, max_size=64).map(Signature)


def signers(count: int) -> list[KeyedHashSigner]:
    """In the order of their keys, which is the order of a set made of them."""
    made = [KeyedHashSigner(bytes([i]) * 32) for i in range(count)]
    return sorted(made, key=lambda signer: signer.public_key)


def voter_set(powers: list[int], epoch: int = 0) -> VoterSet:
    """Voters with these powers; owner and peer keys coincide."""
    return VoterSet(
        epoch=Epoch(epoch),
        voters=tuple(
            Voter(
                account=AccountId(signer.public_key),
                peer_key=PeerKey(signer.public_key),
                power=power,
            )
            for signer, power in zip(signers(len(powers)), powers, strict=True)
        ),
    )


def signed_vote(signer: KeyedHashSigner, ballot: Ballot, voters: VoterSet) -> Vote:
    """A valid vote."""
    signature = signer.sign(Domain.VOTE, CHAIN, ballot.payload(voters.hash))
    return Vote(ballot=ballot, signer=PeerKey(signer.public_key), signature=signature)


@st.composite
def ballots(draw: st.DrawFn) -> Ballot:
    kind = draw(st.sampled_from(VoteKind))
    block_hash = NO_BLOCK if kind is VoteKind.NULLIFY else draw(digests.filter(any))
    return Ballot(
        kind=kind,
        epoch=Epoch(draw(U64)),
        view=View(draw(st.integers(1, 2**64 - 1))),
        block_hash=block_hash,
    )


votes = st.builds(
    Vote,
    ballot=ballots(),
    signer=st.binary(min_size=32, max_size=32).map(PeerKey),
    signature=signatures,
)


@st.composite
def certificates(draw: st.DrawFn, kind: VoteKind | None = None) -> Certificate:
    ballot = draw(ballots() if kind is None else ballots().filter(lambda b: b.kind is kind))
    count = draw(st.integers(1, 128))
    chosen = draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=12))
    return Certificate(
        ballot=ballot,
        voter_count=count,
        signers=tuple(sorted(chosen)),
        signatures=tuple(draw(signatures) for _ in chosen),
    )


@st.composite
def headers(draw: st.DrawFn, body: Body | None = None) -> Header:
    return Header(
        version=draw(st.integers(0, 2**16 - 1)),
        chain_id=ChainId(draw(digests)),
        epoch=Epoch(draw(U64)),
        view=View(draw(U64)),
        height=Height(draw(U64)),
        kind=draw(st.sampled_from(BlockKind)),
        parent_hash=draw(digests),
        parent_view=View(draw(U64)),
        time_ms=draw(U64),
        proposer=AccountId(draw(digests)),
        body_root=body.root if body is not None else draw(digests),
        state_root=draw(digests),
        vset_hash=draw(digests),
        next_vset_hash=draw(digests),
        receipts_root=draw(digests),
    )


proposals = st.builds(Proposal, header=headers(), signature=signatures)
evidence: st.SearchStrategy[Evidence] = st.one_of(
    st.builds(VoteConflict, first=votes, second=votes, vset_hash=digests),
    st.builds(
        ProposalConflict,
        first=proposals,
        second=proposals,
        signer=st.binary(min_size=32, max_size=32).map(PeerKey),
    ),
)
bodies = st.builds(
    Body,
    transactions=st.lists(st.binary(max_size=40), max_size=5).map(tuple),
    evidence=st.lists(evidence, max_size=4).map(tuple),
    attest=st.none() | certificates(VoteKind.FINALIZE),
)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    body = draw(bodies)
    return Block(header=draw(headers(body)), body=body)
