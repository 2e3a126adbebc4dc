"""sqlite3 as the node uses it: opened with care, every failure a typed error, nothing half done.

The rule: a value is either committed and will be there after SIGKILL or power loss (WAL,
`synchronous=FULL`), or the transaction left no trace. A file that is damaged, of another chain or
of another version is reported and never written. Each database names itself in a `meta` table
whose rows are written in the same transaction as its tables, so a file without them is not ours.

A connection is used by one thread at a time (a lock sees to it); waiting calls belong in a worker
thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from node.errors import (
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreMismatch,
    StoreReadOnly,
)

Row: TypeAlias = tuple[Any, ...]

BUSY_TIMEOUT_S: Final = 2.0
"""Readers (`replay`, `doctor`) never block a WAL writer; only another writer can make us wait."""
CACHE_KIB: Final = 8_192
"""sqlite's page cache for each database: two of them stay far below the node's 200 MB."""


class Database:
    """One sqlite file. Use `open_database`, then `transaction()` to write and `rows()` to read."""

    __slots__ = ("_connection", "_lock", "path")

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self.path = path

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is executed inside becomes durable together at exit, or nothing does.

        Raises StoreError and its kinds. An exception inside rolls back and is passed on.
        """
        with self._lock, store_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._roll_back()
                raise
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                raise

    def rows(self, sql: str, *values: object) -> list[Row]:
        """All rows of a query. Raises StoreError and its kinds."""
        with self._lock, store_errors(self.path):
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: object) -> Row | None:
        """The first row of a query, None without one. Raises StoreError and its kinds."""
        with self._lock, store_errors(self.path):
            row: Row | None = self._connection.execute(sql, values).fetchone()
            return row

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read inside belongs to one moment, whatever a writer does meanwhile."""
        with self._lock, store_errors(self.path):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def meta(self, key: str) -> bytes | None:
        """A value of the `meta` table."""
        row = self.row("SELECT value FROM meta WHERE key = ?", key)
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        """Close the file; sqlite folds the write-ahead log into it when it can."""
        with self._lock, store_errors(self.path):
            self._connection.close()

    def _roll_back(self) -> None:
        # After some failures (disk full, I/O) sqlite has rolled back by itself already.
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def open_database(
    path: Path,
    *,
    schema: str,
    identity: Mapping[str, bytes],
    create: bool,
    initial: Mapping[str, bytes] | None = None,
) -> Database:
    """The database at `path`, checked; with `create` a missing or never-filled one is made.

    `identity` holds the `meta` rows that name the file (kind, version, chain id): written at
    creation, compared ever after; `initial` those that may change later. Raises StoreMismatch,
    StoreCorrupt, StoreFull, StoreReadOnly, StoreLocked or StoreError; the file is then unchanged.
    """
    if not create and not path.exists():
        raise StoreError(f"no database at {path}")
    with store_errors(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
    database = Database(connection, path)
    try:
        if create and not _is_filled(database):
            _configure(database)
            _create(database, schema, {**identity, **(initial or {})})
        else:
            _check(database, identity)
            _configure(database)
    except BaseException:
        connection.close()
        raise
    return database


def open_reader(path: Path, *, identity: Mapping[str, bytes]) -> Database:
    """A view of a database that another process may be writing; it changes nothing.

    Raises StoreMismatch, StoreCorrupt, StoreReadOnly or StoreError.
    """
    if not path.exists():
        raise StoreError(f"no database at {path}")
    with store_errors(path):
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
    database = Database(connection, path)
    try:
        _check_identity(database, identity)
    except BaseException:
        connection.close()
        raise
    return database


def is_filled(path: Path) -> bool:
    """Whether a database was ever completed here (a creation that was cut short does not count).

    Raises StoreCorrupt for a file that is not a database.
    """
    if not path.exists():
        return False
    with store_errors(path):
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            return _is_filled(Database(connection, path))
        finally:
            connection.close()


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """sqlite's errors inside become this package's, each one line that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, path) from error


def _is_filled(database: Database) -> bool:
    return database.row("SELECT count(*) FROM sqlite_master") != (0,)


def _configure(database: Database) -> None:
    database.rows("PRAGMA journal_mode = WAL")
    database.rows("PRAGMA synchronous = FULL")
    database.rows(f"PRAGMA cache_size = -{CACHE_KIB}")
    database.rows("PRAGMA trusted_schema = OFF")


def _create(database: Database, schema: str, meta: Mapping[str, bytes]) -> None:
    with database.transaction() as connection:
        connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        for statement in schema.split(";"):
            connection.execute(statement)


def _check(database: Database, identity: Mapping[str, bytes]) -> None:
    if not _is_filled(database):
        raise StoreCorrupt(f"{database.path} is empty")
    _check_identity(database, identity)
    if database.rows("PRAGMA quick_check(1)") != [("ok",)]:
        raise StoreCorrupt(f"{database.path} is damaged; it was left as it is")


def _check_identity(database: Database, identity: Mapping[str, bytes]) -> None:
    try:
        stored = {key: database.meta(key) for key in identity}
    except StoreCorrupt:
        raise
    except StoreError:
        raise StoreCorrupt(f"{database.path} is not a database of this program") from None
    for key, wanted in identity.items():
        found = stored[key]
        if found is None:
            raise StoreCorrupt(f"{database.path} is not a database of this program")
        if found != wanted:
            raise StoreMismatch(
                f"{database.path} has {key.replace('_', ' ')} {_shown(found)}, "
                f"this node has {_shown(wanted)}"
            )


def _shown(value: bytes) -> str:
    return value.decode() if value.isascii() and len(value) < 32 else f"{value.hex()[:16]}…"


def _translated(error: sqlite3.Error, path: Path) -> StoreError:
    # The low byte is the primary code, the rest the extended one (sqlite.org/rescode.html).
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return StoreFull(f"no space left for {path}; nothing was written")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return StoreReadOnly(f"{path} cannot be opened for writing")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorrupt(f"{path} is damaged or not a database; it was left as it is")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreLocked(f"{path} is held by another process")
        case _:
            return StoreError(f"{path}: {error}")
