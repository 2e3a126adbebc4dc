"""The simulator: one seed is one run, sound engines pass, broken ones are caught."""

import json
import os

import pytest
from click.testing import CliRunner

from node.simulator.command import simulate as command
from node.simulator.liars import LIARS, Liar, Mute
from node.simulator.mutant import MUTANTS, Mutant
from node.simulator.run import Verdict, make_network, run_seed
from node.simulator.simulation import summarize
from node.simulator.world import Livelock, World

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
CAUGHT_EARLY = ("finalize-after-nullify", "duplicate-signers-counted")


def test_one_seed_is_one_run() -> None:
    first, second = (run_seed(1, nodes=4, tracing=True) for _ in range(2))
    assert first == second
    assert first.verdict is Verdict.SOUND
    assert first.lines
    assert run_seed(2, nodes=4).events != first.events


@pytest.mark.parametrize("seed", range(4 * SCALE))
def test_seeds_are_sound(seed: int) -> None:
    run = run_seed(seed)
    assert run.verdict is Verdict.SOUND, run.reason
    assert run.height >= 40
    assert run.epoch >= 1


@pytest.mark.parametrize("kind", LIARS, ids=lambda kind: kind.__name__)
def test_no_liar_alone_does_harm(kind: type[Liar]) -> None:
    run = run_seed(5, nodes=4, liars=(kind,))
    assert run.verdict is Verdict.SOUND, run.reason


# Each of these made a run fail once, until the engine, or the shell's contract, was mended.
@pytest.mark.parametrize("seed", [52, 1076, 1212])
def test_seeds_that_failed_once(seed: int) -> None:
    run = run_seed(seed)
    assert run.verdict is Verdict.SOUND, run.reason


@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS if m.name in CAUGHT_EARLY], ids=lambda m: m.name
)
def test_broken_engines_are_caught(mutant: Mutant) -> None:
    with mutant.patch():
        verdicts = (run_seed(s, engine_type=mutant.engine_type).verdict for s in range(30))
        assert any(verdict is not Verdict.SOUND for verdict in verdicts)


def test_there_are_enough_mutants_with_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12


def test_liars_hold_less_than_a_third() -> None:
    for seed in range(40):
        network = make_network(seed, nodes=7)
        voters = network.watch.sets[next(iter(network.watch.sets))]
        keys = {replica.key for replica in network.replicas if not replica.honest}
        power = sum(voter.power for voter in voters if voter.peer_key in keys)
        assert 3 * power < voters.total


def test_the_report_counts_and_names_failing_seeds() -> None:
    runs = [run_seed(seed, nodes=1) for seed in range(2)]
    report = summarize(runs)
    assert report.as_json() == {
        "seeds": 2,
        "violations": 0,
        "stalls": 0,
        "finalized_p50_ms": report.finalized_p50_ms,
        "finalized_p99_ms": report.finalized_p99_ms,
        "failing_seeds": [],
    }
    assert 0 < report.finalized_p50_ms <= report.finalized_p99_ms


def test_the_command_prints_one_json_object() -> None:
    result = CliRunner().invoke(command, ["--seeds", "2", "--nodes", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["seeds"] == 2


def test_the_command_replays_a_seed_readably() -> None:
    result = CliRunner().invoke(command, ["--seed", "3", "--nodes", "1", "--trace"])
    assert result.exit_code == 0, result.output
    assert "commits height 40" in result.stdout


def test_a_mute_majority_stops_the_chain_and_nothing_worse() -> None:
    network = make_network(7, nodes=4, liars=())
    network.world.run(400)
    for replica in network.replicas[:2]:
        replica.crash()
    height = len(network.watch.chain)
    network.world.run(900)
    assert len(network.watch.chain) <= height + 1
    assert Mute in LIARS


def test_a_world_without_end_is_noticed() -> None:
    world = World(0, events_max=50)

    def again() -> None:
        world.after(1, again)

    again()
    with pytest.raises(Livelock):
        world.run(1_000)
