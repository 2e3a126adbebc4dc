"""Ordering of blocks: stake-weighted Simplex, one fresh instance per epoch, as one pure machine.

In each **view** one leader proposes one block. All of safety rests on two local rules:

> Rule 1. A voter signs NOTARIZE for at most one block per view.
> Rule 2. A voter never signs both FINALIZE and NULLIFY in one view.
> A block extends a notarized parent and needs a nullification for every view it skips.
> More than two thirds of FINALIZE is final.

Why that suffices: two quorums share an honest voter, so a view has at most one notarized block
(rule 1), and a final view is never nullified (rule 2); a block of a later view that did not descend
from the final one would have to skip its view, for which no nullification exists.

The protocol, applied to a fixed point after every event:

- **Advance** to view v + 1 on a NOTARIZE or NULLIFY certificate of the current view v, or beyond
  any view with a FINALIZE certificate, without waiting for bodies.
- **Propose** as leader, once per view, paced to the block interval, on the highest earlier block
  that is certified and executed here with all views in between nullified. Persist, broadcast. After
  a restart the logged proposal is sent again, never a second one.
- **Notarize** the leader's block if nothing was said in this view, its parent is certified, the gap
  nullified and full execution finds no fault. Wait while something is missing, asking for it.
- **Nullify** when the view's timeout passes or its block is certainly invalid, unless FINALIZE was
  signed in it.
- **Finalize** every view above the last final one whose block is notarized and executed, unless
  NULLIFY was signed in it.
- **Commit**, in order of height, all blocks up to one with a FINALIZE certificate, once their
  bodies are executed here.
- **Hand over** when a boundary block, or a closing block above it, is final: the next epoch starts
  on the boundary block with the set its state elects; closing blocks are forgotten.
- **Standstill**: without finality for 2 s, send everything again directly, with growing pauses.
- **Halt** on two contradicting certificates, on a certified block that execution here finds
  invalid, and when the own key votes elsewhere. No timer ever lowers a quorum.

Signing is an effect whose answer is an event, so nothing is sent or counted before it is durable;
see `engine_port` for what a shell has to do.

**Deviations** from Chan & Pass, *Simplex Consensus* (2023):

- Weighted votes: quorum of power ``2W // 3 + 1`` instead of ``2n / 3`` players; leaders by smooth
  weighted round-robin instead of a random oracle: predictable, so a leader can be attacked before
  its turn, in exchange for proportional shares with nothing to grind.
- No dummy block: a view without block is nullified by a vote of its own kind, and a block names its
  parent's view; the paper lets the timer's vote notarize the dummy block of that iteration.
- Proposals do not carry the notarized chain. Certificates are broadcast when formed and fetched
  when missing; so a proposal may have to wait where the paper's could be judged at once.
- Timeouts grow by 1.25 per view without finality beyond two, to 60 s, where the paper has a fixed
  3 times the network bound; a bound that is wrong by any factor below 15 costs time, not progress.
- A voter also nullifies before the timeout when the leader's block is certainly invalid.
- A slow voter may sign FINALIZE for a view it has left, if it did not nullify it; the paper's
  player does so when it sees the notarization, in whatever iteration: the same condition.
- Voters change: one instance per epoch, ended by closing blocks. The paper has a fixed set.
- Crash recovery from the own vote log; the paper's players do not restart. Standstill resends
  replace its assumption that messages between honest players always arrive.
- Leaders wait for the block interval; responsiveness below it is given up on purpose.
"""

from __future__ import annotations

from typing import assert_never

from consensus.block import (
    Block,
    BlockKind,
    Header,
    evidence_offence,
)
from consensus.engine_chain import Attested
from consensus.engine_examination import DRIFT_MS, Examination
from consensus.engine_message import EpochProof, ProposalMessage
from consensus.engine_port import (
    Anchor,
    BlocksReceived,
    Broadcast,
    BuildFailed,
    Built,
    Commit,
    Effect,
    EpochStart,
    Event,
    Executed,
    Invalid,
    PeerConnected,
    ProposalSigned,
    Received,
    Send,
    Tick,
    Valid,
    VoteSigned,
    WakeAt,
)
from consensus.engine_reception import Judgement
from consensus.engine_state import EngineConfig
from consensus.engine_view import ViewRecord
from consensus.epoch import boundary_height
from consensus.errors import InvariantViolation
from consensus.types import View
from consensus.vote import Certificate, Vote, VoteKind

__all__ = ["DRIFT_MS", "Engine", "EngineConfig", "Judgement"]


