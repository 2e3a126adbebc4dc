"""The chain on disk: final blocks, the state after the last of them, proofs of every epoch.

The rule: one call of `commit` is one transaction. Blocks, their certificate, the changed state
leaves and the epoch change become durable together, so that a killed node finds a state that *is*
the state after its last final block, never one half ahead of the other.

Values are canonical bytes of `consensus`; this module knows heights, hashes, epochs and sizes and
nothing of their content. Whoever loads the state recomputes its root and compares it with the one
stored beside the block (`StoreCorrupt` otherwise): sqlite notices torn pages, the root everything
else.

    blocks        height → hash, epoch, view, state root, header, body
    certificates  height → the FINALIZE certificate that decided it (others were decided with it)
    leaves        key → value of the state at the last final height
    epochs        epoch → voter set, and the proof of the boundary block that made it
    snapshots     boundary height → chunks, for peers that join by snapshot
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.database import Database, is_filled, open_database, open_reader
from node.errors import InvariantViolation, StoreError

FORMAT_VERSION: Final = b"1"
SNAPSHOTS_KEPT: Final = 2
"""The newest, and the one before for peers in the middle of it."""
BLOCKS_KEPT_PRUNED: Final = 4_096
"""With `--prune`: more than the deepest thing a block may refer to, 600 heights of expiry."""

_SCHEMA: Final = """
CREATE TABLE blocks (height INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,
    epoch INTEGER NOT NULL, view INTEGER NOT NULL, state_root BLOB NOT NULL,
    transactions INTEGER NOT NULL, header BLOB NOT NULL, body BLOB NOT NULL);
