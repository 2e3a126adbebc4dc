"""The blocks of one epoch above its last final one: headers, bodies, outcomes of execution.

Rules upheld: a block is ready (may be built on, notarized, finalised) only when its body is held
and it and all ancestors down to the last final block were executed without fault. Whatever is at or
below a final view and not on its chain is dead: by rule 2 it can never be certified again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from consensus.block import ATTEST_DEPTH_MAX, EMPTY_BODY, Block, BlockKind, Body, Header
from consensus.engine_port import Anchor, Outcome, Valid
from consensus.types import Digest, Height, View

ORPHAN_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bodies held that no certificate asks for: 64 views ahead x 2 proposals x 512 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """A final block of the epoch that a later block may still attest."""

    hash: Digest
    view: View
    height: Height


class Chain:
    """Blocks by hash, and `tip`, the last final one. Mutable; owned by the engine."""

    def __init__(self, root: Anchor, tip: Anchor, attested_view: View) -> None:
        self.root = root
        self.tip = tip
        self.headers: dict[Digest, Header] = {}
        self.bodies: dict[Digest, Body] = {}
        self.outcomes: dict[Digest, Outcome] = {}
        self.executing: set[Digest] = set()
        self.seen_ms: dict[Digest, int] = {}
        self.recent: deque[Attested] = deque(maxlen=ATTEST_DEPTH_MAX)
        self.body_bytes = 0
        self.tip_seen_ms: int | None = None
        self._attested_view = attested_view

    def add_header(self, header: Header, now_ms: int) -> None:
        """Hold a header; a closing block's body is known with it."""
        if header.hash not in self.headers:
            self.headers[header.hash] = header
            self.seen_ms[header.hash] = now_ms
        if header.kind is BlockKind.CLOSING and header.body_root == EMPTY_BODY.root:
            self.add_body(header.hash, EMPTY_BODY)

    def add_body(self, block_hash: Digest, body: Body) -> None:
        """Hold the body of a held header; the caller compared the roots."""
        if block_hash not in self.bodies:
            self.bodies[block_hash] = body
            self.body_bytes += body.size_bytes

    def block(self, block_hash: Digest) -> Block | None:
        """The block when header and body are held."""
        header, body = self.headers.get(block_hash), self.bodies.get(block_hash)
        if header is None or body is None:
            return None
        return Block(header=header, body=body)

    def anchor(self, block_hash: Digest) -> Anchor | None:
        """What a child of that block has to know, when its header is held."""
        if block_hash == self.tip.hash:
            return self.tip
        header = self.headers.get(block_hash)
        return anchor_of(header) if header is not None else None

    def outcome(self, block_hash: Digest) -> Outcome | None:
        """Result of execution; a final block is valid."""
        if block_hash == self.tip.hash:
            return Valid()
        return self.outcomes.get(block_hash)

    def is_ready(self, block_hash: Digest) -> bool:
        """Whether it was executed without fault (which needs its ancestors to be ready)."""
        return isinstance(self.outcome(block_hash), Valid)

    def unready(self, block_hash: Digest) -> tuple[Digest, Header | None, Header | None]:
        """The lowest block on the way to `block_hash` (not ready) that is not ready: its hash, its
        header if held, and the header of its child on that way if there is one.
        """
        child, header = None, self.headers.get(block_hash)
        while header is not None and not self.is_ready(header.parent_hash):
            block_hash = header.parent_hash
            child, header = header, self.headers.get(block_hash)
        return block_hash, header, child

    def path(self, block_hash: Digest) -> list[Header]:
        """Headers from just above the tip to `block_hash`, oldest first; it must be ready."""
        headers: list[Header] = []
        while block_hash != self.tip.hash:
            headers.append(self.headers[block_hash])
            block_hash = headers[-1].parent_hash
        return headers[::-1]

    def attested_view(self, block_hash: Digest) -> View:
        """The newest view of the epoch attested by a ready block or its ancestors, 0 for none."""
        while block_hash != self.tip.hash:
            attest = self.bodies[block_hash].attest
            if attest is not None:
                return attest.view
            block_hash = self.headers[block_hash].parent_hash
        return self._attested_view

    def attestable(self, parent_hash: Digest) -> Iterable[Attested]:
        """Ancestors of a child of a ready block, newest first, of this epoch, not attested yet."""
        attested = self.attested_view(parent_hash)
        above = [
            Attested(hash=h.hash, view=h.view, height=h.height) for h in self.path(parent_hash)
        ]
        for candidate in reversed([*self.recent, *above]):
            if candidate.view > attested:
                yield candidate

    def finalize(self, headers: Iterable[Header]) -> list[Digest]:
        """Move the tip up along `headers` (oldest first); returns the hashes of dropped blocks."""
        for header in headers:
            attest = self.bodies[header.hash].attest
            if attest is not None:
                self._attested_view = attest.view
            self.recent.append(Attested(hash=header.hash, view=header.view, height=header.height))
            self.tip = anchor_of(header)
            self.tip_seen_ms = self.seen_ms[header.hash]
        dropped = self.drop([h.hash for h in self.headers.values() if h.view <= self.tip.view])
        for header in sorted(self.headers.values(), key=lambda h: h.height):
            orphaned = (
                header.parent_hash != self.tip.hash and header.parent_hash not in self.headers
            )
            if orphaned and header.hash in self.outcomes:
                dropped += self.drop([header.hash])
        return dropped

    def drop(self, block_hashes: Iterable[Digest]) -> list[Digest]:
        """Forget blocks; returns those that had a state."""
        with_state: list[Digest] = []
        for block_hash in list(block_hashes):
            self.headers.pop(block_hash, None)
            self.seen_ms.pop(block_hash, None)
            body = self.bodies.pop(block_hash, None)
            self.body_bytes -= body.size_bytes if body is not None else 0
            if isinstance(self.outcomes.pop(block_hash, None), Valid):
                with_state.append(block_hash)
            self.executing.discard(block_hash)
        return with_state

    def trim(self, needed: set[Digest]) -> list[Digest]:
        """Drop bodies of the highest views, not `needed`, until the rest fits its bound."""
        held = [self.headers[h] for h in self.bodies if h not in needed]
        excess = sum(self.bodies[h.hash].size_bytes for h in held) - ORPHAN_BYTES_MAX
        dropped: list[Digest] = []
        for header in sorted(held, key=lambda h: (h.view, h.hash), reverse=True):
            if excess <= 0:
                break
            excess -= self.bodies[header.hash].size_bytes
            dropped.append(header.hash)
        return self.drop(dropped)


def anchor_of(header: Header) -> Anchor:
    """The anchor that a block is for its children."""
    return Anchor(
        hash=header.hash,
        view=header.view,
        height=header.height,
        time_ms=header.time_ms,
        state_root=header.state_root,
    )
