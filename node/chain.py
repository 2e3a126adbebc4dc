"""The chain as this node runs it: ordering, mempool, gossip, questions and answers, in one place.

Rule: the driver's task owns the engine; everything else here runs on the same trio thread, reads
sealed states, and hands the engine events. What a peer sends is judged before it is relayed:
[REJECT] only what is invalid in every state, [IGNORE] whatever depends on ours.
"""

import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from consensus.block import Block
from consensus.crypto import Ed25519Signer
from consensus.engine import Engine
from consensus.engine_message import Message
from consensus.engine_port import Build, Event, PeerConnected
from consensus.engine_reception import Judgement
from consensus.errors import TransactionFault
from consensus.genesis import Genesis, encode_genesis
from consensus.params import Parameters
from consensus.state import State
from consensus.transaction import Role, Transaction, decode_transaction
from consensus.transition import BODY_ROOM_BYTES
from consensus.types import ZERO_DIGEST, AccountId, ChainId, Digest, Epoch, PeerKey, View
from consensus.vote import Certificate
from node.clock import SystemClock
from node.driver import Driver
from node.errors import TransactionRefused
from node.ledger import OFFERED_MAX, LedgerView
from node.mempool import Choice, Mempool, Refusal
from node.propagation import Propagation
from node.recovery import Recovered, start_engine
from node.sync.answers import answerers
from node.sync.catch_up import CatchUp, CatchUpProgress, Trials
from node.sync.client import SYNC_PROTOCOL
from node.sync.fast_forward import FastForward
from node.sync.fetch import Fetcher
from node.sync.greeter import Greeter
from node.sync.messages import PROTOCOL_VERSION, Status
from node.sync.server import SyncServer
from node.sync.snapshot import cut
from node.verifier import RememberingVerifier
from p2p.identity import PeerId
from p2p.network import Network, Verdict
from tensorwire import Limits as TensorLimits

logger = logging.getLogger("agora.chain")

MEETING_S: Final = 5.0
"""How long a node that joins waits for somebody to greet before it goes on alone."""
FINALIZED_BACKLOG: Final = 1_024
"""Blocks that a reader of `finalized` may be behind; then its iteration ends."""


