"""A network split in two: neither half makes blocks, and votes lost meanwhile come back.

In one process on the in-memory network always; between real processes in network namespaces where
those can be made. `AGORA_TEST_SCALE` above 1 keeps the split for the full thirty seconds.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from benchmarks.chain_nodes import Network, open_network_of
from node.testnet.process import NODE_COMMAND

from .namespaces import namespaces_work, open_machines
from .network_of_nodes import height_of_all, open_village

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
SPLIT_S = 30.0 if SCALE > 1 else 8.0
HEALED_WITHIN_S = 15.0
"""ordering.md: votes lost in a partition are recovered within this of healing."""


async def test_halves_make_no_blocks_and_go_on_together(tmp_path: Path) -> None:
    async with open_village(tmp_path, 4) as village:
        nodes = await village.enter_all(4)
        await height_of_all(nodes, 3)
        village.hub.partition(
            [node.peer_id for node in nodes[:2]], [node.peer_id for node in nodes[2:]]
        )
        before = max(node.state.height for node in nodes)
        # Real time, as the nodes' own clocks: three view timeouts and a standstill's resend.
        await trio.sleep(3.0)
        assert max(node.state.height for node in nodes) <= before + 2
        village.hub.heal()
        with trio.fail_after(HEALED_WITHIN_S):
            await height_of_all(nodes, before + 5)
        common = min(node.state.height for node in nodes)
        assert common >= before + 5


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_real_processes_split_in_two_and_healed(tmp_path: Path) -> None:
    if not namespaces_work():
        pytest.skip("network namespaces cannot be made here")
    with open_machines(4) as machines:
        async with open_network_of(tmp_path, voters=4) as network:
            for index in range(4):
                await network.start(
                    index,
                    listen=machines.address(index),
                    command=(*machines.command(index), *NODE_COMMAND),
                )
            await network.height_of_all(4, timeout_s=30)
            machines.split([2, 3])
            before = highest(network)
            await trio.sleep(SPLIT_S)
            assert highest(network) <= before + 2
            machines.join()
            began_s = trio.current_time()
            await network.height_of_all(before + 4, timeout_s=HEALED_WITHIN_S)
            print(f"healed within {trio.current_time() - began_s:.1f} s")
        assert roots_agree(network)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_one_process_cut_off_is_caught_up_again(tmp_path: Path) -> None:
    if not namespaces_work():
        pytest.skip("network namespaces cannot be made here")
    with open_machines(4) as machines:
        async with open_network_of(tmp_path, voters=4) as network:
            for index in range(4):
                await network.start(
                    index,
                    listen=machines.address(index),
                    command=(*machines.command(index), *NODE_COMMAND),
                )
            await network.height_of_all(4, timeout_s=30)
            machines.split([3])
            await trio.sleep(SPLIT_S)
            gone_on = highest(network)
            assert network.nodes[3].height < gone_on
            machines.join()
            await network.height_of_all(gone_on + 2, timeout_s=HEALED_WITHIN_S)
        assert roots_agree(network)


def highest(network: Network) -> int:
    return max(node.height for node in network.nodes.values())


def roots_agree(network: Network) -> bool:
    """Whether all nodes that ever ran reported the same roots at the same heights."""
    roots: dict[int, set[str]] = {}
    for node in network.all_nodes:
        for final in node.finals:
            roots.setdefault(final.height, set()).add(final.state_root)
    return bool(roots) and all(len(each) == 1 for each in roots.values())
