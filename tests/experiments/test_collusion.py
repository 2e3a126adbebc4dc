"""The paper's table *Collusion*: every printed digit, and the same curve by equation 4."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from experiments import collusion


def test_every_printed_row_is_equal_to_the_last_digit() -> None:
    found = collusion.as_printed()
    assert len(collusion.PRINTED) == 21
    assert {block: repr(found[block]) for block in collusion.PRINTED} == {
        block: repr(value) for block, value in collusion.PRINTED.items()
    }


def test_by_equation_4_the_cabal_decays_too_and_faster_at_first() -> None:
    printed, protocol = collusion.as_printed(), collusion.by_equation_4()
    assert protocol[5] < printed[5]
    assert protocol[-1] < 0.001


def test_the_command_prints_one_object_and_draws(figures: Path) -> None:
    ran = CliRunner().invoke(collusion.main, ["--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["rows_equal_to_the_last_digit"] == 21
    assert (figures / "collusion.png").stat().st_size > 1_000
