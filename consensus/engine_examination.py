"""Whether a block may be voted for, and how one is made: all that looks at a parent.

Rules upheld: a block extends a certified parent of an earlier view and of no view below the last
final one, with a nullification for each view it skips; it is valid by full execution. "Certainly
invalid" means that nothing arriving later can make it valid; anything else is waited for.
"""

from __future__ import annotations

from typing import Final

from consensus.block import (
    ATTEST_DEPTH_MAX,
    ATTEST_LAG_VIEWS,
    BLOCK_VERSION,
    EMPTY_BODY,
    EVIDENCE_MAX,
    Block,
    BlockKind,
    Header,
)
from consensus.engine_chain import Attested
from consensus.engine_port import (
    Anchor,
    Build,
    Built,
    Execute,
    Invalid,
    Outcome,
    SignProposal,
    Valid,
)
from consensus.engine_reception import Reception
from consensus.engine_view import ViewRecord
from consensus.epoch import block_kind, boundary_height
from consensus.errors import InvariantViolation
from consensus.merkle import root_of_list
from consensus.types import ZERO_DIGEST, Digest, Height, View
from consensus.vote import Certificate, VoteKind

DRIFT_MS: Final = 2_000
"""How far a block's time may be ahead of a voter's clock before the voter waits."""


class Examination(Reception):
    """The part of the engine that judges and builds blocks."""

    # Proposing ----------------------------------------------------------------------------------

    def _parent(self) -> Anchor | None:
        """The highest certified and ready block that the current view may extend, if any yet."""
        for number in range(self.view - 1, self.tip.view, -1):
            view = View(number)
            record = self.records.get(view)
            block_hash = record.certified_hash if record is not None else None
            if block_hash is not None and self._is_ready(block_hash, view):
                return self.chain.anchor(block_hash)
            if record is None or not record.nullified:
                if block_hash is None:
                    self._need_certificates(view, view, None)
                return None
        return self.tip

    def _is_paced(self, parent: Anchor) -> bool:
        """A block interval after the parent's time or after it was first seen, what is earlier."""
        at_ms = parent.time_ms
        seen_ms = (
            self.chain.tip_seen_ms
            if parent.hash == self.tip.hash
            else self.chain.seen_ms.get(parent.hash)
        )
        if seen_ms is not None:
            at_ms = min(at_ms, seen_ms)
        at_ms += self.config.block_interval_ms
        self._wakes.add(at_ms)
        return self.now_ms >= at_ms

    def _build(self, parent: Anchor) -> None:
        height = Height(parent.height + 1)
        kind = block_kind(self.epoch, height, self.config.blocks_per_epoch)
        template = Header(
            chain_id=self.config.chain_id,
            epoch=self.epoch,
            view=self.view,
            height=height,
            kind=kind,
            parent_hash=parent.hash,
            parent_view=parent.view,
            time_ms=max(self.now_ms, parent.time_ms + 1),
            proposer=self.leader(self.view),
            body_root=EMPTY_BODY.root,
            state_root=parent.state_root,
            vset_hash=self.voters.hash,
            next_vset_hash=ZERO_DIGEST,
            receipts_root=root_of_list(()),
        )
        if kind is BlockKind.CLOSING:
            self._take_built(Built(block=Block(header=template, body=EMPTY_BODY)))
            return
        evidence = tuple(self.evidence[key] for key in sorted(self.evidence))[:EVIDENCE_MAX]
        self._emit(Build(template=template, evidence=evidence, attest=self._attest(template)))

    def _attest(self, template: Header) -> Certificate | None:
        """All FINALIZE signatures on the newest block that a child of this header may attest."""
        for candidate in self.chain.attestable(template.parent_hash):
            if candidate.height < template.height - ATTEST_DEPTH_MAX:
                return None
            record = self._attested_record(candidate)
            held = record is not None and (VoteKind.FINALIZE, candidate.hash) in record.tallies
            if held and record is not None and candidate.view <= self.view - ATTEST_LAG_VIEWS:
                return record.certificate(VoteKind.FINALIZE, candidate.hash, self.voters)
        return None

    def _attested_record(self, candidate: Attested) -> ViewRecord | None:
        if candidate.view > self.tip.view:
            return self.records.get(candidate.view)
        return next((r for a, r in self.late if a.hash == candidate.hash), None)

    def _take_built(self, built: Built) -> None:
        header = built.block.header
        record = self.records.get(header.view)
        wanted = header.epoch == self.epoch and header.view == self.view and record is not None
        if not wanted or record is None or record.own_block is not None or self._has_voted(record):
            self._discard([header.hash])
            return
        record.own_block = built.block
        self._hold(header, built.block.body)
        self.chain.outcomes[header.hash] = Valid(next_voters=built.next_voters)
        self._emit(SignProposal(block=built.block))

    def _has_voted(self, record: ViewRecord) -> bool:
        own = record.own_ballots
        return VoteKind.NOTARIZE in own or VoteKind.NULLIFY in own

    # Judging a proposal -------------------------------------------------------------------------

    def _examine(self, header: Header) -> Outcome | None:
        """Whether the current view's block is valid, by everything; None while that is unknown."""
        fault = self._context_fault(header)
        if fault is not None:
            return Invalid(fault=fault)
        if not self._parent_is_known(header):
            return None
        if not self._is_ready(header.parent_hash, header.parent_view):
            return None
        fault = self._lineage_fault(header)
        if fault is not None:
            return Invalid(fault=fault)
        if header.time_ms > self.now_ms + DRIFT_MS:
            self._wakes.add(header.time_ms - DRIFT_MS)
            return None
        return self._execution(header)

    def _context_fault(self, header: Header) -> str | None:
        """What is wrong for certain, whatever arrives later."""
        expected = (BLOCK_VERSION, self.config.chain_id, self.epoch, self.view, self.voters.hash)
        stated = (header.version, header.chain_id, header.epoch, header.view, header.vset_hash)
        if stated != expected or header.proposer != self.leader(self.view):
            return "wrong context"
        if not self.tip.view <= header.parent_view < header.view:
            return "parent skips a final view"
        return self._parent_fault(header) or self._gap_fault(header)

    def _parent_fault(self, header: Header) -> str | None:
        if header.parent_view == self.tip.view:
            certified: Digest | None = self.tip.hash
        else:
            record = self.records.get(header.parent_view)
            certified = record.certified_hash if record is not None else None
        if certified is not None and header.parent_hash != certified:
            return "parent is not the certified block of its view"
        return None

    def _gap_fault(self, header: Header) -> str | None:
        for view in range(header.parent_view + 1, header.view):
            record = self.records.get(View(view))
            if record is not None and VoteKind.FINALIZE in record.certificates:
                return "a skipped view is final"
        return None

    def _parent_is_known(self, header: Header) -> bool:
        """Whether the parent is certified and the gap nullified; asks for what is missing."""
        parent_view, proposer = header.parent_view, header.proposer
        parent = self.records.get(parent_view)
        certified = parent_view == self.tip.view or (
            parent is not None and parent.certified_hash is not None
        )
        if not certified:
            self._need_certificates(parent_view, parent_view, proposer)
        gap = [View(view) for view in range(parent_view + 1, header.view)]
        missing = [v for v in gap if not (v in self.records and self.records[v].nullified)]
        if missing:
            self._need_certificates(missing[0], missing[-1], proposer)
        return certified and not missing

    def _lineage_fault(self, header: Header) -> str | None:
        """Faults against the parent, and those of a closing block."""
        parent = self.chain.anchor(header.parent_hash)
        if parent is None:
            raise InvariantViolation("a ready parent has no header")
        kind = block_kind(self.epoch, Height(parent.height + 1), self.config.blocks_per_epoch)
        if (header.height, header.parent_view, header.kind) != (
            parent.height + 1,
            parent.view,
            kind,
        ):
            return "wrong height, parent view or kind"
        if header.time_ms <= parent.time_ms:
            return "time does not increase"
        at_boundary = header.height == boundary_height(self.epoch, self.config.blocks_per_epoch)
        if (header.next_vset_hash != ZERO_DIGEST) != at_boundary:
            return "next voter set belongs in a boundary block"
        if kind is BlockKind.CLOSING and (
            (header.state_root, header.body_root) != (parent.state_root, EMPTY_BODY.root)
            or header.receipts_root != root_of_list(())
        ):
            return "a closing block changes something"
        return None

    def _execution(self, header: Header) -> Outcome | None:
        """The outcome of a block whose parent is ready; starts what is missing for it."""
        self.chain.add_header(header, self.now_ms)
        outcome = self.chain.outcome(header.hash)
        if outcome is None and header.kind is BlockKind.CLOSING:
            outcome = self.chain.outcomes[header.hash] = Valid()
        if outcome is None:
            self._execute(header)
        return outcome

    def _execute(self, header: Header) -> None:
        block = self.chain.block(header.hash)
        if block is None:
            self._need_block(header.hash, header.proposer)
        elif header.hash not in self.chain.executing:
            self.chain.executing.add(header.hash)
            self._emit(Execute(block=block))

    def _is_ready(self, block_hash: Digest, view: View) -> bool:
        """Whether a certified block of `view` is ready; works towards it, halts if it cannot be."""
        while not self.chain.is_ready(block_hash):
            lowest, header, child = self.chain.unready(block_hash)
            if header is None:
                if child is not None and child.height <= self.tip.height + 1:
                    self._halt("safety violation", *self._proof(view))
                    return False
                self._need_block(lowest, child.proposer if child else self.leader(view))
                return False
            fault = self._lineage_fault(header)
            outcome = Invalid(fault=fault) if fault is not None else self._execution(header)
            if isinstance(outcome, Invalid):
                self._halt(f"state divergence: {outcome.fault}", *self._proof(view))
            if not isinstance(outcome, Valid):
                return False
        return True

    def _proof(self, view: View) -> list[Certificate]:
        record = self.records.get(view)
        return list(record.certificates.values()) if record is not None else []
