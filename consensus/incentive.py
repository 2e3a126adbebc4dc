"""The paper's mechanism for one epoch: stake and weights in, trust, incentive and scaling out.

Read it beside the paper; letters are the paper's. S stake, A scaling, W weights, C connectivity,
R rank, T trust, I incentive, L loss; sigma is the scaled share a_i s_i / Z. Order and units are
those of ledger.md, *One mechanism step*; `Q` numbers say how many fractional bits an integer has.

    R = W^T sigma                    (eq. 1)    Q52
    C_ik = +1 or -1                  (text after eq. 2, Figure 5)
    T = sigmoid(temp * C^T sigma)    (eq. 4, Figure 6)    Q30
    I = R * T                        (eq. 4)    Q52
    L = -R . (T - 1/2)               (text after Figure 7)    Q52
    S' = S + pool * I / |I|          (eq. 5)    when L < 0
    A' = A - lr * dL/dA              (eq. 6)    when L >= 0

Deviations from the paper, each shown by a test and argued in DECISIONS.md:
* trust is centred, C in {-1, +1} over the share, so temp multiplies 2 * share - 1 as eq. 4 says;
* eq. 6 has the wrong sign, e^t for e^-t and no s_i; here stands the true gradient for normalised
  R and T without its positive factor s_i / Z;
* C compares the expected visits of a walk of depth d with kappa plus a part of the rank that the
  target receives from others, so rank leaked through a thin bridge stays bounded;
* C is computed for sources without share too: a peer at a = 0 must be able to return.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from consensus.errors import InvariantViolation
from consensus.fixed import SHARE_ONE, TRUST_HALF, TRUST_ONE, sigmoid
from consensus.params import SCALING_ONE, Parameters
from consensus.product import Arithmetic, Integers, Matrix, exact_product, sparse
from consensus.types import Uid
from consensus.weights import ENTRY_BYTES, Row

SOURCES_PER_BLOCK: Final = 256
"""Walks computed together: 8 MiB of masses at 4,096 peers, two of them fit in a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """S, A and W at the end of an epoch, by position; `uids` ascending. Rows name only `uids`."""

    uids: tuple[Uid, ...]
    stake: tuple[int, ...]
    scaling: tuple[int, ...]
    rows: tuple[Row, ...]

    def position(self, uid: Uid) -> int | None:
        """Where `uid` stands, None when it is younger than the snapshot or gone before it."""
        at = bisect_left(self.uids, uid)
        return at if at < len(self.uids) and self.uids[at] == uid else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one step says about a snapshot, by position. When nobody has scaled stake (Z = 0) the
    network is closed, every scaling returns to 1 and the other fields are neutral."""

    share: tuple[int, ...]
    """sigma, Q36."""
    rank: tuple[int, ...]
    """R, Q52."""
    rank_received: tuple[int, ...]
    """R without the self edge, Q52."""
    tau: tuple[int, ...]
    """C^T sigma, Q36, signed."""
    trust: tuple[int, ...]
    """T, Q30."""
    incentive: tuple[int, ...]
    """I, Q52."""
    loss: int
    """L, Q52, signed."""
    open: bool
    """L < 0: emission runs and the pool is paid out."""
    gradient: tuple[int, ...]
    """-dL/da without s_i / Z, Q30, signed: the direction of descent."""
    scaling_next: tuple[int, ...]
    """A', Q30."""
    scaled_total: int
    """Z, base units."""


def mechanism_step(
    snapshot: Snapshot,
    parameters: Parameters,
    *,
    arithmetic: Arithmetic = Arithmetic.FLOAT64,
) -> Outcome:
    """One epoch of the paper's mechanism. Pure; takes seconds at 4,096 peers."""
    sigma, Z = shares(snapshot)
    if not Z:
        return _nobody(len(snapshot.uids))
    W = weight_matrix(snapshot)
    own = self_weights(snapshot)
    R = exact_product(W.T.tocsr(), sigma, arithmetic=arithmetic)
    R_received = R - sigma * own
    C = Connectivity.of(W, thresholds(R_received, parameters), parameters.depth, arithmetic)
    tau = 2 * C.into(sigma) - int(sigma.sum())
    T = trust(tau.tolist(), parameters.temperature)
    I = incentive((R_received if parameters.self_edge_to_pool else R).tolist(), T)
    U = utility(R.tolist(), T)
    G = gradient(W, C, R.tolist(), T, tau.tolist(), U, parameters.temperature, arithmetic)
    is_open = -U < 0
    return Outcome(
        share=tuple(sigma.tolist()),
        rank=tuple(R.tolist()),
        rank_received=tuple(R_received.tolist()),
        tau=tuple(tau.tolist()),
        trust=tuple(T),
        incentive=tuple(I),
        loss=-U,
        open=is_open,
        gradient=tuple(G),
        scaling_next=scaling_step(snapshot.scaling, G, is_open, parameters),
        scaled_total=Z,
    )


