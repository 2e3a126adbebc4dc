"""The go-libp2p daemon as a foreign peer: its requests go through a unix socket, one each.

The rule: the daemon does the networking, this file the talking: a stream that it opens or accepts
reaches us as a unix socket, and the bytes on it are the bytes of the stream. Signed topics only:
the daemon cannot be given a message id function. Its DHT speaks `/ipfs/kad/1.0.0` and keeps records
of namespaces `pk` and `ipns` only.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio
from google.protobuf.message import Message

from interop.go import daemon_pb2 as wire
from interop.peers.port import (
    ANSWER_TIMEOUT_S,
    ECHO,
    PAUSE_S,
    SLOW,
    ForeignFault,
    ForeignPeer,
    NotOffered,
    PeerOptions,
    RoundTrip,
)
from p2p import Identity, PeerId
from p2p.multiaddress import Address

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs that mypy finds for trio lack the name

DAEMON = Path(__file__).resolve().parent.parent / "go" / "daemon" / "p2pd"

M = TypeVar("M", bound=Message)

CHUNK_BYTES = 64 * 1024
UNIX = 400
"""multicodec of /unix; its value is a path with its length before it."""


class DaemonPeer(ForeignPeer):
    """Made by `open_daemon_peer`."""

    half_closes = False  # it closes its socket to us whole when either side ends its half
    own_namespaces = False  # its DHT keeps pk and ipns
    tells_protocols = False  # there is no request for them

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self._folder = folder
        self._nursery = nursery
        self._messages: dict[str, list[bytes]] = defaultdict(list)

    @property
    def control(self) -> Path:
        """The socket that takes requests."""
        return self._folder / "control"

    async def listens(self) -> None:
        """Wait until the daemon takes requests."""
        while True:
            try:
                async with await trio.open_unix_socket(str(self.control)):
                    return
            except OSError:  # not there yet, or not listening yet
                await trio.sleep(0.02)

    async def start(self) -> None:
        """Ask who and where it is, and serve the protocols of a trial."""
        answer = await self._ask(wire.Request(type="IDENTIFY"))
        self.peer_id = PeerId.from_bytes(answer.identify.id)
        self.addresses = _addresses(answer.identify)
        for name, protocol, handler in (("echo", ECHO, _echo), ("slow", SLOW, _slow)):
            await self._nursery.start(self._serve, self._folder / name, handler)
            address = _unix_multiaddr(self._folder / name)
            handle = wire.StreamHandler(addr=address, proto=[protocol], balanced=False)
            await self._ask(wire.Request(type="STREAM_HANDLER", stream_handler=handle))

    async def dial(self, address: str) -> None:
        parsed = Address.parse(address)
        assert parsed.peer_id is not None
        connect = wire.Connect(
            peer=parsed.peer_id.to_bytes(), addrs=[parsed.with_peer(None).to_bytes()]
        )
        await self._ask(wire.Request(type="CONNECT", connect=connect))

    async def identified(self, peer_id: PeerId) -> frozenset[str]:
        """Its DHT answers for a connected peer out of what it has learned of it."""
        dht = wire.Dht(type="FIND_PEER", peer=peer_id.to_bytes())
        try:
            answer = await self._ask(wire.Request(type="DHT", dht=dht))
        except ForeignFault:  # not identified yet: it asked the DHT, which has nobody else
            return frozenset()
        return frozenset(_addresses(answer.dht.peer))

    async def ping(self, peer_id: PeerId) -> None:
        """The daemon has no ping of its own: its stream speaks the ping protocol."""
        stream, _ = await self._open(peer_id, "/ipfs/ping/1.0.0")
        async with stream:
            sent = os.urandom(32)
            await stream.send_all(sent)
            back = b""
            while len(back) < len(sent):
                data = await stream.receive_some(32)
                if not data:
                    raise ForeignFault("the stream ended before the pong")
                back += data
            if back != sent:
                raise ForeignFault("another pong than the ping")

    async def round_trip(
        self, peer_id: PeerId, protocol: str, size: int, *, pause_s: float = 0.0
    ) -> RoundTrip:
        stream, _ = await self._open(peer_id, protocol)
        sent, back = hashlib.sha256(), hashlib.sha256()
        received = 0

        async def send() -> None:
            for offset in range(0, size, CHUNK_BYTES):
                chunk = bytes([offset // CHUNK_BYTES % 251]) * min(CHUNK_BYTES, size - offset)
                sent.update(chunk)
                await stream.send_all(chunk)

        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(pause_s)
            while received < size:
                data = await stream.receive_some(CHUNK_BYTES)
                if not data:
                    break
                back.update(data)
                received += len(data)
        return RoundTrip(received_bytes=received, equal=sent.digest() == back.digest())

    async def subscribe(self, topic: str) -> None:
        await self._nursery.start(self._listen, topic)

    async def publish(self, topic: str, data: bytes) -> None:
        message = wire.PubSub(type="PUBLISH", topic=topic, data=data)
        await self._ask(wire.Request(type="PUBSUB", pubsub=message))

    async def received(self, topic: str) -> list[bytes]:
        return list(self._messages[topic])

    async def topic_peers(self, topic: str) -> frozenset[str]:
        question = wire.PubSub(type="LIST_PEERS", topic=topic)
        answer = await self._ask(wire.Request(type="PUBSUB", pubsub=question))
        return frozenset(str(PeerId.from_bytes(raw)) for raw in answer.pubsub.peer_ids)

    async def provide(self, multihash: bytes) -> None:
        dht = wire.Dht(type="PROVIDE", cid=_cid(multihash))
        await self._ask(wire.Request(type="DHT", dht=dht))

    async def finds_provider(self, multihash: bytes, wanted: PeerId) -> bool:
        dht = wire.Dht(type="FIND_PROVIDERS", cid=_cid(multihash), count=20)
        stream = await trio.open_unix_socket(str(self.control))
        async with stream:
            await self._exchange(stream, wire.Request(type="DHT", dht=dht))
            while True:
                answer = await _receive(stream, wire.DhtAnswer())
                if answer.type == wire.DhtAnswer.END:
                    return False
                if answer.HasField("peer") and answer.peer.id == wanted.to_bytes():
                    return True

    async def put(self, key: bytes, value: bytes) -> None:
        dht = wire.Dht(type="PUT_VALUE", key=key, value=value)
        await self._ask(wire.Request(type="DHT", dht=dht))

    async def get(self, key: bytes) -> bytes | None:
        dht = wire.Dht(type="GET_VALUE", key=key)
        answer = await self._ask(wire.Request(type="DHT", dht=dht))
        return bytes(answer.dht.value)

    async def _listen(
        self, topic: str, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        stream = await trio.open_unix_socket(str(self.control))
        async with stream:
            request = wire.Request(type="PUBSUB", pubsub=wire.PubSub(type="SUBSCRIBE", topic=topic))
            await self._exchange(stream, request)
            task_status.started()
            while True:
                message = await _receive(stream, wire.PubSubMessage())
                if message.source != self.peer_id.to_bytes():
                    self._messages[topic].append(bytes(message.data))

    async def _open(
        self, peer_id: PeerId, protocol: str
    ) -> tuple[trio.SocketStream, wire.StreamInfo]:
        # It may not have noticed yet that our side of the handshake is done.
        while peer_id not in await self._connected():  # noqa: ASYNC110 - it has no event
            await trio.sleep(0.02)
        stream = await trio.open_unix_socket(str(self.control))
        opening = wire.StreamOpen(peer=peer_id.to_bytes(), proto=[protocol])
        answer = await self._exchange(stream, wire.Request(type="STREAM_OPEN", stream_open=opening))
        return stream, answer.stream_info

    async def _connected(self) -> frozenset[str]:
        answer = await self._ask(wire.Request(type="LIST_PEERS"))
        return frozenset(str(PeerId.from_bytes(peer.id)) for peer in answer.peers)

    async def _serve(
        self,
        path: Path,
        handler: Callable[[trio.SocketStream], Awaitable[None]],
        *,
        task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept the streams that the daemon hands over on a unix socket of ours."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            await listening.bind(str(path))
            listening.listen(16)

            async def one(stream: trio.SocketStream) -> None:
                async with stream:
                    await _receive(stream, wire.StreamInfo())
                    await handler(stream)

            task_status.started()
            await trio.serve_listeners(one, [trio.SocketListener(listening)])

    async def _ask(self, request: wire.Request) -> wire.Response:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            async with await trio.open_unix_socket(str(self.control)) as stream:
                return await self._exchange(stream, request)

    async def _exchange(self, stream: trio.SocketStream, request: wire.Request) -> wire.Response:
        await stream.send_all(_framed(request.SerializeToString()))
        answer = await _receive(stream, wire.Response())
        if answer.type == wire.Response.ERROR:
            raise ForeignFault(answer.error.msg)
        return answer


@asynccontextmanager
async def open_daemon_peer(options: PeerOptions) -> AsyncIterator[DaemonPeer]:
    """A go-libp2p daemon with an Ed25519 identity, listening on a free port of loopback."""
    if options.kademlia_protocol != "/ipfs/kad/1.0.0":
        raise NotOffered("the daemon's DHT speaks /ipfs/kad/1.0.0 only")
    if options.mplex_first:
        raise NotOffered("the daemon cannot be given another order of its muxers")
    if not options.signed:
        raise NotOffered("the daemon cannot be given the content ids of unsigned topics")
    with tempfile.TemporaryDirectory(prefix="agora-p2pd-") as name:
        folder = Path(name)
        (folder / "key").write_bytes(_private_key(Identity.generate()))
        command = [
            str(DAEMON),
            f"-id={folder / 'key'}",
            f"-listen=/unix{folder / 'control'}",
            "-hostAddrs=/ip4/127.0.0.1/tcp/0",
            "-dhtServer",
            "-pubsub",
            "-gossipsubHeartbeatInterval=500ms",
            "-relay=false",
            "-q",
        ]
        async with trio.open_nursery() as nursery:
            await nursery.start(_run, command)
            peer = DaemonPeer(folder, nursery)
            with trio.fail_after(ANSWER_TIMEOUT_S):
                await peer.listens()
                await peer.start()
            try:
                yield peer
            finally:
                nursery.cancel_scope.cancel()


async def _run(
    command: list[str], *, task_status: TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
) -> None:
    await trio.run_process(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        task_status=task_status,
    )


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def _slow(stream: trio.SocketStream) -> None:
    data = await stream.receive_some(CHUNK_BYTES)
    await trio.sleep(PAUSE_S)
    await stream.send_all(data)
    await _echo(stream)


async def _receive(stream: trio.SocketStream, message: M) -> M:
    """Fill `message` from the next length-prefixed one on the socket."""
    length = shift = 0
    while True:
        byte = (await _receive_exactly(stream, 1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    message.ParseFromString(await _receive_exactly(stream, length))
    return message


async def _receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise ForeignFault("the daemon closed the socket")
        data += more
    return data


def _addresses(peer: wire.PeerInfo) -> tuple[str, ...]:
    """Those over TCP and IPv4, as full multiaddrs."""
    whose = PeerId.from_bytes(peer.id)
    tcp = [raw for raw in peer.addrs if raw[:1] == b"\x04" and raw[5:6] == b"\x06"]
    return tuple(str(Address.from_bytes(raw).with_peer(whose)) for raw in tcp)


def _framed(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _cid(multihash: bytes) -> bytes:
    """CIDv1 of raw content."""
    return b"\x01\x55" + multihash


def _unix_multiaddr(path: Path) -> bytes:
    text = str(path).encode()
    return _varint(UNIX) + _varint(len(text)) + text


def _private_key(identity: Identity) -> bytes:
    """The protobuf PrivateKey of libp2p: Type = Ed25519, Data = seed and public key."""
    return b"\x08\x01\x12\x40" + identity.seed + identity.public_key
