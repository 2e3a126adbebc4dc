"""A bounded model check of the real engine: four equal voters, one Byzantine, a few views.

Votes matter to an engine only as certificates, so the network is a pool: whatever certificate the
honest votes cast so far and the Byzantine voter's can form may reach anybody at any time, in any
order, or never; so may every proposal; and any timer may fire, any voter crash, at
any moment. The Byzantine voter votes for everything, and when it leads offers two blocks on every
parent that is certified.

The search is exhaustive: a global state is one node state per honest voter, node states are told
apart by what the engine holds, and each (node state, action) is executed once with a real engine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from consensus.block import Block, BlockKind, Header, Proposal
from consensus.crypto import Domain, H, KeyedHashSigner, KeyedHashVerifier
from consensus.engine import Engine, EngineConfig
from consensus.engine_message import Message, ProposalMessage, Status
from consensus.engine_port import (
    Anchor,
    BlocksReceived,
    Broadcast,
    Build,
    Built,
    Commit,
    EpochStart,
    Event,
    Execute,
    Executed,
    Halt,
    ProposalSigned,
    Received,
    SignProposal,
    SignVote,
    Tick,
    VoteSigned,
)
from consensus.types import ZERO_DIGEST, AccountId, ChainId, Digest, Epoch, Height, PeerKey, View
from consensus.vote import (
    Ballot,
    Certificate,
    Vote,
    VoteKind,
    Voter,
    VoterSet,
    certificate_of,
)
from node.simulator.ledger import SketchLedger

CHAIN = ChainId(H(b"genesis", b"model"))
LONG_AGO_MS = -(10**9)
SIGNERS = [KeyedHashSigner(bytes([i]) * 32) for i in range(4)]
KEYS = sorted(PeerKey(signer.public_key) for signer in SIGNERS)
SIGNER_OF = {PeerKey(signer.public_key): signer for signer in SIGNERS}
VOTERS = VoterSet(
    epoch=Epoch(0),
    voters=tuple(Voter(account=AccountId(key), peer_key=key, power=1) for key in KEYS),
)


RESTART: Message = Status(
    epoch=Epoch(0), view=View(0), final_view=View(0), final_height=Height(0), final_hash=ZERO_DIGEST
)
"""Stands for a crash among the actions."""

Blocks: TypeAlias = "dict[Digest, tuple[Anchor, object, ProposalMessage]]"
"""Every block that exists: what its children know of it, the state after it, its proposal."""

Step: TypeAlias = "tuple[tuple[int, ...], int, Message | None]"
"""Where a global state was reached from: that state, which honest node acted, and how."""


class Broken(AssertionError):
    """A reachable state breaks safety; the text is the shortest way there."""


@dataclass
class Node:
    """One engine with its shell, after some history."""

    engine: Engine
    ledger: SketchLedger
    index: int
    states: dict[Digest, object] = field(default_factory=dict)
    votes: set[tuple[VoteKind, View, Digest]] = field(default_factory=set)
    proposals: dict[Digest, ProposalMessage] = field(default_factory=dict)
    committed: list[Digest] = field(default_factory=list)
    halted: str = ""
    log: list[Vote | ProposalMessage] = field(default_factory=list)
    history: tuple[Message | None, ...] = ()

    def act(self, action: Message | None, blocks: Blocks) -> None:
        """Receive a message, or (None) let the timer of the view fire, or (RESTART) crash and
        come back. A certificate comes with its block, and with the blocks below, as a request
        would bring them.
        """
        self.history = (*self.history, action)
        if action is RESTART:
            self.restart(blocks)
        elif action is None:
            self.engine.entered_ms = self.engine.listen_until_ms = LONG_AGO_MS
            self.hand(Tick())
        else:
            self.hand(Received(message=action, source="network"))
        at = action.block_hash if isinstance(action, Certificate) else None
        while at is not None and at in blocks and self.engine.halted is None:
            message = blocks[at][2]
            assert message.body is not None
            block = Block(header=message.proposal.header, body=message.body)
            self.hand(BlocksReceived(blocks=(block,), source="network"))
            at = block.header.parent_hash

    def hand(self, event: Event) -> None:
        """Handle an event and everything that it leads to inside the node."""
        events = deque([event])
        while events:
            for effect in self.engine.handle(events.popleft(), 0):
                match effect:
                    case SignVote(ballot=ballot):
                        self.votes.add((ballot.kind, ballot.view, ballot.block_hash))
                        self.log.append(signed(ballot, self.index))
                        events.append(VoteSigned(vote=signed(ballot, self.index)))
                    case SignProposal(block=block):
                        proposal = propose(block, self.index)
                        message = ProposalMessage(proposal=proposal, body=block.body)
                        self.proposals[block.hash] = message
                        self.log.append(message)
                        events.append(ProposalSigned(proposal=proposal))
                    case Build(template=template):
                        parent = self.states[template.parent_hash]
                        built = self.ledger.build(parent, effect, ())
                        self.states[built.block.hash] = built.state
                        events.append(Built(block=built.block, next_voters=built.next_voters))
                    case Execute(block=block):
                        state, outcome = self.ledger.execute(
                            self.states[block.header.parent_hash], block
                        )
                        self.states[block.hash] = state
                        events.append(Executed(block_hash=block.hash, outcome=outcome))
                    case Commit(blocks=blocks):
                        self.committed += [block.hash for block in blocks]
                    case Halt(reason=reason):
                        self.halted = reason
                    case Broadcast() | _:
                        pass

    def restart(self, blocks: Blocks) -> None:
        """Forget all but the final chain, the own votes and proposals, and their blocks."""
        voted = {vote.ballot.block_hash for vote in self.log if isinstance(vote, Vote)}
        held = [blocks[h][2] for h in sorted(voted) if h in blocks]
        before = self.engine
        self.engine = type(before)(
            before.config,
            before.verifier,
            EpochStart(voters=VOTERS, root=before.chain.root),
            tip=before.tip,
            certificate=before.certificate,
            own_log=tuple(self.log),
            blocks=tuple(
                Block(header=message.proposal.header, body=message.body)
                for message in held
                if message.body is not None
            ),
        )
        self.hand(Tick())

    def fingerprint(self) -> tuple[object, ...]:
        """All that its future depends on."""
        engine = self.engine
        records = tuple(
            (
                view,
                tuple(sorted((k, b.block_hash) for k, b in record.own_ballots.items())),
                tuple(sorted((k, c.block_hash) for k, c in record.certificates.items())),
                tuple(record.proposals),
            )
            for view, record in sorted(engine.records.items())
            if record.own_ballots or record.certificates or record.proposals
        )
        return (
            engine.view,
            records,
            tuple(self.committed),
            tuple(sorted(self.votes)),
            tuple(sorted(engine.chain.headers)),
            self.halted,
        )


@dataclass(frozen=True)
class Found:
    """How much was searched."""

    states: int
    node_states: int
    commits: int


def check(
    byzantine_leads: int,
    views: int,
    engine_type: type[Engine] = Engine,
    *,
    honest: int = 3,
    restarts: bool = False,
    states_max: int | None = None,
) -> Found:
    """Search everything in which the Byzantine voter leads view `byzantine_leads`.

    With `restarts` every voter may crash at any moment and come back with its vote log. With
    `honest` 2 one honest voter is down, so that the rest are a bare quorum; with `states_max`
    only so many states, nearest first, are visited. Raises Broken.
    """
    return Search(byzantine_leads, views, engine_type, honest, restarts).run(states_max)


class Search:
    """Breadth first, so that the way to a broken state is a shortest one."""

    def __init__(
        self,
        byzantine_leads: int,
        views: int,
        engine_type: type[Engine],
        honest: int,
        restarts: bool,
    ) -> None:
        self.views = views
        self.restarts = restarts
        ledger = SketchLedger(CHAIN, VOTERS, 100)
        state, start = ledger.genesis()
        self.root = start.root
        probe = Engine(config(0), KeyedHashVerifier(), start)
        self.byzantine = probe.rotation.leader(View(byzantine_leads))
        self.leaders = {v: probe.rotation.leader(View(v)) for v in range(1, views + 1)}
        self.ledger = ledger
        leading = list(self.leaders.values())
        others = [index for index in range(4) if index != self.byzantine]
        self.honest = sorted(others, key=lambda index: (index not in leading, index))[:honest]
        self.nodes: list[Node] = []
        self.number_of: dict[object, int] = {}
        self.moves: dict[tuple[int, int], int] = {}
        self.news: dict[tuple[int, int], bool] = {}
        self.pools: dict[object, tuple[Certificate, ...]] = {}
        self.formed: dict[tuple[VoteKind, View, Digest], Certificate] = {}
        self.forged: dict[tuple[View, Digest, int], ProposalMessage] = {}
        self.blocks: dict[Digest, tuple[Anchor, object, ProposalMessage]] = {}
        self.engine_type = engine_type
        self.start = start
        self.root_state = state
        self.first = tuple(self.enter(self.fresh(index)) for index in self.honest)

    def run(self, states_max: int | None) -> Found:
        """Visit every reachable global state, or the nearest `states_max`."""
        came_from: dict[tuple[int, ...], Step | None] = {self.first: None}
        queue = deque([self.first])
        while queue and (states_max is None or len(came_from) < states_max):
            here = queue.popleft()
            for place, action in self.actions(here):
                there = list(here)
                there[place] = self.move(here[place], action)
                following = tuple(there)
                if following not in came_from:
                    came_from[following] = here, place, action
                    self.judge(following, came_from)
                    queue.append(following)
        commits = sum(bool(node.committed) for node in self.nodes)
        return Found(states=len(came_from), node_states=len(self.nodes), commits=commits)

    def enter(self, node: Node) -> int:
        """The number of a node state; the first node seen in it represents it."""
        key = (node.index, node.fingerprint())
        if key not in self.number_of:
            self.number_of[key] = len(self.nodes)
            self.nodes.append(node)
            for block_hash, message in node.proposals.items():
                header = message.proposal.header
                state = node.states.get(block_hash)
                if block_hash not in self.blocks and state is not None:
                    self.blocks[block_hash] = anchor(header), state, message
        return self.number_of[key]

    def move(self, number: int, action: Message | None) -> int:
        """The node state after an action: its history once more, and one step further."""
        key = (number, id(action))
        if key not in self.moves:
            before = self.nodes[number]
            node = self.fresh(before.index)
            for past in (*before.history, action):
                node.act(past, self.blocks)
            self.moves[key] = self.enter(node)
        return self.moves[key]

    def fresh(self, index: int) -> Node:
        """A node at the beginning."""
        node = Node(
            self.engine_type(config(index), KeyedHashVerifier(), self.start), self.ledger, index
        )
        node.states[self.root.hash] = self.root_state
        node.hand(Tick())
        return node

    def actions(self, here: tuple[int, ...]) -> list[tuple[int, Message | None]]:
        """What may happen next: (which honest node, message or None for its timer)."""
        nodes = [self.nodes[number] for number in here]
        certificates = self.certificates(nodes)
        messages: list[Message] = [*certificates, *self.proposals(nodes, certificates)]
        found: list[tuple[int, Message | None]] = []
        for place, number in enumerate(here):
            if self.may_time_out(number):
                found.append((place, None))
            if self.restarts and not self.nodes[number].halted:
                found.append((place, RESTART))
            found += [(place, message) for message in messages if self.is_news(number, message)]
        return found

    def may_time_out(self, number: int) -> bool:
        """Whether the timer of the view may still fire."""
        engine = self.nodes[number].engine
        record = engine.records.get(engine.view)
        fired = record is not None and VoteKind.NULLIFY in record.own_ballots
        return engine.view <= self.views and not fired

    def is_news(self, number: int, message: Message) -> bool:
        """Whether delivery can change anything."""
        key = (number, id(message))
        if key not in self.news:
            self.news[key] = self.changes(self.nodes[number].engine, message)
        return self.news[key]

    def changes(self, engine: Engine, message: Message) -> bool:
        """Whether an engine would take the message in."""
        if isinstance(message, Certificate):
            record = engine.records.get(message.view)
            known = record is not None and message.kind in record.certificates
            return message.view > engine.tip.view and not known
        assert isinstance(message, ProposalMessage)
        header = message.proposal.header
        record = engine.records.get(header.view)
        if header.view < engine.view or engine.view > self.views:
            return False  # its time is over; the block itself comes with its certificate
        return record is None or (header.hash not in record.proposals and len(record.proposals) < 2)

    def certificates(self, nodes: list[Node]) -> tuple[Certificate, ...]:
        """Every certificate that honest votes so far and the Byzantine ones can form."""
        key = tuple(frozenset(node.votes) for node in nodes)
        if key not in self.pools:
            self.pools[key] = tuple(self.form(nodes))
        return self.pools[key]

    def form(self, nodes: list[Node]) -> list[Certificate]:
        """Certificates of a bare quorum, each made once."""
        signers: dict[tuple[VoteKind, View, Digest], list[int]] = {}
        for node in nodes:
            for vote in node.votes:
                signers.setdefault(vote, [self.byzantine]).append(node.index)
        found = []
        for vote, indices in sorted(signers.items()):
            kind, view, block_hash = vote
            if len(indices) < VOTERS.quorum or view > self.views:
                continue
            if vote not in self.formed:
                ballot = Ballot(kind=kind, epoch=Epoch(0), view=view, block_hash=block_hash)
                signatures = {i: signed(ballot, i).signature for i in indices[: VOTERS.quorum]}
                self.formed[vote] = certificate_of(ballot, VOTERS, signatures)
            found.append(self.formed[vote])
        return found

    def proposals(
        self, nodes: list[Node], certificates: tuple[Certificate, ...]
    ) -> list[ProposalMessage]:
        """Honest leaders' blocks; of the Byzantine leader two that conflict on the root, and one
        on every certified block.
        """
        found = [self.blocks[h][2] for node in nodes for h in node.proposals if h in self.blocks]
        certified = {c.block_hash for c in certificates if c.kind is not VoteKind.NULLIFY}
        for view, leader in self.leaders.items():
            if leader != self.byzantine:
                continue
            found += [self.forge(View(view), self.root.hash, late) for late in (1, 2)]
            for block_hash in sorted(certified):
                if block_hash in self.blocks and self.blocks[block_hash][0].view < view:
                    found.append(self.forge(View(view), block_hash, 1))
        return found

    def forge(self, view: View, parent_hash: Digest, late_ms: int) -> ProposalMessage:
        """A well-formed block of the Byzantine leader on any parent, made once."""
        key = (view, parent_hash, late_ms)
        if key not in self.forged:
            self.forged[key] = self.forge_on(view, parent_hash, late_ms)
        return self.forged[key]

    def forge_on(self, view: View, parent_hash: Digest, late_ms: int) -> ProposalMessage:
        """The block itself."""
        parent, state = self.root, self.root_state
        if parent_hash != self.root.hash:
            parent, state, _ = self.blocks[parent_hash]
        template = Header(
            chain_id=CHAIN,
            epoch=Epoch(0),
            view=view,
            height=Height(parent.height + 1),
            kind=BlockKind.NORMAL,
            parent_hash=parent.hash,
            parent_view=parent.view,
            time_ms=parent.time_ms + late_ms,
            proposer=VOTERS.voters[self.byzantine].account,
            body_root=ZERO_DIGEST,
            state_root=ZERO_DIGEST,
            vset_hash=VOTERS.hash,
            next_vset_hash=ZERO_DIGEST,
            receipts_root=ZERO_DIGEST,
        )
        built = self.ledger.build(state, Build(template=template, evidence=(), attest=None), ())
        message = ProposalMessage(
            proposal=propose(built.block, self.byzantine), body=built.block.body
        )
        self.blocks.setdefault(built.block.hash, (anchor(built.block.header), built.state, message))
        return message

    def judge(
        self,
        state: tuple[int, ...],
        came_from: dict[tuple[int, ...], Step | None],
    ) -> None:
        """Raise Broken unless the state is safe."""
        nodes = [self.nodes[number] for number in state]
        fault = self.fault(nodes)
        if fault:
            words = []
            at: tuple[int, ...] = state
            while (step := came_from[at]) is not None:
                at, place, action = step
                words.append(f"{self.honest[place]}: {described(action)}")
            raise Broken(f"{fault} after: " + "; ".join(reversed(words)))

    def fault(self, nodes: list[Node]) -> str:
        """What is wrong with a global state, or nothing."""
        for node in nodes:
            if node.halted:
                return f"{node.index} halts: {node.halted}"
        longest = max((node.committed for node in nodes), key=len)
        if any(node.committed != longest[: len(node.committed)] for node in nodes):
            return "two chains are final"
        ends: dict[View, set[tuple[str, Digest]]] = {}
        for certificate in self.certificates(nodes):
            kind, block_hash = certificate.kind, certificate.block_hash
            name = "skipped" if kind is VoteKind.NULLIFY else "block"
            seen = ends.setdefault(certificate.view, set())
            if name == "block" and any(n == "block" and h != block_hash for n, h in seen):
                return f"two blocks are certified in view {certificate.view}"
            seen.add((name, block_hash))
            if kind is VoteKind.FINALIZE:
                seen.add(("final", block_hash))
            if {"skipped", "final"} <= {n for n, _ in seen}:
                return f"view {certificate.view} is final and skipped"
        return ""


def described(action: Message | None) -> str:
    """An action in words."""
    match action:
        case None:
            return "the timer fires"
        case Status():
            return "a crash and a restart"
        case Certificate():
            return f"{action.kind.name} certificate of view {action.view}"
        case ProposalMessage(proposal=proposal):
            header = proposal.header
            return f"block {header.hash.hex()[:4]} of view {header.view} on {header.parent_view}"
        case _:
            return type(action).__name__


def config(index: int) -> EngineConfig:
    """No pacing, no listening: time never passes by itself."""
    return EngineConfig(
        chain_id=CHAIN,
        blocks_per_epoch=100,
        block_interval_ms=0,
        view_timeout_ms=1_000,
        own_key=KEYS[index],
    )


def signed(ballot: Ballot, index: int) -> Vote:
    """The vote of voter `index`."""
    payload = ballot.payload(VOTERS.hash)
    signature = SIGNER_OF[KEYS[index]].sign(Domain.VOTE, CHAIN, payload)
    return Vote(ballot=ballot, signer=KEYS[index], signature=signature)


def propose(block: Block, index: int) -> Proposal:
    """The proposal of voter `index`."""
    signature = SIGNER_OF[KEYS[index]].sign(Domain.PROPOSAL, CHAIN, block.hash)
    return Proposal(header=block.header, signature=signature)


def anchor(header: Header) -> Anchor:
    """What children know of a block."""
    return Anchor(
        hash=header.hash,
        view=header.view,
        height=header.height,
        time_ms=header.time_ms,
        state_root=header.state_root,
    )
