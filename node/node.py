"""One node: network, ledger, ordering, exchange and learning, put together.

    async with open_node(Config.local(bootstrap=[...])) as node:
        hidden = await node.forward(peer_id, Modality.TEXT, tokens)
        await node.set_weights({peer_id: 3, other: 1})
        async for block in node.finalized(): ...

Rule: everything runs in nurseries under `open_node`; leaving the block, by any path, stops all of
it and closes both databases. What fails for good (a full disk, a refused double signature) ends the
block with that error.
"""

import dataclasses
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import trio
from numpy.typing import NDArray

from consensus.account import ADDRESSES_MAX, Announcement
from consensus.block import Block
from consensus.crypto import Ed25519Signer
from consensus.engine import Engine
from consensus.engine_message import Message
from consensus.engine_port import Build, Event, PeerConnected
from consensus.engine_reception import Judgement
from consensus.errors import DecodeError, TransactionFault
from consensus.genesis import encode_genesis
from consensus.state import State
from consensus.transaction import Content, Role, SetWeights, Transaction, decode_transaction
from consensus.types import (
    ZERO_DIGEST,
    AccountId,
    ChainId,
    Digest,
    Epoch,
    PeerKey,
    View,
)
from consensus.types import Modality as AccountModality
from consensus.vote import Certificate
from consensus.wallet import draft_of
from node import views
from node.api import Json, serve_api
from node.clock import SystemClock
from node.config import Config
from node.dendrite import Dendrite
from node.discovery import find_each_other, rendezvous
from node.driver import Driver
from node.errors import TransactionRefused
from node.exchange import Server
from node.join import CatchUp, CatchUpProgress
from node.ledger import BODY_ROOM_BYTES, OFFERED_MAX
from node.membership import Membership, measured_row
from node.mempool import Choice, Mempool, Refusal
from node.model import Model
from node.origin import Origin, open_origin
from node.propagation import Propagation
from node.recovery import Recovered, recover, start_engine
from node.report import Finalized, Notice, Progress, ReportSink, Started
from node.sync.answers import answerers
from node.sync.client import SYNC_PROTOCOL
from node.sync.fetch import Fetcher
from node.sync.greeter import Greeter
from node.sync.messages import PROTOCOL_VERSION, Status
from node.sync.server import SyncServer
from node.test_model import TestModel
from node.training import check_training, learn, open_neuron
from node.verifier import RememberingVerifier
from p2p.identity import PeerId
from p2p.network import Network, Verdict
from p2p.stack import open_network
from tensorwire import Modality, Part, WireTensor

if TYPE_CHECKING:
    from node.neuron.corpus import Corpus
    from node.neuron.loop import TrainingReport
    from node.neuron.neuron import Neuron

logger = logging.getLogger("agora.node")

PROGRESS_S: Final = 0.5
MEETING_S: Final = 5.0
"""How long a node that joins waits for somebody to greet before it goes on alone."""
LEARNING_DELAY_S: Final = 5.0
"""Torch is loaded after the first final block, or after this long."""
FINALIZED_BACKLOG: Final = 1_024


