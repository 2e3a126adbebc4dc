"""The node's learning half: torch is loaded when the chain runs, then the loop begins.

Rule: the ledger comes first. Importing torch costs seconds of processor time, so a node takes part
in ordering before it learns; one that has no torch says so at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from node.config import Config, parse_shard
from node.dendrite import Dendrite
from node.errors import NeuronMissing
from node.model import Model
from node.neuron.corpus import Corpus, load_corpus
from p2p.identity import PeerId

if TYPE_CHECKING:
    from node.neuron.loop import TrainingReport
    from node.neuron.neuron import Neuron

DIM: Final = 64
"""Width of what the byte model serves."""


def check_training(config: Config, peer_id: PeerId) -> Corpus:
    """The corpus to train on. Raises NeuronMissing without torch, DataError without a text."""
    if importlib.util.find_spec("torch") is None:
        raise NeuronMissing("training needs torch: pip install 'agora-node[neuron]', or --no-train")
    shard = parse_shard(config.shard) if config.shard is not None else None
    return load_corpus(config.data, key=peer_id.public_key, shard=shard)


async def open_neuron(config: Config, peer_id: PeerId, corpus: Corpus) -> Neuron:
    """Import torch in a worker thread and make the learner."""

    def make() -> Neuron:
        import torch

        from node.neuron.neuron import Neuron

        torch.set_num_threads(config.threads or 1)
        seed = config.seed
        if seed is None:
            seed = int.from_bytes(peer_id.public_key[:7], "big")
        return Neuron(corpus, dim=DIM, seed=seed)

    return await trio.to_thread.run_sync(make)


def served(neuron: Neuron) -> Model:
    """The learner as what an exchange server serves."""
    from node.neuron.serving import ServedNeuron

    return ServedNeuron(neuron)


async def learn(
    neuron: Neuron,
    dendrite: Dendrite,
    known: Callable[[], Sequence[PeerId]],
    observe: Callable[[TrainingReport], None],
) -> None:
    """Train with the peers that `known` names until cancelled."""
    from node.neuron.loop import train
    from node.neuron.serving import DendritePartners

    await train(neuron, DendritePartners(dendrite, known), observe)
