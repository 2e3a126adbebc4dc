"""Appendix 12.7 as printed and as intended, side by side, with the effect of each of its faults.

The printed program simulates 5 honest peers with 51 % against 100 colluding ones with 49 %. Faults:

- slice: the cabal is measured as `S[nB:]`, which is five of its own members; `S[nA:]` is meant
- temperature: documented as an argument, never applied
- trust: R is normalised by the total stake, T is not
- gradient: e^t where σ' needs e^-t, no factor of the normalisation, no derivative of it
- emission: a fixed τ per block instead of eq. 5's proportion of the total
- history: blocks without emission are left out; and A = 0 divides by zero for ever
- reach: pinv(I − Q) > 0 calls rounding noise a connection; walks of depth d are exact

`Switches` turns each of them on; none is as printed, all is as intended.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from experiments.output import save_figure, show

HONEST, CABAL = 5, 100
DENSITY = 0.9
SPARSE = 0.05  # of the graph on which the pseudo-inverse is compared
BLOCKS = 2_000
TAU = 0.01
LEARNING_RATE = 0.05
TEMPERATURE = 10
DEPTH = 4
STEP = 1e-6  # of the finite differences

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """Which faults are mended."""

    slice: bool = False
    temperature: bool = False
    trust: bool = False
    gradient: bool = False
    emission: bool = False
    history: bool = False
    reach: bool = False

    @classmethod
    def intended(cls) -> "Switches":
        """All of them."""
        return cls(**{field.name: True for field in dataclasses.fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The start of one run: stake `[n]`, weights and connectivity `[n, n]`."""

    stake: Array
    weights: Array
    reach: Array


def start(seed: int, switches: Switches, *, honest: int = HONEST, cabal: int = CABAL) -> Network:
    """The printed initial state; connectivity by `switches.reach`."""
    chance = np.random.default_rng(seed)
    n = honest + cabal
    weights = np.zeros((n, n))
    for first, count in ((0, honest), (honest, cabal)):
        block = chance.random((count, count)) * (chance.random((count, count)) < DENSITY)
        block[np.arange(count), chance.integers(0, count, count)] += 1e-3  # no empty row
        weights[first : first + count, first : first + count] = block / block.sum(1, keepdims=True)
    stake = np.concatenate(
        [
            part * drawn / drawn.sum()
            for part, drawn in ((0.51, chance.random(honest)), (0.49, chance.random(cabal)))
        ]
    )
    onward = weights - np.diag(np.diag(weights))
    visits = walks(onward) if switches.reach else np.linalg.pinv(np.identity(n) - onward)
    return Network(stake=stake, weights=weights, reach=np.where(visits > 0, 1.0, -1.0))


def walks(onward: Array) -> Array:
    """Expected visits of a walk of depth DEPTH, its start included."""
    total = step = np.identity(len(onward))
    for _ in range(DEPTH):
        step = step @ onward
        total = total + step
    return total


def simulate(network: Network, switches: Switches, blocks: int = BLOCKS) -> list[float]:
    """The measured share of the cabal, block by block."""
    stake, scaling = network.stake.copy(), np.ones(len(network.stake))
    first = HONEST if switches.slice else CABAL
    history: list[float] = []
    for _ in range(blocks):
        if switches.history and not (scaling * stake).sum() > 0:
            scaling = np.ones(len(stake))
        with np.errstate(invalid="ignore", divide="ignore"):
            rank, trust = rank_and_trust(network, stake * scaling, switches)
            loss = -float(rank @ (trust - 0.5))
        emits = loss < 0
        if emits:
            incentive = rank * trust
            minted = TAU * stake.sum() if switches.emission else TAU
            stake = stake + minted * incentive / incentive.sum()
        else:
            gradient = descent(network, stake, scaling, rank, trust, switches)
            scaling = np.clip(scaling + LEARNING_RATE * gradient, 0, 1)
        if emits or switches.history:
            cabal = stake[first:].sum()
            history.append(float(cabal / (stake[:HONEST].sum() + cabal)))
    return history


def rank_and_trust(network: Network, scaled: Array, switches: Switches) -> tuple[Array, Array]:
    """R = Wᵀ S and T = σ(temperature · Cᵀ S), of scaled stake."""
    total = scaled.sum()
    rank = network.weights.T @ scaled / total
    inward = network.reach.T @ (scaled / total if switches.trust else scaled)
    argument = (TEMPERATURE if switches.temperature else 1) * inward
    return rank, 1 / (1 + np.exp(-np.clip(argument, -500, 500)))


