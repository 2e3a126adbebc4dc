"""`simulate`: run seeds, replay one with a readable trace, or see the broken engines caught."""

from __future__ import annotations

import json

import click

from node.simulator.mutant import MUTANTS, SEEDS_MAX, seeds_to_kill
from node.simulator.run import SIZES, Verdict, run_seed
from node.simulator.simulation import results, summarize

FAILED = 1
"""Exit code when an invariant broke, finality stalled, or a mutant survived."""


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=100, help="How many seeds to run.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The first seed.")
@click.option(
    "--nodes", type=click.IntRange(1, 32), help=f"Replicas; drawn from {SIZES} when absent."
)
@click.option("--mutants", is_flag=True, help="Run broken engines until each is caught.")
@click.option("--trace", is_flag=True, help="Run one seed (--seed) and print what happens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def simulate(
    context: click.Context,
    seeds: int,
    seed: int,
    nodes: int | None,
    mutants: bool,
    trace: bool,
    as_json: bool,
) -> None:
    """Simulate whole networks with faults and liars, deterministically, and check invariants."""
    if mutants:
        sound = _run_mutants(as_json)
    elif trace:
        sound = _replay(seed, nodes)
    else:
        sound = _run_seeds(seeds, seed, nodes, as_json)
    if not sound:
        context.exit(FAILED)


def _run_seeds(seeds: int, seed: int, nodes: int | None, as_json: bool) -> bool:
    runs = []
    for run in results(seeds, seed, nodes):
        runs.append(run)
        if run.verdict is not Verdict.SOUND:
            click.echo(f"seed {run.seed}: {run.verdict.value}: {run.reason}", err=True)
    report = summarize(runs)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        click.echo(
            f"{report.seeds} seeds: {report.violations} violations, {report.stalls} stalls; "
            f"final after {report.finalized_p50_ms} ms (p50), {report.finalized_p99_ms} ms (p99)"
        )
    return not report.failing_seeds


def _replay(seed: int, nodes: int | None) -> bool:
    run = run_seed(seed, nodes=nodes, tracing=True)
    for line in run.lines:
        click.echo(line)
    click.echo(
        f"seed {run.seed}: {run.verdict.value} {run.reason} "
        f"(height {run.height}, epoch {run.epoch}, {run.events} events)"
    )
    return run.verdict is Verdict.SOUND


def _run_mutants(as_json: bool) -> bool:
    needed: dict[str, int | None] = {}
    for mutant in MUTANTS:
        needed[mutant.name] = seeds_to_kill(mutant)
        if not as_json:
            count = needed[mutant.name]
            verdict = f"survives {SEEDS_MAX} seeds" if count is None else f"caught by seed {count}"
            click.echo(f"{mutant.name:32} {verdict}: {mutant.what}")
    if as_json:
        click.echo(json.dumps({"mutants": needed}))
    return None not in needed.values()
