"""One node: network, chain and market put together, and what a program asks of it.

    async with open_node(Config.local(bootstrap=[...])) as node:
        hidden = await node.forward(peer_id, Modality.TEXT, tokens)
        await node.set_weights({peer_id: 3, other: 1})
        async for block in node.finalized(): ...

Rule: everything runs in nurseries under `open_node`; leaving the block, by any path, stops all of
it and closes both databases. What fails for good (a full disk, a refused double signature) ends the
block with that error.
"""

import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import trio
from numpy.typing import NDArray

from consensus.block import Block
from consensus.crypto import Ed25519Signer
from consensus.state import State
from consensus.transaction import Content, Role, SetWeights, named_peer_key
from consensus.types import AccountId, ChainId, Digest, Epoch, Modality, PeerKey
from consensus.wallet import draft_of
from node.api import serve_api
from node.chain import Chain, SyncOptions
from node.config import Config
from node.discovery import find_each_other, rendezvous
from node.errors import TransactionRefused
from node.market import Market
from node.membership import measured_row
from node.model import Model
from node.origin import Origin, open_origin
from node.recovery import Recovered, recover
from node.report import Finalized, Notice, Progress, ReportSink, Started
from node.sync.catch_up import CatchUpProgress
from node.sync.genesis import NetworkOpener
from node.training import open_corpus
from node.verifier import RememberingVerifier
from node.views import NodeViews
from p2p.identity import PeerId
from p2p.network import Network
from p2p.stack import open_network
from tensorwire import Modality as PartModality
from tensorwire import Part, WireTensor

PROGRESS_S: Final = 0.5
"""Between two reports of progress."""


