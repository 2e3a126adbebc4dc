"""The vote log: durable before sent, and no signature that contradicts an earlier one."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import DoubleSignRefused, StoreCorrupt, StoreError, StoreMismatch, VoteLogLost
from node.vote_log import NEVER, Record, RecordKind, VoteLog, open_vote_log
from tests.node.strategies import HASHES, vote_records

CHAIN, SIGNER = b"\xaa" * 32, b"\x55" * 32
SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))


def open_log(path: Path, *, chain_exists: bool = False, fresh: bool = False) -> VoteLog:
    return open_vote_log(
        path, chain_id=CHAIN, signer=SIGNER, chain_exists=chain_exists, fresh=fresh
    )


def vote(kind: RecordKind, view: int, block_hash: bytes = HASHES[0], epoch: int = 0) -> Record:
    block_hash = b"" if kind is RecordKind.NULLIFY else block_hash
    return Record(kind=kind, epoch=epoch, view=view, block_hash=block_hash, data=b"signed")


def test_records_return_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "vote.db"
    log = open_log(path)
    records = [vote(RecordKind.PROPOSE, 1), vote(RecordKind.NOTARIZE, 1)]
    assert log.record(records, block=b"block") == records
    log.save_certificate(epoch=0, view=1, kind=1, data=b"cert")
    log.save_certificate(epoch=0, view=1, kind=1, data=b"another")
    log.save_block(block_hash=HASHES[1], epoch=0, data=b"other block")
    log.close()
    log = open_log(path, chain_exists=True)
    assert log.records() == records
    assert log.records(0) == records
    assert log.records(1) == []
    assert log.block(HASHES[0]) == b"block"
    assert log.block(b"?") is None
    assert log.blocks(0) == [b"block", b"other block"]
    assert log.certificates(0) == [b"cert"]
    log.close()


def test_the_same_again_gives_what_was_logged_first(tmp_path: Path) -> None:
    log = open_log(tmp_path / "vote.db")
    first = vote(RecordKind.NOTARIZE, 1)
    log.record([first])
    again = Record(kind=first.kind, epoch=0, view=1, block_hash=first.block_hash, data=b"new")
    assert log.record([again]) == [first]
    assert log.records() == [first]
    log.close()


FORBIDDEN = [
    (vote(RecordKind.PROPOSE, 1), vote(RecordKind.PROPOSE, 1, HASHES[1])),
    (vote(RecordKind.NOTARIZE, 1), vote(RecordKind.NOTARIZE, 1, HASHES[1])),
    (vote(RecordKind.FINALIZE, 1), vote(RecordKind.FINALIZE, 1, HASHES[1])),
    (vote(RecordKind.NULLIFY, 1), vote(RecordKind.FINALIZE, 1)),
    (vote(RecordKind.FINALIZE, 1), vote(RecordKind.NULLIFY, 1)),
]


@pytest.mark.parametrize(("first", "second"), FORBIDDEN)
def test_the_guard_refuses(tmp_path: Path, first: Record, second: Record) -> None:
    path = tmp_path / "vote.db"
    log = open_log(path)
    log.record([first])
    log.close()
    log = open_log(path, chain_exists=True)  # a restart changes nothing
    with pytest.raises(DoubleSignRefused):
        log.record([vote(RecordKind.NOTARIZE, 2), second], block=b"block")
    assert log.records() == [first]
    assert log.block(HASHES[1]) is None
    log.record([vote(second.kind, 2, second.block_hash or HASHES[0])])  # another view is free
    log.close()


def test_two_contradicting_records_at_once(tmp_path: Path) -> None:
    log = open_log(tmp_path / "vote.db")
    for first, second in FORBIDDEN:
        with pytest.raises(DoubleSignRefused):
            log.record([first, second])
    assert log.records() == []
    log.close()


@settings(max_examples=25 * SCALE, deadline=None)
@given(st.lists(st.one_of(vote_records(), st.just(None)), max_size=40))
def test_no_sequence_breaks_the_rules(steps: list[Record | None]) -> None:
    """Whatever is asked, with restarts (None) between: what was *granted* keeps rules 1 and 2."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vote.db"
        log = open_log(path)
        granted: list[Record] = []
        for step in steps:
            if step is None:
                log.close()
                log = open_log(path, chain_exists=True)
                continue
            try:
                granted += log.record([step])
            except DoubleSignRefused:
                assert any(_contradict(step, other) for other in granted)
        for a, b in itertools.combinations(granted, 2):
            assert not _contradict(a, b)
        log.close()


