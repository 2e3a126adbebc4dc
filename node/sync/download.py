"""The pieces of one snapshot, from several peers at once, kept on disk as they come.

Rule: a piece is checked against the certified root before it is kept; whoever sends a wrong one is
banned and its piece asked elsewhere; a slow one costs its deadline. What was kept before a restart
is checked again and not asked for twice.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from consensus.errors import DecodeError
from consensus.types import Digest, Height
from node.errors import CallError, JoinError, RemoteError
from p2p.identity import PeerId
from p2p.network import Network

from .client import ask
from .messages import Question, Request
from .snapshot import PIECES_MAX, Piece, read_piece

logger = logging.getLogger("agora.sync")

PEERS_AT_ONCE: Final = 4
FAILURES_PER_PEER_MAX: Final = 3  # then it is not asked any more


class Download:
    """One snapshot: its pieces under `directory`, from `peers`; `observe(done, of)` follows it."""

    def __init__(
        self,
        network: Network,
        *,
        height: Height,
        root: Digest,
        directory: Path,
        peers: list[PeerId],
        observe: Callable[[int, int], None],
    ) -> None:
        self._network = network
        self._height = height
        self._root = root
        self._directory = directory
        self._peers = peers
        self._observe = observe
        self._pieces: dict[int, Piece] = {}
        self._missing: list[int] = []
        self._total: int | None = None

    async def run(self) -> list[tuple[bytes, bytes]]:
        """The state's entries, in order. Raises JoinError when no peer can complete it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        await trio.to_thread.run_sync(self._load)
        if self._total is None:
            self._missing = [0]
        async with trio.open_nursery() as nursery:
            for peer in self._peers[:PEERS_AT_ONCE]:
                nursery.start_soon(self._work, peer)
        if self._total is None or len(self._pieces) < self._total:
            raise JoinError(f"no peer could complete the snapshot at height {self._height}")
        return [entry for number in sorted(self._pieces) for entry in self._pieces[number].entries]

    def discard(self) -> None:
        """Forget what was kept: the snapshot is installed, or useless."""
        for path in self._directory.glob("piece-*"):
            path.unlink(missing_ok=True)
        self._directory.rmdir()

    def _load(self) -> None:
        """Take over pieces of an earlier run."""
        for path in sorted(self._directory.glob("piece-*")):
            try:
                number = int(path.name.removeprefix("piece-"))
                self._keep(number, read_piece(path.read_bytes(), number, self._root))
            except (DecodeError, ValueError):
                path.unlink(missing_ok=True)  # of another snapshot, or cut short

    def _keep(self, number: int, piece: Piece) -> None:
        self._pieces[number] = piece
        if self._total is None:
            self._total = piece.pieces
            self._missing = list(range(self._total - 1, -1, -1))
        if number in self._missing:
            self._missing.remove(number)
        self._observe(len(self._pieces), self._total)

    async def _work(self, peer: PeerId) -> None:
        failures = 0
        while failures < FAILURES_PER_PEER_MAX:
            if not self._missing:
                # The first piece is under way elsewhere, and says how many there are.
                if self._total is not None or len(self._pieces) >= PIECES_MAX:
                    return
                await trio.sleep(0.05)
                continue
            number = self._missing.pop()
            try:
                await self._fetch(peer, number)
            except CallError as error:
                failures += 1
                self._missing.append(number)
                logger.warning("snapshot piece %d: %s", number, error)
                if isinstance(error, RemoteError):
                    self._network.ban(peer)
                    return

    async def _fetch(self, peer: PeerId, number: int) -> None:
        request = Request(question=Question.SNAPSHOT_PIECE, number=self._height, first=number)
        items = await ask(self._network, peer, request)
        if len(items) != 1:
            raise RemoteError(f"peer {peer} lacks piece {number} of a snapshot that it offers")
        try:
            piece = await trio.to_thread.run_sync(read_piece, items[0], number, self._root)
        except DecodeError as error:
            raise RemoteError(f"peer {peer}: {error}") from error
        await trio.to_thread.run_sync(self._save, number, items[0])
        self._keep(number, piece)

    def _save(self, number: int, data: bytes) -> None:
        part = self._directory / f"part-{number}"
        part.write_bytes(data)
        part.replace(self._directory / f"piece-{number}")