class Node:
    """A running node; made by `open_node`."""

    def __init__(
        self,
        config: Config,
        origin: Origin,
        recovered: Recovered,
        network: Network,
        *,
        verifier: RememberingVerifier,
        model: Model | None,
        report: ReportSink,
    ) -> None:
        keys = origin.keys
        self.config = config
        self.network = network
        self.owner = AccountId(keys.owner_public_key)
        self._origin = origin
        self._report = report
        self._joins = bool(config.bootstrap) or not recovered.is_new
        self._peer_signer = Ed25519Signer(keys.peer.seed)
        self._owner_signer = None if keys.owner is None else Ed25519Signer(keys.owner.seed)
        self.chain = Chain(
            origin.genesis,
            recovered,
            network,
            verifier=verifier,
            signer=self._peer_signer,
            participate=config.participate,
            sync=_sync_options(config, origin),
            final=self._final,
        )
        self.market = Market(config, self.chain, network, keys.peer, self.owner, model=model)

    @property
    def peer_id(self) -> PeerId:
        """This node's name on the network."""
        return self.network.peer_id

    @property
    def chain_id(self) -> ChainId:
        """The chain this node runs."""
        return self.chain.chain_id

    @property
    def state(self) -> State:
        """The ledger after the last final block."""
        return self.chain.state

    async def forward(
        self,
        peer_id: PeerId,
        modality: PartModality,
        values: NDArray[Any],
        *,
        deadline_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Ask a peer for its representation `[batch, seq, dim]` of one part; raises `CallError`."""
        part = Part(modality=modality, tensor=WireTensor.from_numpy(values))
        answer = await self.market.dendrite.forward(peer_id, [part], deadline_s=deadline_s)
        return np.asarray(answer.output.to_numpy(), dtype=np.float32)

    async def set_weights(self, scores: Mapping[PeerId, float]) -> None:
        """Publish a row of weights in proportion to `scores`; raises TransactionRefused."""
        uid = self.state.uid_of_owner.get(self.owner)
        if uid is None:
            raise TransactionRefused("this node has no account yet")
        row = measured_row(self.state, uid, scores, self.chain.parameters)
        if row is None:
            raise TransactionRefused("no peer with an account has a positive score")
        await self.submit(SetWeights(row=row))

    def finalized(self) -> AsyncIterator[Block]:
        """Every block that becomes final from now on; a reader far behind is ended."""
        return self.chain.finalized()

    async def wait_for_block(self) -> None:
        """Return after the next final block."""
        await self.chain.wait_for_block()

    async def submit(self, content: Content) -> None:
        """Sign with this node's keys and publish. Raises TransactionRefused with the reason."""
        await trio.lowlevel.checkpoint()
        parameters = self.chain.parameters
        draft = draft_of(self.state, parameters, self.owner, content)
        free = self.chain.mempool.next_free_nonce(self.chain.view(), self.owner, draft.role)
        draft = draft_of(self.state, parameters, self.owner, content, ahead=free - draft.nonce)
        signer = self._owner_signer if draft.role is Role.OWNER else self._peer_signer
        if signer is None:
            raise TransactionRefused("the owner key is not on this machine")
        second = None if named_peer_key(content) is None else self._peer_signer
        self.chain.admit(draft.sign(signer, second))

    # Running.

    async def run(self) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            modality = Modality(self._origin.genesis.modality)
            key = rendezvous(self.chain_id, modality)
            nursery.start_soon(find_each_other, self.network, key)
            views = NodeViews(self.chain, self.market, self.network, self.progress)
            record = self._origin.directory.api
            api = await nursery.start(
                partial(serve_api, views, port=self.config.api_port, record=record)
            )
            self._report_started(api)
            nursery.start_soon(self._report_progress)
            nursery.start_soon(
                partial(
                    self.chain.run,
                    joins=self._joins,
                    observe=self._report_catching_up,
                    observe_pieces=self._report_pieces,
                )
            )
            nursery.start_soon(self.market.run, self)

    def progress(self) -> Progress:
        """Cumulative figures, as reported."""
        state, training, server = self.state, self.market.training, self.market.server
        uid = state.uid_of_owner.get(self.owner)
        heights = self.chain.greeter.heights()
        return Progress(
            t_s=time.time(),
            height=state.height,
            finalized=state.height,
            epoch=state.epoch,
            peers=len(heights),
            transactions=self.chain.transactions,
            stake=0 if uid is None else state.stake[uid],
            network_height=max([state.height, *heights.values()]),
            loss_start=None if training is None else training.loss_start,
            loss=None if training is None else training.loss,
            exchanges={} if training is None else training.exchanges,
            served=0 if server is None else server.counters["result"],
            mempool=len(self.chain.mempool),
            halted=self.chain.halted,
        )

    def _final(self, block: Block) -> None:
        self.market.weights_changed()
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

    def _report_catching_up(self, progress: CatchUpProgress) -> None:
        text = f"caught up to {progress.height} of {progress.network_height}"
        self._report(Notice(t_s=time.time(), level="info", text=text))

    def _report_pieces(self, done: int, total: int) -> None:
        text = f"snapshot: {done} of {total} pieces"
        self._report(Notice(t_s=time.time(), level="info", text=text))

    async def _report_progress(self) -> None:
        while True:
            self._report(self.progress())
            await trio.sleep(PROGRESS_S)


def _sync_options(config: Config, origin: Origin) -> SyncOptions:
    checkpoint = None
    if config.checkpoint is not None:
        epoch, _, block_hash = config.checkpoint.partition(":")
        checkpoint = Epoch(int(epoch)), Digest(bytes.fromhex(block_hash))
    return SyncOptions(
        directory=origin.directory.path,
        checkpoint=checkpoint,
        must_check=config.network != "local",
        in_full=config.full_sync,
    )


@asynccontextmanager
async def open_node(
    config: Config,
    *,
    model: Model | None = None,
    report: ReportSink = lambda _: None,
    opener: NetworkOpener | None = None,
) -> AsyncIterator[Node]:
    """Run a node while the block lasts.

    `model` replaces the one that `config` names, `opener` the real network (`MemoryHub` has one).

    Raises NodeError and its kinds, p2p's NetworkError for the listening address.
    """
    if model is None:
        open_corpus(config, bytes(32))  # a bad data file ends here, before anything is made
    verifier = RememberingVerifier()
    async with open_origin(config, opener=opener or open_network) as origin:
        recovered = await trio.to_thread.run_sync(
            partial(
                recover,
                origin.directory,
                origin.genesis,
                peer_key=PeerKey(origin.keys.peer.public_key),
                verifier=verifier,
                fresh_vote_log=config.fresh_vote_log,
            )
        )
        try:
            opening = opener or partial(open_network, data_dir=origin.directory.path)
            async with opening(
                origin.keys.peer, listen=config.listen, bootstrap=config.bootstrap
            ) as network:
                node = Node(
                    config,
                    origin,
                    recovered,
                    network,
                    verifier=verifier,
                    model=model,
                    report=report,
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(node.run)
                    yield node
                    nursery.cancel_scope.cancel()
                report(node.progress())
        finally:
            recovered.close()
