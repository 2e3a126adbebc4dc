"""The pieces of one snapshot, from several peers at once, kept on disk as they come.

Rule: a piece is checked against the certified root before it is kept; whoever sends a wrong one is
banned and its piece asked elsewhere. A piece that a slow peer keeps back is asked of an idle one as
well, and the first answer counts. What was kept before a restart is checked again and not asked for
twice.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import trio

from consensus.errors import DecodeError
from consensus.types import Digest, Height
from node.errors import CallError, JoinError, Overloaded, RemoteError
from p2p.identity import PeerId
from p2p.network import Network

from .catch_up import BUSY_PAUSE_S
from .client import ask
from .messages import Question, Request
from .snapshot import Piece, read_piece

logger = logging.getLogger("agora.sync")

PEERS_AT_ONCE: Final = 4
FAILURES_PER_PEER_MAX: Final = 3  # then it is not asked any more
PATIENCE_S: Final = 2.0  # a piece of 1 MiB at 4 Mbit/s; then an idle peer is asked for it too
IDLE_S: Final = 0.05


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
        self._asked_at: dict[int, float] = {}  # pieces under way, by when they were last asked for
        self._total: int | None = None

    async def run(self) -> list[tuple[bytes, bytes]]:
        """The state's entries, in order. Raises JoinError when no peer can complete it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        await trio.to_thread.run_sync(self._load)
        if self._total is None:
            self._missing = [0]
        peers = iter(self._peers)  # shared: whoever gives up makes room for the next
        if not self._is_complete:
            async with trio.open_nursery() as nursery:
                for _ in range(PEERS_AT_ONCE):
                    nursery.start_soon(self._work_through, peers, nursery.cancel_scope)
        if not self._is_complete:
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

    @property
    def _is_complete(self) -> bool:
        return self._total is not None and len(self._pieces) >= self._total

    async def _work_through(self, peers: Iterator[PeerId], scope: trio.CancelScope) -> None:
        """One peer after another, until the snapshot is complete; then nobody is waited for."""
        for peer in peers:
            await self._work(peer)
            if self._is_complete:
                scope.cancel()
                return

    async def _work(self, peer: PeerId) -> None:
        failures = 0
        while failures < FAILURES_PER_PEER_MAX and not self._is_complete:
            number = self._next()
            if number is None:
                await trio.sleep(IDLE_S)
                continue
            self._asked_at[number] = trio.current_time()
            try:
                await self._fetch(peer, number)
            except CallError as error:
                failures += 1
                logger.warning("snapshot piece %d: %s", number, error)
                if number not in self._pieces and number not in self._missing:
                    self._missing.append(number)
                if isinstance(error, RemoteError):
                    self._network.ban(peer)
                    return
                if isinstance(error, Overloaded):
                    await trio.sleep(BUSY_PAUSE_S)

    def _next(self) -> int | None:
        """A piece that nobody was asked for, else one that somebody is slow with."""
        if self._missing:
            return self._missing.pop()
        slow_s = trio.current_time() - PATIENCE_S
        late = (n for n, at in self._asked_at.items() if at < slow_s and n not in self._pieces)
        return next(late, None)

    async def _fetch(self, peer: PeerId, number: int) -> None:
        request = Request(question=Question.SNAPSHOT_PIECE, number=self._height, first=number)
        items = await ask(self._network, peer, request)
        if len(items) != 1:
            raise RemoteError(f"peer {peer} lacks piece {number} of a snapshot that it offers")
        try:
            piece = await trio.to_thread.run_sync(read_piece, items[0], number, self._root)
        except DecodeError as error:
            raise RemoteError(f"peer {peer}: {error}") from error
        if number in self._pieces:
            return  # another peer was faster
        self._keep(number, piece)
        await trio.to_thread.run_sync(self._save, number, items[0])

    def _save(self, number: int, data: bytes) -> None:
        part = self._directory / f"part-{number}"
        part.write_bytes(data)
        part.replace(self._directory / f"piece-{number}")
