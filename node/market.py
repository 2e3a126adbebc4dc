"""The node's trade: it serves its model, asks others, learns what they are worth and says so.

Rule: the ledger comes first. A model that needs torch is loaded after the first final block, and
callers are served in the order that their stake and their weight for us buy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import trio

from consensus.account import ADDRESSES_MAX, Announcement
from consensus.types import AccountId, Modality, PeerKey
from node.chain import Chain
from node.config import Config
from node.dendrite import Dendrite
from node.exchange import Server
from node.membership import Desk, Membership
from node.model import Model
from node.test_model import TestModel
from node.training import learn, open_corpus, open_neuron, served
from p2p.identity import Identity, PeerId
from p2p.network import Network

if TYPE_CHECKING:
    from node.neuron.loop import TrainingReport
    from node.neuron.neuron import Neuron

LEARNING_DELAY_S: Final = 5.0
"""Torch is loaded after the first final block, or after this long."""


class Market:
    """Serves, asks and learns while `run` does.

    `desk` submits this node's transactions, `owner` is its account. `training` is how far learning
    is, None while nothing learns.
    """

    def __init__(
        self,
        config: Config,
        chain: Chain,
        network: Network,
        identity: Identity,
        owner: AccountId,
        *,
        model: Model | None,
    ) -> None:
        """Raises NeuronMissing or DataError when the configured model cannot be had."""
        self.dendrite = Dendrite(network, context=chain.chain_id)
        self.training: TrainingReport | None = None
        self.server: Server | None = None
        self._config = config
        self._chain = chain
        self._network = network
        self._identity = identity
        self._owner = owner
        self._model = TestModel() if model is None and config.model == "test" else model
        self._corpus = open_corpus(config, identity.public_key) if model is None else None

    async def run(self, desk: Desk) -> None:
        """Trade until cancelled; returns at once when there is no model to serve."""
        neuron: Neuron | None = None
        model = self._model
        if model is None:
            if self._corpus is None:
                return
            with trio.move_on_after(LEARNING_DELAY_S):
                await self._chain.wait_for_block()
            neuron = await open_neuron(self._config, self._identity.peer_id, self._corpus)
            model = served(neuron, learns=self._config.train)
        server = self.server = Server(
            self._network,
            model,
            weight_of=self._weight_of,
            sign=self._identity.sign,
            context=self._chain.chain_id,
            height_of=lambda: self._chain.state.height,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            nursery.start_soon(self._membership(desk, model, neuron).run)
            if neuron is not None and self._config.train:
                nursery.start_soon(learn, neuron, self.dendrite, self._partners, self._learned)

    def weights_changed(self) -> None:
        """A block is final: callers that wait are put in their new order."""
        if self.server is not None:
            self.server.weights_changed()

    def _membership(self, desk: Desk, model: Model, neuron: Neuron | None) -> Membership:
        def scores() -> Mapping[PeerId, float]:
            if neuron is None:
                return {}
            return {PeerId(name): share for name, share in neuron.scores.shares().items()}

        modality = Modality(0)
        for each in model.modalities:
            modality |= Modality[each.name]
        return Membership(
            desk,
            self._chain.parameters,
            owner=self._owner,
            peer_key=PeerKey(self._identity.public_key),
            announcement=Announcement(
                modality=modality,
                dim=model.dim,
                vocabulary=model.vocabulary,
                addresses=self._network.addresses[:ADDRESSES_MAX],
            ),
            scores=scores,
        )

    def _partners(self) -> Sequence[PeerId]:
        """Greeted peers with an account: those whose answers can be paid for with weight."""
        known = self._chain.state.uid_of_peer
        peers = sorted(self._chain.greeter.heights())
        return [peer for peer in peers if known(PeerKey(peer.public_key)) is not None]

    def _weight_of(self, peer: PeerId) -> int:
        """s_i · w_ij: the sender's stake times the weight it gives this node."""
        state = self._chain.state
        sender = state.uid_of_peer(PeerKey(peer.public_key))
        own = state.uid_of_owner.get(self._owner)
        if sender is None or own is None:
            return 0
        return state.stake[sender] * state.rows[sender].weight_to(own)

    def _learned(self, report: TrainingReport) -> None:
        self.training = report
