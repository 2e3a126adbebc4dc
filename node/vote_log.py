"""The vote log: every own vote and proposal, durable before it is sent, and the guard over them.

The rule, independent of the engine and of what it believes (ordering.md, Rules 1 and 2):

* at most one proposal, one NOTARIZE hash and one FINALIZE hash in a view;
* never FINALIZE after NULLIFY, nor NULLIFY after FINALIZE, in a view;
* nothing in an epoch whose votes were dropped, nor before a fresh log may vote again.

`record` either makes the signature-to-be durable or raises DoubleSignRefused; recording the same
thing again is harmless and gives the bytes logged first, so a restarted node repeats itself and
never contradicts itself. A block's bytes are stored in the same transaction as the vote for it.

A lost log is not replaced silently: while the chain is there and the log is not, opening raises
VoteLogLost. `fresh` starts a new one that refuses everything until `allow_from` names the first
epoch in which the key cannot have voted. The unreadable log is kept beside it.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.database import Database, is_filled, open_database
from node.errors import DoubleSignRefused, StoreCorrupt, StoreError, VoteLogLost

FORMAT_VERSION: Final = b"1"
EPOCHS_KEPT: Final = 2
"""Votes of the running epoch and the one before: a hand-over may still need the latter's."""
NEVER: Final = 2**63 - 1

_SCHEMA: Final = """
CREATE TABLE records (epoch INTEGER NOT NULL, view INTEGER NOT NULL, kind INTEGER NOT NULL,
    block_hash BLOB NOT NULL, data BLOB NOT NULL, PRIMARY KEY (epoch, view, kind)) WITHOUT ROWID;
CREATE TABLE blocks (block_hash BLOB PRIMARY KEY, epoch INTEGER NOT NULL, data BLOB NOT NULL)
    WITHOUT ROWID;
CREATE TABLE certificates (epoch INTEGER NOT NULL, view INTEGER NOT NULL, kind INTEGER NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY (epoch, view, kind)) WITHOUT ROWID
"""


class RecordKind(enum.IntEnum):
    """What was signed; the numbers of votes are those of the wire."""

    PROPOSE = 0
    NOTARIZE = 1
    NULLIFY = 2
    FINALIZE = 3


_EXCLUDES: Final = {
    RecordKind.NULLIFY: RecordKind.FINALIZE,
    RecordKind.FINALIZE: RecordKind.NULLIFY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One own vote or proposal: its place, its block (empty for NULLIFY), its canonical bytes."""

    kind: RecordKind
    epoch: int
    view: int
    block_hash: bytes
    data: bytes


class VoteLog:
    """`vote.db`, opened by `open_vote_log`. Methods wait for the disk: call them in a thread."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, records: Iterable[Record], *, block: bytes | None = None) -> list[Record]:
        """Make records durable, all or none, with the block they are about when given.

        Returns them as logged: what was recorded before under the same hash keeps its first
        bytes. Raises DoubleSignRefused (nothing is written) or StoreError.
        """
        logged = []
        with self._database.transaction() as connection:
            first_epoch = self._first_epoch(connection)
            for each in records:
                if each.epoch < first_epoch:
                    raise DoubleSignRefused(
                        f"epoch {each.epoch} is closed to this log, which begins at {first_epoch}"
                    )
                logged.append(_insert(connection, each))
                if block is not None and each.block_hash:
                    connection.execute(
                        "INSERT OR IGNORE INTO blocks VALUES (?, ?, ?)",
                        (each.block_hash, each.epoch, block),
                    )
        return logged

    def records(self, epoch: int | None = None) -> list[Record]:
        """Own votes and proposals in (epoch, view, kind) order; of one epoch when given."""
        sql = "SELECT kind, epoch, view, block_hash, data FROM records"
        order = " ORDER BY epoch, view, kind"
        rows = (
            self._database.rows(sql + order)
            if epoch is None
            else self._database.rows(sql + " WHERE epoch = ?" + order, epoch)
        )
        return [_record(*row) for row in rows]

    def save_certificate(self, *, epoch: int, view: int, kind: int, data: bytes) -> None:
        """Keep a certificate that is not yet below a final block; the first of its kind stays."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO certificates VALUES (?, ?, ?, ?)", (epoch, view, kind, data)
            )

    def certificates(self, epoch: int) -> list[bytes]:
        """The kept certificates of an epoch in order of view."""
        sql = "SELECT data FROM certificates WHERE epoch = ? ORDER BY view, kind"
        return [bytes(data) for (data,) in self._database.rows(sql, epoch)]

    def save_block(self, *, block_hash: bytes, epoch: int, data: bytes) -> None:
        """Keep the bytes of a block that is not final."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO blocks VALUES (?, ?, ?)", (block_hash, epoch, data)
            )

    def block(self, block_hash: bytes) -> bytes | None:
        """The bytes of a block voted for or kept, None when not held."""
        row = self._database.row("SELECT data FROM blocks WHERE block_hash = ?", block_hash)
        return None if row is None else bytes(row[0])

    def blocks(self, epoch: int) -> list[bytes]:
        """All kept blocks of an epoch, in order of hash."""
        sql = "SELECT data FROM blocks WHERE epoch = ? ORDER BY block_hash"
        return [bytes(data) for (data,) in self._database.rows(sql, epoch)]

    @property
    def first_epoch(self) -> int:
        """The first epoch this log may vote in; `NEVER` while a fresh log observes."""
        return int(self._database.meta("first_epoch") or NEVER)

    def allow_from(self, epoch: int) -> None:
        """End the observation of a fresh log: the key cannot have voted in `epoch` or later."""
        with self._database.transaction() as connection:
            if self._first_epoch(connection) == NEVER:
                _set_first_epoch(connection, epoch)

    def drop_before(self, epoch: int) -> None:
        """Forget what was logged before `epoch`; those epochs are closed to voting for ever."""
        with self._database.transaction() as connection:
            if epoch <= self._first_epoch(connection):
                return
            for table in ("records", "blocks", "certificates"):
                connection.execute(f"DELETE FROM {table} WHERE epoch < ?", (epoch,))
            if self._first_epoch(connection) != NEVER:
                _set_first_epoch(connection, epoch)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _first_epoch(self, connection: sqlite3.Connection) -> int:
        (value,) = connection.execute("SELECT value FROM meta WHERE key='first_epoch'").fetchone()
        return int(value)


