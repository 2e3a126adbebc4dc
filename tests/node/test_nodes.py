"""Nodes together: they agree, survive loss and partition, take in strangers and refuse others."""

from pathlib import Path

import numpy as np
import pytest

from consensus.transaction import Transfer
from consensus.types import AccountId, Amount
from node.errors import ChainMismatch, TransactionRefused
from node.genesis_file import load_genesis
from node.node import Node
from node.report import Finalized
from node.sync.genesis import fetch_genesis
from tensorwire import Modality

from .network_of_nodes import Village, height_of_all, open_village, until


def roots(village: Village, index: int) -> dict[int, str]:
    return {
        report.height: report.state_root
        for report in village.reports[index]
        if isinstance(report, Finalized)
    }


def agree(village: Village, *indices: int) -> bool:
    chains = [roots(village, index) for index in indices]
    shared = set(chains[0]).intersection(*chains)
    return bool(shared) and all(
        chain[height] == chains[0][height] for chain in chains for height in shared
    )


async def test_a_lone_node_makes_blocks(tmp_path: Path) -> None:
    async with open_village(tmp_path, 1) as village:
        node = await village.enter(0)
        await height_of_all([node], 12)
        assert node.state.epoch == 2


async def test_four_nodes_agree_and_serve_each_other(tmp_path: Path) -> None:
    async with open_village(tmp_path, 4) as village:
        nodes = await village.enter_all(4)
        await height_of_all(nodes, 12)
        assert agree(village, 0, 1, 2, 3)
        tokens = np.arange(6, dtype=np.int64).reshape(2, 3)
        answer = await nodes[1].forward(nodes[3].peer_id, Modality.TEXT, tokens)
        assert answer.shape == (2, 3, 16)


async def test_a_transfer_reaches_every_ledger(tmp_path: Path) -> None:
    async with open_village(tmp_path, 4) as village:
        nodes = await village.enter_all(4)
        await height_of_all(nodes, 1)
        recipient = AccountId(nodes[2].owner)
        await nodes[0].submit(Transfer(recipient=recipient, amount=Amount(5)))

        def arrived(node: Node) -> bool:
            return node.state.owner_nonce[node.state.uid_of_owner[nodes[0].owner]] == 1

        for node in nodes:
            await until(node, arrived)
        with pytest.raises(TransactionRefused, match="recipient-self"):
            await nodes[0].submit(Transfer(recipient=nodes[0].owner, amount=Amount(5)))


async def test_the_others_go_on_without_one_and_take_it_back(tmp_path: Path) -> None:
    async with open_village(tmp_path, 4) as village:
        nodes = await village.enter_all(3)
        async with village.open(3, bootstrap=(nodes[0].network.addresses[0],)) as fourth:
            await height_of_all([*nodes, fourth], 3)
        left_at = nodes[0].state.height
        await height_of_all(nodes, left_at + 8)
        back = await village.enter(3, bootstrap=(nodes[0].network.addresses[0],))
        await height_of_all([back], left_at + 8)
        assert agree(village, 0, 1, 2, 3)


async def test_a_partition_halts_the_minority_and_heals(tmp_path: Path) -> None:
    async with open_village(tmp_path, 4) as village:
        nodes = await village.enter_all(4)
        await height_of_all(nodes, 2)
        village.hub.partition([node.peer_id for node in nodes[:3]], [nodes[3].peer_id])
        cut_at = nodes[3].state.height
        await height_of_all(nodes[:3], cut_at + 6)
        assert nodes[3].state.height <= cut_at + 2
        village.hub.heal()
        await height_of_all([nodes[3]], cut_at + 6)
        assert agree(village, 0, 1, 2, 3)


async def test_a_stranger_joins_with_an_address_subscribes_and_is_told_the_chain(
    tmp_path: Path,
) -> None:
    async with open_village(tmp_path, 4) as village:
        nodes = await village.enter_all(4)
        await height_of_all(nodes, 7)
        address = nodes[0].network.addresses[0]
        joined = await village.enter(9, bootstrap=(address,))
        genesis = load_genesis(tmp_path / "node-9" / "genesis.json")
        assert genesis.chain_id == nodes[0].chain_id
        await until(joined, lambda node: node.owner in node.state.uid_of_owner)
        await height_of_all([joined], nodes[0].state.height)
        assert agree(village, 0, 9)


async def test_a_wanted_chain_id_that_is_not_the_peers_is_refused(tmp_path: Path) -> None:
    async with open_village(tmp_path, 1) as village:
        node = await village.enter(0)
        with pytest.raises(ChainMismatch, match="not 00"):
            await fetch_genesis(
                node.network.addresses, chain_id="00" * 32, opener=village.hub.open_network
            )


async def test_nodes_of_two_chains_part_with_a_goodbye(tmp_path: Path) -> None:
    async with open_village(tmp_path / "a", 1) as village:
        node = await village.enter(0)
        async with open_village(tmp_path / "b", 2) as other:
            other.hub = village.hub
            stranger = await other.enter(1, bootstrap=(node.network.addresses[0],))
            counted = stranger.chain.greeter.counters
            while not counted["peers_of_other_chains"] or node.peer_id in stranger.network.peers:
                await node.wait_for_block()
            assert node.chain.greeter.heights() == {}
