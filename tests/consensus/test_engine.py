"""The engine's rules one by one: one engine, its messages by hand, its effects looked at."""

import dataclasses
import itertools
from collections import deque

import pytest

from consensus.block import Block, BlockKind, Proposal
from consensus.crypto import Domain, H, KeyedHashVerifier
from consensus.engine import DRIFT_MS, Engine, EngineConfig, Judgement
from consensus.engine_message import (
    EpochProof,
    Message,
    ProposalMessage,
    Status,
    decode_message,
    encode_message,
)
from consensus.engine_port import (
    BlocksReceived,
    Broadcast,
    Build,
    Built,
    Commit,
    Effect,
    Event,
    Execute,
    Executed,
    Halt,
    Invalid,
    Misbehaved,
    PeerConnected,
    ProposalSigned,
    Received,
    RequestBlocks,
    RequestCertificates,
    RequestEpochProof,
    Resend,
    Send,
    SignProposal,
    SignVote,
    Tick,
    VoteSigned,
    WakeAt,
)
from consensus.errors import DecodeError
from consensus.types import Digest, Epoch, Height, PeerKey, View
from consensus.vote import NO_BLOCK, Ballot, Certificate, Vote, VoteKind, certificate_of
from node.simulator.ledger import SketchLedger, State
from tests.consensus import ordering_strategies as given_of

BLOCKS_PER_EPOCH = 3
INTERVAL_MS = 500
TIMEOUT_MS = 1_000


class Bench:
    """One engine of a set of `count` equal voters; the bench plays all others.

    Signing, building and execution are answered at once; everything else is collected.
    """

    def __init__(
        self,
        count: int = 4,
        *,
        leads: int | None = None,
        own_log: tuple[Vote | ProposalMessage, ...] = (),
        blocks: tuple[Block, ...] = (),
        fault: str | None = None,
        **config: int,
    ) -> None:
        self.signers = given_of.signers(count)
        self.voters = given_of.voter_set([1] * count)
        self.ledger = SketchLedger(given_of.CHAIN, self.voters, BLOCKS_PER_EPOCH)
        state, self.start = self.ledger.genesis()
        probe = self.make(PeerKey(bytes(32)))
        self.leaders = [probe.rotation.leader(View(view)) for view in range(1, 30)]
        self.own = (
            self.leaders[0]
            if leads == 1
            else next(i for i in range(count) if i != self.leaders[0] or count == 1)
        )
        self.key = self.voters.voters[self.own].peer_key
        self.fault = fault
        self.states: dict[Digest, State] = {self.start.root.hash: state}
        self.effects: list[Effect] = []
        self.made: list[Block] = []
        self.now_ms = 10_000
        self.answers = True
        self.engine = self.make(self.key, own_log=own_log, blocks=blocks, **config)

    def make(
        self,
        key: PeerKey,
        own_log: tuple[Vote | ProposalMessage, ...] = (),
        blocks: tuple[Block, ...] = (),
        **config: int,
    ) -> Engine:
        settings = EngineConfig(
            chain_id=given_of.CHAIN,
            blocks_per_epoch=BLOCKS_PER_EPOCH,
            block_interval_ms=INTERVAL_MS,
            view_timeout_ms=TIMEOUT_MS,
            own_key=key,
            **config,
        )
        return Engine(settings, KeyedHashVerifier(), self.start, own_log=own_log, blocks=blocks)

    def hand(self, event: Event, after_ms: int = 0) -> list[Effect]:
        """Hand an event in; returns the effects that were not answered here."""
        self.now_ms += after_ms
        fresh: list[Effect] = []
        events = deque([event])
        while events:
            for effect in self.engine.handle(events.popleft(), self.now_ms):
                answer = self.answer(effect) if self.answers else None
                if answer is not None:
                    events.append(answer)
                fresh.append(effect)
        self.effects += fresh
        return fresh

    def answer(self, effect: Effect) -> Event | None:
        match effect:
            case SignVote(ballot=ballot):
                return VoteSigned(vote=self.vote(ballot, self.own))
            case SignProposal(block=block):
                return ProposalSigned(proposal=self.propose(block, self.own).proposal)
            case Build(template=template):
                built = self.ledger.build(self.states[template.parent_hash], effect, ())
                self.states[built.block.hash] = built.state
                return Built(block=built.block, next_voters=built.next_voters)
            case Execute(block=block):
                parent = self.states[block.header.parent_hash]
                state, outcome = self.ledger.execute(parent, block)
                self.states[block.hash] = state
                if self.fault is not None:
                    outcome = Invalid(fault=self.fault)
                return Executed(block_hash=block.hash, outcome=outcome)
            case _:
                return None

    def tick(self, after_ms: int = 0) -> list[Effect]:
        return self.hand(Tick(), after_ms)

    def receive(self, *messages: Message, source: str = "peer") -> list[Effect]:
        return [e for m in messages for e in self.hand(Received(message=m, source=source))]

    def vote(self, ballot: Ballot, index: int) -> Vote:
        voters = given_of.voter_set([1] * len(self.signers), epoch=ballot.epoch)
        return given_of.signed_vote(self.signers[index], ballot, voters)

    def propose(self, block: Block, index: int) -> ProposalMessage:
        signature = self.signers[index].sign(Domain.PROPOSAL, given_of.CHAIN, block.hash)
        proposal = Proposal(header=block.header, signature=signature)
        return ProposalMessage(proposal=proposal, body=block.body)

    def block(self, view: int = 1, parent: Block | None = None, time_ms: int = 0) -> Block:
        """A valid block by the leader of `view`."""
        helper = self.make(PeerKey(bytes(32)))
        helper.view = View(view)
        helper.now_ms = time_ms or self.now_ms
        at = helper.tip if parent is None else helper.chain.anchor(parent.hash)
        for known in self.made:
            helper._hold(known.header, known.body)
        if parent is not None:
            at = helper.chain.anchor(parent.hash)
        assert at is not None
        helper._build(at)
        order = next(e for e in helper._effects if isinstance(e, Build))
        built = self.ledger.build(self.states[at.hash], order, ())
        self.states[built.block.hash] = built.state
        self.made.append(built.block)
        return built.block

    def message(self, block: Block) -> ProposalMessage:
        return self.propose(block, self.leaders[block.header.view - 1])

    def ballot(self, kind: VoteKind, view: int, block: Block | None = None) -> Ballot:
        block_hash = NO_BLOCK if block is None else block.hash
        return Ballot(kind=kind, epoch=Epoch(0), view=View(view), block_hash=block_hash)

    def certificate(self, kind: VoteKind, view: int, block: Block | None = None) -> Certificate:
        ballot = self.ballot(kind, view, block)
        others = [i for i in range(len(self.signers)) if i != self.own]
        return certificate_of(
            ballot, self.voters, {i: self.vote(ballot, i).signature for i in others}
        )

    def said(self) -> list[tuple[VoteKind, int]]:
        """The votes that left, in order."""
        return [
            (e.message.ballot.kind, e.message.ballot.view)
            for e in self.effects
            if isinstance(e, Broadcast) and isinstance(e.message, Vote)
        ]


