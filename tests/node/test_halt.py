"""Safe halt: without more than two thirds of the power nothing becomes final, and then it does.

And for power that never returns: the last final state goes on under a new chain id, with the
voters that are left.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from benchmarks.chain_nodes import Network, open_network_of
from consensus.genesis import Genesis
from node.chain_view import read_chain
from node.command.genesis import continued
from node.data_directory import DataDirectory, claim
from node.errors import UsageError
from node.genesis_file import save_genesis
from p2p.identity import Identity

from .network_of_nodes import Village, height_of_all, open_village

VIEW_TIMEOUT_S = 1.0
RESUMES_WITHIN_S = 8 * VIEW_TIMEOUT_S
"""ordering.md: without a quorum no view ends, so no timeout grows: final within 8 T0 of calm."""
SILENCE_S = 3 * VIEW_TIMEOUT_S


async def test_half_the_power_makes_no_block_and_all_of_it_goes_on(tmp_path: Path) -> None:
    async with open_village(tmp_path, 4) as village:
        nodes = await village.enter_all(2)
        join = {"bootstrap": (nodes[0].network.addresses[0],)}
        async with village.open(2, **join) as third, village.open(3, **join) as fourth:
            await height_of_all([*nodes, third, fourth], 3)
        before = max(node.state.height for node in nodes)
        await trio.sleep(SILENCE_S)
        halted_at = max(node.state.height for node in nodes)
        # What was notarized when the others left may still have become final.
        assert halted_at <= before + 1
        back = [await village.enter(index, **join) for index in (2, 3)]
        with trio.fail_after(RESUMES_WITHIN_S):
            await height_of_all([*nodes, *back], halted_at + 1)
        await height_of_all([*nodes, *back], halted_at + 6)


async def test_three_of_four_resume_without_the_fourth(tmp_path: Path) -> None:
    async with open_village(tmp_path, 4) as village:
        nodes = await village.enter_all(2)
        join = {"bootstrap": (nodes[0].network.addresses[0],)}
        async with village.open(2, **join) as third, village.open(3, **join) as fourth:
            await height_of_all([*nodes, third, fourth], 3)
        halted_at = max(node.state.height for node in nodes) + 1
        back = await village.enter(2, **join)
        await height_of_all([*nodes, back], halted_at + 6)


async def test_the_voters_that_are_left_go_on_under_a_new_chain_id(tmp_path: Path) -> None:
    async with open_village(tmp_path / "old", 4) as village:
        await height_of_all(await village.enter_all(4), 7)
    view = read_chain(DataDirectory(tmp_path / "old" / "node-0"))
    left = [str(identity_of(index).peer_id) for index in (0, 1)]
    made = continued(view, voters=left)
    assert bytes(made.prev_chain_id) == village.genesis.chain_id
    assert made.chain_id not in {village.genesis.chain_id}
    assert [account.bond is not None for account in made.accounts] == [True, True, False, False]
    assert sum(account.stake for account in made.accounts) + made.pool == view.state.issued
    async with open_village(tmp_path / "new", 4) as again:
        move(again, made)
        nodes = await again.enter_all(2)
        assert {node.chain_id for node in nodes} == {made.chain_id}
        await height_of_all(nodes, 7)
        # The others still have their accounts, and may come back.
        third = await again.enter(2, bootstrap=(nodes[0].network.addresses[0],))
        assert third.state.uid_of_owner[third.owner] == 2
        await height_of_all([third], 8)


async def test_a_continued_chain_needs_voters_that_it_knows(tmp_path: Path) -> None:
    async with open_village(tmp_path, 1) as village:
        await height_of_all([await village.enter(0)], 2)
    view = read_chain(DataDirectory(tmp_path / "node-0"))
    with pytest.raises(UsageError, match="the chain has no peer"):
        continued(view, voters=[str(identity_of(9).peer_id)])
    with pytest.raises(UsageError, match="not a peer id"):
        continued(view, voters=["nobody"])
    assert continued(view).accounts[0].bond is not None


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_real_voters_killed_and_started_again(tmp_path: Path) -> None:
    async with open_network_of(tmp_path, voters=4) as network:
        for index in range(4):
            await network.start(index)
        await network.height_of_all(4, timeout_s=30)
        for index in (2, 3):
            await network.stop(index, kill=True)
        before = highest(network)
        await trio.sleep(SILENCE_S)
        halted_at = highest(network)
        assert halted_at <= before + 1
        for index in (2, 3):
            await network.start(index)
        await network.height_of_all(halted_at + 1, timeout_s=2 * RESUMES_WITHIN_S)
        await network.height_of_all(halted_at + 5, timeout_s=30)
    roots = {(each.height, each.state_root) for node in network.all_nodes for each in node.finals}
    assert len(roots) == len({height for height, _ in roots})


def move(village: Village, genesis: Genesis) -> None:
    """Let the founders' directories begin the chain of another genesis."""
    village.genesis = genesis
    for index in range(4):
        path = village.path / f"node-{index}"
        with claim(path) as directory:
            directory.genesis.unlink()
            save_genesis(directory.genesis, genesis)


def identity_of(index: int) -> Identity:
    """The peer identity of founder `index` of a village."""
    return Identity(bytes([index + 1]) * 32)


def highest(network: Network) -> int:
    return max(node.height for node in network.nodes.values())
