"""Broken engines: each lacks one rule, and the simulator must notice within SEEDS_MAX seeds.

Rule upheld: a simulator that finds nothing proves nothing until it is seen to find what is there.
Mutants run with the same faults and liars as the sound engine; nothing is tuned for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final
from unittest import mock

import consensus.bonding
from consensus.block import EMPTY_BODY, Block, Header
from consensus.engine import Engine, Judgement
from consensus.engine_message import ProposalMessage
from consensus.engine_port import Commit, Effect, Outcome, Valid
from consensus.engine_view import ViewRecord
from consensus.epoch import boundary_height
from consensus.types import AccountId, Digest
from consensus.vote import Ballot, Certificate, Vote, VoteKind, VoterSet
from node.simulator.run import Verdict, run_seed

SEEDS_MAX: Final = 200
"""A mutant that survives so many seeds is a hole in the simulator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A way to be broken; `patch` is for rules that live outside the engine class."""

    name: str
    what: str
    engine_type: type[Engine] = Engine
    patch: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext


def seeds_to_kill(mutant: Mutant, seeds: int = SEEDS_MAX, seed: int = 0) -> int | None:
    """How many seeds, from `seed` on, it took to notice; None when none of `seeds` did."""
    index = next((i for i, name in enumerate(MUTANTS) if name is mutant), None)
    if index is None:
        raise ValueError("not one of MUTANTS")
    numbers = range(seed, seed + seeds)
    with multiprocessing.get_context("fork").Pool(os.cpu_count() or 1) as pool:
        for count, caught in enumerate(pool.imap(partial(_is_caught, index), numbers), 1):
            if caught:
                return count
    return None


def _is_caught(index: int, seed: int) -> bool:
    mutant = MUTANTS[index]
    with mutant.patch():
        return run_seed(seed, engine_type=mutant.engine_type).verdict is not Verdict.SOUND


# Rules of voting ---------------------------------------------------------------------------------


class NoLog(Engine):
    """Ignores its vote log at a restart."""

    def _replay_own_log(self) -> None:
        return


class ProposesAgain(Engine):
    """Keeps its votes at a restart, and forgets its proposals."""

    def _replay_own_log(self) -> None:
        self._own_log = tuple(entry for entry in self._own_log if isinstance(entry, Vote))
        super()._replay_own_log()


class OwnVotesNotCounted(Engine):
    """Knows what it said before a restart, and does not count it."""

    _replaying = False

    def _replay_own_log(self) -> None:
        self._replaying = True
        super()._replay_own_log()
        self._replaying = False

    def _count(self, vote: Vote) -> None:
        if not self._replaying:
            super()._count(vote)


class FinalizeAfterNullify(Engine):
    """Breaks rule 2: FINALIZE in a view it nullified."""

    def _may_finalize(self, record: ViewRecord) -> bool:
        return VoteKind.FINALIZE not in record.own_ballots


class NullifyAfterFinalize(Engine):
    """Breaks rule 2 the other way round."""

    def _may_nullify(self, record: ViewRecord) -> bool:
        return VoteKind.NULLIFY not in record.own_ballots and self.may_sign


class NotarizesTwice(Engine):
    """Breaks rule 1: NOTARIZE for every valid proposal of a view."""

    def _may_notarize(self, record: ViewRecord) -> bool:
        return VoteKind.NULLIFY not in record.own_ballots

    def _vote(self) -> bool:
        record = self.record(self.view)
        held = record.own_ballots.get(VoteKind.NOTARIZE)
        if held is None or len(record.proposals) < 2 or not self.may_sign:
            return super()._vote() if held is None else False
        for block_hash, proposal in record.proposals.items():
            again = ("again", block_hash)
            fresh = block_hash != held.block_hash and again not in self._said_again
            if fresh and isinstance(self._examine(proposal.header), Valid):
                self._said_again.add(again)
                self._sign(record, VoteKind.NOTARIZE, block_hash)
                return True
        return False

    @property
    def _said_again(self) -> set[tuple[str, Digest]]:
        said: set[tuple[str, Digest]] = self.__dict__.setdefault("_again", set())
        return said


class VotesBlindly(Engine):
    """Notarizes without executing."""

    def _examine(self, header: Header) -> Outcome | None:
        verdict = super()._examine(header)
        known = self._context_fault(header) is None and self._parent_is_known(header)
        return Valid() if known else verdict


# Rules of lineage --------------------------------------------------------------------------------


class NoGapCheck(Engine):
    """Lets a block skip views that were not nullified."""

    def _gap_fault(self, header: Header) -> str | None:
        return None

    def _parent_is_known(self, header: Header) -> bool:
        parent = self.records.get(header.parent_view)
        certified = parent is not None and parent.certified_hash is not None
        return certified or header.parent_view == self.tip.view


class ClosingKept(Engine):
    """Commits closing blocks as if they were part of the chain."""

    def _emit(self, effect: Effect) -> None:
        if isinstance(effect, Commit) and effect.epoch_proof is not None:
            closing = [
                Block(header=header, body=EMPTY_BODY) for header in effect.epoch_proof.headers[1:]
            ]
            effect = dataclasses.replace(effect, blocks=(*effect.blocks, *closing))
        super()._emit(effect)


class UnfinalSet(Engine):
    """Hands over to the set of a boundary block that is only notarized."""

    def _commit(self) -> bool:
        height = boundary_height(self.epoch, self.config.blocks_per_epoch)
        for view in self.views():
            certificate = self.records[view].certificates.get(VoteKind.NOTARIZE)
            header = self.chain.headers.get(certificate.block_hash) if certificate else None
            if certificate is None or header is None or header.height != height:
                continue
            if self._is_ready(header.hash, view):
                self._commit_to(certificate)
                return True
        return super()._commit()


# Rules of counting -------------------------------------------------------------------------------


class SmallQuorum(Engine):
    """Is content with one unit of power less than a quorum."""

    @property
    def quorum(self) -> int:
        """One less."""
        return self.voters.quorum - 1


class TwoThirdsOfMembers(Engine):
    """Counts heads instead of power."""

    @property
    def quorum(self) -> int:
        """The power of the lightest two thirds and one more."""
        powers = sorted(voter.power for voter in self.voters)
        return sum(powers[: 2 * len(powers) // 3 + 1])


class CountsTwice(Engine):
    """Counts a signer each time its vote comes in."""

    def _judge_vote(self, vote: Vote) -> Judgement:
        record = self._known_record(vote.ballot)
        index = self.voters.index_of(vote.signer)
        if record is None or index is None:
            return super()._judge_vote(vote)
        held = record.signature(vote.ballot, index) == vote.signature
        return Judgement.ACCEPT if held else super()._judge_vote(vote)

    def _count(self, vote: Vote) -> None:
        record = self._record_of(vote.ballot)
        index = self.voters.index_of(vote.signer)
        if record is not None and index is not None:
            tally = record.tallies.get((vote.ballot.kind, vote.ballot.block_hash))
            if tally is not None and index in tally.signatures:
                tally.power += self.voters.voters[index].power
        super()._count(vote)


class BelievesCertificates(Engine):
    """Accepts any certificate that is new."""

    def _judge_certificate(self, certificate: Certificate) -> Judgement:
        verdict = super()._judge_certificate(certificate)
        return Judgement.ACCEPT if verdict is Judgement.REJECT else verdict


class BelievesProposals(Engine):
    """Accepts a proposal whoever signed it, and votes for it whoever it names as its leader."""

    def _judge_proposal(self, message: ProposalMessage) -> Judgement:
        verdict = super()._judge_proposal(message)
        return Judgement.ACCEPT if verdict is Judgement.REJECT else verdict

    def _context_fault(self, header: Header) -> str | None:
        return self._parent_fault(header) or self._gap_fault(header)


def _payload_of_view_only(self: Ballot, vset_hash: Digest) -> bytes:
    return bytes([self.kind]) + self.view.to_bytes(8, "big") + self.block_hash


def _all_silent(
    voters: VoterSet, attested_blocks: int, appearances: Sequence[int]
) -> tuple[AccountId, ...]:
    return tuple(
        voter.account
        for voter, count in zip(voters, appearances, strict=False)
        if attested_blocks and 10 * count < max(10, attested_blocks)
    )


def _no_set_binding() -> AbstractContextManager[object]:
    return mock.patch.object(Ballot, "payload", _payload_of_view_only)


def _jailing_without_limit() -> AbstractContextManager[object]:
    return mock.patch.object(consensus.bonding, "jailed_voters", _all_silent)


def _mutant(name: str, engine_type: type[Engine]) -> Mutant:
    what = (engine_type.__doc__ or "").split(".")[0]
    return Mutant(name=name, what=what, engine_type=engine_type)


MUTANTS: Final = (
    _mutant("no-log", NoLog),
    _mutant("finalize-after-nullify", FinalizeAfterNullify),
    _mutant("nullify-after-finalize", NullifyAfterFinalize),
    _mutant("no-gap-check", NoGapCheck),
    _mutant("quorum-minus-one", SmallQuorum),
    _mutant("duplicate-signers-counted", CountsTwice),
    _mutant("notarize-twice", NotarizesTwice),
    _mutant("closing-blocks-kept", ClosingKept),
    _mutant("set-from-unfinalised-block", UnfinalSet),
    Mutant(
        name="no-set-binding",
        what="Signatures bind neither the epoch nor the voter set",
        patch=_no_set_binding,
    ),
    Mutant(
        name="jailing-without-limit",
        what="Every silent voter is jailed at once",
        patch=_jailing_without_limit,
    ),
    _mutant("own-votes-not-replayed", OwnVotesNotCounted),
    _mutant("proposes-again", ProposesAgain),
    _mutant("heads-not-power", TwoThirdsOfMembers),
    _mutant("certificates-unchecked", BelievesCertificates),
    _mutant("proposals-unchecked", BelievesProposals),
    _mutant("votes-unexecuted", VotesBlindly),
)
"""In the order of the report."""