def open_vote_log(
    path: Path, *, chain_id: bytes, signer: bytes, chain_exists: bool, fresh: bool = False
) -> VoteLog:
    """The vote log of one key on one chain.

    `chain_exists` says whether the chain database is there: then a missing log is a lost one and
    VoteLogLost is raised unless `fresh` accepts the loss. `fresh` is refused for an intact log.
    Raises StoreError and its kinds.
    """
    identity = {
        "kind": b"agora vote log",
        "version": FORMAT_VERSION,
        "chain_id": chain_id,
        "signer": signer,
    }
    lost = _is_lost(path, identity) if fresh else not is_filled(path)
    if fresh and not lost:
        raise StoreError(f"{path} is intact; start without --fresh-vote-log")
    if lost and chain_exists and not fresh:
        raise VoteLogLost(
            f"{path} is missing while the chain is there: voting could contradict lost votes; "
            "restore it, or start with --fresh-vote-log to observe until that is impossible"
        )
    if fresh:
        _set_aside(path)
    # Set with the tables in one transaction: a crash must not turn a fresh log into a free one.
    first_epoch = str(NEVER if fresh else 0).encode()
    database = open_database(
        path,
        schema=_SCHEMA,
        identity=identity,
        create=lost,
        initial={"first_epoch": first_epoch},
    )
    return VoteLog(database)


def refusal(record: Record, logged: Iterable[Record]) -> str | None:
    """Why `record` may not be signed beside what was logged in its view; None when it may."""
    for other in logged:
        if (other.epoch, other.view) != (record.epoch, record.view):
            continue
        if other.kind == record.kind and other.block_hash != record.block_hash:
            return f"a second {record.kind.name} hash"
        if _EXCLUDES.get(record.kind) == other.kind:
            return f"{record.kind.name} after {other.kind.name}"
    return None


def _insert(connection: sqlite3.Connection, record: Record) -> Record:
    rows = connection.execute(
        "SELECT kind, epoch, view, block_hash, data FROM records WHERE epoch = ? AND view = ?",
        (record.epoch, record.view),
    )
    logged = [_record(*row) for row in rows]
    if reason := refusal(record, logged):
        raise DoubleSignRefused(f"{reason} in view {record.view} of epoch {record.epoch}")
    for other in logged:
        if other.kind == record.kind:
            return other
    connection.execute(
        "INSERT INTO records VALUES (?, ?, ?, ?, ?)",
        (record.epoch, record.view, int(record.kind), record.block_hash, record.data),
    )
    return record


def _record(kind: int, epoch: int, view: int, block_hash: bytes, data: bytes) -> Record:
    return Record(
        kind=RecordKind(kind), epoch=epoch, view=view, block_hash=bytes(block_hash), data=data
    )


def _set_first_epoch(connection: sqlite3.Connection, epoch: int) -> None:
    connection.execute(
        "UPDATE meta SET value = ? WHERE key = 'first_epoch'", (str(epoch).encode(),)
    )


def _is_lost(path: Path, identity: dict[str, bytes]) -> bool:
    """Whether no usable log of this key and chain is at `path`. Raises StoreMismatch."""
    try:
        if not is_filled(path):
            return True
        open_database(path, schema=_SCHEMA, identity=identity, create=False).close()
    except StoreCorrupt:
        return True
    return False


def _set_aside(path: Path) -> None:
    """Rename what is left of a lost log; it is evidence, and never deleted here."""
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.name}.lost-{number}")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
