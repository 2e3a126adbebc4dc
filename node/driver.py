"""The shell of the engine: hands it events and carries out its effects, in order.

Rule: one task owns the engine, the states and both databases. An effect is complete before the
next begins; what it answers with is handled before anything from outside. So a vote is on disk
before it is sent or counted, and a block is on disk before anybody hears that it is final.

Cancelling `run` may leave a vote logged that was not sent; it is sent after the restart.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, assert_never

import trio

from consensus.block import Block, Proposal
from consensus.crypto import Domain, Signer
from consensus.engine_message import Message, ProposalMessage, decode_message, encode_message
from consensus.engine_port import (
    Broadcast,
    Build,
    BuildFailed,
    Built,
    Commit,
    Discard,
    Effect,
    EpochStart,
    Event,
    Execute,
    Executed,
    Halt,
    Misbehaved,
    Outcome,
    ProposalSigned,
    RequestBlocks,
    RequestCertificates,
    RequestEpochProof,
    Resend,
    Send,
    SendEpochProof,
    SignProposal,
    SignVote,
    Tick,
    Valid,
    VoteSigned,
    WakeAt,
)
from consensus.types import ChainId, Digest, PeerKey
from consensus.vote import Vote
from node.clock import Clock
from node.store import ChainStore, EpochChange, StoredBlock
from node.vote_log import Record, RecordKind, VoteLog

logger = logging.getLogger("agora.driver")

EVENTS_MAX: Final = 1_024  # events waiting; more votes than 128 voters cast in two views
NEVER_MS: Final = 2**63


class Engine(Protocol):
    """The pure machine of `consensus.engine`."""

    def handle(self, event: Event, now_ms: int) -> Sequence[Effect]:
        """Take one event and return what to do."""


class Execution(Protocol):
    """The states of blocks that are not final yet, and of the last final one."""

    def execute(self, block: Block) -> Outcome:
        """Execute on the parent's state and keep the result."""

    def build(self, effect: Build, offered: Sequence[bytes]) -> Built | BuildFailed:
        """Fill a block from the offered transactions and keep its state."""

    def finalize(self, block_hash: Digest) -> dict[bytes, bytes | None]:
        """Make a block's state the final one; return the leaves it changed."""

    def discard(self, block_hashes: Sequence[Digest]) -> None:
        """Forget states."""


class Peers(Protocol):
    """The other nodes; every call returns at once."""

    def broadcast(self, message: Message) -> None:
        """Publish by gossip."""

    def send(self, to: str, messages: Sequence[Message]) -> None:
        """Send directly to one peer."""

    def resend(self, messages: Sequence[Message]) -> None:
        """Send directly to every connected peer, in place of an unsent earlier resend."""

    def request(self, effect: RequestBlocks | RequestCertificates | RequestEpochProof) -> None:
        """Fetch something; the answer comes as an event."""

    def misbehaved(self, source: str, fault: str) -> None:
        """Lower a peer's score."""


