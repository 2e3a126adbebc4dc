"""Whether a cabal of 49 % dies: the paper's claim under the conditions that a network meets.

Reference: 60 honest and 40 colluding peers, out-degree 12, self-weight .1, Pareto stakes, 2 % of
emission per epoch, 300 epochs, several seeds; PAPER (the mechanism taken literally) beside TESTNET.
`share` is what the cabal (or whoever the scenario watches) holds in the end. Where the paper fails,
it fails here too: that is the point.
"""

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import click
import numpy as np

from consensus.params import PAPER, TESTNET, Parameters
from experiments.economy import Economy, Matrix, per_epoch
from experiments.output import save_figure, show

HONEST, CABAL = 60, 40
DEGREE = 12
SELF_WEIGHT = 0.1
INFLATION = 0.02
EPOCHS = 300
SEEDS = 5
PARETO = 1.5  # shape of the stakes' distribution
PRESETS: dict[str, Parameters] = {"PAPER": PAPER, "TESTNET": TESTNET}

Chance = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Groups of peers with their part of the stake, and what is changed in the network.

    `groups` are (peers, stake); the last one is watched unless `watched` names positions. `twist`
    changes the weights (and stakes) in place.
    """

    name: str
    text: str
    groups: tuple[tuple[int, float], ...] = ((HONEST, 0.51), (CABAL, 0.49))
    degree: int = DEGREE
    cabal_degree: int | None = None
    """Of the last group, where it differs; 39: in the cabal everybody gives weight to everybody."""
    self_weights: tuple[float, ...] = (SELF_WEIGHT, SELF_WEIGHT)
    watched: tuple[int, ...] | None = None
    epochs: int = EPOCHS
    twist: Callable[[Matrix, list[float], Chance], None] | None = None

    @property
    def watched_peers(self) -> range | tuple[int, ...]:
        """Whose share is reported."""
        total = sum(count for count, _ in self.groups)
        if self.watched is not None:
            return self.watched
        return range(total - self.groups[-1][0], total)


def bridge(
    weight: float, *, strongest: bool = False
) -> Callable[[Matrix, list[float], Chance], None]:
    """An ordinary honest peer (of median stake), or the strongest, gives `weight` to the cabal.

    All of it goes to one member, of median stake.
    """

    def build(weights: Matrix, stakes: list[float], _chance: Chance) -> None:
        honest = sorted(range(HONEST), key=lambda peer: stakes[peer])
        cabal = sorted(range(HONEST, HONEST + CABAL), key=lambda peer: stakes[peer])
        giver, taker = honest[-1 if strongest else HONEST // 2], cabal[CABAL // 2]
        weights[giver] *= 1 - weight
        weights[giver, taker] += weight

    return build


def greedy_insiders(
    count: int, self_weight: float
) -> Callable[[Matrix, list[float], Chance], None]:
    """Some honest peers keep `self_weight` for themselves; together they start at 2 %."""

    def build(weights: Matrix, stakes: list[float], _chance: Chance) -> None:
        scale = 0.02 / sum(stakes[:count])
        for peer in range(count):
            stakes[peer] *= scale
            weights[peer] *= (1 - self_weight) / (1 - weights[peer, peer])
            weights[peer, peer] = self_weight

    return build


def bridge_peers(count: int) -> Callable[[Matrix, list[float], Chance], None]:
    """The strongest `count` peers of either modality give half of their weight to the others'."""

    def build(weights: Matrix, stakes: list[float], chance: Chance) -> None:
        sides = (range(30), range(30, 50))
        for side, other in (sides, sides[::-1]):
            strongest = sorted(side, key=lambda peer: -stakes[peer])[:count]
            for peer in strongest:
                weights[peer] *= 0.5
                chosen = chance.choice(list(other), DEGREE, replace=False)
                weights[peer, chosen] += 0.5 / DEGREE
                # The other side uses a bridge too: it is what reaches the foreign modality.
                for friend in chance.choice(list(other), DEGREE, replace=False):
                    weights[friend] *= 0.9
                    weights[friend, peer] += 0.1

    return build


SCENARIOS = (
    Scenario(name="51/49", text="disjoint cabal; it must die"),
    Scenario(
        name="bridge .001",
        text="an honest peer gives .001 to a tightly connected cabal",
        cabal_degree=CABAL - 1,
        twist=bridge(0.001),
    ),
    Scenario(
        name="bridge .01",
        text="an honest peer gives .01 to a tightly connected cabal",
        cabal_degree=CABAL - 1,
        twist=bridge(0.01),
    ),
    Scenario(
        name="bridge .1",
        text="an honest peer gives .1 to a tightly connected cabal",
        cabal_degree=CABAL - 1,
        twist=bridge(0.1),
    ),
    Scenario(
        name="bridge .1, sparse",
        text="the same to a cabal of out-degree 12, whose members hide behind one: it may win",
        twist=bridge(0.1),
    ),
    Scenario(
        name="bridge .1, strongest",
        text="the honest peer with the most stake gives .1",
        twist=bridge(0.1, strongest=True),
    ),
    Scenario(
        name="idle 40 %",
        text="40 % of all stake idle, the rest 51/49; it must die",
        groups=((HONEST, 0.306), (20, 0.4), (CABAL, 0.294)),
        self_weights=(SELF_WEIGHT, 1.0, SELF_WEIGHT),
    ),
    Scenario(
        name="sybils",
        text="the cabal's 49 % spread over 160 identities",
        groups=((HONEST, 0.51), (160, 0.49)),
    ),
    Scenario(
        name="self .5",
        text="everybody keeps .5 for itself, the cap; it must die",
        self_weights=(0.5, 0.5),
    ),
    Scenario(
        name="self .9",
        text="honest peers keep .9, the cabal .5: it wins under TESTNET",
        self_weights=(0.9, 0.5),
    ),
    Scenario(
        name="insiders .99",
        text="ten insiders with 2 % keep .99 for themselves",
        groups=((100, 1.0),),
        self_weights=(SELF_WEIGHT,),
        watched=tuple(range(10)),
        twist=greedy_insiders(10, 0.99),
    ),
    Scenario(
        name="islands",
        text="honest islands of 26 % and 25 %: the cabal wins",
        groups=((30, 0.26), (30, 0.25), (CABAL, 0.49)),
        self_weights=(SELF_WEIGHT,) * 3,
    ),
    Scenario(name="sparse, k = 5", text="out-degree 5: k^d ≥ 3N; it must die", degree=5),
    Scenario(name="sparse, k = 3", text="out-degree 3: k^d < 3N; it may win", degree=3),
    Scenario(
        name="modality",
        text="20 of 50 peers, 40 %, in a disjoint modality",
        groups=((30, 0.6), (20, 0.4)),
        epochs=120,
    ),
    Scenario(
        name="modality, bridged",
        text="the same with 2 strong bridge peers a side",
        groups=((30, 0.6), (20, 0.4)),
        epochs=120,
        twist=bridge_peers(2),
    ),
)


