"""Figure 6: the ledger's integer sigmoid along the paper's curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from experiments import trust_curve


def test_the_curve_is_the_papers_and_rises() -> None:
    points = trust_curve.curve()
    assert points[0][1] < 0.001
    assert points[-1][1] > 0.999
    assert [y for _, y, _ in points] == sorted(y for _, y, _ in points)
    assert max(abs(ledger - real) for _, ledger, real in points) < 1e-7
    assert points[len(points) // 2][1] == pytest.approx(0.5)


def test_the_command_prints_one_object_and_draws(figures: Path) -> None:
    ran = CliRunner().invoke(trust_curve.main, ["--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)
    assert (figures / "trust_curve.png").stat().st_size > 1_000
