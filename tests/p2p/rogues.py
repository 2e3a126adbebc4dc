"""Those who speak the protocols properly and use them badly: gossip and DHT, against any address.

Like `tests.p2p.strangers`, one function per kind; each returns when it has done what it can.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

import p2p
from p2p.backend.connection import SecureConnection
from p2p.connection import RawStream
from p2p.gossipsub import PROTOCOLS as MESHSUB
from p2p.gossipsub.rpc_pb2 import RPC, ControlIDontWant, ControlIHave, ControlIWant, ControlMessage
from p2p.gossipsub.rpc_pb2 import Message as Published
from p2p.kademlia import PROTOCOL as KADEMLIA
from p2p.kademlia.dht_pb2 import Message as Request
from p2p.kademlia.dht_pb2 import Record
from p2p.multiaddress import Address
from p2p.multistream import HEADER, encode_line
from tests.p2p.strangers import Attack, Target, secured
from tests.p2p.victim import NEWS, REFUSED

TOPIC = NEWS.encode()


def framed(body: bytes) -> bytes:
    """The body behind its length as a varint."""
    size, length = bytearray(), len(body)
    while length >= 0x80:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(size) + bytes([length]) + body


@asynccontextmanager
async def speaking(connection: SecureConnection, protocol: str) -> AsyncIterator[RawStream]:
    """A stream on which `protocol` has been proposed; nothing is waited for."""
    stream = await connection.open_stream()
    await stream.send_all(encode_line(HEADER) + encode_line(protocol))
    try:
        yield stream
    finally:
        stream.reset_now()


async def send_rpcs(target: Target, rpcs: Iterable[RPC]) -> None:
    """Join the topic and send, as fast as it is taken, until the node has had enough."""
    async with secured(target) as connection:
        with contextlib.suppress(p2p.StreamError):
            async with speaking(connection, MESHSUB[0]) as stream:
                hello = RPC(subscriptions=[RPC.SubOpts(subscribe=True, topicid=TOPIC)])
                hello.control.graft.add(topicID=TOPIC)
                await stream.send_all(framed(hello.SerializeToString()))
                for rpc in rpcs:
                    with trio.fail_after(10):
                        await stream.send_all(framed(rpc.SerializeToString()))
        await trio.sleep(0.2)


async def gossip_spam(target: Target) -> None:
    """New valid messages without end: 1 KiB each, twenty to an RPC."""
    await send_rpcs(
        target,
        (
            RPC(publish=[Published(topic=TOPIC, data=target.rng.randbytes(1024))] * 1)
            if number % 2
            else RPC(
                publish=[Published(topic=TOPIC, data=target.rng.randbytes(1024)) for _ in range(20)]
            )
            for number in range(target.size)
        ),
    )


async def invalid_messages(target: Target) -> None:
    """Messages that the topic's judge rejects."""
    await send_rpcs(
        target,
        (
            RPC(publish=[Published(topic=TOPIC, data=REFUSED + target.rng.randbytes(16))])
            for _ in range(5 * target.size)
        ),
    )


async def spoofed_authors(target: Target) -> None:
    """Signatures, authors and sequence numbers on a topic that has none."""
    await send_rpcs(
        target,
        (
            RPC(
                publish=[
                    Published(
                        topic=TOPIC,
                        data=b"x",
                        seqno=number.to_bytes(8, "big"),
                        signature=target.rng.randbytes(64),
                        **{"from": p2p.Identity(bytes(32)).peer_id.to_bytes()},
                    )
                ]
            )
            for number in range(target.size)
        ),
    )


async def ihave_flood(target: Target) -> None:
    """Announcements of messages that nobody has, 5,000 ids to an RPC."""
    await send_rpcs(
        target,
        (
            RPC(
                control=ControlMessage(
                    ihave=[
                        ControlIHave(
                            topicID=TOPIC,
                            messageIDs=[target.rng.randbytes(20) for _ in range(500)],
                        )
                    ]
                    * 10
                )
            )
            for _ in range(target.size // 5)
        ),
    )


async def iwant_and_idontwant_flood(target: Target) -> None:
    """Requests and refusals of everything, again and again."""
    ids = [target.rng.randbytes(20) for _ in range(1000)]
    control = ControlMessage(
        iwant=[ControlIWant(messageIDs=ids)], idontwant=[ControlIDontWant(messageIDs=ids)]
    )
    await send_rpcs(target, (RPC(control=control) for _ in range(target.size // 2)))


async def graft_flood(target: Target) -> None:
    """GRAFT and PRUNE of topics that exist and do not, ten thousand at full size."""

    def rpc(number: int) -> RPC:
        message = RPC()
        for index in range(50):
            topic = TOPIC if index % 2 else b"%d" % (50 * number + index)
            message.control.graft.add(topicID=topic)
            message.control.prune.add(topicID=topic, backoff=2**63)
            message.subscriptions.add(subscribe=True, topicid=topic)
        return message

    await send_rpcs(target, map(rpc, range(target.size)))


async def oversize_gossip(target: Target) -> None:
    """A message over the topic's size, then a frame that announces a gigabyte."""
    await send_rpcs(
        target, [RPC(publish=[Published(topic=TOPIC, data=bytes(2 * 1024 * 1024))])] * 3
    )
    async with secured(target) as connection:
        async with speaking(connection, MESHSUB[0]) as stream:
            with contextlib.suppress(p2p.StreamError):
                await stream.send_all(b"\x80\x80\x80\x80\x04" + bytes(100_000))
                with trio.move_on_after(2):
                    while await stream.receive_some():
                        pass


async def dht_poisoning(target: Target) -> None:
    """Providers in the name of others, addresses of victims, records that nobody validates."""
    rng = target.rng
    async with secured(target) as connection:
        for number in range(target.size):
            if connection.is_closed:
                return
            other = p2p.PeerId.from_public_key(rng.randbytes(32)).to_bytes()
            address = Address.parse(f"/ip4/10.9.8.7/tcp/{1 + number}").to_bytes()
            peers = [Request.Peer(id=other, addrs=[address] * 50)] * 30
            key = rng.randbytes(34)
            requests = [
                Request(type=Request.ADD_PROVIDER, key=b"\x12\x20" + key[2:], provider_peers=peers),
                Request(type=Request.PUT_VALUE, key=key, record=Record(key=key, value=bytes(9999))),
                Request(type=Request.FIND_NODE, key=key, closer_peers=peers),
                Request(type=Request.GET_VALUE, key=bytes(100_000)),
            ]
            with contextlib.suppress(p2p.StreamError):
                async with speaking(connection, KADEMLIA) as stream:
                    for request in requests:
                        await stream.send_all(framed(request.SerializeToString()))
                    with trio.move_on_after(0.02):
                        while await stream.receive_some():
                            pass


ATTACKS: tuple[Attack, ...] = (
    gossip_spam,
    invalid_messages,
    spoofed_authors,
    ihave_flood,
    iwant_and_idontwant_flood,
    graft_flood,
    oversize_gossip,
    dht_poisoning,
)