CREATE TABLE certificates (height INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE leaves (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, voter_set BLOB NOT NULL, proof BLOB NOT NULL);
CREATE TABLE snapshots (height INTEGER NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (height, number))
"""

_BLOCK: Final = "height, hash, epoch, view, state_root, transactions, header, body"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlock:
    """A final block: what this module indexes, and its canonical header and body.

    Genesis is stored as height 0 with whatever bytes stand for it. `header` may be the whole
    proposal (header and leader's signature) where the caller wants that back.
    """

    height: int
    hash: bytes
    epoch: int
    view: int
    state_root: bytes
    header: bytes
    body: bytes
    transactions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochChange:
    """The voter set of an epoch and the proof of the boundary block that decided it."""

    epoch: int
    voter_set: bytes
    proof: bytes = b""


class ChainStore:
    """`chain.db`, opened by `open_chain_store`. Methods wait for the disk: use a thread."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def commit(
        self,
        blocks: Sequence[StoredBlock],
        *,
        leaves: Mapping[bytes, bytes | None],
        certificate: bytes | None = None,
        epoch_change: EpochChange | None = None,
    ) -> None:
        """Append final blocks in height order; `leaves` changes the state (None deletes a key).

        `certificate` decides the last of `blocks`. Raises StoreError and its kinds (nothing is
        written then), InvariantViolation when the blocks do not continue the chain.
        """
        with self._database.transaction() as connection:
            tip = _tip_height(connection)
            for offset, block in enumerate(blocks, start=1):
                if block.height != tip + offset:
                    raise InvariantViolation(f"block {block.height} stored after {tip}")
                _insert_block(connection, block)
            if certificate is not None and blocks:
                connection.execute(
                    "INSERT INTO certificates VALUES (?, ?)", (blocks[-1].height, certificate)
                )
            _change_leaves(connection, leaves)
            if epoch_change is not None:
                _insert_epoch(connection, epoch_change)

    def install_snapshot(
        self,
        block: StoredBlock,
        *,
        leaves: Mapping[bytes, bytes],
        certificate: bytes | None,
        epochs: Sequence[EpochChange],
    ) -> None:
        """Replace chain and state by a verified snapshot at `block`; earlier blocks are gone."""
        with self._database.transaction() as connection:
            for table in ("blocks", "certificates", "leaves", "epochs", "snapshots"):
                connection.execute(f"DELETE FROM {table}")
            _insert_block(connection, block)
            if certificate is not None:
                connection.execute(
                    "INSERT INTO certificates VALUES (?, ?)", (block.height, certificate)
                )
            _change_leaves(connection, leaves)
            for epoch_change in epochs:
                _insert_epoch(connection, epoch_change)

    def tip(self) -> StoredBlock:
        """The last final block; genesis in a new chain."""
        row = self._database.row(f"SELECT {_BLOCK} FROM blocks ORDER BY height DESC LIMIT 1")
        if row is None:
            raise StoreError(f"{self._database.path} holds no block")
        return _block(*row)

    def base_height(self) -> int:
        """The lowest block held: 0, or later after a snapshot or pruning."""
        row = self._database.row("SELECT min(height) FROM blocks WHERE height > 0")
        if row is not None and row[0] is not None and row[0] > 1:
            return int(row[0])
        return 0

    def block(self, height: int) -> StoredBlock | None:
        """The final block of a height, None when not held."""
        row = self._database.row(f"SELECT {_BLOCK} FROM blocks WHERE height = ?", height)
        return None if row is None else _block(*row)

    def block_by_hash(self, block_hash: bytes) -> StoredBlock | None:
        """The final block of a hash, None when not held."""
        row = self._database.row(f"SELECT {_BLOCK} FROM blocks WHERE hash = ?", block_hash)
        return None if row is None else _block(*row)

    def blocks(self, first: int, *, count_max: int, bytes_max: int) -> list[StoredBlock]:
        """Consecutive blocks from height `first`: as many as fit both bounds, at least one held."""
        taken: list[StoredBlock] = []
        size = 0
        for height in range(first, first + count_max):
            block = self.block(height)
            if block is None:
                break
            size += len(block.header) + len(block.body)
            if taken and size > bytes_max:
                break
            taken.append(block)
        return taken

    def state_root(self, height: int) -> bytes | None:
        """The state root after the block of a height, None when not held."""
        row = self._database.row("SELECT state_root FROM blocks WHERE height = ?", height)
        return None if row is None else bytes(row[0])

    def transaction_count(self) -> int:
        """Transactions in all held blocks."""
        row = self._database.row("SELECT sum(transactions) FROM blocks")
        return int(row[0] or 0) if row is not None else 0

    def certificate(self, height: int) -> tuple[int, bytes] | None:
        """The first certificate at or above a height, with its height: it decides both."""
        row = self._database.row(
            "SELECT height, data FROM certificates WHERE height >= ? ORDER BY height LIMIT 1",
            height,
        )
        return None if row is None else (int(row[0]), bytes(row[1]))

    def last_certificate(self) -> tuple[int, bytes] | None:
        """The newest certificate and its height, None before the first."""
        row = self._database.row(
            "SELECT height, data FROM certificates ORDER BY height DESC LIMIT 1"
        )
        return None if row is None else (int(row[0]), bytes(row[1]))

    def epoch(self, epoch: int) -> EpochChange | None:
        """Voter set and proof of an epoch, None when not held."""
        row = self._database.row("SELECT * FROM epochs WHERE epoch = ?", epoch)
        return None if row is None else _epoch(*row)

    def epochs(self, first: int, *, count_max: int, bytes_max: int) -> list[EpochChange]:
        """Consecutive epochs from `first`: as many as fit both bounds, at least one held."""
        taken: list[EpochChange] = []
        size = 0
        for epoch in range(first, first + count_max):
            change = self.epoch(epoch)
            if change is None:
                break
            size += len(change.voter_set) + len(change.proof)
            if taken and size > bytes_max:
                break
            taken.append(change)
        return taken

    def save_epoch(self, epoch_change: EpochChange) -> None:
        """Keep or complete an epoch's record, as when its proof arrives after its blocks."""
        with self._database.transaction() as connection:
            _insert_epoch(connection, epoch_change)

    def tip_and_leaves(self) -> tuple[StoredBlock, dict[bytes, bytes]]:
        """The last final block and the state after it, of one moment."""
        with self._database.snapshot():
            return self.tip(), self.leaves()

    def leaves(self) -> dict[bytes, bytes]:
        """The state at the tip, in key order."""
        rows = self._database.rows("SELECT key, value FROM leaves ORDER BY key")
        return {bytes(key): bytes(value) for key, value in rows}

    def save_snapshot(self, height: int, chunks: Sequence[bytes]) -> None:
        """Keep the chunks of a boundary's state for others; only the newest few stay."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM snapshots WHERE height = ?", (height,))
            connection.executemany(
                "INSERT INTO snapshots VALUES (?, ?, ?)",
                ((height, number, chunk) for number, chunk in enumerate(chunks)),
            )
            connection.execute(
                "DELETE FROM snapshots WHERE height NOT IN (SELECT DISTINCT height FROM snapshots"
                " ORDER BY height DESC LIMIT ?)",
                (SNAPSHOTS_KEPT,),
            )

    def snapshots(self) -> list[tuple[int, int]]:
        """(height, number of chunks) of the kept snapshots, newest first."""
        sql = "SELECT height, count(*) FROM snapshots GROUP BY height ORDER BY height DESC"
        return [(int(height), int(count)) for height, count in self._database.rows(sql)]

    def snapshot_chunk(self, height: int, number: int) -> bytes | None:
        """One chunk of a kept snapshot, None when not held."""
        row = self._database.row(
            "SELECT data FROM snapshots WHERE height = ? AND number = ?", height, number
        )
        return None if row is None else bytes(row[0])

    def prune(self, below: int) -> None:
        """Forget blocks and certificates below a height; genesis, epochs and state stay."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM blocks WHERE height > 0 AND height < ?", (below,))
            connection.execute("DELETE FROM certificates WHERE height < ?", (below,))

    def iterate(self, first: int = 0) -> Iterator[StoredBlock]:
        """Held blocks from a height up, one at a time (`replay`)."""
        height = max(first, 0)
        while (block := self.block(height)) is not None or height == 0:
            if block is not None:
                yield block
            height = max(height + 1, self.base_height())

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def open_chain_store(
    path: Path,
    *,
    chain_id: bytes,
    genesis: StoredBlock | None = None,
    leaves: Mapping[bytes, bytes] | None = None,
    epoch: EpochChange | None = None,
) -> ChainStore:
    """The chain at `path`, checked to be of `chain_id`.

    A missing one is made when `genesis` (height 0) and its state are given, else it is an error.
    Raises StoreMismatch, StoreCorrupt, StoreFull, StoreReadOnly, StoreLocked or StoreError.
    """
    identity = {"kind": b"agora chain", "version": FORMAT_VERSION, "chain_id": chain_id}
    database = open_database(path, schema=_SCHEMA, identity=identity, create=genesis is not None)
    store = ChainStore(database)
    # A creation cut short leaves tables without a block: it is completed here, in one piece.
    if genesis is not None and database.row("SELECT 1 FROM blocks LIMIT 1") is None:
        with database.transaction() as connection:
            _insert_block(connection, genesis)
            _change_leaves(connection, leaves or {})
            if epoch is not None:
                _insert_epoch(connection, epoch)
    return store


