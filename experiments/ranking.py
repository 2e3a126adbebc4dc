"""Figures 4 and 10: does self-interest rank peers as their worth to everybody would?

Appendix 12.1 as a game: peer i chooses its row w_i on the simplex to maximise P_i = −α·L_i + r_i,
with L_i = (m_i − 1)ᵀ H_i (m_i − 1) / (n²/2), masks m_ik = sigmoid((s_i w_ik − μ_k)·n) and μ_k the
mean over peers. The ranking at the end is compared with (1/n) Σ_j H_j,kk (appendix 12.2) by
Spearman's ρ.

Deviations, without which the figures do not appear: the printed +α·L maximises the loss; inputs are
compared with the unmasked ones, not with those under W_0; and the Hessians share one log-normal
importance of the peers (σ = ½), since independent random Hessians have no ranking to find. The
paper leaves the unit of loss open; here it is that of one pair of inputs, which puts its values of
α where its figure has them: a unit twice as large is the same as half the α.
"""

import multiprocessing
from functools import partial

import click
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from experiments.output import save_figure, show

PEERS = 24
ALPHAS = (1, 10, 25, 50)
TRIALS = 12
STEPS = 4_000
STEP_SIZE = 0.002
IMPORTANCE_SIGMA = 0.5
REFERENCE = {1: 0.003, 10: 0.13, 25: 0.38, 50: 0.60}

Array = NDArray[np.float64]


def trial(seed: int, alpha: float) -> tuple[Array, Array]:
    """(competitive rank, idealised rank) of one game, each `[PEERS]`."""
    chance = np.random.default_rng(seed)
    n = PEERS
    importance = np.exp(chance.normal(0, IMPORTANCE_SIGMA, n))
    root = np.sqrt(importance)
    factors = chance.normal(size=(n, n, n))
    hessians = root[:, None] * (factors @ factors.transpose(0, 2, 1) / n) * root
    stakes = chance.random(n)
    stakes /= stakes.mean()
    weights = chance.dirichlet(np.ones(n), n)
    for _ in range(STEPS):
        weights = project(weights + STEP_SIZE * payoff_gradient(weights, stakes, hessians, alpha))
    return stakes @ weights, hessians.diagonal(axis1=1, axis2=2).mean(axis=0)


def payoff_gradient(weights: Array, stakes: Array, hessians: Array, alpha: float) -> Array:
    """∂P_i/∂w_ik, `[n, n]`; μ_k moves with w_ik too."""
    n = len(stakes)
    pulled = stakes[:, None] * weights
    mask = 1 / (1 + np.exp(-(pulled - pulled.mean(axis=0)) * n))
    loss_by_mask = 2 * np.einsum("ikl,il->ik", hessians, mask - 1) / (n * n / 2)
    mask_by_weight = mask * (1 - mask) * n * stakes[:, None] * (1 - 1 / n)
    gradient: Array = -alpha * loss_by_mask * mask_by_weight + np.diag(stakes)
    return gradient


def project(rows: Array) -> Array:
    """The nearest rows on the simplex (Euclidean), by sorting."""
    n = rows.shape[1]
    descending = -np.sort(-rows, axis=1)
    excess = (np.cumsum(descending, axis=1) - 1) / np.arange(1, n + 1)
    kept = (descending > excess).sum(axis=1)
    projected: Array = np.maximum(rows - excess[np.arange(len(rows)), kept - 1][:, None], 0)
    return projected


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--trials", default=TRIALS, show_default=True, help="Games per α.")
def main(as_json: bool, trials: int) -> None:
    """Play the games and correlate the rankings."""
    results, points = [], {}
    with multiprocessing.Pool() as pool:
        for alpha in ALPHAS:
            played = pool.map(partial(trial, alpha=alpha), range(trials))
            rhos = [float(spearmanr(found, ideal).statistic) for found, ideal in played]
            points[alpha] = played
            results.append(
                {
                    "alpha": alpha,
                    "spearman_mean": float(np.mean(rhos)),
                    "spearman_std": float(np.std(rhos)),
                    "reference": REFERENCE[alpha],
                }
            )
    show(
        {"alphas": results, "trials": trials, "peers": PEERS},
        as_json=as_json,
        title=f"Competitive against idealised ranking, {trials} games of {PEERS} peers",
        columns=("α", "Spearman ρ", "spread (σ)", "reference"),
        rows=[(r["alpha"], r["spearman_mean"], r["spearman_std"], r["reference"]) for r in results],
        notes=["the correlation grows with α, the price of a unit of loss: Figure 10's claim"],
    )
    save_figure("ranking", partial(_draw, points))


def _draw(points, axes):  # type: ignore[no-untyped-def]
    for alpha, played in points.items():
        found = np.concatenate([each / each.mean() for each, _ in played])
        ideal = np.concatenate([each / each.mean() for _, each in played])
        axes.scatter(ideal, found, s=6, alpha=0.6, label=f"α = {alpha}")
    axes.set(xlabel="idealised rank (mean 1)", ylabel="competitive rank (mean 1)")
    axes.legend()


if __name__ == "__main__":
    main()
