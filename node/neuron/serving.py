"""The learning peer at the wire: what others see of it, and how it sees others."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from node.dendrite import Dendrite
from p2p.identity import PeerId
from tensorwire import Modality, Part, WireTensor

from .model import VOCABULARY
from .neuron import Array, Neuron


class ServedNeuron:
    """A `Neuron` as the `Model` of an exchange server: TEXT of bytes."""

    modalities = frozenset({Modality.TEXT})
    vocabulary = VOCABULARY

    def __init__(self, neuron: Neuron) -> None:
        self._neuron = neuron
        self.dim = neuron.dim

    def forward(self, parts: Sequence[Part]) -> Array:
        """Return `[bs, seq, dim]` of the parts, each encoded apart, joined along seq."""
        encoded = [self._neuron.represent(_tokens(part)) for part in parts]
        return encoded[0] if len(encoded) == 1 else np.concatenate(encoded, axis=1)


class TaughtNeuron(ServedNeuron):
    """As served, and trained by callers too."""

    def backward(self, parts: Sequence[Part], gradient: Array, *, share: float) -> list[Array]:
        """Learn from a caller's gradient; TEXT has no input gradient to return."""
        lessons, first = [], 0
        for part in parts:
            tokens = _tokens(part)
            own = gradient[:, first : first + tokens.shape[1]]
            lessons.append((tokens, np.ascontiguousarray(own)))
            first += tokens.shape[1]
        self._neuron.absorb(lessons, share=share)
        return []


class DendritePartners:
    """The peers of the network as the training loop's `Partners`; names are peer ids."""

    def __init__(self, dendrite: Dendrite, known: Callable[[], Sequence[PeerId]]) -> None:
        self._dendrite = dendrite
        self._known = known

    def names(self) -> list[str]:
        """Return the peers that can be asked now."""
        return [str(peer) for peer in self._known()]

    async def forward(self, name: str, tokens: NDArray[np.int64], *, deadline_s: float) -> Array:
        """Ask one peer; raises `CallError`."""
        answer = await self._dendrite.forward(PeerId(name), [_part(tokens)], deadline_s=deadline_s)
        return np.asarray(answer.output.to_numpy(), dtype=np.float32)

    async def backward(
        self, name: str, tokens: NDArray[np.int64], gradient: Array, *, deadline_s: float
    ) -> None:
        """Send a gradient to one peer; raises `CallError`."""
        await self._dendrite.backward(
            PeerId(name), [_part(tokens)], WireTensor.from_numpy(gradient), deadline_s=deadline_s
        )


def _part(tokens: NDArray[np.int64]) -> Part:
    return Part(modality=Modality.TEXT, tensor=WireTensor.from_numpy(tokens))


def _tokens(part: Part) -> NDArray[np.int64]:
    return np.array(part.tensor.to_numpy(), dtype=np.int64)
