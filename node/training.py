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


def open_corpus(config: Config, public_key: bytes) -> Corpus | None:
    """The text that the configured model learns from, None for a model that learns from none.

    Raises NeuronMissing without torch, DataError without a text.
    """
    if config.model != "bytes":
        return None
    if importlib.util.find_spec("torch") is None:
        raise NeuronMissing(
            "the byte model needs torch: pip install 'agora-node[neuron]', or --model none"
        )
    shard = parse_shard(config.shard) if config.shard is not None else None
    return load_corpus(config.data, key=public_key, shard=shard)


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

    # A node that is asked to stop does not wait for the import.
    # (The stubs that mypy finds for trio lack the parameter.)
    return await trio.to_thread.run_sync(make, abandon_on_cancel=True)  # type: ignore[call-arg]


def served(neuron: Neuron, *, learns: bool) -> Model:
    """The learner as what an exchange server serves; one that `learns` is taught by callers too."""
    from node.neuron.serving import ServedNeuron, TaughtNeuron

    return TaughtNeuron(neuron) if learns else ServedNeuron(neuron)


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