def kinds(effects: list[Effect]) -> list[type[Effect]]:
    return [type(effect) for effect in effects]


def ready(**config: int) -> Bench:
    bench = Bench(**config)  # type: ignore[arg-type]
    bench.tick()
    return bench


def test_one_voter_alone_finalises_and_changes_epochs() -> None:
    bench = Bench(count=1)
    for _ in range(4 * BLOCKS_PER_EPOCH):
        bench.tick(INTERVAL_MS)
    commits = [e for e in bench.effects if isinstance(e, Commit)]
    heights = [block.height for commit in commits for block in commit.blocks]
    assert heights == list(range(1, len(heights) + 1))
    assert bench.engine.epoch >= 3
    assert all(b.header.kind is BlockKind.NORMAL for c in commits for b in c.blocks)


def test_a_vote_is_durable_before_it_is_sent_or_counted() -> None:
    bench = ready()
    bench.answers = False
    block = bench.block()
    executes = bench.receive(bench.message(block))
    assert Execute in kinds(executes)
    state, outcome = bench.ledger.execute(bench.states[bench.start.root.hash], block)
    bench.states[block.hash] = state
    effects = bench.hand(Executed(block_hash=block.hash, outcome=outcome))
    assert SignVote in kinds(effects)
    assert Broadcast not in kinds(effects)
    record = bench.engine.records[View(1)]
    assert not record.tallies
    vote = bench.vote(bench.ballot(VoteKind.NOTARIZE, 1, block), bench.own)
    assert Broadcast in kinds(bench.hand(VoteSigned(vote=vote)))
    assert record.tallies


