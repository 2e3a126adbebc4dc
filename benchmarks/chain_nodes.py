"""Real node processes for the benchmark of the chain: started, watched, loaded, killed.

The rule: what is measured is the product as anybody starts it (`python -m node run`), on loopback,
with the `local` preset and without a model; a figure comes from a node's own reports, from its
database, or from the kernel's count of its processor time and memory.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio
from blake3 import blake3

from consensus import params
from consensus.block import Header
from consensus.crypto import Ed25519Signer
from consensus.genesis import Genesis
from consensus.params import Parameters
from consensus.transaction import Transfer
from consensus.types import AccountId, Amount, ChainId, Height, Nonce
from consensus.wallet import Draft
from node.data_directory import DataDirectory, claim
from node.genesis_file import Allocation, local_genesis, save_genesis
from node.report import Finalized, Progress, Report, Started
from node.store import open_chain_reader
from node.testnet.process import NODE_COMMAND, NodeProcess, start_node
from p2p.identity import Identity

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
LOOK_S: Final = 0.02
"""Between two looks at what nodes have reported."""
LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
CLOCK_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
BATCH_MAX: Final = 128
"""Transactions in one request to a node's interface: below its limit of 64 KiB."""


@dataclass(slots=True)
class RunningNode:
    """One process and what it has reported."""

    index: int
    process: NodeProcess
    started: Started | None = None
    finals: list[Finalized] = field(default_factory=list)
    latest: Progress | None = None

    @property
    def height(self) -> int:
        """The newest final height it reported."""
        return self.finals[-1].height if self.finals else 0

    def take(self, report: Report) -> None:
        """Keep what the benchmark looks at."""
        match report:
            case Started():
                self.started = report
            case Finalized():
                self.finals.append(report)
            case Progress():
                self.latest = report
            case _:
                pass

    def cpu_s(self) -> float:
        """Processor seconds used so far, by the kernel's count."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_S

    def rss_mb(self) -> float:
        """Memory resident now, in MB (10^6 bytes)."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


class Network:
    """Nodes of one genesis under one directory; made by `open_network_of`."""

    def __init__(self, path: Path, genesis: Genesis, nursery: trio.Nursery) -> None:
        self.path = path
        self.genesis = genesis
        self.nodes: dict[int, RunningNode] = {}
        self.all_nodes: list[RunningNode] = []
        self._nursery = nursery

    def directory(self, index: int) -> DataDirectory:
        """Where node `index` keeps its files."""
        return DataDirectory(self.path / f"node-{index}")

    async def start(
        self,
        index: int,
        *options: str,
        listen: str = LOOPBACK,
        command: Sequence[str] = NODE_COMMAND,
    ) -> RunningNode:
        """Start node `index`, joining through any node that runs; return when it listens."""
        helper = next((node.started for node in self.nodes.values() if node.started), None)
        join = [] if helper is None else ["--bootstrap", helper.addresses[0]]
        process = await start_node(
            index,
            [
                *("--data-dir", str(self.directory(index).path)),
                *("--genesis", str(self.path / "genesis.json")),
                *("--listen", listen, "--no-train", "--model", "none"),
                *join,
                *options,
            ],
            log=self.path / f"node-{index}.log",
            command=command,
        )
        node = self.nodes[index] = RunningNode(index, process)
        self.all_nodes.append(node)
        self._nursery.start_soon(self._watch, node)
        with trio.fail_after(START_TIMEOUT_S):
            while node.started is None:
                if process.process.returncode is not None:
                    raise RuntimeError(f"node {index} ended: {process.last_words()}")
                await trio.sleep(LOOK_S)
        return node

    async def stop(self, index: int, *, kill: bool = False) -> None:
        """End a node, in order or by SIGKILL, and wait until its process has gone."""
        node = self.nodes.pop(index)
        if kill:
            node.process.kill()
        else:
            node.process.ask_to_stop()
        with trio.move_on_after(STOP_TIMEOUT_S):
            await node.process.process.wait()
            return
        node.process.kill()
        await node.process.process.wait()

    async def height_of_all(self, height: int, *, timeout_s: float) -> None:
        """Return when every node has reported that height final. Raises trio.TooSlowError."""
        with trio.fail_after(timeout_s):
            while any(node.height < height for node in self.nodes.values()):  # noqa: ASYNC110 - another process
                await trio.sleep(LOOK_S)

    def proposed_ms(self, first: int, last: int) -> dict[int, int]:
        """When each block of these heights was proposed, by the leader's clock."""
        store = open_chain_reader(self.directory(min(self.nodes)).chain)
        try:
            blocks = store.blocks(first, count_max=last - first + 1, bytes_max=2**40)
        finally:
            store.close()
        return {block.height: Header.decode(block.header).time_ms for block in blocks}

    async def _watch(self, node: RunningNode) -> None:
        await node.process.watch(node.take)