class Engine(Examination):
    """One node's ordering machine. `handle` is the only way to change it."""

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event in, apply the rules to a fixed point; effects in order of execution."""
        self.now_ms = max(self.now_ms, now_ms)
        if self.halted is not None:
            return []
        if self._take_in(event):
            self._apply_rules()
        effects, self._effects = self._effects, []
        return effects

    # Events -------------------------------------------------------------------------------------

    def _take_in(self, event: Event) -> bool:
        """Note what the event says; whether a rule may have become applicable by it."""
        match event:
            case Tick():
                self._armed_ms = None
                if self.listen_until_ms is None:
                    self.listen_until_ms = self.now_ms + self.config.listen_ms
                    self.standstill_at_ms = self.now_ms + self.standstill_ms
            case Received():
                return self._receive(event)
            case BlocksReceived():
                return self._receive_blocks(event.blocks)
            case Executed():
                self.chain.executing.discard(event.block_hash)
                if event.block_hash in self.chain.headers:
                    self.chain.outcomes[event.block_hash] = event.outcome
                else:
                    self._discard([event.block_hash])
            case Built():
                self._take_built(event)
            case BuildFailed():
                if event.view == self.view and self._may_nullify(self.record(event.view)):
                    self._sign(self.record(event.view), VoteKind.NULLIFY)
            case VoteSigned():
                self._take_signed_vote(event.vote)
            case ProposalSigned():
                header = event.proposal.header
                if header.epoch == self.epoch and header.view > self.tip.view:
                    self.record(header.view).own_proposal = event.proposal
            case PeerConnected():
                if self._may_answer(event.source):
                    self._emit(Send(to=event.source, messages=self._bundle()))
                return False
            case _:
                assert_never(event)
        return True

    def _take_signed_vote(self, vote: Vote) -> None:
        if vote.ballot.epoch != self.epoch:
            return
        self._emit(Broadcast(message=vote))
        record = self._record_of(vote.ballot)
        if record is not None:
            record.own_votes[vote.ballot.kind] = vote
            self._count(vote)

    # Rules --------------------------------------------------------------------------------------

    def _apply_rules(self) -> None:
        """Until nothing changes; then resend if it is time, ask for what is missing, set timers."""
        changed = True
        while changed and self.halted is None:
            self._needs.clear()
            self._wakes.clear()
            changed = (
                self._advance()
                or self._propose()
                or self._vote()
                or self._finalize()
                or self._commit()
            )
        if self.halted is not None:
            return
        self._standstill()
        self._request_needs()
        self._arm()

    def _advance(self) -> bool:
        record = self.records.get(self.view)
        if record is not None and (record.nullified or record.certified_hash is not None):
            return self._enter(View(self.view + 1))
        final = [v for v, r in self.records.items() if VoteKind.FINALIZE in r.certificates]
        if final and max(final) >= self.view:
            return self._enter(View(max(final) + 1))
        if self.entered_ms is None:
            self.entered_ms = self.now_ms
        ahead = [view for view, record in self.records.items() if record.certificates]
        if ahead and max(ahead) > self.view:
            self._need_certificates(self.view, max(ahead), None)
        return False

    def _enter(self, view: View) -> bool:
        self.view = view
        self.entered_ms = self.now_ms
        return True

    def _propose(self) -> bool:
        record = self.record(self.view)
        if not self.may_sign or self.rotation.leader(self.view) != self.own_index:
            return False
        if record.own_proposal is not None:
            return self._send_proposal(record)
        if record.build_asked or self._has_voted(record):
            return False
        parent = self._parent()
        if parent is None or not self._is_paced(parent):
            return False
        record.build_asked = True
        self._build(parent)
        return True

    def _send_proposal(self, record: ViewRecord) -> bool:
        proposal = record.own_proposal
        if proposal is None or record.proposal_sent:
            return False
        record.proposal_sent = True
        record.proposals[proposal.hash] = proposal
        body = self.chain.bodies.get(proposal.hash)
        self._emit(Broadcast(message=ProposalMessage(proposal=proposal, body=body)))
        return True

    def _vote(self) -> bool:
        """Notarize or nullify the current view."""
        record = self.record(self.view)
        if not self.may_sign:
            return False
        faults = False
        if self._may_notarize(record):
            for proposal in record.proposals.values():
                verdict = self._examine(proposal.header)
                if self.halted is not None:
                    return False
                if isinstance(verdict, Valid):
                    self._sign(record, VoteKind.NOTARIZE, proposal.hash)
                    return True
                faults = faults or isinstance(verdict, Invalid)
        if not self._may_nullify(record):
            return False
        deadline_ms = max(self.entered_ms or 0, self.listen_until_ms or 0) + self._timeout_ms()
        if not faults and self.now_ms < deadline_ms:
            self._wakes.add(deadline_ms)
            return False
        self._sign(record, VoteKind.NULLIFY)
        return True

    def _finalize(self) -> bool:
        signed = False
        for view in self.views():
            record = self.records[view]
            notarization = record.certificates.get(VoteKind.NOTARIZE)
            if notarization is None:
                continue
            outcome = self.chain.outcome(notarization.block_hash)
            if isinstance(outcome, Invalid):
                self._halt(f"state divergence: {outcome.fault}", notarization)
                return False
            if not self._may_finalize(record):
                continue
            if self._is_ready(notarization.block_hash, view) and self.may_sign:
                self._sign(record, VoteKind.FINALIZE, notarization.block_hash)
                signed = True
        return signed

    def _commit(self) -> bool:
        for view in reversed(self.views()):
            certificate = self.records[view].certificates.get(VoteKind.FINALIZE)
            if certificate is not None and self._is_ready(certificate.block_hash, view):
                self._commit_to(certificate)
                return True
        return False

    # Rule 1, rule 2 -----------------------------------------------------------------------------

    def _may_notarize(self, record: ViewRecord) -> bool:
        return not self._has_voted(record)

    def _may_nullify(self, record: ViewRecord) -> bool:
        own = record.own_ballots
        return VoteKind.NULLIFY not in own and VoteKind.FINALIZE not in own and self.may_sign

    def _may_finalize(self, record: ViewRecord) -> bool:
        own = record.own_ballots
        return VoteKind.FINALIZE not in own and VoteKind.NULLIFY not in own

    # Finality -----------------------------------------------------------------------------------

    def _commit_to(self, certificate: Certificate) -> None:
        headers = self.chain.path(certificate.block_hash)
        normal = [header for header in headers if header.kind is BlockKind.NORMAL]
        blocks = tuple(
            Block(header=header, body=self.chain.bodies[header.hash]) for header in normal
        )
        self.certificate = certificate
        self.standstill_ms = self._standstill_first_ms
        self.standstill_at_ms = self.now_ms + self.standstill_ms
        for block in blocks:
            for evidence in block.body.evidence:
                self.evidence.pop(evidence_offence(evidence), None)
        if headers[-1].height >= boundary_height(self.epoch, self.config.blocks_per_epoch):
            self._hand_over(blocks, headers, certificate)
            return
        self._emit(
            Commit(blocks=blocks, certificate=certificate, next_epoch=None, epoch_proof=None)
        )
        committed = {block.hash for block in blocks}
        self._discard([h for h in self.chain.finalize(normal) if h not in committed])
        self._retire_records(normal)

    def _retire_records(self, final: list[Header]) -> None:
        """Views up to the tip are decided; late FINALIZE votes on final blocks still count."""
        for header in final:
            attested = Attested(hash=header.hash, view=header.view, height=header.height)
            record = self.records.pop(header.view, ViewRecord(view=header.view))
            record.proposals.clear()
            self.late.append((attested, record))
        for view in [view for view in self.records if view <= self.tip.view]:
            del self.records[view]

    def _hand_over(
        self, blocks: tuple[Block, ...], headers: list[Header], certificate: Certificate
    ) -> None:
        boundary = blocks[-1].header
        outcome = self.chain.outcome(boundary.hash)
        if not isinstance(outcome, Valid) or outcome.next_voters is None:
            raise InvariantViolation("a boundary block was executed without electing voters")
        if outcome.next_voters.hash != boundary.next_vset_hash:
            raise InvariantViolation("the elected set is not the one that the block commits to")
        parent = self.chain.anchor(boundary.hash)
        if parent is None:
            raise InvariantViolation("the boundary block has no header")
        root = Anchor(
            hash=parent.hash,
            view=View(0),
            height=parent.height,
            time_ms=parent.time_ms,
            state_root=parent.state_root,
        )
        start = EpochStart(voters=outcome.next_voters, root=root)
        proof = EpochProof(
            certificate=certificate,
            headers=tuple(h for h in headers if h.height >= boundary.height),
            next_voters=outcome.next_voters,
        )
        self._emit(
            Commit(blocks=blocks, certificate=certificate, next_epoch=start, epoch_proof=proof)
        )
        committed = {block.hash for block in blocks}
        seen_ms = self.chain.seen_ms.get(boundary.hash)
        self._discard([h for h in self.chain.drop(list(self.chain.headers)) if h not in committed])
        self.epoch_proof = proof
        self._requests.clear()
        self._begin(start, root, View(0), None)
        self.chain.tip_seen_ms = seen_ms
        self._replay_next_epoch()

    # Timers -------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Wake at the earliest moment at which time alone makes a rule apply."""
        times = self._wakes | {self.standstill_at_ms or 0, self.listen_until_ms or 0}
        ahead = [at_ms for at_ms in times if at_ms > self.now_ms]
        if ahead and min(ahead) != self._armed_ms:
            self._armed_ms = min(ahead)
            self._emit(WakeAt(at_ms=self._armed_ms))