SNAPSHOT_EPOCHS: Final = 8
"""A snapshot is kept at every eighth boundary; joiners execute fewer epochs than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncOptions:
    """How a long chain is joined: where pieces are kept, and what is trusted.

    `checkpoint` is (epoch, hash of its boundary block); `must_check` demands one after a long
    absence; `in_full` executes every block.
    """

    directory: Path
    checkpoint: tuple[Epoch, Digest] | None = None
    must_check: bool = True
    in_full: bool = False


class Chain:
    """Runs while `run` does; `final` is called with every block that becomes final.

    `signer` signs votes when `participate` is set; without it the node only follows. `sync` says
    how a long chain is joined.
    """

    def __init__(
        self,
        genesis: Genesis,
        recovered: Recovered,
        network: Network,
        *,
        verifier: RememberingVerifier,
        signer: Ed25519Signer,
        participate: bool,
        sync: SyncOptions,
        final: Callable[[Block], None],
    ) -> None:
        self.mempool = Mempool(fee_min=recovered.parameters.fee)
        self.transactions = recovered.store.transaction_count()
        self.greeter = Greeter(network, status=self._status, met=self._met)
        self.propagation = Propagation(
            network,
            recovered.chain_id,
            judge=self._judge,
            deliver=self._deliver,
            take_transaction=self._take_transaction,
        )
        self._recovered = recovered
        self._network = network
        self._verifier = verifier
        self._signer = signer
        self._participate = participate
        self._sync_options = sync
        self._final = final
        self._snapshot_wanted: State | None = None
        self._snapshot_event = trio.Event()
        self._clock = SystemClock()
        self._engine: Engine | None = None
        self._driver: Driver | None = None
        self._next_block = trio.Event()
        self._watchers: set[trio.MemorySendChannel[Block]] = set()
        self._fetcher = Fetcher(
            network, peer_of=self._peer_of, deliver=self._deliver, chance=random.Random()
        )
        self._sync_server = SyncServer(
            answerers(encode_genesis(genesis), recovered.store, unfinished=self)
        )

    @property
    def chain_id(self) -> ChainId:
        """Hash of the genesis."""
        return self._recovered.chain_id

    @property
    def parameters(self) -> Parameters:
        """Of the genesis."""
        return self._recovered.parameters

    @property
    def state(self) -> State:
        """The ledger after the last final block."""
        return self._recovered.ledger.final

    @property
    def halted(self) -> str | None:
        """Why the engine signs nothing any more, None while it does."""
        return None if self._driver is None else self._driver.halted

    def view(self) -> LedgerView:
        """The final state as the mempool sees it."""
        return self._recovered.ledger.view()

    def admit(self, transaction: Transaction) -> None:
        """Keep and publish a transaction. Raises TransactionRefused with the reason."""
        refused = self.mempool.add(transaction, self.view())
        if refused is not None:
            raise TransactionRefused(refused.reason)
        self.propagation.publish_transaction(transaction)

    async def wait_for_block(self) -> None:
        """Return after the next final block."""
        await self._next_block.wait()

    async def finalized(self) -> AsyncIterator[Block]:
        """Every block that becomes final from now on."""
        send, receive = trio.open_memory_channel[Block](FINALIZED_BACKLOG)
        self._watchers.add(send)
        try:
            async for block in receive:
                yield block
        finally:
            self._watchers.discard(send)

    # Running.

    async def run(
        self,
        *,
        joins: bool,
        observe: Callable[[CatchUpProgress], None],
        observe_pieces: Callable[[int, int], None],
    ) -> None:
        """Greet, answer, catch up, then order, until cancelled.

        `joins` says that there is somebody to catch up with; `observe` follows catching up by
        height, `observe_pieces` a snapshot's pieces (done, of).
        """
        await self._network.serve(SYNC_PROTOCOL, self._sync_server.handle)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.greeter.run)
                nursery.start_soon(self.propagation.run)
                nursery.start_soon(self._fetcher.run)
                if joins:
                    await self._catch_up(observe, observe_pieces)
                nursery.start_soon(self._keep_snapshots)
                await self._order()
        finally:
            with trio.CancelScope(shield=True):
                await self._network.unserve(SYNC_PROTOCOL)

    async def _catch_up(
        self,
        observe: Callable[[CatchUpProgress], None],
        observe_pieces: Callable[[int, int], None],
    ) -> None:
        with trio.move_on_after(MEETING_S):
            await self.greeter.somebody.wait()
        trials = Trials(self._network)
        if not self._sync_options.in_full:
            await FastForward(
                self._network,
                self._recovered,
                directory=self._sync_options.directory,
                verifier=self._verifier,
                checkpoint=self._sync_options.checkpoint,
                must_check=self._sync_options.must_check,
                now_ms=self._clock.now_ms(),
                peers=self.greeter.heights,
                trials=trials,
                observe=observe,
                observe_pieces=observe_pieces,
            ).run()
        await CatchUp(
            self._network,
            self._recovered,
            verifier=self._verifier,
            peers=self.greeter.heights,
            trials=trials,
            observe=observe,
        ).run()

    async def _keep_snapshots(self) -> None:
        """Cut the newest wanted state into pieces for joiners, outside the trio thread."""
        store = self._recovered.store
        while True:
            await self._snapshot_event.wait()
            self._snapshot_event = trio.Event()
            state, self._snapshot_wanted = self._snapshot_wanted, None
            if state is not None:
                pieces = await trio.to_thread.run_sync(lambda: list(cut(state)))  # noqa: B023
                await trio.to_thread.run_sync(store.save_snapshot, state.height, pieces)

    async def _order(self) -> None:
        # Catching up has added blocks that no engine has counted.
        self.transactions = await trio.to_thread.run_sync(self._recovered.store.transaction_count)
        engine = start_engine(
            self._recovered,
            own_key=PeerKey(self._signer.public_key) if self._participate else None,
            verifier=self._verifier,
            now_ms=self._clock.now_ms(),
        )
        self._driver = Driver(
            engine=engine,
            execution=self._recovered.ledger,
            chain_id=self.chain_id,
            signer=self._signer,
            store=self._recovered.store,
            vote_log=self._recovered.vote_log,
            peers=_EnginePeers(self.propagation, self._fetcher, self._network),
            clock=self._clock,
            no_vote_before_ms=engine.config.no_vote_before_ms,
            offer=self._offer,
            final=self._on_final,
        )
        self._engine = engine
        for peer in self.greeter.heights():
            self._met(peer)
        await self._driver.run()

    def _on_final(self, block: Block) -> None:
        touched = None  # a boundary pays, jails and moves weights: everybody is touched
        if block.header.next_vset_hash == ZERO_DIGEST:
            touched = {decode_transaction(data).account for data in block.body.transactions}
        elif self.state.epoch % SNAPSHOT_EPOCHS == 0:
            self._snapshot_wanted = self.state
            self._snapshot_event.set()
        self.mempool.advance(self.view(), touched)
        self.transactions += len(block.body.transactions)
        self._final(block)
        self._next_block.set()
        self._next_block = trio.Event()
        for watcher in list(self._watchers):
            try:
                watcher.send_nowait(block)
            except (trio.WouldBlock, trio.BrokenResourceError):
                watcher.close()
                self._watchers.discard(watcher)

    def _offer(self, effect: Build) -> Sequence[bytes]:
        ledger = self._recovered.ledger
        parent = ledger.state_after(effect.template.parent_hash)
        if parent is None:
            return ()
        left = iter(range(OFFERED_MAX))

        def choose(_: Transaction) -> Choice:
            return Choice.STOP if next(left, None) is None else Choice.TAKE

        chosen = self.mempool.select(ledger.view(parent), bytes_max=BODY_ROOM_BYTES, choose=choose)
        return [transaction.encoded for transaction in chosen]

    # What peers ask and send.

    def block(self, block_hash: Digest) -> Block | None:
        """A block that is not final yet."""
        return None if self._engine is None else self._engine.block(block_hash)

    def certificates(self, epoch: Epoch, first: View, last: View) -> tuple[Certificate, ...]:
        """Certificates of the current epoch."""
        return () if self._engine is None else self._engine.certificates(epoch, first, last)

    def _judge(self, message: Message) -> Judgement:
        return Judgement.IGNORE if self._engine is None else self._engine.judge(message)

    def _deliver(self, event: Event) -> bool:
        return self._driver is not None and self._driver.deliver(event)

    def _met(self, peer: PeerId) -> None:
        self._deliver(PeerConnected(source=str(peer)))

    def _status(self) -> Status:
        ledger = self._recovered.ledger
        return Status(
            version=PROTOCOL_VERSION,
            chain_id=self.chain_id,
            epoch=ledger.final.epoch,
            height=ledger.final.height,
            final_hash=ledger.final_hash,
            payload_bytes_max=TensorLimits().payload_bytes_max,
        )

    def _peer_of(self, account: AccountId) -> PeerId | None:
        uid = self.state.uid_of_owner.get(account)
        return None if uid is None else PeerId.from_public_key(self.state.accounts[uid].peer_key)

    def _take_transaction(self, transaction: Transaction) -> Verdict:
        if transaction.chain_id != self.chain_id:
            # [REJECT] of another chain
            return Verdict.REJECT
        refused = self.mempool.add(transaction, self.view())
        if refused is None:
            return Verdict.ACCEPT
        forged = refused.reason.startswith(TransactionFault.BAD_SIGNATURE)
        if refused.refusal is Refusal.INVALID and forged and transaction.role is Role.OWNER:
            # [REJECT] the account is the key that should have signed: invalid in every state
            return Verdict.REJECT
        # [IGNORE] depends on the state
        return Verdict.IGNORE


class _EnginePeers:
    """The driver's `Peers`: messages by propagation, requests by the fetcher."""

    def __init__(self, propagation: Propagation, fetcher: Fetcher, network: Network) -> None:
        self.broadcast = propagation.broadcast
        self.send = propagation.send
        self.resend = propagation.resend
        self.request = fetcher.request
        self._network = network

    def misbehaved(self, source: str, fault: str) -> None:
        """A peer sent what is invalid in every state: it is cut off for a while."""
        logger.warning("peer %s: %s", source, fault)
        self._network.ban(PeerId(source))
