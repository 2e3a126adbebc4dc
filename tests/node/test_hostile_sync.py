"""A joiner among servers that lie, never end, or drip: they cost time, the honest one gives all.

Each kind of liar greets as a member of the chain, further ahead than anybody, so that it is asked
first; each is one small class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from consensus.engine_message import EpochProof, decode_message, encode_message
from consensus.types import Height, PeerKey
from consensus.vote import Voter, VoterSet
from node.node import Node
from node.report import Notice
from node.sync import client, download, fast_forward
from node.sync.answers import answerers
from node.sync.client import SYNC_PROTOCOL
from node.sync.frames import LENGTH_BYTES, read_frame
from node.sync.greeter import Greeter
from node.sync.handshake import STATUS_PROTOCOL, answer_greeting
from node.sync.messages import (
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    Outcome,
    Question,
    Reply,
    Request,
    Status,
)
from node.sync.server import SyncServer
from p2p.errors import NetworkError
from p2p.identity import Identity, PeerId
from p2p.network import Network, Stream

from .network_of_nodes import PARAMETERS, Village, height_of_all, open_village, until

QUICK = dataclasses.replace(PARAMETERS, block_interval_ms=50)
FAR_AHEAD = 10**6
JOINED_WITHIN_S = 25.0


class Liar:
    """Answers as the honest node does, but for what a subclass spoils."""

    def __init__(self, honest: Node) -> None:
        self.chain = honest.chain
        store = honest.chain._recovered.store
        self._answerers = dict(answerers(b"", store, None))
        self.asked = 0

    async def greet(self, stream: Stream) -> None:
        own = dataclasses.replace(self.chain._status(), height=Height(FAR_AHEAD))
        await answer_greeting(stream, own, lambda _status: None)

    async def serve(self, stream: Stream) -> None:
        self.asked += 1
        await SyncServer({kind: self._spoiled(kind) for kind in self._answerers}).handle(stream)

    def spoil(self, question: Question, items: list[bytes]) -> list[bytes]:
        return items

    def _spoiled(self, kind: Question):  # type: ignore[no-untyped-def]
        async def answer(request: Request) -> Sequence[bytes]:
            return self.spoil(kind, list(await self._answerers[kind](request)))

        return answer


class WrongChunks(Liar):
    """The pieces of its snapshots have one bit changed."""

    def spoil(self, question: Question, items: list[bytes]) -> list[bytes]:
        if question is not Question.SNAPSHOT_PIECE:
            return items
        return [item[:-1] + bytes([item[-1] ^ 1]) for item in items]


class FalseVoters(Liar):
    """The proofs of epochs name a set of its own."""

    def spoil(self, question: Question, items: list[bytes]) -> list[bytes]:
        if question is not Question.EPOCH_PROOFS:
            return items
        return [encode_message(self._falsified(decode_message(item))) for item in items]

    def _falsified(self, proof: object) -> EpochProof:
        assert isinstance(proof, EpochProof)
        own = Identity(b"false voter".ljust(32))
        voter = Voter(
            account=proof.next_voters.voters[0].account,
            peer_key=PeerKey(own.public_key),
            power=10**6,
        )
        voters = VoterSet(epoch=proof.next_voters.epoch, voters=(voter,))
        return dataclasses.replace(proof, next_voters=voters)


class Silent(Liar):
    """Knows nothing of what it announces."""

    def spoil(self, question: Question, items: list[bytes]) -> list[bytes]:
        return []


class WrongBlocks(Liar):
    """The bodies of its blocks are empty, and its certificates those of others."""

    def spoil(self, question: Question, items: list[bytes]) -> list[bytes]:
        return items[:1] * len(items)


class Endless(Liar):
    """Announces a reply of the greatest length and sends zeros for ever; or a greater one."""

    async def serve(self, stream: Stream) -> None:
        self.asked += 1
        await read_frame(stream, bytes_max=REQUEST_BYTES_MAX)
        length = REPLY_BYTES_MAX if self.asked % 2 else 2**32 - 1
        await stream.send_all(length.to_bytes(LENGTH_BYTES, "big"))
        while True:
            await stream.send_all(bytes(64 * 1024))


class Dripping(Liar):
    """Sends one byte of a good reply at a time."""

    async def serve(self, stream: Stream) -> None:
        self.asked += 1
        request = Request.decode(await read_frame(stream, bytes_max=REQUEST_BYTES_MAX))
        items = tuple(await self._answerers[request.question](request))
        reply = Reply(outcome=Outcome.FOUND, items=items).encode()
        for byte in len(reply).to_bytes(LENGTH_BYTES, "big") + reply:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.1)


SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
LIARS = [WrongChunks, FalseVoters, Silent, WrongBlocks, Endless, Dripping]


@asynccontextmanager
async def open_liar(
    village: Village, honest: Node, kind: type[Liar], seed: int
) -> AsyncIterator[tuple[Network, Liar]]:
    """A liar on the village's network, connected to nobody yet."""
    liar = kind(honest)

    async def serve(stream: Stream) -> None:
        with contextlib.suppress(NetworkError):  # the joiner hung up
            await liar.serve(stream)

    identity = Identity(bytes([seed]) * 32)
    async with village.hub.open_network(identity, listen=["/ip4/127.0.0.1/tcp/0"]) as network:
        await network.serve(STATUS_PROTOCOL, liar.greet)
        await network.serve(SYNC_PROTOCOL, serve)
        yield network, liar


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liars cost deadlines; these are as long as a village needs."""
    monkeypatch.setattr(client, "ANSWER_DEADLINE_S", 1.5)
    monkeypatch.setattr(download, "PATIENCE_S", 0.3)
    monkeypatch.setattr(fast_forward, "BEHIND_MIN", 30)


def accept_when_all_came(count: int) -> Callable[[Greeter, PeerId, Status], None]:
    """Catching up begins when the first peer was met; here, when all were: the liars are asked."""
    accept = Greeter._accept

    def accepted(greeter: Greeter, peer: PeerId, status: Status) -> None:
        somebody = greeter.somebody
        if len(greeter.heights()) + 1 < count:
            greeter.somebody = trio.Event()
        accept(greeter, peer, status)
        greeter.somebody = somebody

    return accepted


async def join_among(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kinds: Sequence[type[Liar]],
    *,
    full_sync: bool,
) -> tuple[list[str], list[Liar]]:
    """Let a stranger join a long chain among liars; its notices, and the liars."""
    async with open_village(tmp_path, 1, parameters=QUICK) as village:
        honest = await village.enter(0)
        await height_of_all([honest], 44)
        liars: list[Liar] = []
        addresses = list(honest.network.addresses[:1])
        for seed, kind in enumerate(kinds, 30):
            opened = open_liar(village, honest, kind, seed)
            network, liar = await village.stack.enter_async_context(opened)
            addresses.append(network.addresses[0])
            liars.append(liar)
        # The genesis is at hand, so that the liars are met on the chain itself.
        genesis = tmp_path / "node-0" / "genesis.json"
        monkeypatch.setattr(Greeter, "_accept", accept_when_all_came(len(addresses)))
        joined = await village.enter(
            9, bootstrap=tuple(addresses), genesis=genesis, full_sync=full_sync
        )
        with trio.fail_after(JOINED_WITHIN_S):
            await until(joined, lambda node: node.state.height >= honest.state.height - 1)
        assert joined.state.height >= 44
        notices = [each.text for each in village.reports[9] if isinstance(each, Notice)]
    return notices, liars


@pytest.mark.parametrize("kind", LIARS)
async def test_a_snapshot_is_completed_beside_a_liar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Liar]
) -> None:
    notices, liars = await join_among(tmp_path, monkeypatch, [kind], full_sync=False)
    assert any(text.startswith("snapshot:") for text in notices)
    assert liars[0].asked > 0


@pytest.mark.parametrize(
    "kind", [FalseVoters, Silent, WrongBlocks, Endless, Dripping] if SCALE > 1 else [WrongBlocks]
)
async def test_every_block_is_executed_beside_a_liar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Liar]
) -> None:
    notices, liars = await join_among(tmp_path, monkeypatch, [kind], full_sync=True)
    assert not any(text.startswith("snapshot:") for text in notices)
    assert liars[0].asked > 0


async def test_one_honest_server_among_six_liars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, liars = await join_among(tmp_path, monkeypatch, LIARS, full_sync=False)
    assert sum(liar.asked > 0 for liar in liars) >= 3
