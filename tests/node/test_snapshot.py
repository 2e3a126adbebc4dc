"""Snapshots: pieces prove themselves, a joiner starts from one, and liars cost only time."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from consensus.entries import entries_of, state_of_entries
from consensus.errors import DecodeError
from consensus.genesis import genesis_state
from consensus.types import Height
from node.errors import JoinError
from node.genesis_file import Allocation, local_genesis
from node.report import Notice
from node.sync import download as download_module
from node.sync import fast_forward, snapshot
from node.sync.client import ANSWER_DEADLINE_S, SYNC_PROTOCOL
from node.sync.download import Download
from node.sync.messages import Question, Request
from node.sync.server import SyncServer
from node.sync.snapshot import cut, read_piece
from p2p.identity import Identity
from p2p.memory import MemoryHub, open_hub
from p2p.network import Network

from .network_of_nodes import height_of_all, open_village, until

STATE = genesis_state(
    local_genesis(
        [Allocation(owner=bytes([1, i]) * 16, peer=bytes([2, i]) * 16) for i in range(40)],
        time_ms=1,
    )
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces of a small state."""
    monkeypatch.setattr(snapshot, "PIECE_LEAVES", 50)


def test_the_pieces_of_a_state_make_it_again() -> None:
    pieces = list(cut(STATE))
    assert len(pieces) > 4
    read = [read_piece(data, number, STATE.root) for number, data in enumerate(pieces)]
    entries = [entry for piece in read for entry in piece.entries]
    assert entries == list(entries_of(STATE))
    assert state_of_entries(entries).root == STATE.root


@given(position=st.integers(0, 10**6), change=st.integers(1, 255), number=st.integers(0, 3))
def test_a_changed_piece_is_refused(position: int, change: int, number: int) -> None:
    data = bytearray(list(cut(STATE))[number])
    data[position % len(data)] ^= change
    with pytest.raises(DecodeError):
        read_piece(bytes(data), number, STATE.root)


def test_a_piece_in_the_place_of_another_is_refused() -> None:
    pieces = list(cut(STATE))
    with pytest.raises(DecodeError, match="not piece 1"):
        read_piece(pieces[2], 1, STATE.root)


async def serve_pieces(
    hub: MemoryHub, nursery: trio.Nursery, seed: int, lies: bool, stuck: bool = False
) -> Network:
    """A peer that serves the state's pieces, or spoils every one of them, or keeps them back."""
    ready = trio.Event()
    opened: list[Network] = []

    async def answer(request: Request) -> Sequence[bytes]:
        if stuck:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        data = bytearray(list(cut(STATE))[request.first])
        if lies:
            data[-1] ^= 1
        return [bytes(data)]

    async def run() -> None:
        identity = Identity(bytes([seed]) * 32)
        async with hub.open_network(identity, listen=["/ip4/127.0.0.1/tcp/0"]) as network:
            await network.serve(SYNC_PROTOCOL, SyncServer({Question.SNAPSHOT_PIECE: answer}).handle)
            opened.append(network)
            ready.set()
            await trio.sleep_forever()

    nursery.start_soon(run)
    await ready.wait()
    return opened[0]


async def download(tmp_path: Path, liars: int, honest: int, stuck: int = 0) -> int:
    """How many entries came, with so many servers of each kind."""
    received = 0
    with trio.fail_after(30):
        async with open_hub(seed=5) as hub, trio.open_nursery() as nursery:
            servers = [
                await serve_pieces(
                    hub, nursery, seed + 10, lies=seed < liars, stuck=liars <= seed < liars + stuck
                )
                for seed in range(liars + stuck + honest)
            ]
            async with hub.open_network(Identity(b"j" * 32)) as network:
                job = Download(
                    network,
                    height=Height(40),
                    root=STATE.root,
                    directory=tmp_path / "snapshot",
                    peers=[await network.connect(server.addresses[0]) for server in servers],
                    observe=lambda _done, _total: None,
                )
                received = len(await job.run())
            nursery.cancel_scope.cancel()
    return received


async def test_liars_are_found_and_the_honest_complete_it(tmp_path: Path) -> None:
    entries = await download(tmp_path, liars=2, honest=1)
    assert entries == len(list(entries_of(STATE)))


async def test_a_peer_that_keeps_pieces_back_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "PATIENCE_S", 0.05)
    with trio.fail_after(ANSWER_DEADLINE_S / 2):
        entries = await download(tmp_path, liars=0, honest=1, stuck=2)
    assert entries == len(list(entries_of(STATE)))


async def test_honest_peers_beyond_the_first_four_are_asked(tmp_path: Path) -> None:
    entries = await download(tmp_path, liars=5, honest=1)
    assert entries == len(list(entries_of(STATE)))


async def test_liars_alone_give_a_clear_error_and_kept_pieces_are_used_again(
    tmp_path: Path,
) -> None:
    with pytest.raises(JoinError, match="no peer could complete"):
        await download(tmp_path, liars=1, honest=0)
    directory = tmp_path / "snapshot"
    for number, data in enumerate(cut(STATE)):
        (directory / f"piece-{number}").write_bytes(data)
    # Every piece is on disk: nobody needs to be asked.
    entries = await download(tmp_path, liars=0, honest=0)
    assert entries == len(list(entries_of(STATE)))


async def test_a_joiner_far_behind_starts_from_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_forward, "BEHIND_MIN", 30)
    async with open_village(tmp_path, 1) as village:
        node = await village.enter(0)
        await height_of_all([node], 44)
        joined = await village.enter(9, bootstrap=(node.network.addresses[0],))
        await until(joined, lambda each: each.state.height >= 50)
        notices = [r.text for r in village.reports[9] if isinstance(r, Notice)]
        assert any(text.startswith("snapshot:") for text in notices)
        assert joined.state.height >= 50


async def test_with_full_sync_every_block_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_forward, "BEHIND_MIN", 30)
    async with open_village(tmp_path, 1) as village:
        node = await village.enter(0)
        await height_of_all([node], 44)
        joined = await village.enter(9, bootstrap=(node.network.addresses[0],), full_sync=True)
        await until(joined, lambda each: each.state.height >= 46)
        notices = [r.text for r in village.reports[9] if isinstance(r, Notice)]
        assert not any(text.startswith("snapshot:") for text in notices)
