"""The modules of a byte-level peer: f_i(x, G) = head(LN[trunk_i(x); G(x)]).

`Trunk` is what a peer serves, so it never looks at other peers (depth 1) nor, at any position, at
later bytes.
`Gate` is g of eq. 8, `Student` is dist of eq. 9. All representations are `[batch, seq, dim]`
float32.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256  # bytes
KERNEL = 3
DILATIONS = (1, 2, 4, 8, 16)  # a receptive field of 63 bytes
PEERS_MAX = 64  # slots of the gate: a row of weights has no more entries


class CausalBlock(nn.Module):
    """A residual dilated convolution that sees only the past."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.padding = (KERNEL - 1) * dilation
        self.norm = nn.LayerNorm(dim)
        self.convolution = nn.Conv1d(dim, 2 * dim, KERNEL, dilation=dilation)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, seq, dim]` to the same shape."""
        past = functional.pad(self.norm(x).transpose(1, 2), (self.padding, 0))
        mixed = functional.glu(self.convolution(past), dim=1).transpose(1, 2)
        return x + self.project(mixed)  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """trunk_i: token ids `[batch, seq]` int64 to representations `[batch, seq, dim]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, dim)
        self.blocks = nn.Sequential(*(CausalBlock(dim, dilation) for dilation in DILATIONS))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the representation of every position given the bytes up to it."""
        return self.norm(self.blocks(self.embedding(tokens)))  # type: ignore[no-any-return]


class Gate(nn.Module):
    """g_j(x) of eq. 8: a key per peer slot against the own representation of the past."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(PEERS_MAX, dim))

    def forward(self, own: Tensor, slots: Tensor) -> Tensor:
        """Return mixing weights `[batch, seq, len(slots)]`, a softmax over the asked peers."""
        scores = own @ self.keys[slots].T / own.shape[-1] ** 0.5
        return functional.softmax(scores, dim=-1)


class Student(nn.Module):
    """dist(x) of eq. 9: the network's answer guessed from the own representation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, own: Tensor) -> Tensor:
        """Map `[batch, seq, dim]` to the same shape."""
        return self.layers(own)  # type: ignore[no-any-return]


class Head(nn.Module):
    """head(LN[trunk; G]): logits over the next byte."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * dim)
        self.layers = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, VOCABULARY)
        )

    def forward(self, own: Tensor, joined: Tensor) -> Tensor:
        """Map two `[batch, seq, dim]` to logits `[batch, seq, VOCABULARY]`."""
        both = self.norm(torch.cat((own, joined), dim=-1))
        return self.layers(both)  # type: ignore[no-any-return]


class ByteModel(nn.Module):
    """All of a peer's parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.trunk = Trunk(dim)
        self.gate = Gate(dim)
        self.student = Student(dim)
        self.head = Head(dim)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss, nats per byte, of logits `[batch, seq, V]` for `[batch, seq]`."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def distillation(student: Tensor, joined: Tensor) -> Tensor:
    """Return the loss of eq. 9, KL + MSE, of the student's guess for what the gate joined."""
    target = joined.detach()
    divergence = functional.kl_div(
        functional.log_softmax(student, dim=-1),
        functional.softmax(target, dim=-1),
        reduction="none",
    )
    return divergence.sum(dim=-1).mean() + functional.mse_loss(student, target)