def shares(snapshot: Snapshot) -> tuple[Integers, int]:
    """sigma_i = s_i a_i / Z in Q36, and Z in base units. s * a reaches 2^85: Python integers."""
    scaled = [s * a >> 30 for s, a in zip(snapshot.stake, snapshot.scaling, strict=True)]
    Z = sum(scaled)
    return np.array([s * SHARE_ONE // Z if Z else 0 for s in scaled], dtype=np.int64), Z


def thresholds(R_received: Integers, parameters: Parameters) -> Integers:
    """What a walk's visits must exceed: kappa plus the rank cut-off's part of the rank, Q36."""
    return np.asarray(parameters.cutoff + ((parameters.rank_cutoff * (R_received >> 16)) >> 16))


@dataclass(frozen=True, slots=True)
class Connectivity:
    """C as bits: +1 where a walk of depth d from source i visits k more often than thr_k."""

    peers: int
    blocks: tuple[npt.NDArray[np.uint8], ...]
    """Per block of sources: [targets / 8, sources], packed along the targets."""
    arithmetic: Arithmetic

    @classmethod
    def of(cls, W: Matrix, threshold: Integers, depth: int, arithmetic: Arithmetic) -> Connectivity:
        """Walk from every source; mass on a self loop is absorbed (text after eq. 2)."""
        n = len(threshold)
        hops = W.copy()
        hops.setdiag(0)
        hops.eliminate_zeros()
        onward = hops.T.tocsr()
        blocks = []
        for first in range(0, n, SOURCES_PER_BLOCK):
            last = min(first + SOURCES_PER_BLOCK, n)
            reached = _reached(hops, onward, threshold, depth, (first, last), arithmetic)
            reached[np.arange(first, last), np.arange(last - first)] = True
            blocks.append(np.packbits(reached, axis=0))
        return cls(n, tuple(blocks), arithmetic)

    def into(self, sigma: Integers) -> Integers:
        """P_k: the share of all sources that are connected to k, Q36."""
        P = np.zeros(self.peers, dtype=np.int64)
        for first, reached in self._unpacked():
            part = sigma[first : first + reached.shape[1]]
            P += exact_product(reached, part, arithmetic=self.arithmetic)
        return P

    def out_of(self, g: Integers) -> Integers:
        """For every source i the sum of g_k over the targets it is connected to."""
        sums = [
            exact_product(np.ascontiguousarray(reached.T), g, arithmetic=self.arithmetic)
            for _, reached in self._unpacked()
        ]
        return np.concatenate(sums)

    def _unpacked(self) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
        first = 0
        for bits in self.blocks:
            yield first, np.unpackbits(bits, axis=0, count=self.peers).astype(np.bool_)
            first += bits.shape[1]


def trust(tau: list[int], temperature: int) -> list[int]:
    """T = sigmoid(temp * tau), Q30 (eq. 4, Figure 6). tau in Q36 becomes t in Q24."""
    return [sigmoid(t if x >= 0 else -t) for x, t in ((x, abs(x) * temperature >> 12) for x in tau)]


def incentive(R: list[int], T: list[int]) -> list[int]:
    """I = R * T, Q52 (eq. 4). R * T reaches 2^82: Python integers."""
    return [r * t >> 30 for r, t in zip(R, T, strict=True)]


def utility(R: list[int], T: list[int]) -> int:
    """U = R . (T - 1/2) = -L, Q52, signed."""
    return sum(r * (t - TRUST_HALF) >> 30 for r, t in zip(R, T, strict=True))


def gradient(
    W: Matrix,
    C: Connectivity,
    R: list[int],
    T: list[int],
    tau: list[int],
    U: int,
    temperature: int,
    arithmetic: Arithmetic,
) -> list[int]:
    """G_i = sum_k (w_ik - R_k)(T_k - 1/2) + temp sum_k (c_ik - tau_k) R_k T_k (1 - T_k), Q30.

    The corrected eq. 6, in the direction of descent. tau * g reaches 2^86: Python integers.
    """
    g = [r * (t * (TRUST_ONE - t) >> 30) >> 30 for r, t in zip(R, T, strict=True)]
    centred = np.array([t - TRUST_HALF for t in T], dtype=np.int64)
    direct = exact_product(W, centred, shift=16, arithmetic=arithmetic).tolist()
    reached = C.out_of(np.array(g, dtype=np.int64)).tolist()
    constant = sum(g) + sum(x * y >> 36 for x, y in zip(tau, g, strict=True))
    return [
        d - (U >> 22) + temperature * ((2 * r - constant) >> 22)
        for d, r in zip(direct, reached, strict=True)
    ]


def scaling_step(
    A: tuple[int, ...], G: list[int], is_open: bool, parameters: Parameters
) -> tuple[int, ...]:
    """A', Q30: recovery while open, one step of descent while closed (text after Figure 7)."""
    if is_open:
        return tuple(min(a + parameters.recovery, SCALING_ONE) for a in A)
    return tuple(
        min(max(a + (g * parameters.learning_rate >> 16), 0), SCALING_ONE)
        for a, g in zip(A, G, strict=True)
    )


def payouts(outcome: Outcome, pool: int) -> tuple[int, ...]:
    """pool * I_k / |I| for every peer while open (eq. 5), floored; the rest stays in the pool."""
    total = sum(outcome.incentive)
    if not outcome.open or not total:
        return (0,) * len(outcome.incentive)
    return tuple(pool * i // total for i in outcome.incentive)


def weight_matrix(snapshot: Snapshot) -> Matrix:
    """W by position, sparse, Q16. Raises InvariantViolation when a row names a missing uid."""
    counts = np.array([len(row.entries) for row in snapshot.rows], dtype=np.int64)
    packed = b"".join(row.encoded[1:] for row in snapshot.rows)
    entries = np.frombuffer(packed, dtype=">u4").astype(np.int64).reshape(-1, ENTRY_BYTES // 4)
    uids = np.array(snapshot.uids, dtype=np.int64)
    columns = np.searchsorted(uids, entries[:, 0])
    if (columns >= len(uids)).any() or (uids[columns] != entries[:, 0]).any():
        raise InvariantViolation("a weight to a uid outside the snapshot")
    rows = np.repeat(np.arange(len(uids), dtype=np.int64), counts)
    return sparse(entries[:, 1], rows, columns, (len(uids), len(uids)))


def self_weights(snapshot: Snapshot) -> Integers:
    """w_ii, Q16."""
    own = zip(snapshot.uids, snapshot.rows, strict=True)
    return np.array([row.weight_to(uid) for uid, row in own], dtype=np.int64)


def _reached(
    hops: Matrix,
    onward: Matrix,
    threshold: Integers,
    depth: int,
    sources: tuple[int, int],
    arithmetic: Arithmetic,
) -> npt.NDArray[np.bool_]:
    """[targets, sources]: where visits c = sum x_t, t <= d, exceed the threshold.

    Visits only grow, so walks stop when every target is decided, and the last step is taken only
    towards targets that are not: the answer is the same.
    """
    first, last = sources
    limit = threshold[:, None]
    if not depth:  # a walk that stays at its source visits nobody else, and no limit is negative
        return np.zeros((len(threshold), last - first), dtype=np.bool_)
    # x_1 = floor(2^36 * w / 2^16) exactly: the first step needs no product.
    mass = np.ascontiguousarray(hops[first:last].toarray().T) << 20
    visits = mass.copy()
    visits[np.arange(first, last), np.arange(last - first)] += SHARE_ONE
    reached = np.asarray(visits > limit)
    for step in range(2, depth + 1):
        open_targets = np.flatnonzero(~reached.all(axis=1))
        if not len(open_targets):
            break
        if step == depth:
            last_mass = exact_product(onward[open_targets], mass, shift=16, arithmetic=arithmetic)
            reached[open_targets] = visits[open_targets] + last_mass > limit[open_targets]
        else:
            mass = exact_product(onward, mass, shift=16, arithmetic=arithmetic)
            visits += mass
            reached = np.asarray(visits > limit)
    return reached


def _nobody(n: int) -> Outcome:
    """Nobody has scaled stake: closed, and every scaling factor starts again."""
    zeros = (0,) * n
    return Outcome(
        share=zeros,
        rank=zeros,
        rank_received=zeros,
        tau=zeros,
        trust=(TRUST_HALF,) * n,
        incentive=zeros,
        loss=0,
        open=False,
        gradient=zeros,
        scaling_next=(SCALING_ONE,) * n,
        scaled_total=0,
    )
