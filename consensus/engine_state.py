"""What the engine knows in one epoch, and the primitive moves its rules are made of.

Rule upheld: a certificate is accepted once per kind and view, stored and broadcast; a second that
contradicts it proves that a third of the power broke the rules, and ordering halts. Signing goes
through one place, which marks the ballot as said before the signature exists.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from consensus.block import Block, Body, Evidence, Header, evidence_offence
from consensus.crypto import Verifier
from consensus.engine_chain import Attested, Chain
from consensus.engine_message import EpochProof, Message, ProposalMessage
from consensus.engine_port import (
    Anchor,
    Broadcast,
    Discard,
    Effect,
    EpochStart,
    Halt,
    RequestBlocks,
    RequestCertificates,
    SignVote,
)
from consensus.engine_view import ViewRecord
from consensus.epoch import LeaderRotation
from consensus.types import AccountId, ChainId, Digest, Epoch, PeerKey, View
from consensus.vote import (
    NO_BLOCK,
    Ballot,
    Certificate,
    Vote,
    VoteKind,
)

REQUEST_GRACE_MS: Final = 200
"""Before asking for what is missing: a certificate often overtakes its block by a few hops."""

REQUEST_RETRY_MS: Final = 500
"""Between two requests for the same thing: a peer that does not answer costs so much."""

STANDSTILL_MS: Final = 2_000
"""Without finality for so long, everything needed is sent again."""

STANDSTILL_MS_MAX: Final = 15_000
"""Longest pause between two resends: votes lost in a partition are back that soon after it."""

EVIDENCE_POOL_MAX: Final = 64
"""Offences waiting for a block: 16 blocks' worth; the first found are kept."""

TIMEOUT_MS_MAX: Final = 60_000
"""A view's timeout stops growing here."""


ROOT_VIEW: Final = View(0)
"""The view of an epoch's root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine is told once.

    `own_key` is the peer key it signs with, None for a node that only follows. It signs nothing in
    epochs whose root is not later than `no_vote_before_ms` (a node that lost its vote log sets it
    to its start plus the tolerated drift: the key cannot have voted in an epoch younger than that),
    and nothing in the first `listen_ms` after its start, in which it would notice a twin.
    """

    chain_id: ChainId
    blocks_per_epoch: int
    block_interval_ms: int
    view_timeout_ms: int
    own_key: PeerKey | None
    no_vote_before_ms: int = -1
    listen_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedBlock:
    """A block that some rule waits for."""

    hash: Digest
    ask_first: AccountId | None = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedCertificates:
    """Views whose certificates some rule waits for."""

    first: View
    last: View
    ask_first: AccountId | None = field(compare=False)