def population(scenario: Scenario, seed: int) -> tuple[list[float], Matrix]:
    """Stakes and weights of one seed: each group connected at random within itself."""
    chance = np.random.default_rng(seed)
    total = sum(count for count, _ in scenario.groups)
    stakes: list[float] = []
    weights = np.zeros((total, total))
    first = 0
    for (count, stake), own in zip(scenario.groups, scenario.self_weights, strict=True):
        degree = scenario.degree
        if first + count == total and scenario.cabal_degree is not None:
            degree = scenario.cabal_degree
        drawn = chance.pareto(PARETO, count) + 1
        stakes += list(drawn / drawn.sum() * stake)
        for peer in range(first, first + count):
            others = [other for other in range(first, first + count) if other != peer]
            chosen = chance.choice(others, min(degree, len(others)), replace=False)
            worth = chance.random(len(chosen)) + 0.5
            weights[peer, chosen] = worth / worth.sum() * (1 - own)
            weights[peer, peer] = own  # 1: an idle peer, whose stake reaches nobody
        first += count
    if scenario.twist is not None:
        scenario.twist(weights, stakes, chance)
    return stakes, weights


def run(scenario: Scenario, preset: str, seed: int) -> list[float]:
    """The watched share at the start and after every epoch."""
    stakes, weights = population(scenario, seed)
    economy = Economy(stakes, weights, per_epoch(PRESETS[preset], INFLATION))
    watched = scenario.watched_peers
    history = [economy.share(watched)]
    for _ in range(scenario.epochs):
        economy.epoch()
        history.append(economy.share(watched))
    return history


def _job(job: tuple[str, str, int]) -> list[float]:
    name, preset, seed = job
    return run(next(each for each in SCENARIOS if each.name == name), preset, seed)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--seeds", default=SEEDS, show_default=True, help="Runs of every scenario.")
@click.option("--scenario", "names", multiple=True, help="Only these; repeatable.")
def main(as_json: bool, seeds: int, names: Sequence[str]) -> None:
    """Run the cabal against the honest network, PAPER beside TESTNET."""
    chosen = [each for each in SCENARIOS if not names or each.name in names]
    if not chosen:
        known = ", ".join(each.name for each in SCENARIOS)
        raise click.UsageError(f"no such scenario; there are {known}")
    jobs = [
        (each.name, preset, seed) for each in chosen for preset in PRESETS for seed in range(seeds)
    ]
    histories: dict[tuple[str, str], list[list[float]]] = {}
    with multiprocessing.Pool() as pool:
        for (name, preset, _), history in zip(jobs, pool.imap(_job, jobs), strict=True):
            histories.setdefault((name, preset), []).append(history)
            if not as_json:
                click.echo(
                    f"\r{sum(map(len, histories.values()))}/{len(jobs)} runs", nl=False, err=True
                )
    if not as_json:
        click.echo("", err=True)
    results = [
        _summary(each, preset, histories[each.name, preset])
        for each in chosen
        for preset in PRESETS
    ]
    show(
        {"scenarios": results, "epochs": EPOCHS, "inflation": INFLATION},
        as_json=as_json,
        title=f"Share in the end ({seeds} seeds)",
        columns=("scenario", "preset", "start", "end", "spread", "what"),
        rows=[
            (r["scenario"], r["preset"], r["start"], r["mean"], r["spread"], r["text"])
            for r in results
        ],
    )
    if not names:
        save_figure("cabal", partial(_draw, histories), size_in=(7.2, 4.4))


def _summary(scenario: Scenario, preset: str, histories: list[list[float]]) -> dict[str, object]:
    ends = [history[-1] for history in histories]
    return {
        "scenario": scenario.name,
        "text": scenario.text,
        "preset": preset,
        "start": statistics.fmean(history[0] for history in histories),
        "mean": statistics.fmean(ends),
        "spread": max(ends) - min(ends),
        "shares": ends,
    }


def _draw(histories, axes):  # type: ignore[no-untyped-def]
    for name, style in (("51/49", "-"), ("bridge .001", "--"), ("islands", ":")):
        for preset, colour in (("PAPER", "tab:red"), ("TESTNET", "tab:blue")):
            curves = np.array(histories[name, preset])
            axes.plot(curves.mean(axis=0), style, color=colour, label=f"{name}, {preset}")
    axes.set(xlabel="epoch", ylabel="share of the cabal", ylim=(0, 1))
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