@asynccontextmanager
async def open_network_of(
    path: Path, *, voters: int, accounts: int = 0, parameters: Parameters = params.LOCAL
) -> AsyncIterator[Network]:
    """A genesis with founders that vote and accounts that only pay; every node ends with it."""
    genesis = make_genesis(path, voters=voters, accounts=accounts, parameters=parameters)
    async with trio.open_nursery() as nursery:
        network = Network(path, genesis, nursery)
        try:
            yield network
        finally:
            with trio.CancelScope(shield=True):
                for index in list(network.nodes):
                    await network.stop(index)


def make_genesis(
    path: Path,
    *,
    voters: int,
    accounts: int,
    age_ms: int = 0,
    parameters: Parameters = params.LOCAL,
) -> Genesis:
    """Keys of the voters and a genesis as old as said, on disk; payers vote for nothing."""
    allocations = []
    for index in range(voters):
        with claim(path / f"node-{index}") as directory:
            peer, owner = Identity(_seed("peer", index)), Identity(_seed("owner", index))
            directory.create_keys(passphrase=None, peer=peer, owner=owner)
            allocations.append(Allocation(owner=owner.public_key, peer=peer.public_key))
    allocations += payer_allocations(accounts)
    genesis = local_genesis(allocations, parameters=parameters, time_ms=now_ms() - age_ms)
    save_genesis(path / "genesis.json", genesis)
    return genesis


def payer_allocations(count: int) -> list[Allocation]:
    """Accounts with stake that vote for nothing and run no node."""
    return [
        Allocation(
            owner=payer_signer(index).public_key,
            peer=Identity(_seed("payer peer", index)).public_key,
            bond=None,
        )
        for index in range(count)
    ]


def payer_signer(index: int) -> Ed25519Signer:
    """The owner key of a paying account."""
    return Ed25519Signer(_seed("payer", index))


def transfers(
    chain_id: ChainId, *, payer: int, each: int, expiry: int, fee: int = params.LOCAL.fee
) -> Iterator[bytes]:
    """So many signed transfers of one paying account, to its neighbour."""
    signer, recipient = payer_signer(payer), payer_signer(payer ^ 1)
    for nonce in range(each):
        draft = Draft(
            chain_id=chain_id,
            account=AccountId(signer.public_key),
            nonce=Nonce(nonce),
            expiry=Height(expiry),
            fee=Amount(fee),
            content=Transfer(recipient=AccountId(recipient.public_key), amount=Amount(1_000)),
        )
        yield draft.sign(signer).encoded


class Submitter:
    """One connection to a node's local interface, used from a worker thread."""

    def __init__(self, directory: DataDirectory) -> None:
        record = json.loads(directory.api.read_bytes())
        url = urllib.parse.urlsplit(record["address"])
        self._connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)
        self._headers = {"Authorization": f"Bearer {record['token']}"}

    def submit(self, batch: Sequence[bytes]) -> list[str | None]:
        """Hand over at most BATCH_MAX transactions; for each None, or why it was refused."""
        body = b"\n".join(each.hex().encode() for each in batch)
        self._connection.request("POST", "/submit", body=body, headers=self._headers)
        answer = json.loads(self._connection.getresponse().read())
        results = answer.get("results", [answer])
        return [result.get("error") for result in results]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def now_ms() -> int:
    """The wall clock, which headers and reports carry as well."""
    return time.time_ns() // 1_000_000


def _seed(kind: str, index: int) -> bytes:
    return blake3(f"benchmark {kind} {index}".encode()).digest()