class EngineState:
    """Fields of the machine; `view` is the current one. Owned by one engine, never shared."""

    def __init__(
        self,
        config: EngineConfig,
        verifier: Verifier,
        start: EpochStart,
        *,
        tip: Anchor | None = None,
        attested_view: View = ROOT_VIEW,
        certificate: Certificate | None = None,
        epoch_proof: EpochProof | None = None,
        own_log: tuple[Vote | ProposalMessage, ...] = (),
        blocks: tuple[Block, ...] = (),
    ) -> None:
        """Start at `start`, or later in that epoch at `tip`, its last committed block.

        `attested_view` is the newest view of this epoch attested up to `tip`, 0 for none;
        `certificate` made `tip` final; `epoch_proof` ended the epoch before; `own_log` is
        everything this key said in this epoch or a later one; `blocks` are those stored with its
        votes: whoever voted for a block must have it after a restart, or a final block could be
        lost with the memory of its voters.
        """
        self.config = config
        self.verifier = verifier
        self.now_ms = 0
        self.halted: Halt | None = None
        self.evidence: dict[tuple[PeerKey, Epoch, View], Evidence] = {}
        self.epoch_proof = epoch_proof
        self.listen_until_ms: int | None = None
        self.standstill_ms = self._standstill_first_ms
        self.standstill_at_ms: int | None = None
        self._own_log = own_log
        self._stored = blocks
        self._effects: list[Effect] = []
        self._wakes: set[int] = set()
        self._armed_ms: int | None = None
        self._needs: dict[WantedBlock | WantedCertificates, None] = {}
        self._requests: dict[WantedBlock | WantedCertificates, int] = {}
        self._next_epoch: list[tuple[Message, str]] = []
        self._next_epoch_bytes: dict[str, int] = {}
        self._answered_ms: dict[str, int] = {}
        self._proof_asked_ms = -REQUEST_RETRY_MS
        self._proofs_ahead: dict[Epoch, tuple[EpochProof, str]] = {}
        self._ahead: tuple[Epoch, str] = (start.epoch, "")
        self._begin(start, tip or start.root, attested_view, certificate)

    # What it stands on --------------------------------------------------------------------------

    @property
    def tip(self) -> Anchor:
        """The last final block, or the root of the epoch."""
        return self.chain.tip

    @property
    def quorum(self) -> int:
        """Power that certifies."""
        return self.voters.quorum

    @property
    def is_behind(self) -> bool:
        """Whether somebody spoke of a later epoch; it may have lied."""
        return self._ahead[0] > self.epoch

    @property
    def may_sign(self) -> bool:
        """Whether this node votes here and now."""
        return (
            self.own_index is not None
            and self.listen_until_ms is not None
            and self.now_ms >= self.listen_until_ms
            and self.chain.root.time_ms > self.config.no_vote_before_ms
        )

    def leader(self, view: View) -> AccountId:
        """Account of the leader of `view`."""
        return self.voters.voters[self.rotation.leader(view)].account

    def record(self, view: View) -> ViewRecord:
        """The record of a view above the last final one, made when it is new."""
        if view not in self.records:
            self.records[view] = ViewRecord(view=view)
        return self.records[view]

    def views(self) -> list[View]:
        """Views above the last final one of which something is known, ascending."""
        return sorted(self.records)

    # Moves --------------------------------------------------------------------------------------

    def _begin(
        self, start: EpochStart, tip: Anchor, attested_view: View, certificate: Certificate | None
    ) -> None:
        self.voters = start.voters
        self.epoch = start.epoch
        self.rotation = LeaderRotation(start.voters, start.root.hash)
        self.chain = Chain(start.root, tip, attested_view)
        self.certificate = certificate
        self.records: dict[View, ViewRecord] = {}
        self.late: deque[tuple[Attested, ViewRecord]] = deque(maxlen=self.chain.recent.maxlen)
        self.view = View(tip.view + 1)
        self.entered_ms: int | None = None
        key = self.config.own_key
        self.own_index = self.voters.index_of(key) if key is not None else None
        self._replay_own_log()

    def _replay_own_log(self) -> None:
        for block in self._stored:
            if block.header.epoch == self.epoch and block.header.view > self.tip.view:
                self._hold(block.header, block.body)
        for entry in self._own_log:
            match entry:
                case Vote(ballot=ballot):
                    if ballot.epoch == self.epoch and ballot.view > self.tip.view:
                        record = self.record(ballot.view)
                        record.own_ballots[ballot.kind] = ballot
                        record.own_votes[ballot.kind] = entry
                        self._count(entry)
                case ProposalMessage(proposal=proposal, body=body):
                    header = proposal.header
                    if header.epoch == self.epoch and header.view > self.tip.view:
                        record = self.record(header.view)
                        record.proposals[header.hash] = proposal
                        record.own_proposal = proposal
                        record.build_asked = True
                        self._hold(header, body)

    def _hold(self, header: Header, body: Body | None) -> None:
        self.chain.add_header(header, self.now_ms)
        if body is not None and body.root == header.body_root:
            self.chain.add_body(header.hash, body)

    def _count(self, vote: Vote) -> None:
        """Count a checked vote; certify when it completes a quorum."""
        ballot = vote.ballot
        index = self.voters.index_of(vote.signer)
        record = self._record_of(ballot)
        if index is None or record is None:
            return
        conflict = record.conflict(vote, index, self.voters)
        if conflict is not None:
            self._keep_evidence(conflict)
        tally = record.count(ballot, index, vote.signature, self.voters.voters[index].power)
        known = record.certificates.get(ballot.kind)
        if known is not None and known.block_hash == ballot.block_hash:
            return
        if tally.power >= self.quorum and ballot.view > self.tip.view:
            self._accept(record.certificate(ballot.kind, ballot.block_hash, self.voters))

    def _record_of(self, ballot: Ballot) -> ViewRecord | None:
        """Where votes like this are counted: above the tip, or late for a block to attest."""
        if ballot.view > self.tip.view:
            return self.record(ballot.view)
        for attested, record in self.late:
            if (ballot.kind, ballot.block_hash) == (VoteKind.FINALIZE, attested.hash):
                return record
        return None

    def _accept(self, certificate: Certificate) -> None:
        """Store and broadcast a checked certificate above the tip, once; halt on contradiction."""
        record = self.record(certificate.view)
        known = record.certificates.get(certificate.kind)
        if known is None:
            record.certificates[certificate.kind] = certificate
            self._emit(Broadcast(message=certificate))
        other = self._contradiction(record, certificate)
        if other is not None:
            self._halt("safety violation", other, certificate)

    def _contradiction(self, record: ViewRecord, certificate: Certificate) -> Certificate | None:
        for held in record.certificates.values():
            pair = {held.kind, certificate.kind}
            blocks = VoteKind.NULLIFY not in pair and held.block_hash != certificate.block_hash
            if blocks or pair == {VoteKind.FINALIZE, VoteKind.NULLIFY}:
                return held
        return None

    def _sign(self, record: ViewRecord, kind: VoteKind, block_hash: Digest = NO_BLOCK) -> None:
        """Say it, in memory first: no later rule of this node contradicts it any more."""
        ballot = Ballot(kind=kind, epoch=self.epoch, view=record.view, block_hash=block_hash)
        record.own_ballots[kind] = ballot
        self._emit(SignVote(ballot=ballot, vset_hash=self.voters.hash))

    def _keep_evidence(self, evidence: Evidence) -> None:
        offence = evidence_offence(evidence)
        if offence not in self.evidence and len(self.evidence) < EVIDENCE_POOL_MAX:
            self.evidence[offence] = evidence

    def _halt(self, reason: str, *proof: Certificate | Vote) -> None:
        if self.halted is None:
            self.halted = Halt(reason=reason, proof=proof)
            self._emit(self.halted)

    def _emit(self, effect: Effect) -> None:
        if self.halted is None or effect is self.halted:
            self._effects.append(effect)

    def _discard(self, block_hashes: list[Digest]) -> None:
        if block_hashes:
            self._emit(Discard(block_hashes=tuple(block_hashes)))

    # Time and requests --------------------------------------------------------------------------

    @property
    def _standstill_first_ms(self) -> int:
        return max(STANDSTILL_MS, 2 * self.config.block_interval_ms)

    def _timeout_ms(self) -> int:
        """T0 * 1.25^max(0, view - last final view - 2), at most TIMEOUT_MS_MAX."""
        timeout_ms = self.config.view_timeout_ms
        for _ in range(self.view - self.tip.view - 2):
            if timeout_ms >= TIMEOUT_MS_MAX:
                break
            timeout_ms = timeout_ms * 5 // 4
        return min(timeout_ms, TIMEOUT_MS_MAX)

    def _need_block(self, block_hash: Digest, ask_first: AccountId | None) -> None:
        self._needs[WantedBlock(hash=block_hash, ask_first=ask_first)] = None

    def _need_certificates(self, first: View, last: View, ask_first: AccountId | None) -> None:
        self._needs[WantedCertificates(first=first, last=last, ask_first=ask_first)] = None

    def _request_needs(self) -> None:
        """Ask for what the rules lacked in this run, after a grace and then at every retry."""
        self._requests = {need: at for need, at in self._requests.items() if need in self._needs}
        for need in self._needs:
            grace_ms = 0 if self.is_behind else REQUEST_GRACE_MS
            at_ms = self._requests.setdefault(need, self.now_ms + grace_ms)
            if at_ms <= self.now_ms:
                self._requests[need] = self.now_ms + REQUEST_RETRY_MS
                self._emit(self._request(need))
        self._wakes.update(self._requests.values())

    def _request(self, need: WantedBlock | WantedCertificates) -> Effect:
        match need:
            case WantedBlock():
                return RequestBlocks(
                    block_hash=need.hash, above_height=self.tip.height, ask_first=need.ask_first
                )
            case WantedCertificates():
                return RequestCertificates(
                    epoch=self.epoch, first=need.first, last=need.last, ask_first=need.ask_first
                )

    def _known_certificates(self, first: View, last: View) -> list[Message]:
        """Certificates of views above the tip, in order of view and kind."""
        return [
            self.records[view].certificates[kind]
            for view in self.views()
            if first <= view <= last
            for kind in sorted(self.records[view].certificates)
        ]
