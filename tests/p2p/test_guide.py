"""Every program of the guide runs as it is printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
PROGRAMS = [part.partition("```")[0] for part in GUIDE.split("```python\n")[1:]]
TITLES = [
    part.rpartition("\n## ")[2].partition("\n")[0] for part in GUIDE.split("```python\n")[:-1]
]


@pytest.mark.network
@pytest.mark.parametrize("program", PROGRAMS, ids=TITLES)
def test_program(program: str) -> None:
    source = program if program.startswith("import p2p") else f"import p2p, trio\n{program}"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout
