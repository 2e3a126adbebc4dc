"""Figure 6: trust as a function of the share of stake that trusts a peer, temperature 10."""

import math
from typing import Any

import click

from consensus.fixed import sigmoid
from experiments.output import save_figure, show

TEMPERATURE = 10
POINTS = 101


def curve() -> list[tuple[float, float, float]]:
    """(share, trust of the ledger, trust in floating point) at evenly spaced shares."""
    points = []
    for index in range(POINTS):
        margin = 2 * index - (POINTS - 1)  # (2·share − 1) in hundredths
        exact = 1 / (1 + math.exp(-TEMPERATURE * margin / (POINTS - 1)))
        t = TEMPERATURE * abs(margin) * 2**24 // (POINTS - 1)
        trust = sigmoid(t if margin >= 0 else -t) / 2**30
        points.append((index / (POINTS - 1), trust, exact))
    return points


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(as_json: bool) -> None:
    """Reproduce Figure 6 from the ledger's integer sigmoid."""
    points = curve()
    error = max(abs(trust - exact) for _, trust, exact in points)
    show(
        {"points": points, "max_error": error},
        as_json=as_json,
        title="Trust by the share of stake that reaches a peer (Figure 6)",
        columns=("share", "trust", "floating point"),
        rows=points[::10],
        notes=[
            f"largest difference from floating point: {error:.2g}",
            f"the slope at ½ is {TEMPERATURE / 2:g} per unit of share; 5/2 is that of (share − ½)",
        ],
    )
    save_figure("trust_curve", lambda axes: _draw(axes, points))


def _draw(axes: Any, points: list[tuple[float, float, float]]) -> None:
    axes.plot([share for share, _, _ in points], [trust for _, trust, _ in points])
    axes.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="share of stake that trusts the peer", ylabel="trust T")


if __name__ == "__main__":
    main()