class Node:
    """A running node; made by `open_node`."""

    def __init__(
        self,
        config: Config,
        origin: Origin,
        recovered: Recovered,
        network: Network,
        verifier: RememberingVerifier,
        report: ReportSink,
    ) -> None:
        self.config = config
        self.network = network
        self.mempool = Mempool(fee_min=recovered.parameters.fee)
        self._origin = origin
        self._recovered = recovered
        self._verifier = verifier
        self._report = report
        self._clock = SystemClock()
        self._started_s = time.time()
        self._owner = AccountId(origin.keys.owner_public_key)
        self._peer_signer = Ed25519Signer(origin.keys.peer.seed)
        owner = origin.keys.owner
        self._owner_signer = None if owner is None else Ed25519Signer(owner.seed)
        self._engine: Engine | None = None
        self._driver: Driver | None = None
        self._next_block = trio.Event()
        self._watchers: set[trio.MemorySendChannel[Block]] = set()
        self._transactions = recovered.store.transaction_count()
        self._training: TrainingReport | None = None
        self._neuron: Neuron | None = None
        self._server: Server | None = None
        self.dendrite = Dendrite(network, context=self.chain_id)
        self.greeter = Greeter(network, status=self._status, met=self._met)
        self.propagation = Propagation(
            network,
            self.chain_id,
            judge=self._judge,
            deliver=self._deliver,
            take_transaction=self._take_transaction,
        )
        self._fetcher = Fetcher(
            network, peer_of=self._peer_of, deliver=self._deliver, chance=random.Random()
        )
        self._sync = SyncServer(
            answerers(encode_genesis(origin.genesis), recovered.store, unfinished=self)
        )

    # What a program asks.

    @property
    def peer_id(self) -> PeerId:
        """This node's name on the network."""
        return self.network.peer_id

    @property
    def chain_id(self) -> ChainId:
        """The chain this node runs."""
        return self._recovered.chain_id

    @property
    def state(self) -> State:
        """The ledger after the last final block."""
        return self._recovered.ledger.final

    async def forward(
        self,
        peer_id: PeerId,
        modality: Modality,
        values: NDArray[Any],
        *,
        deadline_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Ask a peer for its representation `[batch, seq, dim]` of one part; raises `CallError`."""
        part = Part(modality=modality, tensor=WireTensor.from_numpy(values))
        answer = await self.dendrite.forward(peer_id, [part], deadline_s=deadline_s)
        return np.asarray(answer.output.to_numpy(), dtype=np.float32)

    async def set_weights(self, scores: Mapping[PeerId, float]) -> None:
        """Publish a row of weights in proportion to `scores`; raises TransactionRefused."""
        uid = self.state.uid_of_owner.get(self._owner)
        if uid is None:
            raise TransactionRefused("this node has no account yet")
        row = measured_row(self.state, uid, scores, self._recovered.parameters)
        if row is None:
            raise TransactionRefused("no peer with an account has a positive score")
        await self.submit(SetWeights(row=row))

    async def finalized(self) -> AsyncIterator[Block]:
        """Every block that becomes final from now on; a reader FINALIZED_BACKLOG behind is ended."""
        send, receive = trio.open_memory_channel[Block](FINALIZED_BACKLOG)
        self._watchers.add(send)
        try:
            async for block in receive:
                yield block
        finally:
            self._watchers.discard(send)

    async def wait_for_block(self) -> None:
        """Return after the next final block."""
        await self._next_block.wait()

    async def submit(self, content: Content) -> None:
        """Sign with this node's keys and publish. Raises TransactionRefused with the reason."""
        ledger = self._recovered.ledger
        draft = draft_of(self.state, ledger.parameters, self._owner, content)
        ahead = self.mempool.next_free_nonce(ledger.view(), self._owner, draft.role) - draft.nonce
        draft = draft_of(self.state, ledger.parameters, self._owner, content, ahead=ahead)
        by_owner = draft.role is Role.OWNER
        signer = self._owner_signer if by_owner else self._peer_signer
        if signer is None:
            raise TransactionRefused("the owner key is not on this machine")
        named = getattr(content, "peer_key", None)
        transaction = draft.sign(signer, self._peer_signer if named is not None else None)
        self._admit(transaction)
        await trio.lowlevel.checkpoint()

    def _admit(self, transaction: Transaction) -> None:
        refused = self.mempool.add(transaction, self._recovered.ledger.view())
        if refused is not None:
            raise TransactionRefused(refused.reason)
        self.propagation.publish_transaction(transaction)

    # What the engine's peers ask.

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
            payload_bytes_max=64 << 20,
        )

    def _peer_of(self, account: AccountId) -> PeerId | None:
        uid = self.state.uid_of_owner.get(account)
        return None if uid is None else PeerId.from_public_key(self.state.accounts[uid].peer_key)

    def _take_transaction(self, transaction: Transaction) -> Verdict:
        if transaction.chain_id != self.chain_id:
            # [REJECT] of another chain
            return Verdict.REJECT
        refused = self.mempool.add(transaction, self._recovered.ledger.view())
        if refused is None:
            return Verdict.ACCEPT
        forged = refused.reason.startswith(TransactionFault.BAD_SIGNATURE)
        if refused.refusal is Refusal.INVALID and forged and transaction.role is Role.OWNER:
            # [REJECT] the account is the key that should have signed: invalid in every state
            return Verdict.REJECT
        # [IGNORE] depends on the state
        return Verdict.IGNORE

    def _offer(self, effect: Build) -> Sequence[bytes]:
        parent = self._recovered.ledger.state_after(effect.template.parent_hash)
        if parent is None:
            return ()
        left = iter(range(OFFERED_MAX))

        def choose(_: Transaction) -> Choice:
            return Choice.STOP if next(left, None) is None else Choice.TAKE

        view = self._recovered.ledger.view(parent)
        chosen = self.mempool.select(view, bytes_max=BODY_ROOM_BYTES, choose=choose)
        return [transaction.encoded for transaction in chosen]

    def _final(self, block: Block) -> None:
        """A block is final and on disk."""
        ledger = self._recovered.ledger
        self._transactions += len(block.body.transactions)
        at_boundary = block.header.next_vset_hash != ZERO_DIGEST
        touched = None
        if not at_boundary:
            touched = {decode_transaction(data).account for data in block.body.transactions}
        self.mempool.advance(ledger.view(), touched)
        if self._server is not None:
            self._server.weights_changed()
        self._next_block.set()
        self._next_block = trio.Event()
        for watcher in list(self._watchers):
            try:
                watcher.send_nowait(block)
            except (trio.WouldBlock, trio.BrokenResourceError):
                watcher.close()
                self._watchers.discard(watcher)
        self._report(
            Finalized(
                t_s=time.time(),
                height=block.height,
                epoch=block.header.epoch,
                state_root=block.header.state_root.hex(),
                transactions=len(block.body.transactions),
                block_hash=block.hash.hex(),
            )
        )

    # Running.

    async def run(self, model: Model | None, corpus: "Corpus | None") -> None:
        """Take part until cancelled."""
        await self.network.serve(SYNC_PROTOCOL, self._sync.handle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.greeter.run)
            nursery.start_soon(self.propagation.run)
            nursery.start_soon(self._fetcher.run)
            modality = AccountModality(self._origin.genesis.modality)
            key = rendezvous(self.chain_id, modality)
            nursery.start_soon(find_each_other, self.network, key)
            api = await nursery.start(
                partial(
                    serve_api,
                    self,
                    port=self.config.api_port,
                    record=self._origin.directory.api,
                )
            )
            self._report_started(api)
            nursery.start_soon(self._report_progress)
            await self._catch_up()
            nursery.start_soon(self._order)
            nursery.start_soon(self._learn, model, corpus)

    async def _catch_up(self) -> None:
        if self._recovered.is_new and not self.config.bootstrap:
            return
        with trio.move_on_after(MEETING_S):
            while not self.greeter.heights():
                await trio.sleep(0.05)

        def observe(progress: CatchUpProgress) -> None:
            text = f"caught up to {progress.height} of {progress.network_height}"
            self._report(Notice(t_s=time.time(), level="info", text=text))

        await CatchUp(
            self.network,
            self._recovered,
            verifier=self._verifier,
            peers=self.greeter.heights,
            observe=observe,
        ).run()

    async def _order(self) -> None:
        now_ms = self._clock.now_ms()
        own_key = PeerKey(self._peer_signer.public_key) if self.config.participate else None
        engine = start_engine(
            self._recovered, own_key=own_key, verifier=self._verifier, now_ms=now_ms
        )
        self._driver = Driver(
            engine=engine,
            execution=self._recovered.ledger,
            chain_id=self.chain_id,
            signer=self._peer_signer,
            store=self._recovered.store,
            vote_log=self._recovered.vote_log,
            peers=_EnginePeers(self.propagation, self._fetcher, self.network),
            clock=self._clock,
            no_vote_before_ms=engine.config.no_vote_before_ms,
            offer=self._offer,
            final=self._final,
        )
        self._engine = engine
        for peer in self.greeter.heights():
            self._met(peer)
        await self._driver.run()

    async def _learn(self, model: Model | None, corpus: "Corpus | None") -> None:
        if model is None and corpus is None:
            return
        with trio.move_on_after(LEARNING_DELAY_S):
            await self.wait_for_block()
        neuron = None
        if model is None and corpus is not None:
            from node.neuron.serving import ServedNeuron

            neuron = await open_neuron(self.config, self.peer_id, corpus)
            model = ServedNeuron(neuron)
        assert model is not None
        server = self._server = Server(
            self.network,
            model,
            weight_of=self._weight_of,
            sign=self._origin.keys.peer.sign,
            context=self.chain_id,
            height_of=lambda: self.state.height,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            nursery.start_soon(self._membership(model, neuron).run)
            if neuron is not None and self.config.train:
                nursery.start_soon(learn, neuron, self.dendrite, self._partners, self._learned)

    def _membership(self, model: Model, neuron: "Neuron | None") -> Membership:
        def scores() -> Mapping[PeerId, float]:
            if neuron is None:
                return {}
            return {PeerId(name): share for name, share in neuron.scores.shares().items()}

        modality = AccountModality(0)
        for each in model.modalities:
            modality |= AccountModality[each.name]
        return Membership(
            self,
            self._recovered.parameters,
            owner=self._owner,
            owner_signer=self._owner_signer,
            peer_key=PeerKey(self._peer_signer.public_key),
            announcement=Announcement(
                modality=modality,
                dim=model.dim,
                vocabulary=model.vocabulary,
                addresses=self.network.addresses[:ADDRESSES_MAX],
            ),
            scores=scores,
        )

    def _partners(self) -> Sequence[PeerId]:
        """Greeted peers with an account: those whose answers can be paid for with weight."""
        known = self.state.uid_of_peer
        return [
            p for p in sorted(self.greeter.heights()) if known(PeerKey(p.public_key)) is not None
        ]

    def _weight_of(self, peer: PeerId) -> int:
        """s_i · w_ij: the sender's stake times the weight it gives this node."""
        state = self.state
        sender = state.uid_of_peer(PeerKey(peer.public_key))
        own = state.uid_of_owner.get(self._owner)
        if sender is None or own is None:
            return 0
        return state.stake[sender] * state.rows[sender].weight_to(own)

    def _learned(self, report: "TrainingReport") -> None:
        self._training = report

    # Reports and views.

    def _report_started(self, api: str) -> None:
        self._report(
            Started(
                t_s=time.time(),
                peer_id=str(self.peer_id),
                addresses=self.network.addresses,
                chain_id=self.chain_id.hex(),
                network=self._origin.genesis.network,
                data_dir=str(self._origin.directory.path),
                pid=os.getpid(),
                height=self.state.height,
                api=api,
            )
        )

    async def _report_progress(self) -> None:
        while True:
            self._report(self._progress())
            await trio.sleep(PROGRESS_S)

    def _progress(self) -> Progress:
        state, training, server = self.state, self._training, self._server
        uid = state.uid_of_owner.get(self._owner)
        heights = self.greeter.heights()
        return Progress(
            t_s=time.time(),
            height=state.height,
            finalized=state.height,
            epoch=state.epoch,
            peers=len(heights),
            transactions=self._transactions,
            stake=0 if uid is None else state.stake[uid],
            network_height=max([state.height, *heights.values()]),
            loss_start=None if training is None else training.loss_start,
            loss=None if training is None else training.loss,
            exchanges={} if training is None else training.exchanges,
            served=0 if server is None else server.counters["result"],
            mempool=len(self.mempool),
            halted=None if self._driver is None else self._driver.halted,
        )

    def status(self) -> Json:
        """Where the node stands."""
        started = {"peer_id": str(self.peer_id), "chain_id": self.chain_id.hex()}
        return {
            **started,
            "addresses": list(self.network.addresses),
            "uptime_s": round(time.time() - self._started_s, 1),
            **dataclasses.asdict(self._progress()),
        }

    def peers(self) -> Json:
        """The connected peers."""
        heights = self.greeter.heights()
        return [
            {
                "peer_id": str(peer),
                "addresses": list(self.network.addresses_of(peer)),
                "height": heights.get(peer),
                "uid": self.state.uid_of_peer(PeerKey(peer.public_key)),
            }
            for peer in sorted(self.network.peers)
        ]

    def metagraph(self) -> Json:
        """Every peer of the ledger."""
        return views.metagraph(self.state)

    def weights(self) -> Json:
        """Every row of the ledger."""
        return views.weights(self.state)

    def gauges(self) -> dict[str, float]:
        """Figures that go up and down."""
        progress = self._progress()
        figures = {"height": progress.height, "epoch": progress.epoch, "peers": progress.peers}
        figures |= {"mempool_transactions": progress.mempool, "stake": progress.stake}
        if progress.loss is not None:
            return {**figures, "loss": progress.loss}
        return dict(figures)

    def counters(self) -> dict[str, int]:
        """Figures that only go up."""
        served = {} if self._server is None else self._server.counters
        return {
            **self.network.counters(),
            **self.propagation.counters,
            **self.greeter.counters,
            **{f"calls_{name}": count for name, count in self.dendrite.counters.items()},
            **{f"served_{name}": count for name, count in served.items()},
        }

    async def submit_encoded(self, data: bytes) -> Json:
        """Take a transaction that was signed elsewhere; raises ValueError with the reason."""
        await trio.lowlevel.checkpoint()
        try:
            transaction = decode_transaction(data)
            self._admit(transaction)
        except (DecodeError, TransactionRefused) as error:
            raise ValueError(str(error)) from None
        return {"transaction": transaction.hash.hex()}


class _EnginePeers:
    """The driver's `Peers`: messages by propagation, requests by the fetcher."""

    def __init__(self, propagation: Propagation, fetcher: Fetcher, network: Network) -> None:
        self.broadcast = propagation.broadcast
        self.send = propagation.send
        self.resend = propagation.resend
        self.request = fetcher.request
        self._network = network

    def misbehaved(self, source: str, fault: str) -> None:
        """A peer sent directly what is invalid in every state: it is cut off for a while."""
        logger.warning("peer %s: %s", source, fault)
        self._network.ban(PeerId(source))


@asynccontextmanager
async def open_node(
    config: Config, *, model: Model | None = None, report: ReportSink = lambda _: None
) -> AsyncIterator[Node]:
    """Run a node while the block lasts; `model` replaces the one that `config` names.

    Raises NodeError and its kinds, p2p's NetworkError for the listening address.
    """
    async with open_origin(config) as origin, AsyncExitStack() as stack:
        corpus = None
        if model is None and config.model == "bytes":
            corpus = check_training(config, origin.keys.peer.peer_id)
        elif model is None and config.model == "test":
            model = TestModel()
        verifier = RememberingVerifier()
        recovered = await trio.to_thread.run_sync(
            lambda: recover(
                origin.directory,
                origin.genesis,
                peer_key=PeerKey(origin.keys.peer.public_key),
                verifier=verifier,
                fresh_vote_log=config.fresh_vote_log,
            )
        )
        stack.callback(recovered.close)
        network = await stack.enter_async_context(
            open_network(
                origin.keys.peer,
                listen=config.listen,
                bootstrap=config.bootstrap,
                data_dir=origin.directory.path,
            )
        )
        node = Node(config, origin, recovered, network, verifier, report)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run, model, corpus)
            yield node
            nursery.cancel_scope.cancel()
        report(node._progress())
