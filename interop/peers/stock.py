"""A py-libp2p peer as it comes, under the JSON commands of `interop/js/peer.js`.

The rule: nothing of Agora's network runs here: its own Noise, Yamux, gossipsub and DHT are what is
tried. Run as `python -m interop.peers.stock '{"signed": true}'`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import multiaddr
import trio
from blake3 import blake3
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.records.validator import Validator
from libp2p.tools.anyio_service import background_trio_service

from interop.peers.port import DIGEST, ECHO, PAUSE_S, SLOW

CHUNK_BYTES = 64 * 1024
HEARTBEAT_S = 1


class AnyValue(Validator):
    """Namespace t: every value is valid, the greatest is best."""

    def validate(self, key: str, value: bytes) -> None:
        """Accept."""

    def select(self, key: str, values: list[bytes]) -> int:
        """The greatest."""
        return values.index(max(values))


async def read(stream: Any) -> bytes:
    """What comes next, or nothing at the end."""
    try:
        return bytes(await stream.read(CHUNK_BYTES))
    except StreamEOF:
        return b""


async def echo(stream: Any) -> None:
    """Return what is read."""
    while data := await read(stream):
        await stream.write(data)
    await stream.close()


async def slow(stream: Any) -> None:
    """Return what is read, after a pause."""
    data = await read(stream)
    await trio.sleep(PAUSE_S)
    while data:
        await stream.write(data)
        data = await read(stream)
    await stream.close()


async def digest(stream: Any) -> None:
    """Answer the SHA-256 of what is read."""
    total = hashlib.sha256()
    while data := await read(stream):
        total.update(data)
    await stream.write(total.digest())
    await stream.close()


def content_id(message: Any) -> bytes:
    """The id of an unsigned message: a digest of its topic and data."""
    topic = message.topicIDs[0].encode()
    return blake3(len(topic).to_bytes(2) + topic + message.data).digest()[:20]


class Stock:
    """The host with its services, and a method for each command."""

    def __init__(self, host: Any, pubsub: Any, dht: Any, nursery: trio.Nursery) -> None:
        self.host = host
        self.pubsub = pubsub
        self.dht = dht
        self.nursery = nursery
        self.messages: dict[str, list[str]] = defaultdict(list)

    async def dial(self, address: str) -> bool:
        """Connect."""
        info = info_from_p2p_addr(multiaddr.Multiaddr(address))
        await self.host.connect(info)
        await self.dht.add_peer(info.peer_id)
        return True

    async def identified(self, peer: str) -> dict[str, Any]:
        """The protocols in the peer store."""
        return {"protocols": list(self.host.get_peerstore().get_protocols(ID.from_string(peer)))}

    async def ping(self, peer: str) -> list[int]:
        """One ping."""
        return list(await PingService(self.host).ping(ID.from_string(peer)))

    async def roundTrip(  # noqa: N802 - the commands are those of peer.js
        self, peer: str, protocol: str, size: int, pause: float
    ) -> dict[str, Any]:
        """Send, half-close, read what comes back."""
        stream = await self.host.new_stream(ID.from_string(peer), [protocol])
        sent, back = hashlib.sha256(), hashlib.sha256()
        received = 0

        async def send() -> None:
            for offset in range(0, size, CHUNK_BYTES):
                chunk = bytes([offset // CHUNK_BYTES % 251]) * min(CHUNK_BYTES, size - offset)
                sent.update(chunk)
                await stream.write(chunk)
            await stream.muxed_stream.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(pause / 1000)
            while data := await read(stream):
                back.update(data)
                received += len(data)
        return {"count": received, "equal": sent.digest() == back.digest()}

    async def subscribe(self, topic: str) -> bool:
        """Join, and keep what arrives."""
        subscription = await self.pubsub.subscribe(topic)

        async def listen() -> None:
            while True:
                message = await subscription.get()
                if bytes(message.from_id) != self.host.get_id().to_bytes():
                    self.messages[topic].append(base64.b64encode(message.data).decode())

        self.nursery.start_soon(listen)
        return True

    async def publish(self, topic: str, data: str) -> bool:
        """Publish."""
        await self.pubsub.publish(topic, base64.b64decode(data))
        return True

    async def received(self, topic: str) -> list[str]:
        """What has arrived."""
        return self.messages[topic]

    async def topicPeers(self, topic: str) -> list[str]:  # noqa: N802
        """Who is subscribed."""
        return [str(peer) for peer in self.pubsub.peer_topics.get(topic, ())]

    async def provide(self, key: str) -> bool:
        """Announce a multihash."""
        return bool(await self.dht.provide(base64.b64decode(key).hex()))

    async def findProviders(self, key: str, peer: str) -> str | None:  # noqa: N802
        """Whether that peer is found."""
        found = await self.dht.find_providers(base64.b64decode(key).hex())
        return next((peer for info in found if str(info.peer_id) == peer), None)

    async def put(self, key: str, value: str) -> bool:
        """Store a record."""
        await self.dht.put_value(base64.b64decode(key).decode(), base64.b64decode(value))
        return True

    async def get(self, key: str) -> str | None:
        """Fetch a record."""
        value = await self.dht.get_value(base64.b64decode(key).decode())
        return base64.b64encode(value).decode() if value is not None else None


async def main(options: dict[str, Any]) -> None:
    """Start, say where, and obey until standard input ends."""
    host = new_host(
        key_pair=create_new_key_pair(),
        muxer_preference="MPLEX" if options.get("mplex_first") else None,
    )
    degrees = (8, 6, 12) if options.get("meshes", True) else (0, 0, 0)
    gossip = GossipSub([PROTOCOL_ID_V11, PROTOCOL_ID], *degrees, heartbeat_interval=HEARTBEAT_S)
    if options.get("signed", True):
        pubsub = Pubsub(host, gossip)
    else:
        pubsub = Pubsub(host, gossip, strict_signing=False, msg_id_constructor=content_id)
    listen = [multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]
    async with host.run(listen_addrs=listen), trio.open_nursery() as nursery:
        nursery.start_soon(host.get_peerstore().start_cleanup_task, 60)
        dht = KadDHT(host, DHTMode.SERVER, max_peers_per_subnet=0)
        dht.register_validator("t", AnyValue())
        for protocol, handler in ((ECHO, echo), (SLOW, slow), (DIGEST, digest)):
            host.set_stream_handler(TProtocol(protocol), handler)
        async with (
            background_trio_service(gossip),
            background_trio_service(pubsub),
            background_trio_service(dht),
        ):
            await pubsub.wait_until_ready()
            stock = Stock(host, pubsub, dht, nursery)
            addresses = [str(address) for address in host.get_addrs()]
            say({"ready": {"peerId": str(host.get_id()), "addresses": addresses}})
            await obey(stock, nursery)
        nursery.cancel_scope.cancel()


async def obey(stock: Stock, nursery: trio.Nursery) -> None:
    """Run every command that comes, each in its own task."""

    async def run(line: dict[str, Any]) -> None:
        number = line.pop("id")
        try:
            call: Callable[..., Awaitable[Any]] = getattr(stock, line.pop("command"))
            say({"id": number, "result": await call(**line)})
        except Exception as error:  # noqa: BLE001 - the guard: a fault is an answer here
            say({"id": number, "error": f"{type(error).__name__}: {error}"})

    buffer = bytearray()
    async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin:
        async for data in stdin:
            buffer += data
            while (end := buffer.find(b"\n")) >= 0:
                nursery.start_soon(run, json.loads(bytes(buffer[:end])))
                del buffer[: end + 1]


def say(line: dict[str, Any]) -> None:
    """One answer."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}"))