def test_it_notarizes_finalises_and_commits_with_the_others() -> None:
    bench = ready()
    block = bench.block()
    bench.receive(bench.message(block), bench.certificate(VoteKind.NOTARIZE, 1, block))
    assert bench.said() == [(VoteKind.NOTARIZE, 1), (VoteKind.FINALIZE, 1)]
    assert bench.engine.view == 2
    effects = bench.receive(bench.certificate(VoteKind.FINALIZE, 1, block))
    commit = next(e for e in effects if isinstance(e, Commit))
    assert [b.hash for b in commit.blocks] == [block.hash]
    assert bench.engine.tip.height == 1


def test_rule_1_no_second_notarize_in_a_view() -> None:
    bench = ready()
    bench.receive(bench.message(bench.block(time_ms=10_001)))
    bench.receive(bench.message(bench.block(time_ms=10_002)))
    assert bench.said() == [(VoteKind.NOTARIZE, 1)]
    assert len(bench.engine.evidence) == 1


def test_no_notarize_after_nullify() -> None:
    bench = ready()
    bench.tick(TIMEOUT_MS)
    bench.receive(bench.message(bench.block()))
    assert bench.said() == [(VoteKind.NULLIFY, 1)]


def test_rule_2_no_finalize_after_nullify_and_no_nullify_after_finalize() -> None:
    bench = ready()
    block = bench.block()
    bench.receive(bench.message(block))
    bench.tick(TIMEOUT_MS)
    bench.receive(bench.certificate(VoteKind.NOTARIZE, 1, block))
    assert bench.said() == [(VoteKind.NOTARIZE, 1), (VoteKind.NULLIFY, 1)]
    other = ready()
    block = other.block(view=2)
    other.receive(other.certificate(VoteKind.NOTARIZE, 2, block), other.message(block))
    assert other.said() == [(VoteKind.FINALIZE, 2)]  # finalized from outside view 2
    other.receive(other.certificate(VoteKind.NULLIFY, 1))
    other.tick(60_000)
    assert (VoteKind.NULLIFY, 2) not in other.said()


def test_a_skip_needs_its_nullification() -> None:
    bench = ready()
    first = bench.block()
    bench.receive(bench.message(first), bench.certificate(VoteKind.NOTARIZE, 1, first))
    stale = bench.block(view=2)
    bench.receive(bench.message(stale))
    assert (VoteKind.NOTARIZE, 2) not in bench.said()
    asked = bench.tick(200)
    assert any(isinstance(e, RequestCertificates) and e.first == 1 for e in asked)
    bench.receive(bench.certificate(VoteKind.NULLIFY, 1))
    assert (VoteKind.NOTARIZE, 2) in bench.said()


def test_a_block_on_another_than_the_certified_parent_is_nullified_at_once() -> None:
    bench = ready()
    first, other = bench.block(time_ms=10_001), bench.block(time_ms=10_002)
    bench.receive(bench.message(first), bench.certificate(VoteKind.NOTARIZE, 1, first))
    bench.receive(bench.message(bench.block(view=2, parent=other, time_ms=10_003)))
    assert bench.said()[-1] == (VoteKind.NULLIFY, 2)


def test_an_invalid_block_is_nullified_at_once_and_halts_when_certified() -> None:
    bench = ready(fault="does not execute")  # type: ignore[arg-type]
    block = bench.block()
    bench.receive(bench.message(block))
    assert bench.said() == [(VoteKind.NULLIFY, 1)]
    bench.receive(bench.certificate(VoteKind.NOTARIZE, 1, block))
    assert isinstance(bench.engine.halted, Halt)
    assert "divergence" in bench.engine.halted.reason
    assert bench.tick(100_000) == []


@pytest.mark.parametrize(
    "spoil",
    [
        {"height": Height(2)},
        {"kind": BlockKind.CLOSING},
        {"time_ms": 0},
        {"epoch": Epoch(1)},
        {"vset_hash": H(b"test", b"set")},
        {"version": 2},
        {"next_vset_hash": H(b"test", b"set")},
        {"parent_hash": H(b"test", b"parent")},
    ],
    ids=lambda spoil: next(iter(spoil)),
)
def test_header_faults_are_never_voted_for(spoil: dict[str, object]) -> None:
    bench = ready()
    block = bench.block()
    header = dataclasses.replace(block.header, **spoil)
    bench.receive(bench.message(Block(header=header, body=block.body)))
    assert VoteKind.NOTARIZE not in [kind for kind, _ in bench.said()]


