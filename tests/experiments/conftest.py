"""Experiments write their figures into the test's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import output


@pytest.fixture(autouse=True)
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(output, "FIGURES", tmp_path)
    return tmp_path
