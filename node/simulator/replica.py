"""One simulated node: the real engine, and a shell whose disk can fail at any effect.

Rule upheld: the shell does for each effect what `consensus.engine_port` asks, over virtual time. A
vote is durable only after the disk's delay; a crash keeps exactly what was durable and may fall
between any two effects of one event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from consensus.block import Block, Proposal
from consensus.crypto import Domain, Signer
from consensus.engine import Engine
from consensus.engine_message import (
    EpochProof,
    Message,
    ProposalMessage,
    decode_message,
    encode_message,
)
from consensus.engine_port import (
    BlocksReceived,
    Broadcast,
    Build,
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
    PeerConnected,
    ProposalSigned,
    Received,
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
from consensus.types import Digest, Epoch, Height, PeerKey, View
from consensus.vote import Certificate, Vote
from node.simulator.ledger import State

if TYPE_CHECKING:
    from node.simulator.network import Network


@dataclass(slots=True)
class Disk:
    """What survives a crash."""

    log: list[Vote | ProposalMessage] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    certificates: dict[Height, Certificate] = field(default_factory=dict)
    starts: dict[Epoch, EpochStart] = field(default_factory=dict)
    proofs: dict[Epoch, EpochProof] = field(default_factory=dict)
    held: dict[Digest, Block] = field(default_factory=dict)
    """Blocks that this node voted for."""
    state: State = None
    by_hash: dict[Digest, Block] = field(default_factory=dict)


class Replica:
    """A node that follows the protocol. `alive` is False between a crash and its restart."""

    honest = True

    def __init__(self, network: Network, index: int, signer: Signer, skew_ms: int) -> None:
        self.network = network
        self.world = network.world
        self.ledger = network.ledger
        self.index = index
        self.signer = signer
        self.key = PeerKey(signer.public_key)
        self.skew_ms = skew_ms
        self.disk = Disk()
        self.disk_ms = 2
        self.execution_ms = 3
        self.life = 0
        self.alive = False
        self.effects_left: int | None = None
        """Crash after so many more effects; None for never."""
        self.on_durable: Callable[[Vote], bool] | None = None
        """Asked when a vote became durable, before the engine hears of it; true is a crash."""
        self.states: dict[Digest, State] = {}
        state, start = self.ledger.genesis()
        self.disk.state = state
        self.disk.starts[start.epoch] = start

    # Life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or begin again, from what the disk holds; not once another took its place."""
        if self.network.replicas[self.index] is not self:
            return
        self.life += 1
        self.alive = True
        self.effects_left = None
        self.engine = self.make_engine()
        self.states = {self.engine.tip.hash: self.disk.state}
        self._wake = 0
        self._last_asked: RequestBlocks | RequestCertificates | None = None
        self.hand(Tick())
        for other in self.network.replicas:
            if other is not self and other.alive:
                self.hand(PeerConnected(source=str(other.index)))
                other.hand(PeerConnected(source=str(self.index)))

    def make_engine(self) -> Engine:
        """The engine as a restart builds it."""
        epoch = max(self.disk.starts)
        start = self.disk.starts[epoch]
        last = self.disk.blocks[-1].header if self.disk.blocks else None
        inside = last is not None and last.height > start.root.height
        return self.network.engine_type(
            self.network.config(self.key),
            self.network.verifier,
            start,
            tip=self.network.anchor(last) if inside and last is not None else None,
            attested_view=self.ledger.attested_view(self.disk.state) if inside else View(0),
            certificate=self.disk.certificates.get(last.height) if inside and last else None,
            epoch_proof=self.disk.proofs.get(Epoch(epoch - 1)),
            own_log=tuple(self.disk.log),
            blocks=tuple(self.disk.held.values()),
        )

    def crash(self) -> None:
        """Lose everything but the disk."""
        self.alive = False
        self.life += 1
        self.network.trace(self, "crashes")

    # Events and effects -------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """This node's clock."""
        return self.world.now_ms + self.skew_ms

    def hand(self, event: Event) -> None:
        """Give the engine an event and carry out its effects in order."""
        if not self.alive or self.engine.halted is not None:
            return
        view = self.engine.view
        for effect in self.engine.handle(event, self.now_ms):
            if self.effects_left is not None:
                self.effects_left -= 1
                if self.effects_left < 0:
                    self.crash()
                    return
            self.carry_out(effect)
        self.network.watch.after_event(self)
        if self.engine.view != view:
            self.on_view()

    def on_view(self) -> None:
        """A hook for liars: the engine entered another view."""

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something of this life later, unless it ended."""
        life = self.life

        def act() -> None:
            if self.life == life and self.alive:
                action()

        self.world.after(delay_ms, act)

    def carry_out(self, effect: Effect) -> None:
        """Do one effect."""
        match effect:
            case SignVote():
                self._sign_vote(effect)
            case SignProposal():
                self._sign_proposal(effect)
            case Broadcast(message=message):
                self.broadcast(message)
            case Send(to=to, messages=messages):
                self.send(int(to), messages)
            case Resend(messages=messages):
                self.network.trace(self, f"stands still at view {self.engine.view}, resends")
                for other in self.network.others(self):
                    self.send(other.index, messages)
            case RequestBlocks() | RequestCertificates() | RequestEpochProof():
                self._request(effect)
            case SendEpochProof(to=to, epoch=epoch):
                proof = self.disk.proofs.get(epoch)
                if proof is not None:
                    self.send(int(to), (proof,))
            case Execute(block=block):
                self.later(self.execution_ms, lambda: self._execute(block))
            case Build():
                self.later(self.execution_ms, lambda: self._build(effect))
            case Commit():
                self._commit(effect)
            case Discard(block_hashes=hashes):
                for block_hash in hashes:
                    self.states.pop(block_hash, None)
            case WakeAt(at_ms=at_ms):
                self._wake += 1
                wake = self._wake
                self.later(at_ms - self.now_ms, lambda: self._tick(wake))
            case Misbehaved(source=source, fault=fault):
                self.network.watch.misbehaved(self, int(source), fault)
            case Halt():
                self.network.watch.halted(self, effect)

    def _tick(self, wake: int) -> None:
        if wake == self._wake:
            self.hand(Tick())

    # Disk ---------------------------------------------------------------------------------------

    def _sign_vote(self, order: SignVote) -> None:
        payload = order.ballot.payload(order.vset_hash)
        signature = self.signer.sign(Domain.VOTE, self.ledger.chain_id, payload)
        vote = Vote(ballot=order.ballot, signer=self.key, signature=signature)

        block = self.engine.block(order.ballot.block_hash)

        def synced() -> None:
            self.disk.log.append(vote)
            if block is not None:
                self.disk.held[block.hash] = block
            if self.on_durable is not None and self.on_durable(vote):
                self.on_durable = None
                self.crash()
            self.hand(VoteSigned(vote=vote))

        self.later(self.disk_ms, synced)

    def _sign_proposal(self, order: SignProposal) -> None:
        header = order.block.header
        signature = self.signer.sign(Domain.PROPOSAL, self.ledger.chain_id, header.hash)
        proposal = Proposal(header=header, signature=signature)

        def synced() -> None:
            self.disk.log.append(ProposalMessage(proposal=proposal, body=order.block.body))
            self.network.watch.proposed(header.hash)
            self.hand(ProposalSigned(proposal=proposal))

        self.later(self.disk_ms, synced)

    def _commit(self, commit: Commit) -> None:
        self.network.watch.committed(self, commit)
        for block in commit.blocks:
            self.disk.blocks.append(block)
            self.disk.by_hash[block.hash] = block
        last = commit.blocks[-1]
        self.disk.state = self.states[last.hash]
        self.disk.certificates[last.height] = commit.certificate
        for block in commit.blocks[:-1]:
            self.states.pop(block.hash, None)
        self.states.pop(last.header.parent_hash, None)
        if commit.next_epoch is not None and commit.epoch_proof is not None:
            self.disk.held.clear()
            self.disk.starts[commit.next_epoch.epoch] = commit.next_epoch
            self.disk.proofs[commit.epoch_proof.epoch] = commit.epoch_proof
        self.network.trace(self, f"commits height {last.height} of view {last.header.view}")

    # Execution ----------------------------------------------------------------------------------

    def _execute(self, block: Block) -> None:
        parent = self.states.get(block.header.parent_hash)
        if parent is None:
            return  # forgotten meanwhile: the block is dead, or final already
        state, outcome = self.ledger.execute(parent, block)
        self.states[block.hash] = state
        if isinstance(outcome, Valid) and outcome.next_voters is not None:
            self.network.keep_assumption(outcome.next_voters)
        self.hand(Executed(block_hash=block.hash, outcome=outcome))

    def _build(self, order: Build) -> None:
        parent = self.states.get(order.template.parent_hash)
        if parent is None:
            return
        built = self.ledger.build(parent, order, self.network.transactions(self, parent))
        self.states[built.block.hash] = built.state
        if built.next_voters is not None:
            self.network.keep_assumption(built.next_voters)
        self.hand(Built(block=built.block, next_voters=built.next_voters))

    # Network ------------------------------------------------------------------------------------

    def broadcast(self, message: Message) -> None:
        """Gossip, each receiver by chance of its own."""
        self.network.watch.sent(self, message)
        for other in self.network.others(self):
            self._carry(other, message)

    def send(self, to: int, messages: tuple[Message, ...]) -> None:
        """Directly to one peer."""
        for message in messages:
            self.network.watch.sent(self, message)
            self._carry(self.network.replicas[to], message)

    def _carry(self, other: Replica, message: Message) -> None:
        data = encode_message(message)
        self.world.carry(self.index, other.index, lambda: other.receive(data, self.index))

    def receive(self, data: bytes, source: int) -> None:
        """Bytes came in."""
        if self.alive:
            self.hand(Received(message=decoded(data), source=str(source)))

    def _request(self, request: RequestBlocks | RequestCertificates | RequestEpochProof) -> None:
        others = self.network.others(self)
        if not others:
            return
        chosen = self._whom(request, others)
        life = self.life

        def answer() -> None:
            if self.alive and self.life == life and chosen.alive:
                chosen.answer(request, self)

        self.world.carry(self.index, chosen.index, answer)

    def _whom(
        self,
        request: RequestBlocks | RequestCertificates | RequestEpochProof,
        others: list[Replica],
    ) -> Replica:
        """First whom the engine names, later anybody."""
        if isinstance(request, RequestEpochProof):
            return self.network.replicas[int(request.ask_first)]
        again, self._last_asked = request == self._last_asked, request
        first = None if request.ask_first is None else self.network.replica_of(request.ask_first)
        if again or first is None or first is self:
            return self.world.random.choice(others)
        return first

    def answer(
        self, request: RequestBlocks | RequestCertificates | RequestEpochProof, asker: Replica
    ) -> None:
        """Serve another node from the engine and the disk."""
        match request:
            case RequestBlocks(block_hash=block_hash, above_height=above):
                blocks = self.ancestry(block_hash, above)
                if blocks:
                    event = BlocksReceived(blocks=blocks, source=str(self.index))
                    self.world.carry(self.index, asker.index, lambda: asker.hand(event))
            case RequestCertificates(epoch=epoch, first=first, last=last):
                for certificate in self.engine.certificates(epoch, first, last):
                    self._carry(asker, certificate)
            case RequestEpochProof(epoch=epoch):
                for number in range(epoch, epoch + 8):
                    proof = self.disk.proofs.get(Epoch(number))
                    if proof is not None:
                        self._carry(asker, proof)

    def ancestry(self, block_hash: Digest, above: Height) -> tuple[Block, ...]:
        """A block and its ancestors above a height, as far as they are held."""
        found: list[Block] = []
        while len(found) < 32:
            block = self.engine.block(block_hash) or self.disk.by_hash.get(block_hash)
            if block is None or block.height <= above:
                break
            found.append(block)
            block_hash = block.header.parent_hash
        return tuple(found)


@lru_cache(maxsize=4096)
def decoded(data: bytes) -> Message:
    """The message that these bytes are; the same object for the same bytes."""
    return decode_message(data)
