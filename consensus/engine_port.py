"""Events in, effects out: all that the engine and the shell around it say to each other.

Rule upheld: the engine has no I/O, key or clock. The shell (a trio task, or the simulator) calls
``engine.handle(event, now_ms)`` and carries out the returned effects **in their order**, one after
the other; what an effect answers with is a new event, handled after the whole list. `now_ms` is
Unix time in milliseconds and never goes back. The first event is `Tick`.

What to do for each effect:

- `SignVote`: ask the signer guard, sign (Domain.VOTE, `ballot.payload(vset_hash)`), commit the
  vote to the vote log (fsync) together with the block it is for, which was executed or built here
  before (NULLIFY names none), then answer `VoteSigned(vote)`. Nothing is sent or counted before
  that answer: persist before send. Neighbouring `Sign...` effects may share one commit. A refusal
  of the guard means this process is wrong: end it.
- `SignProposal`: the same for a block led by this node (Domain.PROPOSAL, the header's hash); the
  log keeps header, signature **and body**; answer `ProposalSigned(proposal)`.
- `Broadcast`: publish on the gossip topic of the message's kind.
- `Send(to, messages)`: over a direct stream to that peer; drop them if it is gone.
- `Resend(messages)`: over direct streams to every connected voter and mesh peer, **never** by
  gossip, whose seen-cache would swallow identical bytes. Replace an unsent earlier Resend.
- `RequestBlocks`: fetch the block with that hash, and if the peer has them its ancestors above
  `above_height`; ask the account's (or any) peer first; answer `BlocksReceived` with what came.
  The engine repeats a request twice a second while it lacks the block; ask another peer then.
- `RequestCertificates`: ask for the certificates of these views; each comes as `Received`.
- `RequestEpochProof`: ask for the proof that `epoch` ended; it comes as `Received`. Proofs of the
  epochs after it may come along (oldest first, up to 64): catching up is then as fast as execution.
- `SendEpochProof(to, epoch)`: load that proof from the chain store and send it; ignore if absent.
- `Execute(block)`: run the block on the state after its parent (always committed or executed
  before) with full checks of roots, transactions, evidence and attest, in a worker if it is slow;
  keep the resulting state under the block's hash; answer `Executed`. Closing blocks never come.
- `Build(template, evidence, attest)`: choose transactions on the state after
  `template.parent_hash`, include the evidence that this state accepts and the attest if given,
  fill in body_root, state_root, receipts_root and, at a boundary, next_vset_hash
  (``dataclasses.replace``), keep the state under the new hash, answer `Built`. If impossible,
  answer `BuildFailed(view)`.
- `Commit`: in one transaction of the chain store write the blocks (oldest first), the certificate,
  and with `next_epoch` the epoch proof and the next voter set. Later effects may be carried out
  only after the transaction. May come with no blocks when only closing blocks became final.
- `Discard(hashes)`: the states kept under these hashes will not be needed.
- `WakeAt(at_ms)`: hand in `Tick` at that time; replaces every earlier one.
- `Misbehaved(source, fault)`: that peer sent what no correct peer sends; lower its score.
- `Halt(reason, proof)`: show it loudly, keep serving queries. The engine does nothing any more.

Start: `Engine(EngineConfig(...), verifier, EpochStart(voters=..., root=Anchor(...)))`. The root of
epoch 0 is genesis: hash = the chain id, view 0, height 0, the genesis time and state root.
`listen_ms` is one view timeout for a voter that may have run before (a twin shows itself in it).

Gossip: ask `engine.judge(message)` before relaying (ACCEPT, IGNORE, REJECT), and hand every
accepted message in. Peers' requests are answered from `engine.block`, `engine.certificates`,
`engine.status()` and, for what is final, from the chain store.

Restart: build a new `Engine` from the last committed block, the epoch it belongs to (both from the
chain store), the whole vote log from that epoch on, and the blocks stored with it. After a snapshot
sync do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from consensus.block import Block, Evidence, Header, Proposal
from consensus.engine_message import EpochProof, Message
from consensus.types import AccountId, Digest, Epoch, Height, View
from consensus.vote import Ballot, Certificate, Vote, VoterSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What a child has to know of a block. `view` is 0 for the root of an epoch."""

    hash: Digest
    view: View
    height: Height
    time_ms: int
    state_root: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStart:
    """How an epoch begins: its voters and its root, the last boundary block (or genesis)."""

    voters: VoterSet
    root: Anchor

    @property
    def epoch(self) -> Epoch:
        """The epoch that begins."""
        return self.voters.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Valid:
    """A block executed without fault; at a boundary, with the set that its state elects."""

    next_voters: VoterSet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """A block that may not extend its parent; `fault` is for people and logs."""

    fault: str


