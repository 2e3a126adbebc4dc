"""A real node whose disk fails it: one clear line, exit code 1, and nothing final is lost."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.data_directory import DataDirectory
from node.report import Finalized, decode_report
from node.store import open_chain_reader

from .test_killed_node import make_node, next_final, rest, start

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(180)]


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """A file system of its own at `path`; skips where that is not allowed."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(path)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    """Take every free block of a file system."""
    with pytest.raises(OSError, match="No space"), path.open("wb", buffering=0) as file:  # noqa: PT012
        while True:
            file.write(bytes(4_096))


def complaint(process: subprocess.Popen[bytes]) -> str:
    """What a node that ended by itself said on standard error: one line."""
    assert process.wait() == 1
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert said.startswith("agora: ")
    assert said.count("\n") == 1, said
    return said


def highest_reported(process: subprocess.Popen[bytes]) -> int:
    """Read every report of a process to its end."""
    assert process.stdout is not None
    finals = (decode_report(line) for line in process.stdout.read().splitlines())
    return max((each.height for each in finals if isinstance(each, Finalized)), default=0)


def tip_of(directory: DataDirectory) -> int:
    store = open_chain_reader(directory.chain)
    try:
        return store.tip().height
    finally:
        store.close()


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=24m", "tmpfs") as disk:
        directory = make_node(disk / "node")
        with start(directory) as process:
            first = next_final(process).height
            ballast = disk / "ballast"
            fill(ballast)
            height = max(first, highest_reported(process))
            assert "no space" in complaint(process)
        ballast.unlink()
        assert tip_of(directory) >= height > 0
        with start(directory) as process:
            assert next_final(process).height > height
            process.terminate()
            rest(process)
            assert process.wait() == 0


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    directory = make_node(tmp_path / "node")
    with start(directory) as process:
        next_final(process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
        height = highest_reported(process)
        assert str(directory.path) in complaint(process)
    assert tip_of(directory) >= height
    with start(directory) as process:
        assert next_final(process).height > height
        process.kill()
        rest(process)


def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    directory = make_node(tmp_path / "node")
    with start(directory) as process:
        height = next_final(process).height
        process.terminate()
        rest(process)
    before = {path.name: path.read_bytes() for path in directory.path.iterdir() if path.is_file()}
    source, target = str(directory.path), tmp_path / "same"
    with mounted(target, "--bind", source):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], check=True)
        with start(DataDirectory(target)) as process:
            assert "Read-only" in complaint(process)
    after = {path.name: path.read_bytes() for path in directory.path.iterdir() if path.is_file()}
    assert after == before
    assert tip_of(directory) >= height


@pytest.mark.parametrize("name", ["chain.db", "vote.db"])
def test_a_torn_database_is_not_touched(tmp_path: Path, name: str) -> None:
    directory = make_node(tmp_path / "node")
    with start(directory) as process:
        while next_final(process).height < 12:
            pass
        process.terminate()
        rest(process)
        assert process.wait() == 0
    path = directory.path / name
    torn = path.read_bytes()[: path.stat().st_size // 2 + 100]
    path.write_bytes(torn)
    with start(directory) as process:
        said = complaint(process)
    assert name in said
    assert path.read_bytes() == torn


@pytest.mark.parametrize("name", ["peer.key", "genesis.json"])
def test_a_torn_small_file_is_not_touched(tmp_path: Path, name: str) -> None:
    directory = make_node(tmp_path / "node")
    path = directory.genesis if name == "genesis.json" else directory.peer_key
    os.truncate(path, path.stat().st_size // 2)
    torn = path.read_bytes()
    with start(directory) as process:
        assert str(path) in complaint(process)
    assert path.read_bytes() == torn
    assert not directory.chain.exists()
