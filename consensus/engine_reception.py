"""What the engine takes in from others, what it ignores, and what it answers.

Rules upheld: REJECT is only for what is invalid in every state (a forged signature, a stranger's
vote, a proposal not by its leader); whatever depends on what this node knows yet is IGNORE. One
certificate per kind and view and two proposals per view are taken, however often and in whatever
form they come. Everything kept for later is bounded, also per sender.
"""

from __future__ import annotations

import enum
from typing import Final

from consensus.block import (
    BODY_BYTES_MAX,
    Block,
    Proposal,
    evidence_of_proposals,
    proposal_is_valid,
)
from consensus.engine_message import (
    EpochProof,
    Message,
    ProposalMessage,
    Status,
    encode_message,
    epoch_proof_is_valid,
    message_epoch,
)
from consensus.engine_port import (
    Misbehaved,
    Received,
    RequestEpochProof,
    Resend,
    Send,
    SendEpochProof,
)
from consensus.engine_state import REQUEST_GRACE_MS, STANDSTILL_MS_MAX, EngineState, WantedBlock
from consensus.engine_view import PROPOSALS_MAX, ViewRecord
from consensus.types import Digest, Epoch, View
from consensus.vote import (
    Ballot,
    Certificate,
    Vote,
    VoteKind,
    certificate_is_valid,
    vote_is_valid,
)

VIEWS_AHEAD_MAX: Final = 64
"""How far above the current view votes and proposals are taken: 64 views x 128 voters x 5 votes."""

NEXT_EPOCH_BYTES_MAX: Final = 2 * 1024 * 1024
"""Messages of the next epoch kept until the hand-over: about 14,000 votes, a dozen views of 128."""

NEXT_EPOCH_BYTES_PER_SOURCE: Final = NEXT_EPOCH_BYTES_MAX // 8
"""Of which one peer can fill so much, before anything of it could be verified."""

PROOFS_AHEAD_MAX: Final = 64
"""Proofs of later epochs kept, one each, of at most as many headers, unverified until their
turn: at most 2 MiB, 0.6 MiB in honest runs of 100 voters."""

ANSWER_INTERVAL_MS: Final = 1_000
"""At most one answer per peer in this time, however often it tells where it stands."""

ANSWERED_PEERS_MAX: Final = 1_024
"""Peers remembered for that; beyond it the longest ago answered is forgotten."""

CERTIFICATES_PER_ANSWER: Final = 128
"""In one answer or resend: 1.2 MiB at 100 voters."""


