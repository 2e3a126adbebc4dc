"""The fixed model of `--model test`: numpy only, so that any implementation can check its answers.

Rule: every output is exact in float32 whatever the order of summation, because all intermediate
values are small dyadic fractions. With b, s, d counting batch, step and output dimension from 0:

    TEXT    y[b, s, d] = ((31·token + 17·s + 7·d) mod 256) / 128 − 1
    others  y[b, s, d] = m[b, s] + ((7·d) mod 16) / 16
            m = (x rounded to 1/64 and clipped to ±4, summed over all but b and s, mod 8)

Parts are encoded apart and joined along s, each counting its own steps from 0. The gradient of a
float part is the output gradient summed over d, at every input element (rounding and folding are
passed straight through). Vectors: interop/vectors/tensor.json.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tensorwire import Modality, Part

DIM = 16
VOCABULARY = 65_536

Array = NDArray[np.float32]


class TestModel:
    """The `Model` of vectors and demonstrations: all modalities, dim 16."""

    __test__ = False  # pytest collects classes named Test*

    modalities = frozenset(Modality)
    is_instant = True
    dim = DIM
    vocabulary = VOCABULARY

    def forward(self, parts: Sequence[Part]) -> Array:
        """`[bs, seq, 16]` of the parts, seq in sum."""
        encoded = [
            _text(part.tensor.to_numpy())
            if part.modality is Modality.TEXT
            else _floats(part.tensor.to_numpy())
            for part in parts
        ]
        return encoded[0] if len(encoded) == 1 else np.concatenate(encoded, axis=1)

    def backward(self, parts: Sequence[Part], gradient: Array, *, share: float) -> list[Array]:
        """The input gradient of every part but TEXT; nothing is learned."""
        gradients, first = [], 0
        for part in parts:
            shape = part.tensor.shape
            summed = gradient[:, first : first + shape[1]].sum(axis=2, dtype=np.float32)
            first += shape[1]
            if part.modality is not Modality.TEXT:
                spread = summed.reshape(shape[:2] + (1,) * (len(shape) - 2))
                gradients.append(np.broadcast_to(spread, shape).astype(np.float32))
        return gradients


def _text(tokens: NDArray[np.int64]) -> Array:
    steps = np.arange(tokens.shape[1])[None, :, None]
    dims = np.arange(DIM)[None, None, :]
    folded = (31 * tokens[:, :, None] + 17 * steps + 7 * dims) % 256
    return np.asarray(folded / 128 - 1, dtype=np.float32)


def _floats(values: NDArray[np.floating]) -> Array:
    units = np.rint(np.clip(values.astype(np.float64), -4, 4) * 64).astype(np.int64)
    sums = units.reshape(*units.shape[:2], -1).sum(axis=2) % 512
    dims = (7 * np.arange(DIM)) % 16
    return np.asarray(sums[:, :, None] / 64 + dims / 16, dtype=np.float32)