def descent(
    network: Network,
    stake: Array,
    scaling: Array,
    rank: Array,
    trust: Array,
    switches: Switches,
) -> Array:
    """The printed gradient, or −∂L/∂a without its positive factor s_i / Z."""
    scaled = scaling * stake
    if not switches.gradient:
        inward = network.reach.T @ scaled
        slope = rank * np.exp(inward) / (1 + np.exp(-inward)) ** 2
        printed: Array = network.reach @ slope + network.weights @ (trust - 0.5)
        return printed
    total = scaled.sum()
    inward = network.reach.T @ (scaled / total if switches.trust else scaled)
    temperature = TEMPERATURE if switches.temperature else 1
    slope = temperature * rank * trust * (1 - trust)
    by_rank = network.weights @ (trust - 0.5) - rank @ (trust - 0.5)
    if switches.trust:
        by_trust = network.reach @ slope - inward @ slope
    else:
        by_trust = network.reach @ slope * total
    wanted: Array = by_rank + by_trust
    return wanted


def gradient_error(switches: Switches, seed: int = 0) -> float:
    """How far the gradient is from finite differences of −L over s_i / Z, relative to them."""
    network = start(seed, switches, honest=6, cabal=5)
    n = len(network.stake)
    scaling = np.random.default_rng(seed + 1).uniform(0.5, 1, n)

    def loss(a: Array) -> float:
        rank, trust = rank_and_trust(network, a * network.stake, switches)
        return -float(rank @ (trust - 0.5))

    numeric = np.array(
        [
            (loss(scaling - STEP * unit) - loss(scaling + STEP * unit)) / (2 * STEP)
            for unit in np.identity(n)
        ]
    ) / (network.stake / (scaling * network.stake).sum())
    rank, trust = rank_and_trust(network, scaling * network.stake, switches)
    found = descent(network, network.stake, scaling, rank, trust, switches)
    return float(np.linalg.norm(found - numeric) / np.linalg.norm(numeric))


def wrong_signs(seed: int = 0, *, honest: int = 20, cabal: int = 100) -> tuple[int, int]:
    """Connections that pinv(I − Q) > 0 gets wrong in a sparse graph, and all of them.

    The truth is which peers any walk reaches; the errors are rounding noise, and so depend on the
    linear algebra library.
    """
    chance = np.random.default_rng(seed)
    n = honest + cabal
    edges = np.zeros((n, n))
    for first, count in ((0, honest), (honest, cabal)):
        drawn = chance.random((count, count)) * (chance.random((count, count)) < SPARSE)
        edges[first : first + count, first : first + count] = drawn
    weights = edges / np.maximum(edges.sum(1, keepdims=True), 1e-9)
    onward = weights - np.diag(np.diag(weights))
    reached = np.linalg.matrix_power(np.identity(n) + (onward > 0), n) > 0
    claimed = np.linalg.pinv(np.identity(n) - onward) > 0
    return int((claimed != reached).sum()), claimed.size


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--blocks", default=BLOCKS, show_default=True, help="Blocks of every run.")
def main(as_json: bool, blocks: int) -> None:
    """Run the program of appendix 12.7 with its faults mended one by one."""
    variants = {"as printed": Switches()}
    for field in dataclasses.fields(Switches):
        variants[f"{field.name} mended"] = Switches(**{field.name: True})
    variants["as intended"] = Switches.intended()
    histories = {name: simulate(start(0, each), each, blocks) for name, each in variants.items()}
    wrong, entries = wrong_signs()
    results: list[dict[str, Any]] = [
        {
            "variant": name,
            "first": history[0] if history else None,
            "last": history[-1] if history else None,
            "blocks_recorded": len(history),
            "true_share_last": _true_share(variants[name], blocks),
            "gradient_error": gradient_error(variants[name]),
        }
        for name, history in histories.items()
    ]
    show(
        {"variants": results, "blocks": blocks, "wrong_signs": wrong, "entries": entries},
        as_json=as_json,
        title="Appendix 12.7: the cabal's share as the program measures it",
        columns=("variant", "first", "last", "recorded", "true share", "gradient error"),
        rows=[
            (
                r["variant"],
                "-" if r["first"] is None else r["first"],
                "-" if r["last"] is None else r["last"],
                f"{r['blocks_recorded']} of {blocks}",
                r["true_share_last"],
                r["gradient_error"],
            )
            for r in results
        ],
        notes=[
            f"pinv(I − Q) > 0 gets {wrong} of {entries:,} connections of a sparse graph wrong",
            "gradient error: relative to finite differences of the loss",
        ],
    )
    save_figure("appendix_12_7", lambda axes: _draw(axes, histories))


def _true_share(switches: Switches, blocks: int) -> float:
    """What the cabal really holds at the end, however the program measures it."""
    honest = dataclasses.replace(switches, slice=True, history=True)
    return simulate(start(0, switches), honest, blocks)[-1]


def _draw(axes: Any, histories: dict[str, list[float]]) -> None:
    for name in ("as printed", "slice mended", "as intended"):
        axes.plot(histories[name], label=name)
    axes.set(xlabel="recorded block", ylabel="measured share of the cabal", ylim=(0, 0.55))
    axes.legend()


if __name__ == "__main__":
    main()