class Judgement(enum.Enum):
    """What gossip should do with a message: relay it, drop it, or blame its sender."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    REJECT = "reject"


class Reception(EngineState):
    """The part of the engine that faces its peers."""

    # Queries for the shell ----------------------------------------------------------------------

    def judge(self, message: Message) -> Judgement:
        """Whether a message is new, in the window and valid; changes nothing."""
        epoch = message_epoch(message)
        if isinstance(message, Status):
            return Judgement.ACCEPT
        if epoch != self.epoch:
            # [IGNORE] Another epoch's set is not the one at hand.
            return Judgement.IGNORE
        match message:
            case Vote():
                return self._judge_vote(message)
            case Certificate():
                return self._judge_certificate(message)
            case ProposalMessage():
                return self._judge_proposal(message)
            case EpochProof():
                return self._judge_epoch_proof(message)

    def status(self) -> Status:
        """Where this node stands."""
        return Status(
            epoch=self.epoch,
            view=self.view,
            final_view=self.tip.view,
            final_height=self.tip.height,
            final_hash=self.tip.hash,
        )

    def certificates(self, epoch: Epoch, first: View, last: View) -> tuple[Certificate, ...]:
        """Known certificates of these views of the current epoch, at most one answer full."""
        if epoch != self.epoch:
            return ()
        known = self._known_certificates(first, last)
        if self.certificate is not None and first <= self.certificate.view <= last:
            known.insert(0, self.certificate)
        return tuple(c for c in known if isinstance(c, Certificate))[:CERTIFICATES_PER_ANSWER]

    def block(self, block_hash: Digest) -> Block | None:
        """A block above the last final one, when it is held; final ones are in the chain store."""
        return self.chain.block(block_hash)

    # Judging ------------------------------------------------------------------------------------

    def _judge_vote(self, vote: Vote) -> Judgement:
        ballot = vote.ballot
        index = self.voters.index_of(vote.signer)
        if index is None:
            # [REJECT] The set of an epoch is unique; a stranger has no vote.
            return Judgement.REJECT
        if not self._counts(ballot):
            # [IGNORE] Below the last final view, or too far ahead of here.
            return Judgement.IGNORE
        record = self._known_record(ballot)
        if record is not None and record.signature(ballot, index) is not None:
            # [IGNORE] Seen.
            return Judgement.IGNORE
        if record is not None and not record.has_room(ballot, index):
            # [IGNORE] An equivocator's third hash is good for nothing.
            return Judgement.IGNORE
        if not vote_is_valid(vote, self.voters, self.config.chain_id, self.verifier):
            # [REJECT] Forged.
            return Judgement.REJECT
        return Judgement.ACCEPT

    def _counts(self, ballot: Ballot) -> bool:
        if ballot.view > self.tip.view:
            return ballot.view <= self.view + VIEWS_AHEAD_MAX
        return self._record_of(ballot) is not None

    def _known_record(self, ballot: Ballot) -> ViewRecord | None:
        if ballot.view > self.tip.view:
            return self.records.get(ballot.view)
        return self._record_of(ballot)

    def _judge_certificate(self, certificate: Certificate) -> Judgement:
        if certificate.view <= self.tip.view:
            # [IGNORE] Decided already.
            return Judgement.IGNORE
        record = self.records.get(certificate.view)
        known = record.certificates.get(certificate.kind) if record is not None else None
        if known is not None and known.block_hash == certificate.block_hash:
            # [IGNORE] One certificate per kind and view, whoever signed it.
            return Judgement.IGNORE
        if not certificate_is_valid(certificate, self.voters, self.config.chain_id, self.verifier):
            # [REJECT] Forged or short of a quorum.
            return Judgement.REJECT
        return Judgement.ACCEPT

    def _judge_proposal(self, message: ProposalMessage) -> Judgement:
        header, body = message.proposal.header, message.body
        if header.chain_id != self.config.chain_id:
            # [REJECT] Another chain.
            return Judgement.REJECT
        if body is not None and (body.root != header.body_root or body.size_bytes > BODY_BYTES_MAX):
            # [REJECT] Not the body that was signed for, or larger than any.
            return Judgement.REJECT
        if not self.tip.view < header.view <= self.view + VIEWS_AHEAD_MAX:
            # [IGNORE] Below the last final view, or too far ahead of here.
            return Judgement.IGNORE
        record = self.records.get(header.view)
        if record is not None and header.hash in record.proposals:
            # [IGNORE] Seen, unless it brings a body that is missing.
            missing = body is not None and header.hash not in self.chain.bodies
            return Judgement.ACCEPT if missing else Judgement.IGNORE
        if record is not None and len(record.proposals) >= PROPOSALS_MAX:
            # [IGNORE] Two prove an equivocation; a third is good for nothing.
            return Judgement.IGNORE
        leader = self.voters.voters[self.rotation.leader(header.view)]
        if not proposal_is_valid(message.proposal, leader.peer_key, self.verifier):
            # [REJECT] Not by the leader of its view.
            return Judgement.REJECT
        return Judgement.ACCEPT

    def _judge_epoch_proof(self, proof: EpochProof) -> Judgement:
        held = self.records.get(proof.certificate.view)
        final = held is not None and VoteKind.FINALIZE in held.certificates
        if final and all(header.hash in self.chain.headers for header in proof.headers):
            # [IGNORE] Nothing new in it.
            return Judgement.IGNORE
        valid = epoch_proof_is_valid(
            proof,
            self.voters,
            self.config.chain_id,
            self.config.blocks_per_epoch,
            self.verifier,
        )
        # [REJECT] Forged.
        return Judgement.ACCEPT if valid else Judgement.REJECT

    # Taking in ----------------------------------------------------------------------------------

    def _receive(self, event: Received) -> bool:
        """Take in a message; whether any rule may have become applicable."""
        message, source = event.message, event.source
        if isinstance(message, Status):
            self._answer_status(message, source)
            return False
        epoch = message_epoch(message)
        if epoch > self.epoch:
            self._later_epoch(message, source)
            return False
        if epoch < self.epoch:
            self._earlier_epoch(epoch, source)
            return False
        judgement = self.judge(message)
        if judgement is Judgement.REJECT:
            self._emit(Misbehaved(source=source, fault=f"invalid {type(message).__name__}"))
        return judgement is Judgement.ACCEPT and self._take(message)

    def _take(self, message: Message) -> bool:
        match message:
            case Vote():
                return self._take_vote(message)
            case Certificate():
                self._take_certificate(message)
            case ProposalMessage(proposal=proposal, body=body):
                self._take_proposal(proposal)
                self._hold(proposal.header, body)
                self._trim()
            case EpochProof():
                for header in message.headers:
                    self.chain.add_header(header, self.now_ms)
                self._take_certificate(message.certificate)
            case Status():
                return False
        return True

    def _take_vote(self, vote: Vote) -> bool:
        if vote.signer == self.config.own_key:
            record = self._record_of(vote.ballot)
            if record is not None and record.own_votes.get(vote.ballot.kind) != vote:
                self._halt("the key of this node votes elsewhere", vote)
        before = len(self._effects)
        self._count(vote)
        return len(self._effects) != before

    def _take_certificate(self, certificate: Certificate) -> None:
        record = self.record(certificate.view)
        powers = self.voters.voters
        for index, signature in zip(certificate.signers, certificate.signatures, strict=True):
            record.count(certificate.ballot, index, signature, powers[index].power)
        self._accept(certificate)

    def _take_proposal(self, proposal: Proposal) -> None:
        record = self.record(proposal.header.view)
        for other in record.proposals.values():
            if other.hash != proposal.hash:
                leader = self.voters.voters[self.rotation.leader(record.view)].peer_key
                self._keep_evidence(evidence_of_proposals(other, proposal, leader))
        record.proposals[proposal.hash] = proposal

    def _receive_blocks(self, blocks: tuple[Block, ...]) -> bool:
        """Take the blocks that are waited for, and their ancestors: hashes prove themselves. After
        an answer without anything new the engine asks again soon.
        """
        wanted = [need for need in self._requests if isinstance(need, WantedBlock)]
        expected = {need.hash for need in wanted}
        useful = False
        for block in sorted(blocks, key=lambda block: block.height, reverse=True):
            fresh = block.hash not in self.chain.bodies
            if fresh and (block.hash in expected or block.hash in self.chain.headers):
                useful = True
                self._hold(block.header, block.body)
                if block.height > self.tip.height + 1:
                    expected.add(block.header.parent_hash)
        if not useful:
            soon_ms = self.now_ms + REQUEST_GRACE_MS
            self._requests.update({need: min(self._requests[need], soon_ms) for need in wanted})
        return True

    def _trim(self) -> None:
        certified = {record.certified_hash for record in self.records.values()}
        self._discard(self.chain.trim({h for h in certified if h is not None}))

    # Other epochs -------------------------------------------------------------------------------

    def _later_epoch(self, message: Message, source: str) -> None:
        """Somebody is ahead: ask for the proof of this epoch, keep what is of the next ones."""
        epoch = message_epoch(message)
        self._ahead = max(self._ahead[0], epoch), source
        if self.now_ms >= self._proof_asked_ms + ANSWER_INTERVAL_MS:
            self._ask_proof()
        if isinstance(message, EpochProof):
            near = epoch <= self.epoch + PROOFS_AHEAD_MAX
            if near and len(message.headers) <= PROOFS_AHEAD_MAX:
                self._proofs_ahead.setdefault(epoch, (message, source))
            return
        if epoch != self.epoch + 1 or isinstance(message, Status):
            return
        size = len(encode_message(message))
        held = self._next_epoch_bytes.get(source, 0)
        total = sum(self._next_epoch_bytes.values())
        if held + size <= NEXT_EPOCH_BYTES_PER_SOURCE and total + size <= NEXT_EPOCH_BYTES_MAX:
            self._next_epoch_bytes[source] = held + size
            self._next_epoch.append((message, source))

    def _ask_proof(self) -> None:
        self._proof_asked_ms = self.now_ms
        self._emit(RequestEpochProof(epoch=self.epoch, ask_first=self._ahead[1]))

    def _earlier_epoch(self, epoch: Epoch, source: str) -> None:
        if not self._may_answer(source):
            return
        if self.epoch_proof is not None and self.epoch_proof.epoch == epoch:
            self._emit(Send(to=source, messages=(self.epoch_proof,)))
        else:
            self._emit(SendEpochProof(to=source, epoch=epoch))

    def _replay_next_epoch(self) -> None:
        """After a hand-over: what was kept can be judged now; still behind, ask at once."""
        kept, self._next_epoch, self._next_epoch_bytes = self._next_epoch, [], {}
        for message, source in kept:
            self._receive(Received(message=message, source=source))
        proof = self._proofs_ahead.pop(self.epoch, None)
        if proof is not None:
            self._receive(Received(message=proof[0], source=proof[1]))
        decided = any(VoteKind.FINALIZE in r.certificates for r in self.records.values())
        if self.is_behind and not decided:
            self._ask_proof()

    # Answers and resends ------------------------------------------------------------------------

    def _answer_status(self, status: Status, source: str) -> None:
        if status.epoch > self.epoch:
            self._later_epoch(status, source)
            return
        if status.epoch < self.epoch:
            self._earlier_epoch(status.epoch, source)
            return
        messages: list[Message] = []
        if status.final_view < self.tip.view and self.certificate is not None:
            messages.append(self.certificate)
        if status.view < self.view:
            messages += self._known_certificates(status.view, self.view)[:CERTIFICATES_PER_ANSWER]
        if status.final_view > self.tip.view or status.view > self.view:
            messages.append(self.status())
        if messages and self._may_answer(source):
            self._emit(Send(to=source, messages=tuple(messages)))

    def _may_answer(self, source: str) -> bool:
        last_ms = self._answered_ms.pop(source, None)
        if last_ms is not None and self.now_ms < last_ms + ANSWER_INTERVAL_MS:
            self._answered_ms[source] = last_ms
            return False
        self._answered_ms[source] = self.now_ms
        if len(self._answered_ms) > ANSWERED_PEERS_MAX:
            self._answered_ms.pop(next(iter(self._answered_ms)))
        return True

    def _bundle(self) -> tuple[Message, ...]:
        """All that a peer may lack: proofs of the last final block, certificates above it, what
        this node said itself, the proposal of the view, and where it stands.
        """
        messages: list[Message] = []
        if self.epoch_proof is not None:
            messages.append(self.epoch_proof)
        if self.certificate is not None:
            messages.append(self.certificate)
        messages += self._known_certificates(View(0), self.view)[-CERTIFICATES_PER_ANSWER:]
        for view in self.views():
            own = self.records[view].own_votes
            messages += [own[kind] for kind in sorted(own)]
        current = self.records.get(self.view)
        if current is not None:
            messages += [
                ProposalMessage(proposal=proposal, body=None)
                for proposal in current.proposals.values()
            ]
        return (*messages, self.status())

    def _standstill(self) -> None:
        """Without finality for long: everything again, directly, with growing pauses."""
        if self.standstill_at_ms is None or self.now_ms < self.standstill_at_ms:
            return
        self._emit(Resend(messages=self._bundle()))
        self.standstill_at_ms = self.now_ms + self.standstill_ms
        self.standstill_ms = min(self.standstill_ms * 3 // 2, STANDSTILL_MS_MAX)
