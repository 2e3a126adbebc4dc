"""A foreign peer that is a child process speaking JSON lines: js-libp2p and stock py-libp2p.

The rule: one command a line to its standard input, one answer a line from its standard output;
several commands may be under way, answers carry the command's number. It ends with its block.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from interop.peers.port import (
    ANSWER_TIMEOUT_S,
    ForeignFault,
    ForeignPeer,
    NotOffered,
    PeerOptions,
    RoundTrip,
)
from p2p import PeerId

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs that mypy finds for trio lack the name

JS = Path(__file__).resolve().parent.parent / "js"
NODE = JS / "node_modules" / ".bin" / "node"

START_TIMEOUT_S = 60.0
"""Importing libp2p takes a second or two, many times that on a busy machine."""

LINE_BYTES_MAX = 16 * 1024 * 1024
"""Of one answer: all messages received on a topic, in base64."""


class LinePeer(ForeignPeer):
    """Made by `open_js_peer` and `open_stock_peer`."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._sequence = 0
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._ready = trio.Event()

    async def read_answers(self) -> None:
        """Hand every answer to whoever waits for it, until the process ends."""
        assert self._process.stdout is not None
        buffer = bytearray()
        async for data in self._process.stdout:
            buffer += data
            if len(buffer) > LINE_BYTES_MAX:
                raise ForeignFault("an answer without an end")
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                if line.startswith(b"{"):
                    self._hear(json.loads(line))

    async def started(self) -> None:
        """Wait until the peer listens."""
        with trio.fail_after(START_TIMEOUT_S):
            await self._ready.wait()

    async def dial(self, address: str) -> None:
        await self._command("dial", address=address)

    async def identified(self, peer_id: PeerId) -> frozenset[str]:
        known = await self._command("identified", peer=str(peer_id))
        return frozenset(known["protocols"])

    async def ping(self, peer_id: PeerId) -> None:
        await self._command("ping", peer=str(peer_id))

    async def round_trip(
        self, peer_id: PeerId, protocol: str, size: int, *, pause_s: float = 0.0
    ) -> RoundTrip:
        back = await self._command(
            "roundTrip", peer=str(peer_id), protocol=protocol, size=size, pause=1000 * pause_s
        )
        return RoundTrip(received_bytes=back["count"], equal=back["equal"])

    async def subscribe(self, topic: str) -> None:
        await self._command("subscribe", topic=topic)

    async def publish(self, topic: str, data: bytes) -> None:
        await self._command("publish", topic=topic, data=_text(data))

    async def received(self, topic: str) -> list[bytes]:
        return [base64.b64decode(text) for text in await self._command("received", topic=topic)]

    async def topic_peers(self, topic: str) -> frozenset[str]:
        return frozenset(await self._command("topicPeers", topic=topic))

    async def provide(self, multihash: bytes) -> None:
        await self._command("provide", key=_text(multihash))

    async def finds_provider(self, multihash: bytes, wanted: PeerId) -> bool:
        found = await self._command("findProviders", key=_text(multihash), peer=str(wanted))
        return found is not None

    async def put(self, key: bytes, value: bytes) -> None:
        await self._command("put", key=_text(key), value=_text(value))

    async def get(self, key: bytes) -> bytes | None:
        found = await self._command("get", key=_text(key))
        return base64.b64decode(found) if found is not None else None

    async def _command(self, command: str, **parameters: object) -> Any:
        assert self._process.stdin is not None
        self._sequence += 1
        number = self._sequence
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[number] = send
        line = json.dumps({"id": number, "command": command, **parameters})
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                await self._process.stdin.send_all(line.encode() + b"\n")
                answer = await receive.receive()
        finally:
            del self._answers[number]
        if "error" in answer:
            raise ForeignFault(f"{command}: {answer['error']}")
        return answer["result"]

    def _hear(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.peer_id = PeerId(message["ready"]["peerId"])
            self.addresses = tuple(message["ready"]["addresses"])
            self._ready.set()
            return
        waiting = self._answers.get(message.get("id", 0))
        if waiting is not None:
            waiting.send_nowait(message)


@asynccontextmanager
async def open_js_peer(options: PeerOptions) -> AsyncIterator[LinePeer]:
    """A js-libp2p peer, run by the Node that its own package.json pins."""
    settings = {
        "kad": options.kademlia_protocol,
        "signed": options.signed,
        "meshDegree": 8 if options.meshes else 0,
        "mplexFirst": options.mplex_first,
    }
    command = [str(NODE), str(JS / "peer.js"), json.dumps(settings)]
    async with _open_line_peer(command) as peer:
        yield peer


@asynccontextmanager
async def open_stock_peer(options: PeerOptions) -> AsyncIterator[LinePeer]:
    """A py-libp2p peer with its own transport, muxer, gossipsub and DHT."""
    if options.kademlia_protocol != "/ipfs/kad/1.0.0":
        raise NotOffered("py-libp2p's DHT always speaks /ipfs/kad/1.0.0")
    settings = {
        "signed": options.signed,
        "meshes": options.meshes,
        "mplex_first": options.mplex_first,
    }
    command = [sys.executable, "-m", "interop.peers.stock", json.dumps(settings)]
    async with _open_line_peer(command) as peer:
        # py-libp2p opens no stream to a peer whose addresses it does not know, and does not
        # identify who has dialled it.
        peer.dials = True
        yield peer


@asynccontextmanager
async def _open_line_peer(command: Sequence[str]) -> AsyncIterator[LinePeer]:
    async with trio.open_nursery() as nursery:
        process = await nursery.start(_run, command)
        peer = LinePeer(process)
        nursery.start_soon(peer.read_answers)
        try:
            await peer.started()
            yield peer
        finally:
            nursery.cancel_scope.cancel()


async def _run(
    command: Sequence[str], *, task_status: TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
) -> None:
    """The child process; cancelling ends it. What it says of its troubles is of no interest."""
    await trio.run_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        task_status=task_status,
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