class Driver:
    """One node's ordering.

    `no_vote_before_ms` is the engine's: an epoch that begins later ends the silence after a lost
    vote log. `offer` gives the transactions that a block may take, in order; `final` is called
    with each final block, after it is on disk. Both run on the trio thread and return at once.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        execution: Execution,
        chain_id: ChainId,
        signer: Signer,
        store: ChainStore,
        vote_log: VoteLog,
        peers: Peers,
        clock: Clock,
        no_vote_before_ms: int,
        offer: Callable[[Build], Sequence[bytes]],
        final: Callable[[Block], None],
    ) -> None:
        self._engine = engine
        self._execution = execution
        self._chain_id = chain_id
        self._signer = signer
        self._store = store
        self._vote_log = vote_log
        self._peers = peers
        self._clock = clock
        self._no_vote_before_ms = no_vote_before_ms
        self._offer = offer
        self._final = final
        self._answers: deque[Event] = deque()
        self._send_event, self._events = trio.open_memory_channel[Event](EVENTS_MAX)
        self._wake_ms = NEVER_MS
        self._unfinished: dict[Digest, bytes] = {}  # executed blocks: stored with our votes
        self.halted: str | None = None
        self.dropped = 0

    def deliver(self, event: Event) -> bool:
        """Queue an event from outside; False, and counted, when EVENTS_MAX wait already."""
        try:
            self._send_event.send_nowait(event)
        except trio.WouldBlock:
            self.dropped += 1
            return False
        return True

    async def run(self) -> None:
        """Order blocks until cancelled. Raises StoreError or DoubleSignRefused: the node ends."""
        self._answers.append(Tick())
        while True:
            event = self._answers.popleft() if self._answers else await self._next()
            for effect in self._engine.handle(event, self._clock.now_ms()):
                await self._carry_out(effect)

    async def _next(self) -> Event:
        wait_s = max(0.0, (self._wake_ms - self._clock.now_ms()) / 1000)
        with trio.move_on_after(min(wait_s, 3600.0)):
            return await self._events.receive()
        self._wake_ms = NEVER_MS
        return Tick()

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case SignVote():
                await self._sign_vote(effect)
            case SignProposal():
                await self._sign_proposal(effect.block)
            case Execute():
                await self._execute(effect.block)
            case Build():
                await self._build(effect)
            case Commit():
                await self._commit(effect)
            case Discard():
                self._discard(effect.block_hashes)
            case Broadcast():
                self._peers.broadcast(effect.message)
            case Send():
                self._peers.send(effect.to, effect.messages)
            case Resend():
                self._peers.resend(effect.messages)
            case RequestBlocks() | RequestCertificates() | RequestEpochProof():
                self._peers.request(effect)
            case SendEpochProof():
                await self._send_epoch_proof(effect)
            case WakeAt():
                self._wake_ms = effect.at_ms
            case Misbehaved():
                self._peers.misbehaved(effect.source, effect.fault)
            case Halt():
                self.halted = effect.reason
                logger.error("halted: %s", effect.reason)
            case _:
                assert_never(effect)

    async def _execute(self, block: Block) -> None:
        outcome = await trio.to_thread.run_sync(self._execution.execute, block)
        if isinstance(outcome, Valid):
            self._unfinished[block.hash] = block.encode()
        self._answers.append(Executed(block_hash=block.hash, outcome=outcome))

    async def _build(self, effect: Build) -> None:
        offered = self._offer(effect)
        built = await trio.to_thread.run_sync(self._execution.build, effect, offered)
        if isinstance(built, Built):
            self._unfinished[built.block.hash] = built.block.encode()
        self._answers.append(built)

    def _discard(self, block_hashes: Sequence[Digest]) -> None:
        self._execution.discard(block_hashes)
        for block_hash in block_hashes:
            self._unfinished.pop(block_hash, None)

    async def _sign_vote(self, effect: SignVote) -> None:
        ballot = effect.ballot
        payload = ballot.payload(effect.vset_hash)
        vote = Vote(
            ballot=ballot,
            signer=PeerKey(self._signer.public_key),
            signature=self._signer.sign(Domain.VOTE, self._chain_id, payload),
        )
        record = Record(
            kind=RecordKind(ballot.kind),
            epoch=ballot.epoch,
            view=ballot.view,
            block_hash=ballot.block_hash,
            data=encode_message(vote),
        )
        body = self._unfinished.get(ballot.block_hash)
        await trio.to_thread.run_sync(lambda: self._vote_log.record([record], block=body))
        self._answers.append(VoteSigned(vote=vote))

    async def _sign_proposal(self, block: Block) -> None:
        proposal = Proposal(
            header=block.header,
            signature=self._signer.sign(Domain.PROPOSAL, self._chain_id, block.hash),
        )
        record = Record(
            kind=RecordKind.PROPOSE,
            epoch=block.header.epoch,
            view=block.header.view,
            block_hash=block.hash,
            data=encode_message(ProposalMessage(proposal=proposal, body=block.body)),
        )
        body = block.encode()
        await trio.to_thread.run_sync(lambda: self._vote_log.record([record], block=body))
        self._answers.append(ProposalSigned(proposal=proposal))

    async def _commit(self, effect: Commit) -> None:
        leaves: dict[bytes, bytes | None] = {}
        for block in effect.blocks:
            leaves.update(self._execution.finalize(block.hash))
        change = None
        if effect.next_epoch is not None:
            proof = effect.epoch_proof
            change = EpochChange(
                epoch=effect.next_epoch.epoch,
                voter_set=effect.next_epoch.voters.encode(),
                proof=b"" if proof is None else encode_message(proof),
            )
        await trio.to_thread.run_sync(
            lambda: self._store.commit(
                [stored(block) for block in effect.blocks],
                leaves=leaves,
                certificate=effect.certificate.encode(),
                epoch_change=change,
            )
        )
        if effect.next_epoch is not None:
            await trio.to_thread.run_sync(self._turn_vote_log, effect.next_epoch)
        for block in effect.blocks:
            self._unfinished.pop(block.hash, None)
            self._final(block)

    def _turn_vote_log(self, start: EpochStart) -> None:
        if start.root.time_ms > self._no_vote_before_ms:
            self._vote_log.allow_from(start.epoch)  # does nothing unless the log was lost
        self._vote_log.drop_before(start.epoch)

    async def _send_epoch_proof(self, effect: SendEpochProof) -> None:
        change = await trio.to_thread.run_sync(self._store.epoch, effect.epoch + 1)
        if change is not None and change.proof:
            self._peers.send(effect.to, [decode_message(change.proof)])


def stored(block: Block) -> StoredBlock:
    """A block as the chain store keeps it."""
    return StoredBlock(
        height=block.height,
        hash=block.hash,
        epoch=block.header.epoch,
        view=block.header.view,
        state_root=block.header.state_root,
        header=block.header.encode(),
        body=block.body.encode(),
        transactions=len(block.body.transactions),
    )