def open_chain_reader(path: Path) -> ChainStore:
    """The chain at `path` for reading only, also while a node writes it. Raises StoreError."""
    identity = {"kind": b"agora chain", "version": FORMAT_VERSION}
    return ChainStore(open_reader(path, identity=identity))


def chain_exists(path: Path) -> bool:
    """Whether a chain was ever completed at `path`. Raises StoreCorrupt for another file."""
    return is_filled(path)


def _tip_height(connection: sqlite3.Connection) -> int:
    (height,) = connection.execute("SELECT max(height) FROM blocks").fetchone()
    return -1 if height is None else int(height)


def _insert_block(connection: sqlite3.Connection, block: StoredBlock) -> None:
    connection.execute(
        f"INSERT INTO blocks ({_BLOCK}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            block.height,
            block.hash,
            block.epoch,
            block.view,
            block.state_root,
            block.transactions,
            block.header,
            block.body,
        ),
    )


def _change_leaves(connection: sqlite3.Connection, leaves: Mapping[bytes, bytes | None]) -> None:
    connection.executemany(
        "INSERT INTO leaves VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        ((key, value) for key, value in leaves.items() if value is not None),
    )
    connection.executemany(
        "DELETE FROM leaves WHERE key = ?",
        ((key,) for key, value in leaves.items() if value is None),
    )


def _insert_epoch(connection: sqlite3.Connection, change: EpochChange) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO epochs VALUES (?, ?, ?)",
        (change.epoch, change.voter_set, change.proof),
    )


def _block(
    height: int,
    block_hash: bytes,
    epoch: int,
    view: int,
    state_root: bytes,
    transactions: int,
    header: bytes,
    body: bytes,
) -> StoredBlock:
    return StoredBlock(
        height=height,
        hash=bytes(block_hash),
        epoch=epoch,
        view=view,
        state_root=bytes(state_root),
        transactions=transactions,
        header=bytes(header),
        body=bytes(body),
    )


def _epoch(epoch: int, voter_set: bytes, proof: bytes) -> EpochChange:
    return EpochChange(epoch=epoch, voter_set=bytes(voter_set), proof=bytes(proof))