Outcome: TypeAlias = Valid | Invalid


# Events ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed; also the first event of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message came from the peer `source` (text of its PeerId), by gossip or directly."""

    message: Message
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksReceived:
    """Blocks that somebody answered a request with, in any order."""

    blocks: tuple[Block, ...]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """Answer to `Execute`."""

    block_hash: Digest
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Answer to `Build`: the block, executed; `next_voters` at a boundary."""

    block: Block
    next_voters: VoterSet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFailed:
    """Answer to `Build` when no block can be made for this view."""

    view: View


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteSigned:
    """Answer to `SignVote`: the vote is durable."""

    vote: Vote


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalSigned:
    """Answer to `SignProposal`: the proposal and its body are durable."""

    proposal: Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConnected:
    """A direct stream to a peer became possible."""

    source: str


Event: TypeAlias = (
    Tick
    | Received
    | BlocksReceived
    | Executed
    | Built
    | BuildFailed
    | VoteSigned
    | ProposalSigned
    | PeerConnected
)


# Effects -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SignVote:
    """Sign, persist, answer `VoteSigned`."""

    ballot: Ballot
    vset_hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class SignProposal:
    """Sign, persist with the body, answer `ProposalSigned`."""

    block: Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """Publish by gossip."""

    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send directly to one peer."""

    to: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resend:
    """Send directly to every connected voter and mesh peer."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBlocks:
    """Fetch a block and its ancestors above a height; ask `ask_first` first when it is known."""

    block_hash: Digest
    above_height: Height
    ask_first: AccountId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCertificates:
    """Fetch the certificates of the views `first` to `last` of `epoch`."""

    epoch: Epoch
    first: View
    last: View
    ask_first: AccountId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEpochProof:
    """Fetch the proof that `epoch` ended; `ask_first` is the peer that seems to know."""

    epoch: Epoch
    ask_first: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendEpochProof:
    """Send the stored proof that `epoch` ended to a peer that is behind."""

    to: str
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Execute:
    """Execute on the parent's state, answer `Executed`."""

    block: Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Fill a block for `template`, answer `Built` or `BuildFailed`."""

    template: Header
    evidence: tuple[Evidence, ...]
    attest: Certificate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """These blocks are final, oldest first; `certificate` is of the last or of a descendant."""

    blocks: tuple[Block, ...]
    certificate: Certificate
    next_epoch: EpochStart | None
    epoch_proof: EpochProof | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """States of these blocks are not needed any more."""

    block_hashes: tuple[Digest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeAt:
    """Hand in `Tick` at this time."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehaved:
    """A peer sent something that is invalid in every state."""

    source: str
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """Stop ordering for good; `proof` holds what shows the reason, if anything does."""

    reason: str
    proof: tuple[Certificate | Vote | Block, ...] = ()


Effect: TypeAlias = (
    SignVote
    | SignProposal
    | Broadcast
    | Send
    | Resend
    | RequestBlocks
    | RequestCertificates
    | RequestEpochProof
    | SendEpochProof
    | Execute
    | Build
    | Commit
    | Discard
    | WakeAt
    | Misbehaved
    | Halt
)