def test_an_early_block_waits_for_the_clock() -> None:
    bench = ready()
    block = bench.block(time_ms=bench.now_ms + DRIFT_MS + 50)
    assert WakeAt(at_ms=bench.now_ms + 50) in bench.receive(bench.message(block))
    assert bench.said() == []
    bench.tick(50)
    assert bench.said() == [(VoteKind.NOTARIZE, 1)]


def test_a_leader_proposes_once_and_paced() -> None:
    bench = Bench(leads=1)
    effects = bench.tick()
    assert sum(isinstance(e, SignProposal) for e in effects) == 1
    sent = [e for e in effects if isinstance(e, Broadcast)]
    assert isinstance(sent[0].message, ProposalMessage)
    assert kinds(bench.tick(10)) == [WakeAt]


def test_a_restarted_leader_sends_its_logged_proposal_and_no_other() -> None:
    first = Bench(leads=1)
    first.answers = False
    block = first.block()
    logged = first.propose(block, first.own)
    again = Bench(leads=1, own_log=(logged,))
    again.states.update(first.states)
    effects = again.tick()
    assert SignProposal not in kinds(effects)
    assert Broadcast(message=logged) in effects
    assert again.said() == [(VoteKind.NOTARIZE, 1)]


def test_a_restart_keeps_the_rules_and_counts_what_was_said() -> None:
    bench = ready()
    block = bench.block()
    nullify = bench.vote(bench.ballot(VoteKind.NULLIFY, 1), bench.own)
    again = Bench(own_log=(nullify,), blocks=(block,))
    again.states.update(bench.states)
    again.tick()
    again.receive(again.message(block), again.certificate(VoteKind.NOTARIZE, 1, block))
    assert again.said() == []
    assert again.engine.block(block.hash) == block
    others = [i for i in range(4) if i != again.own][:2]
    effects = again.receive(*(again.vote(nullify.ballot, i) for i in others))
    assert any(isinstance(e, Broadcast) and isinstance(e.message, Certificate) for e in effects)


def test_listening_signs_nothing_and_notices_a_twin() -> None:
    bench = Bench(leads=1, listen_ms=1_000)
    bench.tick()
    assert bench.said() == []
    twin = bench.vote(bench.ballot(VoteKind.NULLIFY, 1), bench.own)
    bench.receive(twin)
    assert bench.engine.halted is not None
    patient = Bench(leads=1, listen_ms=1_000)
    patient.tick()
    patient.tick(1_000)
    assert (VoteKind.NOTARIZE, 1) in patient.said()


def test_a_lost_log_keeps_silent_until_a_younger_epoch() -> None:
    bench = Bench(leads=1, no_vote_before_ms=0)
    bench.tick()
    bench.tick(10_000)
    assert bench.said() == []


def test_contradicting_certificates_halt() -> None:
    bench = ready()
    one, other = bench.block(time_ms=10_001), bench.block(time_ms=10_002)
    bench.receive(bench.certificate(VoteKind.NOTARIZE, 2, one))
    bench.receive(bench.certificate(VoteKind.NOTARIZE, 2, other))
    assert bench.engine.halted is not None
    assert len(bench.engine.halted.proof) == 2
    second = ready()
    second.receive(second.certificate(VoteKind.NULLIFY, 2))
    second.receive(second.certificate(VoteKind.FINALIZE, 2, second.block()))
    assert second.engine.halted is not None


def test_a_standstill_is_resent_directly_with_growing_pauses() -> None:
    bench = ready()
    resent = [
        (bench.now_ms, any(isinstance(e, Resend) for e in bench.tick(100))) for _ in range(600)
    ]
    at = [now_ms + 100 for now_ms, did in resent if did]
    pauses = [b - a for a, b in itertools.pairwise(at)]
    assert at[0] == 12_000
    assert pauses[:3] == [2_000, 3_000, 4_500]
    assert max(pauses) <= 15_000
    last = [e for e in bench.effects if isinstance(e, Resend)][-1]
    assert isinstance(last.messages[-1], Status)
    assert any(isinstance(message, Vote) for message in last.messages)


def test_a_missing_body_is_fetched_and_an_answer_is_checked() -> None:
    bench = ready()
    block = bench.block()
    bench.receive(bench.certificate(VoteKind.NOTARIZE, 1, block))
    asked = [e for e in bench.tick(200) if isinstance(e, RequestBlocks)]
    assert [e.block_hash for e in asked] == [block.hash]
    bench.hand(BlocksReceived(blocks=(bench.block(time_ms=10_009),), source="liar"))
    assert bench.said() == []
    bench.hand(BlocksReceived(blocks=(block,), source="peer"))
    assert bench.said() == [(VoteKind.FINALIZE, 1)]


