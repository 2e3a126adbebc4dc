"""The invariants, checked after every event of a replica that follows the protocol.

Rule upheld: the watch trusts no engine. It keeps its own record of everything sent and committed,
verifies certificates with the set that its own record of the chain gives, and knows what each disk
holds; so a broken engine is noticed also when all replicas are broken alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from consensus.block import Block, BlockKind, Header
from consensus.engine_message import EpochProof, Message, ProposalMessage, Status
from consensus.engine_port import Commit, Halt
from consensus.epoch import (
    MEMBERS_KEPT,
    LeaderRotation,
    block_kind,
    boundary_height,
    epoch_of,
    root_height,
)
from consensus.types import AccountId, Digest, Epoch, Height, PeerKey, View
from consensus.vote import (
    NO_BLOCK,
    Certificate,
    Vote,
    VoteKind,
    VoterSet,
    certificate_is_valid,
)

if TYPE_CHECKING:
    from node.simulator.network import Network
    from node.simulator.replica import Replica

RECORDS_MAX: Final = 2_000
"""View records of one engine: a run has a few hundred views."""


class Violation(Exception):
    """An invariant does not hold; the text says which, where and when."""


@dataclass(slots=True)
class Watch:
    """What was seen in one run."""

    network: Network
    said: dict[tuple[PeerKey, Epoch, View], set[tuple[VoteKind, Digest]]] = field(
        default_factory=dict
    )
    proposals: dict[tuple[PeerKey, Epoch, View], Digest] = field(default_factory=dict)
    certified: dict[tuple[Epoch, View, VoteKind], Digest] = field(default_factory=dict)
    checked: set[Certificate] = field(default_factory=set)
    chain: list[Block] = field(default_factory=list)
    sets: dict[Epoch, VoterSet] = field(default_factory=dict)
    born_ms: dict[Digest, int] = field(default_factory=dict)
    final_ms: dict[int, int] = field(default_factory=dict)
    """By replica: when it last committed."""
    latencies: list[tuple[int, int]] = field(default_factory=list)
    """(birth, latency) of each commit at a replica, virtual ms."""
    rotations: dict[Epoch, LeaderRotation] = field(default_factory=dict)
    removed: set[Epoch] = field(default_factory=set)
    jailed: frozenset[AccountId] = frozenset()

    # What replicas do ---------------------------------------------------------------------------

    def proposed(self, block_hash: Digest) -> None:
        """A block is about to be sent for the first time."""
        self.born_ms.setdefault(block_hash, self.network.world.now_ms)

    def sent(self, replica: Replica, message: Message) -> None:
        """An honest replica sent a message."""
        if not replica.honest:
            return
        match message:
            case Vote():
                self._own_vote(replica, message)
            case ProposalMessage(proposal=proposal):
                header = proposal.header
                leader = self.network.key_of(header.proposer)
                if leader == replica.key:
                    place = leader, header.epoch, header.view
                    self._hold(
                        self.proposals.setdefault(place, header.hash) == header.hash,
                        f"{replica.index} proposed twice in view {header.view}",
                    )
                    logged = any(
                        isinstance(entry, ProposalMessage) and entry.proposal == proposal
                        for entry in reversed(replica.disk.log)
                    )
                    self._hold(logged, f"{replica.index} sent a proposal that is not on its disk")
            case Certificate():
                self._certificate(replica, message)
            case EpochProof(certificate=certificate):
                self._certificate(replica, certificate)
            case Status():
                pass

    def misbehaved(self, replica: Replica, source: int, fault: str) -> None:
        """A replica blames a peer: it must not be one that follows the protocol."""
        lied = not self.network.replicas[source].honest or source in self.network.reformed
        self._hold(lied or not replica.honest, f"{replica.index} blames {source}: {fault}")

    def halted(self, replica: Replica, halt: Halt) -> None:
        """A halt of an honest replica proves that safety or determinism is gone."""
        self._hold(not replica.honest, f"{replica.index} halts: {halt.reason}")

    def committed(self, replica: Replica, commit: Commit) -> None:
        """Blocks became final at a replica."""
        if not replica.honest:
            return
        decided = commit.certificate.kind is VoteKind.FINALIZE
        self._hold(decided, f"{replica.index} commits without finality")
        self._certificate(replica, commit.certificate)
        held = len(replica.disk.blocks)
        for height, block in enumerate(commit.blocks, held + 1):
            self._final_block(replica, block, Height(height))
        self.final_ms[replica.index] = self.network.world.now_ms
        if commit.next_epoch is not None:
            self._next_epoch(replica, commit)

    def after_event(self, replica: Replica) -> None:
        """Bounds that hold at any time."""
        engine = replica.engine
        self._hold(len(engine.records) <= RECORDS_MAX, f"{replica.index} holds too many views")
        self._hold(len(replica.states) <= RECORDS_MAX, f"{replica.index} holds too many states")

    # Checks -------------------------------------------------------------------------------------

    def _own_vote(self, replica: Replica, vote: Vote) -> None:
        if vote.signer != replica.key:
            return
        ballot = vote.ballot
        place = vote.signer, ballot.epoch, ballot.view
        said = self.said.setdefault(place, set())
        said.add((ballot.kind, ballot.block_hash))
        notarized = {block for kind, block in said if kind is VoteKind.NOTARIZE}
        kinds = {kind for kind, _ in said}
        where = f"in view {ballot.view} of epoch {ballot.epoch}"
        self._hold(len(notarized) <= 1, f"rule 1: {replica.index} notarized twice {where}")
        self._hold(
            not kinds >= {VoteKind.FINALIZE, VoteKind.NULLIFY},
            f"rule 2: {replica.index} finalized and nullified {where}",
        )
        self._hold(
            vote in reversed(replica.disk.log), f"{replica.index} sent a vote not on its disk"
        )

    def _certificate(self, replica: Replica, certificate: Certificate) -> None:
        if certificate in self.checked:
            return
        ballot = certificate.ballot
        voters = self.sets.get(ballot.epoch)
        if voters is not None:
            valid = certificate_is_valid(
                certificate, voters, self.network.ledger.chain_id, self.network.true_verifier
            )
            self._hold(valid, f"{replica.index} holds a false certificate of view {ballot.view}")
            self.checked.add(certificate)
        where = f"in view {ballot.view} of epoch {ballot.epoch}"
        held = self.certified.setdefault(
            (ballot.epoch, ballot.view, ballot.kind), ballot.block_hash
        )
        self._hold(held == ballot.block_hash, f"two {ballot.kind.name} certificates {where}")
        both = {self.certified.get((ballot.epoch, ballot.view, kind)) for kind in VoteKind} - {
            None,
            NO_BLOCK,
        }
        self._hold(len(both) <= 1, f"certificates for two blocks {where}")
        decided = (ballot.epoch, ballot.view, VoteKind.FINALIZE) in self.certified
        skipped = (ballot.epoch, ballot.view, VoteKind.NULLIFY) in self.certified
        self._hold(not (decided and skipped), f"final and nullified {where}")

    def _final_block(self, replica: Replica, block: Block, height: Height) -> None:
        header, blocks_per_epoch = block.header, self.network.parameters.blocks_per_epoch
        where = f"at height {height} by {replica.index}"
        self._hold(height == header.height, f"a gap or repetition {where}")
        if height <= len(self.chain):
            self._hold(self.chain[height - 1].hash == block.hash, f"another block {where}")
        else:
            self._hold(header.kind is BlockKind.NORMAL, f"a closing block was kept {where}")
            epoch = epoch_of(height, blocks_per_epoch)
            kind = block_kind(header.epoch, height, blocks_per_epoch)
            self._hold(header.epoch == epoch and kind is header.kind, f"wrong epoch {where}")
            parent = self.chain[-1].hash if self.chain else Digest(self.network.ledger.chain_id)
            self._hold(header.parent_hash == parent, f"another parent {where}")
            voters = self.sets.get(epoch)
            self._hold(
                voters is not None and voters.hash == header.vset_hash, f"wrong voter set {where}"
            )
            self._hold(
                voters is not None and self._leads(voters, header), f"another's turn {where}"
            )
            fault = self.network.ledger.fault(replica.states[block.hash])
            self._hold(fault is None, f"{fault} {where}")
            self.chain.append(block)
        born = self.born_ms.get(block.hash)
        if born is not None:
            self.latencies.append((born, self.network.world.now_ms - born))

    def _leads(self, voters: VoterSet, header: Header) -> bool:
        """Whether the header's proposer was to lead its view."""
        rotation = self.rotations.get(voters.epoch)
        if rotation is None:
            root = root_height(voters.epoch, self.network.parameters.blocks_per_epoch)
            chain_id = Digest(self.network.ledger.chain_id)
            rotation = LeaderRotation(voters, self.chain[root - 1].hash if root else chain_id)
            self.rotations[voters.epoch] = rotation
        return voters.voters[rotation.leader(header.view)].account == header.proposer

    def _next_epoch(self, replica: Replica, commit: Commit) -> None:
        start = commit.next_epoch
        if start is None:
            return
        boundary = self.chain[start.root.height - 1].header
        where = f"of epoch {start.epoch} by {replica.index}"
        height = boundary_height(Epoch(start.epoch - 1), self.network.parameters.blocks_per_epoch)
        self._hold(start.root.height == height, f"the root {where} is not a boundary")
        self._hold(start.root.hash == boundary.hash, f"another root {where}")
        self._hold(start.voters.hash == boundary.next_vset_hash, f"another set {where}")
        known = self.sets.setdefault(start.epoch, start.voters)
        self._hold(known.hash == start.voters.hash, f"two sets {where}")
        if start.epoch not in self.removed:
            self.removed.add(start.epoch)
            self._removals(start.voters, self.network.ledger.jailed(replica.states[boundary.hash]))

    def _removals(self, voters: VoterSet, jailed: frozenset[AccountId]) -> None:
        """What a boundary takes out for silence is limited (ordering.md, jailing)."""
        before = self.sets[Epoch(voters.epoch - 1)]
        fresh, self.jailed = jailed - self.jailed, jailed
        power = sum(voter.power for voter in before if voter.account in fresh)
        gone = sum(voter.account in fresh for voter in before)
        small = power * 10 <= before.total or (gone == 1 and power * 3 <= before.total)
        kept = len(before) - gone >= min(MEMBERS_KEPT, len(before))
        self._hold(small and kept, f"epoch {voters.epoch} begins without {gone} jailed voters")

    def _hold(self, condition: bool, text: str) -> None:
        if not condition:
            raise Violation(f"{self.network.world.now_ms} ms: {text}")
