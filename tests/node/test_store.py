"""The chain on disk: all of a commit or nothing, after any death of the process."""

from __future__ import annotations

import os
import random
import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node import database
from node.errors import (
    InvariantViolation,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreMismatch,
    StoreReadOnly,
)
from node.store import (
    BLOCKS_KEPT_PRUNED,
    ChainStore,
    EpochChange,
    StoredBlock,
    chain_exists,
    open_chain_store,
)

CHAIN = b"\xaa" * 32
SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))


def block(height: int, *, body: bytes = b"body", epoch: int = 0) -> StoredBlock:
    return StoredBlock(
        height=height,
        hash=height.to_bytes(32, "big"),
        epoch=epoch,
        view=height,
        state_root=height.to_bytes(32, "little"),
        transactions=height % 3,
        header=b"header %d" % height,
        body=body,
    )


def open_new(path: Path) -> ChainStore:
    return open_chain_store(
        path,
        chain_id=CHAIN,
        genesis=block(0),
        leaves={b"a": b"1", b"b": b"2"},
        epoch=EpochChange(epoch=0, voter_set=b"set"),
    )


def commit(store: ChainStore, height: int) -> None:
    """Block `height` with a state that says so."""
    store.commit(
        [block(height)],
        leaves={b"height": b"%d" % height, b"k%d" % (height % 7): b"%d" % height},
        certificate=b"certificate %d" % height,
    )


def test_a_new_chain_and_its_return(tmp_path: Path) -> None:
    path = tmp_path / "chain.db"
    assert not chain_exists(path)
    store = open_new(path)
    assert store.tip() == block(0)
    store.commit(
        [block(1), block(2, epoch=1)],
        leaves={b"a": None, b"c": b"3"},
        certificate=b"cert",
        epoch_change=EpochChange(epoch=1, voter_set=b"set 1", proof=b"proof"),
    )
    store.close()
    assert chain_exists(path)
    store = open_chain_store(path, chain_id=CHAIN)
    assert store.tip() == block(2, epoch=1)
    assert store.leaves() == {b"b": b"2", b"c": b"3"}
    assert store.block(1) == block(1)
    assert store.block(3) is None
    assert store.block_by_hash(block(1).hash) == block(1)
    assert store.block_by_hash(b"?") is None
    assert store.state_root(1) == block(1).state_root
    assert store.state_root(9) is None
    assert store.certificate(1) == (2, b"cert")
    assert store.certificate(3) is None
    assert store.last_certificate() == (2, b"cert")
    assert store.epoch(1) == EpochChange(epoch=1, voter_set=b"set 1", proof=b"proof")
    assert store.epoch(2) is None
    assert store.transaction_count() == 3
    assert store.base_height() == 0
    assert list(store.iterate()) == [block(0), block(1), block(2, epoch=1)]
    store.close()


def test_ranges_are_bounded(tmp_path: Path) -> None:
    store = open_new(tmp_path / "chain.db")
    for height in range(1, 9):
        commit(store, height)
    assert [each.height for each in store.blocks(3, count_max=3, bytes_max=10**6)] == [3, 4, 5]
    assert [each.height for each in store.blocks(3, count_max=9, bytes_max=1)] == [3]
    assert store.blocks(9, count_max=9, bytes_max=10**6) == []
    store.save_epoch(EpochChange(epoch=1, voter_set=b"1" * 10, proof=b""))
    store.save_epoch(EpochChange(epoch=1, voter_set=b"1" * 10, proof=b"later"))
    assert len(store.epochs(0, count_max=9, bytes_max=10**6)) == 2
    assert len(store.epochs(0, count_max=9, bytes_max=3)) == 1
    assert store.epochs(0, count_max=9, bytes_max=10**6)[1].proof == b"later"
    store.close()


def test_blocks_continue_the_chain(tmp_path: Path) -> None:
    store = open_new(tmp_path / "chain.db")
    for wrong in ([block(2)], [block(1), block(3)], [block(0)]):
        with pytest.raises(InvariantViolation):
            store.commit(wrong, leaves={b"a": None})
    assert store.tip().height == 0
    assert store.leaves() == {b"a": b"1", b"b": b"2"}
    store.close()


def test_a_snapshot_replaces_everything(tmp_path: Path) -> None:
    store = open_new(tmp_path / "chain.db")
    commit(store, 1)
    store.install_snapshot(
        block(40, epoch=8),
        leaves={b"z": b"9"},
        certificate=b"cert 40",
        epochs=[EpochChange(epoch=8, voter_set=b"set 8", proof=b"proof 8")],
    )
    assert store.tip().height == 40
    assert store.base_height() == 40
    assert store.leaves() == {b"z": b"9"}
    assert store.epoch(0) is None
    assert list(store.iterate()) == [block(40, epoch=8)]
    commit(store, 41)
    assert store.tip().height == 41
    store.close()


def test_snapshots_for_others(tmp_path: Path) -> None:
    store = open_new(tmp_path / "chain.db")
    assert store.snapshots() == []
    for height in (8, 16, 24):
        store.save_snapshot(height, [b"%d" % height, b"second"])
    assert store.snapshots() == [(24, 2), (16, 2)]
    assert store.snapshot_chunk(16, 0) == b"16"
    assert store.snapshot_chunk(16, 2) is None
    assert store.snapshot_chunk(8, 0) is None
    store.close()


def test_pruning_keeps_genesis_and_the_tip(tmp_path: Path) -> None:
    store = open_new(tmp_path / "chain.db")
    for height in range(1, 6):
        commit(store, height)
    store.prune(4)
    assert [each.height for each in store.iterate()] == [0, 4, 5]
    assert store.base_height() == 4
    assert store.certificate(1) == (4, b"certificate 4")
    assert BLOCKS_KEPT_PRUNED > 600
    store.close()


