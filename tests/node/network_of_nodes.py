"""Whole nodes in one process on the in-memory network, with a genesis of their own."""

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from benchmarks.chain_nodes import payer_allocations
from consensus import params
from consensus.genesis import Genesis
from node.config import Config
from node.data_directory import claim
from node.genesis_file import Allocation, local_genesis, save_genesis
from node.node import Node, open_node
from node.report import Report
from p2p.identity import Identity
from p2p.memory import MemoryHub, open_hub

PARAMETERS = dataclasses.replace(params.LOCAL, block_interval_ms=100, view_timeout_ms=1_000)
DEADLINE_S = 60


@dataclass
class Village:
    """Founders that vote, on one hub; anybody may join."""

    hub: MemoryHub
    path: Path
    genesis: Genesis
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    reports: dict[int, list[Report]] = field(default_factory=dict)

    def config(self, index: int, **options: object) -> Config:
        settings: dict[str, object] = {"data_dir": self.path / f"node-{index}", "model": "test"}
        return Config.local(**{**settings, **options})

    def open(self, index: int, **options: object):  # type: ignore[no-untyped-def]
        """The node of founder `index`, as a context manager."""
        reports = self.reports.setdefault(index, [])
        return open_node(
            self.config(index, **options), report=reports.append, opener=self.hub.open_network
        )

    async def enter(self, index: int, **options: object) -> Node:
        """As `open`; closed with the village."""
        node: Node = await self.stack.enter_async_context(self.open(index, **options))
        return node

    async def enter_all(self, count: int) -> list[Node]:
        """Founder 0, and others that know only its address."""
        first = await self.enter(0)
        join = {"bootstrap": (first.network.addresses[0],)}
        return [first, *[await self.enter(index, **join) for index in range(1, count)]]


@asynccontextmanager
async def open_village(
    path: Path, founders: int, *, payers: int = 0, parameters: params.Parameters = PARAMETERS
) -> AsyncIterator[Village]:
    """A genesis with that many founders, their keys on disk, nobody running yet; and payers."""
    accounts = []
    for index in range(founders):
        with claim(path / f"node-{index}") as directory:
            peer = Identity(bytes([index + 1]) * 32)
            owner = Identity(bytes([index + 101]) * 32)
            directory.create_keys(passphrase=None, peer=peer, owner=owner)
            accounts.append(Allocation(owner=owner.public_key, peer=peer.public_key))
    accounts += payer_allocations(payers)
    genesis = local_genesis(accounts, parameters=parameters)
    for index in range(founders):
        save_genesis(path / f"node-{index}" / "genesis.json", genesis)
    with trio.fail_after(DEADLINE_S):
        async with open_hub(seed=3) as hub:
            village = Village(hub, path, genesis)
            async with village.stack:
                yield village


async def until(node: Node, reached: Callable[[Node], bool]) -> None:
    """Return when `reached(node)` holds, looking after every final block."""
    while not reached(node):
        await node.wait_for_block()


async def height_of_all(nodes: list[Node], height: int) -> None:
    """Return when every node has that final height."""
    for node in nodes:
        await until(node, lambda each: each.state.height >= height)