def _contradict(a: Record, b: Record) -> bool:
    """Rules 1 and 2, written apart from the guard."""
    if (a.epoch, a.view) != (b.epoch, b.view):
        return False
    kinds = {a.kind, b.kind}
    return (a.kind == b.kind and a.block_hash != b.block_hash) or kinds == {
        RecordKind.FINALIZE,
        RecordKind.NULLIFY,
    }


def test_dropped_epochs_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "vote.db"
    log = open_log(path)
    for epoch in range(4):
        log.record([vote(RecordKind.NOTARIZE, 1, epoch=epoch)], block=b"block")
    log.drop_before(2)
    log.drop_before(1)
    assert [each.epoch for each in log.records()] == [2, 3]
    log.close()
    log = open_log(path, chain_exists=True)
    with pytest.raises(DoubleSignRefused, match="closed"):
        log.record([vote(RecordKind.NOTARIZE, 1, HASHES[1], epoch=1)])
    log.close()


def test_a_lost_log_refuses_to_vote(tmp_path: Path) -> None:
    path = tmp_path / "vote.db"
    with pytest.raises(VoteLogLost, match="--fresh-vote-log"):
        open_log(path, chain_exists=True)
    assert not path.exists()
    path.write_bytes(b"")
    with pytest.raises(VoteLogLost):
        open_log(path, chain_exists=True)


def test_a_fresh_log_observes_until_told(tmp_path: Path) -> None:
    path = tmp_path / "vote.db"
    log = open_log(path, chain_exists=True, fresh=True)
    assert log.first_epoch == NEVER
    log.drop_before(3)
    with pytest.raises(DoubleSignRefused):
        log.record([vote(RecordKind.NOTARIZE, 1, epoch=9)])
    log.close()
    log = open_log(path, chain_exists=True)  # a plain restart goes on observing
    assert log.first_epoch == NEVER
    log.allow_from(9)
    log.allow_from(4)  # only once
    with pytest.raises(DoubleSignRefused):
        log.record([vote(RecordKind.NOTARIZE, 1, epoch=8)])
    log.record([vote(RecordKind.NOTARIZE, 1, epoch=9)])
    log.close()


def test_a_damaged_log_is_kept_and_never_voted_with(tmp_path: Path) -> None:
    path = tmp_path / "vote.db"
    path.write_bytes(b"damaged" * 1000)
    with pytest.raises(StoreCorrupt):
        open_log(path, chain_exists=True)
    log = open_log(path, chain_exists=True, fresh=True)
    assert log.first_epoch == NEVER
    log.close()
    assert path.with_name("vote.db.lost-1").read_bytes() == b"damaged" * 1000


def test_fresh_is_refused_for_an_intact_log(tmp_path: Path) -> None:
    path = tmp_path / "vote.db"
    open_log(path).close()
    with pytest.raises(StoreError, match="intact"):
        open_log(path, chain_exists=True, fresh=True)


def test_the_log_is_of_one_key_and_chain(tmp_path: Path) -> None:
    path = tmp_path / "vote.db"
    open_log(path).close()
    for chain_id, signer in ((b"\xbb" * 32, SIGNER), (CHAIN, b"\x66" * 32)):
        for fresh in (False, True):
            with pytest.raises(StoreMismatch):
                open_vote_log(
                    path, chain_id=chain_id, signer=signer, chain_exists=True, fresh=fresh
                )


KILLED = """
import pathlib, sys
from node.vote_log import RecordKind
from tests.node.test_vote_log import open_log, vote
log = open_log(pathlib.Path(sys.argv[1]))
view = max((each.view for each in log.records()), default=0)
while True:
    view += 1
    log.record([vote(RecordKind.NOTARIZE, view)], block=b"block" * 1000)
    print(view, flush=True)
"""


def test_a_killed_process_never_signs_twice(tmp_path: Path) -> None:
    path = tmp_path / "vote.db"
    moments = random.Random(3)
    sent = 0
    for _ in range(5 * SCALE):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child:
            for _ in range(moments.randrange(1, 30)):
                sent = int(child.stdout.readline())
            # Not a wait for anything: the kill falls anywhere inside a write.
            time.sleep(moments.random() * 0.01)
            child.kill()
            for line in child.stdout:
                if line.endswith(b"\n"):
                    sent = int(line)
        log = open_log(path, chain_exists=True)
        logged = {each.view for each in log.records()}
        assert logged >= set(range(1, sent + 1))
        for view in (1, sent):
            with pytest.raises(DoubleSignRefused):
                log.record([vote(RecordKind.NOTARIZE, view, HASHES[1])])
        log.close()
