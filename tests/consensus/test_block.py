"""Blocks and evidence: one encoding, one hash, and evidence that cannot be made up."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.block import (
    BODY_BYTES_MAX,
    EMPTY_BODY,
    Block,
    Body,
    Header,
    Proposal,
    evidence_is_valid,
    evidence_of_proposals,
    evidence_of_votes,
    evidence_offence,
    proposal_is_valid,
    votes_conflict,
)
from consensus.crypto import Domain, H, KeyedHashSigner, KeyedHashVerifier
from consensus.errors import DecodeError
from consensus.types import Digest, Epoch, PeerKey, View
from consensus.vote import NO_BLOCK, Ballot, Vote, VoteKind
from tests.consensus import ordering_strategies as given_of

VERIFIER = KeyedHashVerifier()
SIGNER = given_of.signers(1)[0]
VOTERS = given_of.voter_set([1])
ONE, OTHER = H(b"test", b"one"), H(b"test", b"other")


def vote(kind: VoteKind, block_hash: Digest, view: int = 5) -> Vote:
    ballot = Ballot(kind=kind, epoch=Epoch(0), view=View(view), block_hash=block_hash)
    return given_of.signed_vote(SIGNER, ballot, VOTERS)


def proposal(header: Header, signer: KeyedHashSigner = SIGNER) -> Proposal:
    signature = signer.sign(Domain.PROPOSAL, header.chain_id, header.hash)
    return Proposal(header=header, signature=signature)


@given(given_of.blocks())
@settings(max_examples=50)
def test_a_block_is_its_bytes(block: Block) -> None:
    assert Block.decode(block.encode()) == block
    assert Header.decode(block.header.encode()).hash == block.hash
    assert Body.decode(block.body.encode()).root == block.header.body_root
    with pytest.raises(DecodeError):
        Block.decode(block.encode() + b"\x00")


@given(st.binary(max_size=400))
def test_garbage_is_no_body_or_has_that_encoding(data: bytes) -> None:
    try:
        found = Body.decode(data)
    except DecodeError:
        return
    assert found.encode() == data


@given(given_of.headers(), st.data())
@settings(max_examples=50)
def test_every_bit_of_a_header_is_in_its_hash(header: Header, data: st.DataObject) -> None:
    encoded = bytearray(header.encode())
    at = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[at // 8] ^= 1 << at % 8
    try:
        changed = Header.decode(bytes(encoded))
    except DecodeError:
        return  # a third kind of block
    assert changed.hash != header.hash


def test_a_body_has_a_largest_size() -> None:
    with pytest.raises(DecodeError):
        Body.decode(bytes(BODY_BYTES_MAX + 1))


@given(given_of.headers())
@settings(max_examples=10)
def test_another_body_is_refused(header: Header) -> None:
    with pytest.raises(ValueError, match="commits"):
        Block(header=header, body=EMPTY_BODY)
    with pytest.raises(DecodeError, match="commits"):
        Block.decode(header.encode() + EMPTY_BODY.encode())


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        ((VoteKind.NOTARIZE, ONE), (VoteKind.NOTARIZE, OTHER), True),
        ((VoteKind.FINALIZE, ONE), (VoteKind.FINALIZE, OTHER), True),
        ((VoteKind.FINALIZE, ONE), (VoteKind.NULLIFY, NO_BLOCK), True),
        ((VoteKind.NOTARIZE, ONE), (VoteKind.NULLIFY, NO_BLOCK), False),
        ((VoteKind.NOTARIZE, ONE), (VoteKind.FINALIZE, ONE), False),
        ((VoteKind.NOTARIZE, ONE), (VoteKind.FINALIZE, OTHER), False),
        ((VoteKind.NOTARIZE, ONE), (VoteKind.NOTARIZE, ONE), False),
    ],
)
def test_what_contradicts_what(
    first: tuple[VoteKind, Digest], second: tuple[VoteKind, Digest], conflict: bool
) -> None:
    a, b = vote(*first), vote(*second)
    assert votes_conflict(a, b) is votes_conflict(b, a) is conflict
    evidence = evidence_of_votes(a, b, VOTERS.hash)
    assert evidence == evidence_of_votes(b, a, VOTERS.hash)
    assert evidence_is_valid(evidence, given_of.CHAIN, VERIFIER) is conflict
    if conflict:
        assert evidence_offence(evidence) == (SIGNER.public_key, 0, 5)
        turned = dataclasses.replace(evidence, first=evidence.second, second=evidence.first)
        assert not evidence_is_valid(turned, given_of.CHAIN, VERIFIER)
        elsewhere = dataclasses.replace(evidence, vset_hash=ONE)
        assert not evidence_is_valid(elsewhere, given_of.CHAIN, VERIFIER)


def test_votes_of_two_views_or_keys_are_no_offence() -> None:
    a = vote(VoteKind.NOTARIZE, ONE)
    assert not votes_conflict(a, vote(VoteKind.NOTARIZE, OTHER, view=6))
    b = dataclasses.replace(vote(VoteKind.NOTARIZE, OTHER), signer=PeerKey(bytes(32)))
    assert not votes_conflict(a, b)


@given(given_of.headers())
@settings(max_examples=20)
def test_two_proposals_of_one_view_convict_their_leader(header: Header) -> None:
    key = PeerKey(SIGNER.public_key)
    first = proposal(header)
    second = proposal(dataclasses.replace(header, time_ms=header.time_ms ^ 1))
    assert proposal_is_valid(first, key, VERIFIER)
    assert not proposal_is_valid(first, PeerKey(bytes(32)), VERIFIER)
    evidence = evidence_of_proposals(first, second, key)
    assert evidence_is_valid(evidence, header.chain_id, VERIFIER)
    assert evidence_offence(evidence) == (key, header.epoch, header.view)
    assert not evidence_is_valid(evidence, given_of.CHAIN, VERIFIER)
    same = evidence_of_proposals(first, first, key)
    assert not evidence_is_valid(same, header.chain_id, VERIFIER)
    later = proposal(dataclasses.replace(header, view=View(header.view ^ 1)))
    assert not evidence_is_valid(
        evidence_of_proposals(first, later, key), header.chain_id, VERIFIER
    )
