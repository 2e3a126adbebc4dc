"""Votes, sets and certificates: one encoding, exact quorums, each signer once."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.codec import Reader
from consensus.crypto import H, KeyedHashVerifier
from consensus.errors import DecodeError
from consensus.types import ChainId, Digest, Epoch, View
from consensus.vote import (
    NO_BLOCK,
    VOTERS_MAX,
    Ballot,
    Certificate,
    Vote,
    VoteKind,
    VoterSet,
    certificate_is_valid,
    certificate_of,
    decode_whole,
    quorum,
    signatures_are_valid,
    vote_is_valid,
)
from tests.consensus import ordering_strategies as given_of

VERIFIER = KeyedHashVerifier()
BLOCK = H(b"test", b"block")
BALLOT = Ballot(kind=VoteKind.NOTARIZE, epoch=Epoch(0), view=View(3), block_hash=BLOCK)


def certificate(powers: list[int], who: list[int], ballot: Ballot = BALLOT) -> Certificate:
    voters = given_of.voter_set(powers)
    signers = given_of.signers(len(powers))
    signatures = {i: given_of.signed_vote(signers[i], ballot, voters).signature for i in who}
    return certificate_of(ballot, voters, signatures)


@given(st.integers(1, 2**63 - 1))
def test_two_quorums_share_more_than_any_faulty_third(total: int) -> None:
    faulty = (total - 1) // 3
    assert 3 * quorum(total) > 2 * total
    assert 2 * quorum(total) - total > faulty
    assert total - faulty >= quorum(total)


@given(given_of.votes)
def test_a_vote_is_its_bytes(vote: Vote) -> None:
    assert Vote.decode(vote.encode()) == vote
    with pytest.raises(DecodeError):
        Vote.decode(vote.encode() + b"\x00")
    with pytest.raises(DecodeError):
        Vote.decode(vote.encode()[:-1])


@given(given_of.certificates())
def test_a_certificate_is_its_bytes(certificate: Certificate) -> None:
    assert Certificate.decode(certificate.encode()) == certificate
    with pytest.raises(DecodeError):
        Certificate.decode(certificate.encode()[:-1])


@given(st.binary(max_size=300))
def test_garbage_is_no_certificate_or_has_that_encoding(data: bytes) -> None:
    try:
        found = Certificate.decode(data)
    except DecodeError:
        return
    assert found.encode() == data


def test_bits_beyond_the_set_are_refused() -> None:
    encoded = bytearray(certificate([1, 1, 1], [0, 1, 2]).encode())
    bitmap_at = 1 + 8 + 8 + 32 + 2
    encoded[bitmap_at] |= 1 << 3
    with pytest.raises(DecodeError, match="outside"):
        Certificate.decode(bytes(encoded) + bytes(64))


def test_only_a_nullify_names_no_block() -> None:
    with pytest.raises(ValueError, match="NULLIFY"):
        Ballot(kind=VoteKind.NOTARIZE, epoch=Epoch(0), view=View(1), block_hash=NO_BLOCK)
    with pytest.raises(ValueError, match="NULLIFY"):
        Ballot(kind=VoteKind.NULLIFY, epoch=Epoch(0), view=View(1), block_hash=BLOCK)
    with pytest.raises(ValueError, match="view 0"):
        Ballot(kind=VoteKind.NULLIFY, epoch=Epoch(0), view=View(0), block_hash=NO_BLOCK)
    encoded = bytearray(BALLOT.encode())
    encoded[0] = 9
    with pytest.raises(DecodeError):
        decode_whole(bytes(encoded), Ballot.read)


@pytest.mark.parametrize(
    ("powers", "who", "enough"),
    [
        ([1], [0], True),
        ([1, 1, 1], [0, 1], False),
        ([1, 1, 1, 1], [0, 1, 2], True),
        ([1, 1, 1, 1], [1, 2], False),
        ([3, 3, 3], [0, 1, 2], True),
        ([3, 3, 3], [0, 1], False),  # exactly two thirds is not more than two thirds
        ([5, 1, 1, 1], [1, 2, 3], False),
        ([5, 1, 1, 1], [0, 1], True),
    ],
)
def test_a_quorum_is_counted_in_power(powers: list[int], who: list[int], enough: bool) -> None:
    voters = given_of.voter_set(powers)
    found = certificate(powers, who)
    assert certificate_is_valid(found, voters, given_of.CHAIN, VERIFIER) is enough
    assert signatures_are_valid(found, voters, given_of.CHAIN, VERIFIER)


def test_a_certificate_is_bound_to_chain_epoch_set_ballot_and_signers() -> None:
    powers = [1, 1, 1, 1]
    voters, found = given_of.voter_set(powers), certificate(powers, [0, 1, 2])
    other_chain = ChainId(H(b"genesis", b"another"))
    assert certificate_is_valid(found, voters, given_of.CHAIN, VERIFIER)
    assert not certificate_is_valid(found, voters, other_chain, VERIFIER)
    assert not certificate_is_valid(
        found, given_of.voter_set([2, 1, 1, 1]), given_of.CHAIN, VERIFIER
    )
    assert not certificate_is_valid(
        found, given_of.voter_set(powers, epoch=1), given_of.CHAIN, VERIFIER
    )
    moved = dataclasses.replace(found, signers=(0, 1, 3))
    other = dataclasses.replace(found, ballot=dataclasses.replace(BALLOT, view=View(4)))
    for forged in (moved, other, dataclasses.replace(found, voter_count=5)):
        assert not certificate_is_valid(forged, voters, given_of.CHAIN, VERIFIER)


def test_signers_are_strictly_ascending_inside_the_set() -> None:
    signature = certificate([1], [0]).signatures[0]
    for signers in ((1, 1), (1, 0), (-1, 0), (0, 4)):
        with pytest.raises(ValueError, match=r"ascending|outside"):
            Certificate(ballot=BALLOT, voter_count=4, signers=signers, signatures=(signature,) * 2)
    with pytest.raises(ValueError, match="one signature"):
        Certificate(ballot=BALLOT, voter_count=4, signers=(0,), signatures=())
    with pytest.raises(ValueError, match="voters"):
        Certificate(ballot=BALLOT, voter_count=0, signers=(), signatures=())


def test_a_vote_counts_only_from_a_member_of_the_epoch() -> None:
    voters = given_of.voter_set([1, 1])
    member, stranger = given_of.signers(2)[0], given_of.signers(9)
    vote = given_of.signed_vote(member, BALLOT, voters)
    assert vote_is_valid(vote, voters, given_of.CHAIN, VERIFIER)
    outside = next(s for s in stranger if voters.index_of(s.public_key) is None)  # type: ignore[arg-type]
    forged = given_of.signed_vote(outside, BALLOT, voters)
    assert not vote_is_valid(forged, voters, given_of.CHAIN, VERIFIER)
    later = given_of.voter_set([1, 1], epoch=1)
    assert not vote_is_valid(vote, later, given_of.CHAIN, VERIFIER)
    flipped = dataclasses.replace(vote, signature=bytes(64))
    assert not vote_is_valid(flipped, voters, given_of.CHAIN, VERIFIER)


def test_a_voter_set_is_sorted_bounded_and_its_bytes() -> None:
    voters = given_of.voter_set([3, 1, 2])
    assert decode_whole(voters.encode(), VoterSet.read) == voters
    assert voters.hash != dataclasses.replace(voters, epoch=Epoch(1)).hash
    assert voters.power_of([0, 2]) == 5
    assert [voter.power for voter in voters] == [3, 1, 2]
    unsorted = tuple(reversed(voters.voters))
    dead = (dataclasses.replace(voters.voters[0], power=0),)
    twins = (
        voters.voters[0],
        dataclasses.replace(voters.voters[1], peer_key=voters.voters[0].peer_key),
    )
    huge = (dataclasses.replace(voters.voters[0], power=2**63),)
    for wrong in (unsorted, dead, twins, huge, ()):
        with pytest.raises(ValueError):
            VoterSet(epoch=Epoch(0), voters=wrong)
    many = VOTERS_MAX + 1
    with pytest.raises(DecodeError):
        VoterSet.read(Reader(bytes(8) + many.to_bytes(2, "big") + bytes(72 * many)))
    with pytest.raises(DecodeError):
        VoterSet.read(Reader(bytes(8) + (2).to_bytes(2, "big") + bytes(144)))


def test_the_parts_of_a_ballot_are_all_in_what_is_signed() -> None:
    base = BALLOT.payload(Digest(bytes(32)))
    changed = [
        dataclasses.replace(BALLOT, kind=VoteKind.FINALIZE),
        dataclasses.replace(BALLOT, epoch=Epoch(1)),
        dataclasses.replace(BALLOT, view=View(4)),
        dataclasses.replace(BALLOT, block_hash=H(b"test", b"other")),
    ]
    payloads = [ballot.payload(Digest(bytes(32))) for ballot in changed]
    payloads.append(BALLOT.payload(BLOCK))
    assert len({base, *payloads}) == 6
