"""The table of *Collusion*: how a disjoint cabal of 49 % decays, in the paper's floating point.

The paper's program uses temperature·(share − ½), while eq. 4 and Figure 6 use
temperature·(2·share − 1). The table is reproduced as printed; beside it stands the decay under
eq. 4, which is the protocol, and the same from the ledger's integers.
"""

import math
from typing import Any

import click

from consensus.fixed import sigmoid
from experiments.output import save_figure, show

TAU = 0.1
TEMPERATURE = 10
BLOCKS = 100
PRINTED = {
    0: 0.4877323388820201,
    1: 0.4849535784321247,
    2: 0.4815511535094221,
    3: 0.477389901500398,
    4: 0.4723093486843246,
    5: 0.46612224574620587,
    6: 0.45861590847737577,
    7: 0.44955887540065376,
    8: 0.43871643745912897,
    9: 0.42587900870651624,
    10: 0.41090548935459825,
    90: 0.0002827251010618101,
    91: 0.00025719653886131316,
    92: 0.0002339730247373799,
    93: 0.000212846436856568,
    94: 0.00019362744329658293,
    95: 0.0001761438058611274,
    96: 0.00016023883697158944,
    97: 0.00014576999582759936,
    98: 0.00013260761127280887,
    99: 0.00012063371993464691,
}


def as_printed() -> list[float]:
    """The share of the cabal after each block, with the paper's expressions in their order."""
    honest, cabal, history = 0.51, 0.49, []
    for _ in range(BLOCKS):
        total = honest + cabal
        trust_honest = 1 / (1 + math.exp(-(honest / total - 0.5) * TEMPERATURE))
        trust_cabal = 1 / (1 + math.exp(-(cabal / total - 0.5) * TEMPERATURE))
        incentive_honest, incentive_cabal = honest * trust_honest, cabal * trust_cabal
        incentives = incentive_honest + incentive_cabal
        honest += TAU * total * incentive_honest / incentives
        cabal += TAU * total * incentive_cabal / incentives
        history.append(cabal / (honest + cabal))
    return history


def by_equation_4() -> list[float]:
    """The same with T = sigmoid(temperature·(2·share − 1)), from the ledger's sigmoid."""
    honest, cabal, history = 51 * 10**16, 49 * 10**16, []
    for _ in range(BLOCKS):
        total = honest + cabal
        margin = TEMPERATURE * (honest - cabal) * 2**24 // total
        incentive_honest, incentive_cabal = honest * sigmoid(margin), cabal * sigmoid(-margin)
        incentives = incentive_honest + incentive_cabal
        honest += total * incentive_honest // (10 * incentives)
        cabal += total * incentive_cabal // (10 * incentives)
        history.append(cabal / (honest + cabal))
    return history


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(as_json: bool) -> None:
    """Reproduce the table of the paper's section *Collusion*."""
    printed, protocol = as_printed(), by_equation_4()
    equal = {block: printed[block] == value for block, value in PRINTED.items()}
    result = {
        "as_printed": printed,
        "equation_4": protocol,
        "printed_rows": len(PRINTED),
        "rows_equal_to_the_last_digit": sum(equal.values()),
    }
    show(
        result,
        as_json=as_json,
        title="Share of a disjoint cabal that starts at 49 %",
        columns=("block", "paper", "here, as printed", "equal", "by eq. 4"),
        rows=[
            (block, repr(value), repr(printed[block]), equal[block], protocol[block])
            for block, value in PRINTED.items()
        ],
        notes=[f"{sum(equal.values())} of {len(equal)} printed rows equal to the last digit"],
    )
    save_figure("collusion", lambda axes: _draw(axes, printed, protocol))


def _draw(axes: Any, printed: list[float], protocol: list[float]) -> None:
    axes.plot(printed, label="as printed: temperature·(share − ½)")
    axes.plot(protocol, label="eq. 4: temperature·(2·share − 1)")
    axes.set(xlabel="block", ylabel="share of the cabal", ylim=(0, 0.5))
    axes.legend()


if __name__ == "__main__":
    main()
