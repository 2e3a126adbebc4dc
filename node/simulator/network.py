"""One simulated network: a world, its replicas, the watch, and the transactions they carry.

Rule upheld: what a replica may know reaches it only by messages; the network object is the
simulator's own view from above, used to set things up and to watch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from consensus.block import Header
from consensus.crypto import Signer, Verifier
from consensus.engine import Engine, EngineConfig
from consensus.engine_port import Anchor
from consensus.params import Parameters
from consensus.types import AccountId, PeerKey
from consensus.vote import VoterSet
from node.simulator.chain_ledger import ChainLedger, Workload
from node.simulator.ledger import State
from node.simulator.replica import Replica
from node.simulator.watch import Watch
from node.simulator.world import World

TRACE_LINES_MAX: Final = 100_000
"""Of one run; the first are kept."""

TRANSACTIONS_WAITING_MAX: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a network is made of."""

    ledger: ChainLedger
    verifier: Verifier
    signers: list[Signer]
    owners: list[Signer]
    engine_type: type[Engine] = Engine


class Network:
    """Replicas 0 ... n - 1 and what lies between them."""

    def __init__(self, world: World, setup: Setup, *, tracing: bool = False) -> None:
        self.world = world
        self.ledger = setup.ledger
        self.verifier = setup.verifier
        self.true_verifier = setup.verifier
        self.engine_type = setup.engine_type
        self.parameters: Parameters = setup.ledger.parameters
        self.replicas: list[Replica] = []
        self.lines: list[str] = []
        self.tracing = tracing
        self.reformed: set[int] = set()
        """Former liars: what they sent before is still under way."""
        self.watch = Watch(network=self)
        _, start = self.ledger.genesis()
        self.watch.sets[start.epoch] = start.voters
        self._accounts = {
            AccountId(owner.public_key): PeerKey(peer.public_key)
            for owner, peer in zip(setup.owners, setup.signers, strict=True)
        }
        self._workload = Workload(setup.ledger, setup.owners, setup.signers, world.random)
        self._waiting: list[bytes] = []

    def populate(self, make: list[Callable[[Network, int], Replica]]) -> None:
        """Create the replicas and start them all."""
        for index, each in enumerate(make):
            self.replicas.append(each(self, index))
        liars = {replica.index for replica in self.replicas if not replica.honest}
        self._workload.steady |= liars
        for replica in self.replicas:
            replica.start()

    def config(self, key: PeerKey) -> EngineConfig:
        """The engine's configuration for the replica with `key`."""
        return EngineConfig(
            chain_id=self.ledger.chain_id,
            blocks_per_epoch=self.parameters.blocks_per_epoch,
            block_interval_ms=self.parameters.block_interval_ms,
            view_timeout_ms=self.parameters.view_timeout_ms,
            own_key=key,
            listen_ms=self.parameters.view_timeout_ms,
        )

    def anchor(self, header: Header) -> Anchor:
        """The anchor of a committed block."""
        return Anchor(
            hash=header.hash,
            view=header.view,
            height=header.height,
            time_ms=header.time_ms,
            state_root=header.state_root,
        )

    def others(self, replica: Replica) -> list[Replica]:
        """Everybody else."""
        return [other for other in self.replicas if other is not replica]

    def honest(self) -> list[Replica]:
        """Replicas that follow the protocol."""
        return [replica for replica in self.replicas if replica.honest]

    def key_of(self, account: AccountId) -> PeerKey | None:
        """The peer key of an account."""
        return self._accounts.get(account)

    def replica_of(self, account: AccountId) -> Replica | None:
        """The replica of an account, None for a spare one."""
        key = self.key_of(account)
        return next((replica for replica in self.replicas if replica.key == key), None)

    def transactions(self, replica: Replica, state: State) -> tuple[bytes, ...]:
        """What the mempools hold when `replica` builds on `state`; sometimes something new."""
        fresh = self._workload.transaction(state) if self.world.random.random() < 0.4 else None
        if fresh is not None:
            self._waiting.append(fresh)
        self._waiting = self._waiting[-TRANSACTIONS_WAITING_MAX:]
        return tuple(self._waiting)

    def keep_assumption(self, voters: VoterSet) -> None:
        """Liars that a coming set would give a third of the power become honest before it begins:
        jailing may remove honest power, and nothing is promised beyond a third.
        """
        liars = [r for r in self.replicas if not r.honest and voters.index_of(r.key) is not None]
        power_of = {voter.peer_key: voter.power for voter in voters}
        while liars and 3 * sum(power_of[liar.key] for liar in liars) >= voters.total:
            old = liars.pop()
            reformed = Replica(self, old.index, old.signer, old.skew_ms)
            reformed.disk = old.disk
            self.replicas[old.index] = reformed
            self.reformed.add(old.index)
            old.crash()
            self.trace(reformed, "becomes honest")
            self.world.after(1, reformed.start)

    def trace(self, replica: Replica | None, text: str) -> None:
        """Note a line of the readable trace."""
        if self.tracing and len(self.lines) < TRACE_LINES_MAX:
            who = "network" if replica is None else f"replica {replica.index}"
            self.lines.append(f"{self.world.now_ms / 1000:8.3f} s  {who}: {text}")
