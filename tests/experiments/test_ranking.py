"""Figures 4 and 10: selfish ranking comes closer to the ideal one as loss is worth more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments import ranking


def test_rows_are_projected_onto_the_simplex() -> None:
    chance = np.random.default_rng(3)
    rows = chance.random((4, 5)) * 3 - 1
    projected = ranking.project(rows)
    assert projected.sum(axis=1) == pytest.approx(1)
    assert (projected >= 0).all()
    inside = np.full((1, 4), 0.25)
    assert ranking.project(inside) == pytest.approx(inside)


def test_correlation_grows_with_the_price_of_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "STEPS", 1_000)

    def mean(alpha: float) -> float:
        pairs = [ranking.trial(seed, alpha) for seed in range(3)]
        return float(np.mean([spearmanr(found, ideal).statistic for found, ideal in pairs]))

    assert mean(50) > mean(1) + 0.2
