"""Epochs: arithmetic of heights, capped powers, fair leaders, limited departures, attests."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.block import BlockKind, Header
from consensus.crypto import H, KeyedHashVerifier
from consensus.epoch import (
    Candidate,
    LeaderRotation,
    block_kind,
    boundary_height,
    cap_powers,
    check_attest,
    epoch_of,
    jailed_voters,
    leaving_voters,
    next_voter_set,
    root_height,
    voting_power,
)
from consensus.errors import BlockFault, InvalidBlock
from consensus.params import SCALING_ONE
from consensus.types import ZERO_DIGEST, AccountId, Epoch, Height, PeerKey, View
from consensus.vote import VOTERS_MAX, Ballot, Certificate, VoteKind, VoterSet, certificate_of
from tests.consensus import ordering_strategies as given_of

ROOT = H(b"test", b"root")
POWERS = st.lists(st.integers(1, 10**6), min_size=1, max_size=12)


def candidate(number: int, stake: int, scaling: int = SCALING_ONE) -> Candidate:
    key = number.to_bytes(32, "big")
    return Candidate(
        account=AccountId(key), peer_key=PeerKey(key), stake_locked=stake, scaling=scaling
    )


def capped_one_by_one(powers: list[int]) -> list[int]:
    """The rule taken literally: cut the largest, until it fits."""
    capped = list(powers)
    while len(capped) >= 4:
        largest = capped.index(max(capped))
        cap = max(1, (sum(capped) - capped[largest]) // 2 - 1)
        if capped[largest] <= cap:
            break
        capped[largest] = cap
    return capped


@given(st.integers(1, 10**9), st.integers(1, 10**5))
def test_every_height_has_one_epoch(height: int, per_epoch: int) -> None:
    epoch = epoch_of(Height(height), per_epoch)
    assert root_height(epoch, per_epoch) < height <= boundary_height(epoch, per_epoch)
    assert root_height(Epoch(epoch + 1), per_epoch) == boundary_height(epoch, per_epoch)
    assert block_kind(epoch, Height(height), per_epoch) is BlockKind.NORMAL
    beyond = Height(boundary_height(epoch, per_epoch) + 1)
    assert block_kind(epoch, beyond, per_epoch) is BlockKind.CLOSING


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7))
def test_capping_ends_where_cutting_one_by_one_ends(powers: list[int]) -> None:
    assert cap_powers(powers) == capped_one_by_one(powers)


@pytest.mark.parametrize(
    ("powers", "capped"),
    [
        ([100], [100]),
        ([100, 1, 1], [100, 1, 1]),
        ([100, 10, 10, 10], [14, 10, 10, 10]),
        ([1, 1, 1, 1], [1, 1, 1, 1]),
        ([100, 90, 1, 1], [1, 1, 1, 1]),
        ([100, 90, 30, 30, 30], [88, 88, 30, 30, 30]),
        ([2**54, 2**54, 2**54, 1], [1, 1, 1, 1]),
    ],
)
def test_vectors_of_capping(powers: list[int], capped: list[int]) -> None:
    assert cap_powers(powers) == capped


@given(st.lists(st.integers(1, 2**55), min_size=5, max_size=40))
def test_nobody_of_five_or_more_holds_a_third(powers: list[int]) -> None:
    capped = cap_powers(powers)
    total = sum(capped)
    assert all(3 * power < total or power == 1 for power in capped)
    assert all(after <= before for before, after in zip(powers, capped, strict=True))


@given(POWERS, st.binary(min_size=32, max_size=32))
def test_leaders_are_exactly_proportional(powers: list[int], root: bytes) -> None:
    small = [power % 9 + 1 for power in powers]
    voters = given_of.voter_set(small)
    rotation = LeaderRotation(voters, type(ROOT)(root))
    led = Counter(rotation.leader(View(view)) for view in range(1, voters.total + 1))
    assert [led[index] for index in range(len(voters))] == small
    again = LeaderRotation(voters, type(ROOT)(root))
    assert again.leader(View(voters.total)) == rotation.leader(View(voters.total))
    with pytest.raises(ValueError, match="no leader"):
        rotation.leader(View(0))


def test_ties_between_leaders_follow_the_root() -> None:
    voters = given_of.voter_set([1] * 8)
    firsts = {LeaderRotation(voters, H(b"test", bytes([n]))).leader(View(1)) for n in range(64)}
    assert len(firsts) > 4


def test_power_is_scaled_stake_with_a_floor() -> None:
    assert voting_power(1_000, SCALING_ONE) == 1_000
    assert voting_power(1_000, SCALING_ONE // 2) == 500
    assert voting_power(1_000, 0) == 250
    assert voting_power(3, 0) == 0


def test_the_next_set_takes_the_strongest_and_never_nobody() -> None:
    current = given_of.voter_set([1, 1])
    following = next_voter_set([candidate(n, 1_000 + n) for n in range(VOTERS_MAX + 9)], current)
    assert following.epoch == current.epoch + 1
    assert len(following) == VOTERS_MAX
    assert following.voters[0].account == (9).to_bytes(32, "big")
    equal = next_voter_set([candidate(n, 7) for n in range(VOTERS_MAX + 1)], current)
    assert equal.voters[-1].account == (VOTERS_MAX - 1).to_bytes(32, "big")
    kept = next_voter_set([candidate(1, 3, 0)], current)
    assert kept.voters == current.voters
    assert kept.epoch == current.epoch + 1


@given(POWERS, st.data())
def test_jailing_is_limited(powers: list[int], data: st.DataObject) -> None:
    voters = given_of.voter_set(powers)
    attested = data.draw(st.integers(0, 40))
    counts = data.draw(
        st.lists(st.integers(0, 40), min_size=len(powers), max_size=len(powers)).map(
            lambda found: [min(count, attested) for count in found]
        )
    )
    jailed = jailed_voters(voters, attested, counts)
    index_of = {voter.account: index for index, voter in enumerate(voters)}
    gone = [index_of[account] for account in jailed]
    assert all(counts[index] < 1 or 10 * counts[index] < attested for index in gone)
    power = voters.power_of(gone)
    assert power <= voters.total // 10 or (len(gone) == 1 and 3 * power <= voters.total)
    assert len(voters) - len(gone) >= min(4, len(voters))
    assert [counts[index] for index in gone] == sorted(counts[index] for index in gone)
    if attested == 0:
        assert jailed == ()


def test_a_strong_silent_voter_does_not_shield_weak_ones() -> None:
    powers = [30, 30, 30, 2, 2, 2, 2, 2]
    voters = given_of.voter_set(powers)
    counts = [0, 9, 9, 0, 9, 9, 9, 9]
    assert jailed_voters(voters, 10, counts) == (voters.voters[0].account,)
    counts[0] = 9
    assert jailed_voters(voters, 10, counts) == (voters.voters[3].account,)
    giant = given_of.voter_set([60, 8, 8, 8, 8, 8])
    jailed = jailed_voters(giant, 10, [0, 9, 9, 9, 9, 0])
    assert jailed == (giant.voters[5].account,)


def test_leaving_is_first_come_first_served() -> None:
    voters = given_of.voter_set([5] * 20)
    accounts = [voter.account for voter in voters]
    assert leaving_voters(voters, accounts[7:12]) == tuple(accounts[7:9])
    stranger = AccountId(bytes(32))
    assert leaving_voters(voters, [stranger, accounts[3]]) == (accounts[3],)
    alone = given_of.voter_set([5])
    assert leaving_voters(alone, [alone.voters[0].account]) == (alone.voters[0].account,)


class TestAttest:
    """What a block may attest."""

    voters: VoterSet = given_of.voter_set([1, 1, 1, 1])
    ancestor = H(b"test", b"ancestor")

    def attest(self, view: int = 6, who: tuple[int, ...] = (0, 2), epoch: int = 0) -> Certificate:
        ballot = Ballot(
            kind=VoteKind.FINALIZE, epoch=Epoch(epoch), view=View(view), block_hash=self.ancestor
        )
        signers = given_of.signers(4)
        signatures = {
            i: given_of.signed_vote(signers[i], ballot, self.voters).signature for i in who
        }
        return certificate_of(ballot, self.voters, signatures)

    def check(
        self, attest: Certificate, *, height: int = 40, at: int = 30, seen: int = 0
    ) -> BlockFault | None:
        header = Header(
            chain_id=given_of.CHAIN,
            epoch=Epoch(0),
            view=View(8),
            height=Height(height),
            kind=BlockKind.NORMAL,
            parent_hash=ROOT,
            parent_view=View(7),
            time_ms=1,
            proposer=self.voters.voters[0].account,
            body_root=ROOT,
            state_root=ROOT,
            vset_hash=self.voters.hash,
            next_vset_hash=ZERO_DIGEST,
            receipts_root=ROOT,
        )
        try:
            check_attest(
                attest,
                header=header,
                ancestors={self.ancestor: Height(at)},
                attested_view=View(seen),
                voters=self.voters,
                verifier=KeyedHashVerifier(),
            )
        except InvalidBlock as invalid:
            return invalid.reason
        return None

    def test_without_a_quorum_it_still_counts(self) -> None:
        assert self.check(self.attest()) is None

    @pytest.mark.parametrize("view", [7, 8, 9])
    def test_it_is_two_views_old(self, view: int) -> None:
        assert self.check(self.attest(view)) is BlockFault.ATTEST_OUT_OF_WINDOW

    def test_it_is_at_most_32_blocks_old(self) -> None:
        assert self.check(self.attest(), height=62) is None
        assert self.check(self.attest(), height=63) is BlockFault.ATTEST_OUT_OF_WINDOW

    def test_a_block_is_attested_once(self) -> None:
        assert self.check(self.attest(), seen=5) is None
        assert self.check(self.attest(), seen=6) is BlockFault.ATTEST_OUT_OF_WINDOW

    def test_it_is_of_this_epoch_and_an_ancestor(self) -> None:
        assert self.check(self.attest(epoch=1)) is BlockFault.ATTEST_OUT_OF_WINDOW
        foreign = self.attest()
        object.__setattr__(foreign.ballot, "block_hash", ROOT)
        assert self.check(foreign) is BlockFault.ATTEST_OUT_OF_WINDOW

    def test_every_signature_holds(self) -> None:
        found = self.attest()
        forged = Certificate(
            ballot=found.ballot, voter_count=4, signers=(0, 1), signatures=found.signatures
        )
        assert self.check(forged) is BlockFault.ATTEST_INVALID