def test_judging_what_peers_send() -> None:
    bench = ready()
    block = bench.block()
    judge = bench.engine.judge
    vote = bench.vote(bench.ballot(VoteKind.NOTARIZE, 1, block), bench.leaders[0])
    assert judge(vote) is Judgement.ACCEPT
    bench.receive(vote)
    assert judge(vote) is Judgement.IGNORE
    forged = dataclasses.replace(vote, signature=bytes(64))
    assert judge(dataclasses.replace(forged, signer=bench.key)) is Judgement.REJECT
    assert judge(dataclasses.replace(vote, signer=PeerKey(bytes(32)))) is Judgement.REJECT
    far = bench.vote(bench.ballot(VoteKind.NULLIFY, 66), bench.leaders[0])
    assert judge(far) is Judgement.IGNORE
    message = bench.message(block)
    assert judge(message) is Judgement.ACCEPT
    wrong = bench.propose(block, bench.own)
    assert judge(wrong) is Judgement.REJECT
    assert Misbehaved in kinds(bench.receive(wrong))
    small = certificate_of(vote.ballot, bench.voters, {bench.leaders[0]: vote.signature})
    assert judge(small) is Judgement.REJECT
    assert judge(bench.certificate(VoteKind.NOTARIZE, 1, block)) is Judgement.ACCEPT


def test_an_equivocator_counts_once_per_hash_and_has_two_places() -> None:
    bench = ready()
    liar = bench.leaders[0]
    for number in range(5):
        ballot = dataclasses.replace(
            bench.ballot(VoteKind.NOTARIZE, 1, bench.block()),
            block_hash=H(b"test", bytes([number])),
        )
        bench.receive(bench.vote(ballot, liar))
    assert len(bench.engine.records[View(1)].tallies) == 2
    assert len(bench.engine.evidence) == 1


def test_a_peer_that_is_behind_gets_what_it_lacks_once_a_second() -> None:
    bench = ready()
    block = bench.block()
    bench.receive(
        bench.message(block),
        bench.certificate(VoteKind.NOTARIZE, 1, block),
        bench.certificate(VoteKind.FINALIZE, 1, block),
    )
    behind = Status(
        epoch=Epoch(0),
        view=View(1),
        final_view=View(0),
        final_height=Height(0),
        final_hash=bench.start.root.hash,
    )
    sent = [e for e in bench.receive(behind) if isinstance(e, Send)]
    assert sent[0].to == "peer"
    assert isinstance(sent[0].messages[0], Certificate)
    assert bench.receive(behind) == []
    assert [type(e) for e in bench.hand(PeerConnected(source="new"))] == [Send]
    ahead = dataclasses.replace(behind, epoch=Epoch(4))
    assert any(isinstance(e, RequestEpochProof) for e in bench.receive(ahead))


def test_an_epoch_ends_with_a_proof_that_others_can_check() -> None:
    bench = ready()
    parent: Block | None = None
    for view in range(1, BLOCKS_PER_EPOCH + 1):
        block = bench.block(view=view, parent=parent, time_ms=10_000 + view)
        bench.receive(
            bench.message(block),
            bench.certificate(VoteKind.NOTARIZE, view, block),
        )
        parent = block
    assert parent is not None
    effects = bench.receive(bench.certificate(VoteKind.FINALIZE, BLOCKS_PER_EPOCH, parent))
    commit = next(e for e in effects if isinstance(e, Commit))
    assert commit.epoch_proof is not None
    assert commit.next_epoch is not None
    assert bench.engine.epoch == 1
    assert bench.engine.view == 1
    proof = commit.epoch_proof
    assert decode_message(encode_message(proof)) == proof
    fresh = ready()
    assert fresh.engine.judge(proof) is Judgement.ACCEPT
    fresh.receive(proof)
    assert any(isinstance(e, RequestBlocks) for e in fresh.tick(200))
    false = dataclasses.replace(proof, next_voters=given_of.voter_set([2], epoch=1))
    assert ready().engine.judge(false) is Judgement.REJECT
    assert isinstance(proof, EpochProof)


def test_garbage_is_no_message() -> None:
    for data in (b"", b"\x09", b"\x04" + bytes(7), b"\x05" + bytes(60)):
        with pytest.raises(DecodeError):
            decode_message(data)
