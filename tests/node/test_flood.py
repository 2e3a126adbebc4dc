"""A flood of transactions: the pool keeps its bound, memory too, and blocks go on.

By default some thousand transactions; with `AGORA_TEST_SCALE=16` or more all 50,000, from 3,200
accounts with sixteen nonces each, which is more than twice what a pool holds.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from benchmarks.chain_nodes import Network, Submitter, open_network_of, transfers
from consensus import params
from consensus.genesis import Genesis
from consensus.transaction import decode_transaction
from node import chain
from node.data_directory import DataDirectory
from node.errors import TransactionRefused
from node.mempool import BYTES_MAX, NONCE_WINDOW, TRANSACTIONS_MAX, Mempool
from node.report import Progress
from p2p.identity import Identity
from p2p.stack import open_network

from .network_of_nodes import height_of_all, open_village

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
TRANSACTIONS = min(50_000, 3_200 * SCALE)
PAYERS = -(-TRANSACTIONS // NONCE_WINDOW)
EXPIRY = 500
LONG_EPOCHS = dataclasses.replace(params.LOCAL, blocks_per_epoch=600)
"""Thousands of accounts: the mechanism is not what is measured."""
POOL_MAX = 100
MEMORY_MB_MAX = 3 * BYTES_MAX / 1e6 + 64
"""What a flood may add: the full pool three times over (encoded, decoded, in gossip's cache), and
the seen-cache with the memory of checked signatures."""


async def test_full_pools_keep_their_bound_and_blocks_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "Mempool", partial(Mempool, transactions_max=POOL_MAX))
    async with open_village(tmp_path, 3, payers=40) as village:
        nodes = await village.enter_all(3)
        await height_of_all(nodes, 2)
        before, refused = nodes[0].state.height, 0
        for number, encoded in enumerate(flood(village.genesis, payers=40, each=12)):
            try:
                nodes[number % 3].chain.admit(decode_transaction(encoded))
            except TransactionRefused:
                refused += 1
            assert all(len(node.chain.mempool) <= POOL_MAX for node in nodes)
            if number % POOL_MAX == 0:
                await trio.lowlevel.checkpoint()
        assert refused > 0
        await height_of_all(nodes, before + 3)
        assert all(len(node.chain.mempool) <= POOL_MAX for node in nodes)
        assert all(node.chain.transactions > 0 for node in nodes)


async def test_several_transactions_in_one_request(tmp_path: Path) -> None:
    async with open_village(tmp_path, 1, payers=4) as village:
        node = await village.enter(0)
        await height_of_all([node], 1)
        batch = list(flood(village.genesis, payers=4, each=2))
        submitter = Submitter(DataDirectory(tmp_path / "node-0"))
        results = await trio.to_thread.run_sync(submitter.submit, [*batch, batch[0], b"nonsense"])
        submitter.close()
        assert results[: len(batch)] == [None] * len(batch)
        assert results[len(batch)] is not None
        assert results[-1] is not None
        while node.chain.transactions < len(batch):
            await node.wait_for_block()


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(120 + 20 * SCALE)
async def test_a_stranger_floods_a_real_node(tmp_path: Path) -> None:
    async with open_network_of(
        tmp_path, voters=1, accounts=PAYERS, parameters=LONG_EPOCHS
    ) as network:
        node = await network.start(0)
        await network.height_of_all(3, timeout_s=60)
        before_mb, begun_at = node.rss_mb(), node.height
        topic = f"/agora/{network.genesis.chain_id.hex()[:8]}/tx/1"
        async with open_network(Identity(b"f" * 32)) as stranger:
            assert node.started is not None
            await stranger.connect(node.started.addresses[0])
            async with stranger.subscribe(topic):
                for encoded in flood(network.genesis, payers=PAYERS, each=NONCE_WINDOW):
                    await stranger.publish(topic, encoded)
                held = await settled(network)
        assert held.mempool <= TRANSACTIONS_MAX
        assert node.rss_mb() - before_mb < MEMORY_MB_MAX
        flooded_at = node.height
        assert flooded_at > begun_at
        await network.height_of_all(flooded_at + 3, timeout_s=20)
        assert node.latest is not None
        # It is used: transactions of the flood stand in blocks.
        assert node.latest.transactions > 0
        print(
            json.dumps(
                {
                    "offered": TRANSACTIONS,
                    "held": held.mempool,
                    "final": node.latest.transactions,
                    "grown_mb": round(node.rss_mb() - before_mb, 1),
                    "blocks": node.height - begun_at,
                }
            )
        )


def flood(genesis: Genesis, *, payers: int, each: int) -> Iterator[bytes]:
    """Transfers of all payers, nonce by nonce."""
    chain_id = genesis.chain_id
    queues = [transfers(chain_id, payer=payer, each=each, expiry=EXPIRY) for payer in range(payers)]
    for _ in range(each):
        for queue in queues:
            yield next(queue)


async def settled(network: Network) -> Progress:
    """The report with the fullest pool, once blocks have come for two seconds."""
    node = network.nodes[0]
    fullest = node.latest
    with trio.move_on_after(2.0):
        while True:
            if node.latest is not None and (
                fullest is None or node.latest.mempool > fullest.mempool
            ):
                fullest = node.latest
            await trio.sleep(0.05)
    assert fullest is not None
    return fullest
