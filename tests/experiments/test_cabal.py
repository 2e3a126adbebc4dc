"""The cabal, for fewer epochs: who grows and who shrinks, under PAPER and under TESTNET."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.cabal import PRESETS, SCENARIOS, population, run

EPOCHS = 60
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def final_share(name: str, preset: str) -> float:
    return run(dataclasses.replace(BY_NAME[name], epochs=EPOCHS), preset, seed=0)[-1]


def test_the_disjoint_cabal_decays_under_both() -> None:
    assert all(final_share("51/49", preset) < 0.25 for preset in PRESETS)


def test_one_thin_bridge_hands_the_network_over_under_paper_only() -> None:
    assert final_share("bridge .001", "PAPER") > 0.6
    assert final_share("bridge .001", "TESTNET") < 0.25


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_two_honest_islands_lose_to_one_cabal(preset: str) -> None:
    assert final_share("islands", preset) > 0.6


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_populations_are_what_the_scenarios_say(scenario) -> None:  # type: ignore[no-untyped-def]
    stakes, weights = population(scenario, 1)
    assert weights.sum(axis=1) == pytest.approx(1)
    assert (weights >= 0).all()
    assert population(scenario, 1)[0] == stakes
    if scenario.twist is None:
        first = 0
        for count, stake in scenario.groups:
            assert sum(stakes[first : first + count]) == pytest.approx(stake)
            first += count
