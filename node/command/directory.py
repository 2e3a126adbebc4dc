"""Which node a verb is about: the named directory, or the only one there is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from node.data_directory import DataDirectory, default_root
from node.errors import UsageError


def find_directory(named: Path | None) -> DataDirectory:
    """The directory given, else the only running node's, else the only one in `~/.agora`.

    Raises UsageError when there is none, or several and none was named.
    """
    if named is not None:
        if not named.is_dir():
            raise UsageError(f"--data-dir {named} is not a directory")
        return DataDirectory(named)
    root = default_root()
    found = [DataDirectory(path.parent) for path in sorted(root.glob("*/lock"))]
    running = [directory for directory in found if _is_running(directory)]
    choice = running or found
    if len(choice) == 1:
        return choice[0]
    if not choice:
        raise UsageError(f"no node in {root}; start one with `python -m node`, or give --data-dir")
    names = ", ".join(str(directory.path) for directory in choice)
    raise UsageError(f"several nodes: give --data-dir, one of {names}")


def _is_running(directory: DataDirectory) -> bool:
    """Whether the process that wrote the interface's record lives; a killed one leaves it."""
    try:
        os.kill(int(json.loads(directory.api.read_bytes())["pid"]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
