"""What a peer serves: the `Model` port, and what a request to it costs before it has run.

Rule: a model sees checked parts and returns one array; it knows nothing of peers, queues or wires.
Any torch module becomes one in five lines: take `part.tensor.to_numpy()`, return numpy.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tensorwire import Kind, Modality, Part, RequestHead
from tensorwire.tensor import gradient_specs, output_shape, payload_bytes

STEP_COST = {  # per step of one row, in reply bytes: what a step takes on a small model
    Modality.TEXT: 1_024,
    Modality.TENSOR: 1_024,
    Modality.IMAGE: 4_096,
    Modality.SPEECH: 4_096,
}
_BACKWARD = Kind.BACKWARD

BACKWARD_COST_FACTOR = 3  # its forward again, and twice that for the gradients

Array = NDArray[np.float32]


class Model(Protocol):
    """What a peer serves. Called in a worker thread, never twice at once unless allowed to be.

    A model that can be trained by others also has
    `backward(parts, gradient, *, share) -> Sequence[Array]`: apply the output gradient
    `[bs, seq, dim]`, clipped to a norm of its own and scaled by `share` in [0, 1], and return the
    input gradient of every part but TEXT (those shaped like their parts). The shares of an interval
    have a bounded sum (`gradient_allowance`); 0 says to apply nothing.

    A model that takes microseconds and never waits may have `is_instant = True`: small requests
    then run where they are, as a worker thread would cost more than they do.
    """

    @property
    def modalities(self) -> frozenset[Modality]:
        """What it accepts; a request may combine them."""

    @property
    def dim(self) -> int:
        """Width of the output."""

    @property
    def vocabulary(self) -> int:
        """Token ids of TEXT are below this."""

    def forward(self, parts: Sequence[Part]) -> Array:
        """`[bs, seq, dim]` float32 of `parts`; rows do not depend on each other."""


def reply_bytes(head: RequestHead, dim: int) -> int:
    """Payload of the answer to a request."""
    if head.kind is _BACKWARD:
        return sum(
            payload_bytes(head.reply_dtype, spec.elements) for spec in gradient_specs(head.inputs)
        )
    rows, steps = output_shape(head.inputs)
    return payload_bytes(head.reply_dtype, rows * steps * dim)


def promised_cost(head: RequestHead, dim: int) -> int:
    """What a request will take, in the queue's units, from its header alone.

    Rows × steps × a factor of the modality, three times for a BACKWARD, and the reply's bytes; the
    queue corrects it by measured time.
    """
    steps = sum(spec.shape[0] * spec.shape[1] * STEP_COST[spec.modality] for spec in head.inputs)
    factor = BACKWARD_COST_FACTOR if head.kind is _BACKWARD else 1
    return factor * steps + reply_bytes(head, dim)