def test_another_chain_or_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chain.db"
    open_new(path).close()
    with pytest.raises(StoreMismatch, match="chain id"):
        open_chain_store(path, chain_id=b"\xbb" * 32)
    monkeypatch.setattr("node.store.FORMAT_VERSION", b"2")
    with pytest.raises(StoreMismatch, match="version"):
        open_chain_store(path, chain_id=CHAIN)


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 300, b"SQLite format 3\0" + b"x" * 99]
)
def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chain.db"
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match=str(path)):
        open_new(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "chain.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE meta (a)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match="not a database of this program"):
        open_new(path)
    assert path.read_bytes() == before


def test_a_torn_file_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "chain.db"
    store = open_new(path)
    for height in range(1, 60):
        commit(store, height)
    store.close()
    whole = path.read_bytes()
    torn = whole[: len(whole) // 2 - 100]
    path.write_bytes(torn)
    with pytest.raises(StoreCorrupt):
        open_chain_store(path, chain_id=CHAIN)
    assert path.read_bytes() == torn


def test_a_torn_write_ahead_log_costs_only_what_was_torn(tmp_path: Path) -> None:
    path, copy = tmp_path / "chain.db", tmp_path / "copy.db"
    store = open_new(path)
    for height in range(1, 6):
        commit(store, height)
    log = path.with_name("chain.db-wal").read_bytes()
    seen = set()
    for cut in (*random.Random(1).sample(range(len(log)), 20), len(log)):
        copy.write_bytes(path.read_bytes())
        copy.with_name("copy.db-wal").write_bytes(log[:cut] + b"\xff" * 700)
        copy.with_name("copy.db-shm").unlink(missing_ok=True)
        if not chain_exists(copy):
            continue
        again = open_new(copy)
        height = again.tip().height
        if height:
            assert again.leaves()[b"height"] == b"%d" % height
        seen.add(height)
        again.close()
    assert 5 in seen
    assert len(seen) > 1
    store.close()


def test_a_creation_cut_short_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "chain.db"
    path.write_bytes(b"")
    with pytest.raises(StoreCorrupt, match="empty"):
        open_chain_store(path, chain_id=CHAIN)
    open_new(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM blocks")
        raw.execute("DELETE FROM leaves")
        raw.execute("DELETE FROM epochs")
    raw.close()
    with pytest.raises(StoreError, match="no block"):
        open_chain_store(path, chain_id=CHAIN).tip()
    assert open_new(path).tip() == block(0)


def test_a_missing_chain(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no database"):
        open_chain_store(tmp_path / "chain.db", chain_id=CHAIN)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chain.db"
    store = open_new(path)
    commit(store, 1)
    pages = store._database.rows("PRAGMA page_count")[0][0]
    store._database.rows(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreFull, match=str(path)):
        store.commit([block(2, body=os.urandom(1 << 20))], leaves={b"a": b"changed"})
    assert store.tip().height == 1
    assert store.leaves()[b"a"] == b"1"
    store._database.rows("PRAGMA max_page_count = 1000000")
    commit(store, 2)
    store.close()
    assert open_chain_store(path, chain_id=CHAIN).tip().height == 2


def test_a_file_that_cannot_grow_is_a_store_error(tmp_path: Path) -> None:
    """A real refused write (a file size limit), in a process of its own."""
    path = tmp_path / "chain.db"
    open_new(path).close()
    code = """
import os, pathlib, resource, sys
from node.errors import StoreError
from tests.node.test_store import block, commit, open_new
store = open_new(pathlib.Path(sys.argv[1]))
commit(store, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.commit([block(2, body=os.urandom(1 << 20))], leaves={b"a": b"changed"})
except StoreError as error:
    print(type(error).__name__, store.tip().height)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[1] == "1"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
    store = open_chain_store(path, chain_id=CHAIN)
    assert store.tip().height == 1
    assert store.leaves()[b"a"] == b"1"
    store.close()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoreReadOnly):
        open_new(tmp_path / "absent" / "chain.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreReadOnly):
            open_new(tmp_path / "chain.db")
    finally:
        tmp_path.chmod(0o700)


def test_another_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.01)
    path = tmp_path / "chain.db"
    store = open_new(path)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLocked):
            commit(store, 1)
        other.execute("ROLLBACK")
    other.close()
    commit(store, 1)
    store.close()


KILLED = """
import pathlib, sys
from tests.node.test_store import commit, open_new
store = open_new(pathlib.Path(sys.argv[1]))
height = store.tip().height
while True:
    height += 1
    commit(store, height)
    print(height, flush=True)
"""


def test_a_killed_process_loses_no_acknowledged_block(tmp_path: Path) -> None:
    """SIGKILL at random moments: what was printed is there, and the state is of the last block."""
    path = tmp_path / "chain.db"
    moments = random.Random(7)
    acknowledged = 0
    for _ in range(6 * SCALE):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child:
            for _ in range(moments.randrange(1, 30)):
                acknowledged = int(child.stdout.readline())
            # Not a wait for anything: the kill falls anywhere inside a commit.
            time.sleep(moments.random() * 0.01)
            child.kill()
            for line in child.stdout:
                if line.endswith(b"\n"):
                    acknowledged = int(line)
        store = open_chain_store(path, chain_id=CHAIN)
        tip = store.tip()
        assert tip.height in (acknowledged, acknowledged + 1)
        assert store.leaves()[b"height"] == b"%d" % tip.height
        assert store.last_certificate() == (tip.height, b"certificate %d" % tip.height)
        assert [each.height for each in store.iterate()] == list(range(tip.height + 1))
        store.close()
