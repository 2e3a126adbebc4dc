"""The learner: one peer's parameters, its optimiser and what it thinks of its peers.

Everything here is synchronous torch and runs in worker threads; a lock keeps a training step, a
served request and a measurement apart. Arrays cross the border as numpy: tokens int64 `[batch,
seq]`, representations and their gradients float32 `[batch, seq, dim]`.

    own = trunk(x);  G = Σ_j g_j · LN(f_j(x)), a missing f_j replaced by the student;  loss =
    CE(head(own, G))
"""

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .corpus import Corpus, Tokens
from .model import PEERS_MAX, ByteModel, cross_entropy, distillation
from .score import Scores, fisher

BATCH_ROWS = 8
SEQUENCE = 64
LEARNING_RATE = 4e-3
GRADIENT_NORM_MAX = 1.0  # of one step
FOREIGN_NORM_MAX = 0.1  # of one caller's gradient
FOREIGN_RATE = 0.1  # 160 gradients an interval move us by 160 · .1 · .1: one Adam step's √n · .004
MEASURE_ROWS = 32
TOP_K = 4  # peers asked per step; more cost bandwidth for little
EXPLORE = 0.5  # standard deviation of the noise in the choice of peers
GATE_MEMORY = 0.9  # moving average of gate logits over past batches

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What one step taught: its loss (nats per byte) and, per peer, the gradient to send back."""

    loss: float
    gradients: Mapping[str, Array]


class Neuron:
    """A byte-level peer. `seed` fixes its initial parameters and its choices."""

    def __init__(self, corpus: Corpus, *, dim: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.dim = dim
        self.scores = Scores()
        self._corpus = corpus
        self._random = np.random.default_rng(seed)
        self._model = ByteModel(dim)
        self._optimiser = torch.optim.Adam(self._model.parameters(), lr=LEARNING_RATE)
        self._lock = threading.Lock()
        self._slots: dict[str, int] = {}
        self._liking = np.zeros(PEERS_MAX)  # running mean of gate logits: the past only
        self._measured = torch.from_numpy(corpus.measure(rows=MEASURE_ROWS, length=SEQUENCE + 1))

    # What others ask.

    def represent(self, tokens: Tokens) -> Array:
        """Serve trunk_i(x): tokens `[batch, seq]` to `[batch, seq, dim]` float32."""
        with self._as_served(), torch.inference_mode():
            answer: Array = self._model.trunk(torch.from_numpy(tokens)).numpy()
        return answer

    def absorb(self, lessons: Sequence[tuple[Tokens, Array]], *, share: float) -> None:
        """Take a caller's loss gradients at our answers, one request's: (tokens, gradient) each.

        Together they are clipped, then scaled by `share` in [0, 1], and applied by plain descent:
        the trunk moves by at most share · FOREIGN_NORM_MAX · FOREIGN_RATE. (Adam would make a full
        step of a gradient however small, and a clipped sum would crowd out our own.)
        """
        if share <= 0 or not lessons:
            return
        with self._as_served():
            parameters = list(self._model.trunk.parameters())
            outputs = [self._model.trunk(torch.from_numpy(tokens)) for tokens, _ in lessons]
            given = [torch.from_numpy(np.array(gradient)) for _, gradient in lessons]
            gradients = torch.autograd.grad(outputs, parameters, given)
            norm = _norm(gradients)
            if not math.isfinite(norm) or norm == 0.0:
                return
            step = FOREIGN_RATE * share * min(1.0, FOREIGN_NORM_MAX / norm)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=step)

    # What we ask.

    def batch(self) -> Tokens:
        """Return a batch `[BATCH_ROWS, SEQUENCE + 1]`: inputs are all but the last column."""
        return self._corpus.batch(self._random, rows=BATCH_ROWS, length=SEQUENCE + 1)

    def choose(self, peers: Iterable[str]) -> list[str]:
        """Pick at most TOP_K of `peers` by noisy gate logits of past batches (eq. 8, sparse)."""
        known = sorted(set(peers))
        with self._lock:
            self._assign(known)
            seated = [peer for peer in known if peer in self._slots]
            noisy = {
                peer: self._liking[self._slots[peer]] + EXPLORE * self._random.standard_normal()
                for peer in seated
            }
        return sorted(seated, key=lambda peer: (-noisy[peer], peer))[:TOP_K]

    def learn(self, batch: Tokens, asked: Sequence[str], answers: Mapping[str, Array]) -> Lesson:
        """Do one training step with the answers that came, of the peers that were asked.

        `answers` maps peers to `[batch, seq, dim']`; a width other than ours is cut or padded
        with zeros. Peers that did not answer are replaced by the student, never by zeros. An
        empty `asked` is a step alone.
        """
        inputs, targets = torch.from_numpy(batch[:, :-1]), torch.from_numpy(batch[:, 1:])
        with self._lock:
            seated = [peer for peer in asked if peer in self._slots]
            arrived = {
                peer: torch.from_numpy(np.array(answers[peer])).requires_grad_()
                for peer in seated
                if peer in answers
            }
            own = self._model.trunk(inputs)
            guess = self._model.student(own)
            contributions = self._contributions(own, guess, seated, arrived)
            joined = torch.stack(list(contributions.values())).sum(dim=0) if seated else guess
            if seated:
                joined.retain_grad()
            loss = cross_entropy(self._model.head(own, joined), targets)
            total = loss
            if arrived:
                alone = cross_entropy(self._model.head(own, guess), targets)
                total = loss + 0.5 * alone + distillation(guess, joined)
            self._optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            scores = {
                peer: fisher(joined.grad, contributions[peer].detach())
                for peer in arrived
                if joined.grad is not None
            }
            self._step()
        self.scores.observe(list(asked), scores)
        gradients = {
            peer: answer.grad.numpy() for peer, answer in arrived.items() if answer.grad is not None
        }
        return Lesson(loss=float(loss.detach()), gradients=gradients)

    def held_out_loss(self) -> float:
        """Measure the loss on the held-out text, the student in place of the network."""
        with self._as_served(), torch.inference_mode():
            inputs, targets = self._measured[:, :-1], self._measured[:, 1:]
            own = self._model.trunk(inputs)
            return float(cross_entropy(self._model.head(own, self._model.student(own)), targets))

    @contextmanager
    def _as_served(self) -> Iterator[None]:
        """Alone with the model, in eval mode: what training randomises is not for others."""
        with self._lock:
            self._model.eval()
            try:
                yield
            finally:
                self._model.train()

    def _contributions(
        self, own: Tensor, guess: Tensor, seated: Sequence[str], arrived: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return g_j · LN(f_j) for every asked peer."""
        if not seated:
            return {}
        slots = torch.tensor([self._slots[peer] for peer in seated])
        weights = self._model.gate(own, slots)
        logits = weights.detach().clamp_min(1e-9).log().mean(dim=(0, 1)).numpy()
        places = slots.numpy()
        self._liking[places] = GATE_MEMORY * self._liking[places] + (1 - GATE_MEMORY) * logits
        return {
            peer: weights[..., index, None]
            * (self._normalised(arrived[peer]) if peer in arrived else guess)
            for index, peer in enumerate(seated)
        }

    def _normalised(self, answer: Tensor) -> Tensor:
        width = answer.shape[-1]
        fitted = answer[..., : self.dim]
        if width < self.dim:
            fitted = functional.pad(fitted, (0, self.dim - width))
        return functional.layer_norm(fitted, (self.dim,))

    def _step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), GRADIENT_NORM_MAX)
        self._optimiser.step()

    def _assign(self, peers: Sequence[str]) -> None:
        """Seat new peers; when all seats are taken, those not present any more make room."""
        for peer in peers:
            if peer in self._slots:
                continue
            if len(self._slots) == PEERS_MAX:
                gone = next((old for old in self._slots if old not in peers), None)
                if gone is None:
                    return
                self.scores.forget(gone)
                free = self._slots.pop(gone)
            else:
                free = len(self._slots)
            self._slots[peer] = free
            self._liking[free] = 0.0
            with torch.no_grad():
                self._model.gate.keys[free].zero_()


def _norm(gradients: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in gradients))
