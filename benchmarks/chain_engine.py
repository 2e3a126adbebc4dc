"""The engine alone: processor time that one voter of n spends on a view, in virtual time.

The rule: n real engines exchange real signed messages over a perfect network; measured is the time
that a few of them spend inside `handle`, where every vote and certificate is checked by Ed25519
behind the same memory of checked signatures that a node has. Signing, execution and the carrying
of messages are not counted, and the other engines believe every signature, or the measurement
itself would take minutes.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from typing import Any, Final

from consensus.block import Block, Proposal
from consensus.crypto import Domain, Ed25519Signer
from consensus.engine import Engine, EngineConfig
from consensus.engine_message import Message
from consensus.engine_port import (
    Broadcast,
    Build,
    Built,
    Commit,
    Effect,
    Event,
    Execute,
    Executed,
    ProposalSigned,
    Received,
    SignProposal,
    SignVote,
    Tick,
    VoteSigned,
    WakeAt,
)
from consensus.types import AccountId, ChainId, Digest, Epoch, PeerKey, Signature
from consensus.vote import Vote, Voter, VoterSet
from node.simulator.ledger import SketchLedger
from node.verifier import RememberingVerifier

CHAIN_ID: Final = ChainId(Digest(b"engine benchmark".ljust(32, b"\0")))
BLOCKS_PER_EPOCH: Final = 1_000
INTERVAL_MS: Final = 500
TIMEOUT_MS: Final = 4_000
DELAY_MS: Final = 20
MEASURED: Final = 3
"""Engines whose time is taken; each sees other orders of the same messages."""
WARM_UP_BLOCKS: Final = 2


class Believer:
    """A verifier that is not measured: everything is valid."""

    def verify(
        self,
        public_key: bytes,
        domain: Domain,
        chain_id: ChainId,
        payload: bytes,
        signature: Signature,
    ) -> bool:
        """True."""
        return True


class Crowd:
    """Engines on a perfect network, with one heap of events in virtual time."""

    def __init__(self, voters: int) -> None:
        seeds = [b"engine voter" + index.to_bytes(20, "big") for index in range(voters)]
        self._signers = [Ed25519Signer(seed) for seed in seeds]
        members = tuple(
            sorted(
                (
                    Voter(
                        account=AccountId(signer.public_key),
                        peer_key=PeerKey(signer.public_key),
                        power=1_000 + index,
                    )
                    for index, signer in enumerate(self._signers)
                ),
                key=lambda voter: voter.account,
            )
        )
        ledger = SketchLedger(CHAIN_ID, VoterSet(epoch=Epoch(0), voters=members), BLOCKS_PER_EPOCH)
        self._ledger = ledger
        state, start = ledger.genesis()
        self._states: dict[Digest, Any] = {start.root.hash: state}
        self._engines = [
            Engine(
                EngineConfig(
                    chain_id=CHAIN_ID,
                    blocks_per_epoch=BLOCKS_PER_EPOCH,
                    block_interval_ms=INTERVAL_MS,
                    view_timeout_ms=TIMEOUT_MS,
                    own_key=PeerKey(signer.public_key),
                ),
                RememberingVerifier() if index < MEASURED else Believer(),
                start,
            )
            for index, signer in enumerate(self._signers)
        ]
        self._heap: list[tuple[int, int, int, Event]] = []
        self._entered = 0
        self.now_ms = 0
        self.spent_s = [0.0] * MEASURED
        self.committed = 0

    def run(self, blocks: int) -> None:
        """Until the first engine has committed so many blocks more."""
        goal = self.committed + blocks
        if not self._heap:
            for index in range(len(self._engines)):
                self._enter(0, index, Tick())
        while self.committed < goal:
            self.now_ms, _, index, event = heapq.heappop(self._heap)
            began_s = time.process_time()
            effects = self._engines[index].handle(event, self.now_ms)
            if index < MEASURED:
                self.spent_s[index] += time.process_time() - began_s
            for effect in effects:
                self._carry_out(index, effect)

    def _enter(self, delay_ms: int, index: int, event: Event) -> None:
        self._entered += 1
        heapq.heappush(self._heap, (self.now_ms + delay_ms, self._entered, index, event))

    def _carry_out(self, index: int, effect: Effect) -> None:
        match effect:
            case Broadcast():
                self._broadcast(index, effect.message)
            case SignVote():
                signer = self._signers[index]
                payload = effect.ballot.payload(effect.vset_hash)
                vote = Vote(
                    ballot=effect.ballot,
                    signer=PeerKey(signer.public_key),
                    signature=signer.sign(Domain.VOTE, CHAIN_ID, payload),
                )
                self._enter(0, index, VoteSigned(vote=vote))
            case SignProposal():
                self._enter(0, index, ProposalSigned(proposal=self._signed(index, effect.block)))
            case Build():
                parent = self._states[effect.template.parent_hash]
                built = self._ledger.build(parent, effect, ())
                self._states[built.block.hash] = built.state
                self._enter(0, index, Built(block=built.block, next_voters=built.next_voters))
            case Execute():
                block = effect.block
                state, outcome = self._ledger.execute(self._states[block.header.parent_hash], block)
                self._states[block.hash] = state
                self._enter(0, index, Executed(block_hash=block.hash, outcome=outcome))
            case WakeAt():
                self._enter(max(0, effect.at_ms - self.now_ms), index, Tick())
            case Commit():
                if index == 0:
                    self.committed += len(effect.blocks)
            case _:
                pass  # nothing is lost on this network, so nothing is asked for

    def _signed(self, index: int, block: Block) -> Proposal:
        signature = self._signers[index].sign(Domain.PROPOSAL, CHAIN_ID, block.hash)
        return Proposal(header=block.header, signature=signature)

    def _broadcast(self, index: int, message: Message) -> None:
        source = str(index)
        for other in range(len(self._engines)):
            if other != index:
                # Distances differ, so that every engine hears the others in an order of its own.
                delay_ms = DELAY_MS + (index * 7 + other * 13) % DELAY_MS
                self._enter(delay_ms, other, Received(message=message, source=source))


def cpu_ms_per_view(voters: int, blocks: int) -> float:
    """Milliseconds of processor time per block and measured engine."""
    crowd = Crowd(voters)
    crowd.run(WARM_UP_BLOCKS)
    crowd.spent_s = [0.0] * MEASURED
    crowd.run(blocks)
    return round(sum(crowd.spent_s) / MEASURED / blocks * 1_000, 2)


def measure_engines(sizes: Sequence[int], blocks: int) -> dict[str, dict[str, float]]:
    """`cpu_ms_per_view` by number of voters."""
    return {str(size): {"cpu_ms_per_view": cpu_ms_per_view(size, blocks)} for size in sizes}
