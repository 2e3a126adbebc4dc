"""The trials: what Agora's network and a foreign peer must be able to do with each other.

The rule: each trial is one conversation between a fresh network made by `p2p.open_network` and a
fresh foreign process; it returns a remark or nothing when it passes, and raises when it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from interop.peers.lines import open_js_peer
from interop.peers.pairing import (
    CHUNK_BYTES,
    IPFS_KADEMLIA,
    LISTEN,
    OpenPeer,
    Trial,
    TrialFailed,
    again,
    expect,
    pair,
    until,
)
from interop.peers.port import (
    DIGEST,
    ECHO,
    SLOW,
    ForeignPeer,
    NotOffered,
    PeerOptions,
)
from interop.peers.representation import representation_in_js
from p2p import Identity, Limits, Network, PeerId, TopicOptions
from p2p.backend.switch import open_switch
from p2p.gossipsub.parameters import MeshParameters
from p2p.gossipsub.shell import Gossipsub, open_gossip
from p2p.kademlia.multihash import provider_key
from p2p.network import Subscription

PING = "/ipfs/ping/1.0.0"
AGORA_KADEMLIA = "/agora/kad/1.0.0"

ECHO_BYTES = 10 * 1024 * 1024

TRIAL_TIMEOUT_S = 90.0
"""A paused echo takes 10 s, a DHT query of a foreign peer up to 20 on a busy machine."""

TOPIC = "interop"
MESSAGES = 5

NO_HALF_CLOSE = (
    "the daemon hands streams on by a socket that it closes whole when one side ends its half: "
    "the end is sent only when everything has come back"
)

ONLY_KEYS = "the daemon keeps records of the namespaces pk and ipns only: a public key was stored"

ADDRESSES_ONLY = "the daemon tells of what it has learned by identify the addresses only"


async def we_dial(open_peer: OpenPeer) -> None:
    """We connect to them."""
    async with pair(open_peer, dial=False) as (ours, theirs):
        await ours.connect(theirs.addresses[0])
        expect(theirs.peer_id in ours.peers, "not connected")


async def they_dial(open_peer: OpenPeer) -> None:
    """They connect to us."""
    async with pair(open_peer, dial=False) as (ours, theirs):
        await theirs.dial(ours.addresses[0])
        await until(lambda: theirs.peer_id in ours.peers, "not connected")


async def mplex_first(open_peer: OpenPeer) -> None:
    """They connect, and would rather speak a muxer that we do not; so do we."""
    for dial in (True, False):
        async with pair(open_peer, dial=False, mplex_first=True) as (ours, theirs):
            if dial:
                await theirs.dial(ours.addresses[0])
            else:
                await ours.connect(theirs.addresses[0])
            await until(lambda: theirs.peer_id in ours.peers, "not connected")
            await ping(ours, theirs.peer_id)


async def identify_theirs(open_peer: OpenPeer) -> None:
    """We learn by identify where a peer that dialled us listens."""
    async with pair(open_peer, dial=False) as (ours, theirs):
        await theirs.dial(ours.addresses[0])
        await until(
            lambda: theirs.addresses[0] in ours.addresses_of(theirs.peer_id),
            "its address was not learned",
        )


async def identify_ours(open_peer: OpenPeer) -> str | None:
    """They learn by identify what we speak, or else where we listen though we dialled them."""
    async with pair(open_peer) as (ours, theirs):
        protocols = {ECHO, SLOW, DIGEST, PING, IPFS_KADEMLIA}
        wanted = protocols if theirs.tells_protocols else set(ours.addresses)
        for _ in range(100):
            if await theirs.identified(ours.peer_id) >= wanted:
                return None if theirs.tells_protocols else ADDRESSES_ONLY
            await trio.sleep(0.05)
        raise TrialFailed(f"it knows {sorted(await theirs.identified(ours.peer_id))}")


async def ping_both(open_peer: OpenPeer) -> None:
    """Each pings the other."""
    async with pair(open_peer) as (ours, theirs):
        await theirs.ping(ours.peer_id)
        await ping(ours, theirs.peer_id)


async def ping(ours: Network, peer_id: PeerId) -> None:
    """Ping `peer_id` once."""
    async with ours.open_stream(peer_id, PING) as stream:
        await stream.send_all(b"p" * 32)
        pong = bytearray(32)
        expect(await stream.receive_into(pong) == 32, "the pong is cut short")
        expect(pong == b"p" * 32, "another pong than the ping")


async def we_echo(open_peer: OpenPeer) -> str | None:
    """10 MiB there and back on our stream, with half-close."""
    async with pair(open_peer) as (ours, theirs):
        return await _round_trip(ours, theirs, ECHO)


async def they_echo(open_peer: OpenPeer) -> str | None:
    """10 MiB there and back on their stream, with half-close."""
    async with pair(open_peer) as (ours, theirs):
        back = await theirs.round_trip(ours.peer_id, ECHO, ECHO_BYTES)
        expect(back.received_bytes == ECHO_BYTES and back.equal, f"came back: {back}")
        return None if theirs.half_closes else NO_HALF_CLOSE


async def they_pause(open_peer: OpenPeer) -> str | None:
    """They read nothing for 8 s of the 10 MiB that we send."""
    async with pair(open_peer) as (ours, theirs):
        return await _round_trip(ours, theirs, SLOW)


async def we_pause(open_peer: OpenPeer) -> str | None:
    """We read nothing for 8 s of the 10 MiB that they send."""
    async with pair(open_peer) as (ours, theirs):
        back = await theirs.round_trip(ours.peer_id, SLOW, ECHO_BYTES)
        expect(back.received_bytes == ECHO_BYTES and back.equal, f"came back: {back}")
        return None if theirs.half_closes else NO_HALF_CLOSE


async def digest(open_peer: OpenPeer) -> None:
    """They read all that we send until its end, and answer only then."""
    async with pair(open_peer) as (ours, theirs):
        if not theirs.half_closes:
            raise NotOffered(NO_HALF_CLOSE)
        sent = bytes(range(256)) * 4096
        async with ours.open_stream(theirs.peer_id, DIGEST) as stream:
            await stream.send_all(sent)
            await stream.send_eof()
            answer = b""
            async for data in stream:
                answer += data
        expect(answer == hashlib.sha256(sent).digest(), "another digest")


async def gossip_signed(open_peer: OpenPeer) -> None:
    """Signed messages both ways in the mesh."""
    await _in_mesh(open_peer, signed=True)


async def gossip_unsigned(open_peer: OpenPeer) -> None:
    """Unsigned messages with content ids, as Agora's own topics, both ways in the mesh."""
    await _in_mesh(open_peer, signed=False)


async def gossip_lazily(open_peer: OpenPeer) -> None:
    """Both ways by IHAVE and IWANT only: we are in nobody's mesh and flood nothing."""
    outside = MeshParameters(
        degree=0,
        degree_low=0,
        degree_high=0,
        degree_out=0,
        flood_publish=False,
        heartbeat_s=0.5,
    )
    async with _gossiping(open_peer, PeerOptions(meshes=False), outside) as (ours, theirs):
        async with _joined(ours, theirs, TopicOptions(signed=True)) as messages:
            # With an empty mesh and no flooding there is no other way out, and whoever grafts us
            # is pruned at once, so that there is no other way in.
            await trio.sleep(2.5)  # heartbeats of both: whoever wanted to graft us has tried
            await _both_ways(ours, theirs, messages)
            expect(not ours.mesh_peers(TOPIC), "they are in our mesh")


async def dht_providers(open_peer: OpenPeer) -> None:
    """Announce and find a provider, both ways."""
    await _providers(open_peer, IPFS_KADEMLIA)


async def dht_providers_agora(open_peer: OpenPeer) -> None:
    """The same under Agora's protocol id."""
    await _providers(open_peer, AGORA_KADEMLIA)


async def dht_records(open_peer: OpenPeer) -> str | None:
    """Put and get a record of namespace t, or else a public key under its peer id, both ways."""
    async with pair(open_peer) as (ours, theirs):
        await _records(ours, theirs)
        return None if theirs.own_namespaces else ONLY_KEYS


async def dht_records_agora(open_peer: OpenPeer) -> None:
    """The same under Agora's protocol id."""
    async with pair(open_peer, kademlia=AGORA_KADEMLIA) as (ours, theirs):
        await _records(ours, theirs)


async def representation(open_peer: OpenPeer) -> None:
    """A TEXT representation of a running node has the shape and the values of the vectors."""
    if open_peer is not open_js_peer:
        raise NotOffered("the client of the tensor protocol is written for js-libp2p")
    await representation_in_js()


TRIALS: tuple[tuple[str, Trial], ...] = (
    ("connect: we dial", we_dial),
    ("connect: they dial", they_dial),
    ("connect: both ways, they propose Mplex first", mplex_first),
    ("identify: they tell us", identify_theirs),
    ("identify: we tell them", identify_ours),
    ("ping, both ways", ping_both),
    ("echo 10 MiB with half-close, we open", we_echo),
    ("echo 10 MiB with half-close, they open", they_echo),
    ("read to the end, then answer", digest),
    ("they pause reading for 8 s", they_pause),
    ("we pause reading for 8 s", we_pause),
    ("gossip in mesh, signed, both ways", gossip_signed),
    ("gossip in mesh, unsigned with content ids, both ways", gossip_unsigned),
    ("gossip by IHAVE/IWANT only, both ways", gossip_lazily),
    ("DHT provide and find, both ways, /ipfs/kad/1.0.0", dht_providers),
    ("DHT put and get, both ways, /ipfs/kad/1.0.0", dht_records),
    ("DHT provide and find, both ways, /agora/kad/1.0.0", dht_providers_agora),
    ("DHT put and get, both ways, /agora/kad/1.0.0", dht_records_agora),
    ("TEXT representation of a process with --model test", representation),
)
"""Every row of the matrix."""


async def _providers(open_peer: OpenPeer, kademlia: str) -> None:
    async with pair(open_peer, kademlia=kademlia) as (ours, theirs):
        mine, other = provider_key(b"ours"), provider_key(b"theirs")

        async def they_find() -> None:
            await ours.provide(mine)
            expect(await theirs.finds_provider(mine, ours.peer_id), "they did not find us")

        async def we_find() -> None:
            await theirs.provide(other)
            found = await ours.find_providers(other)
            expect(theirs.peer_id in found, "we did not find them")

        await again(they_find)
        await again(we_find)


async def _records(ours: Network, theirs: ForeignPeer) -> None:
    records = [(b"/t/first", b"1"), (b"/t/second", b"2")]
    if not theirs.own_namespaces:
        keys = [Identity(bytes([number]) * 32).peer_id.to_bytes() for number in (1, 2)]
        records = [(b"/pk/" + raw, raw[2:]) for raw in keys]
    (key, value), (other_key, other_value) = records
    await again(lambda: ours.put_record(key, value))
    expect(await theirs.get(key) == value, "they did not find our record")
    await again(lambda: theirs.put(other_key, other_value))
    expect(await ours.get_record(other_key) == other_value, "we did not find their record")


async def _in_mesh(open_peer: OpenPeer, *, signed: bool) -> None:
    # Nobody floods: what is published goes to the mesh.
    meshing = MeshParameters(flood_publish=False, heartbeat_s=0.5)
    async with _gossiping(open_peer, PeerOptions(signed=signed), meshing) as (ours, theirs):
        async with _joined(ours, theirs, TopicOptions(signed=signed)) as messages:
            await until(lambda: theirs.peer_id in ours.mesh_peers(TOPIC), "not in our mesh")
            await _both_ways(ours, theirs, messages)
            expect(theirs.peer_id in ours.mesh_peers(TOPIC), "they left our mesh")


@asynccontextmanager
async def _gossiping(
    open_peer: OpenPeer, options: PeerOptions, parameters: MeshParameters
) -> AsyncIterator[tuple[Gossipsub, ForeignPeer]]:
    """A connected pair of which ours runs gossip alone, with these parameters."""
    identity = Identity.generate()
    async with (
        open_peer(options) as theirs,
        open_switch(identity, Limits()) as switch,
        open_gossip(switch, identity=identity, parameters=parameters) as ours,
    ):
        # They dial: whom we have dialled we would take into a full mesh too.
        await switch.listen(LISTEN)
        await theirs.dial(switch.addresses[0])
        yield ours, theirs


@asynccontextmanager
async def _joined(
    ours: Gossipsub, theirs: ForeignPeer, options: TopicOptions
) -> AsyncIterator[Subscription]:
    """Both subscribed, and each knows it of the other."""
    await theirs.subscribe(TOPIC)
    async with ours.subscribe(TOPIC, options=options) as messages:
        await until(lambda: theirs.peer_id in ours.topic_peers(TOPIC), "they did not subscribe")
        for _ in range(200):
            if await theirs.topic_peers(TOPIC):
                break
            await trio.sleep(0.05)
        yield messages


async def _both_ways(ours: Gossipsub, theirs: ForeignPeer, messages: Subscription) -> None:
    sent = [f"ours {number}".encode() for number in range(MESSAGES)]
    for data in sent:
        await ours.publish(TOPIC, data)
    await _received(theirs, sent)
    wanted = {f"theirs {number}".encode() for number in range(MESSAGES)}
    for data in sorted(wanted):
        await theirs.publish(TOPIC, data)
    with trio.move_on_after(20):
        async for message in messages:
            wanted.discard(message.data)
            if not wanted:
                return
    raise TrialFailed(f"we did not get {sorted(wanted)}")


async def _received(theirs: ForeignPeer, sent: list[bytes]) -> None:
    arrived: list[bytes] = []
    for _ in range(200):
        arrived = await theirs.received(TOPIC)
        if set(sent) <= set(arrived):
            break
        await trio.sleep(0.1)
    missing = sorted(set(sent) - set(arrived))
    expect(not missing, f"they did not get {missing}")
    expect(len(arrived) == len(sent), "they got a message twice")


async def _round_trip(ours: Network, theirs: ForeignPeer, protocol: str) -> str | None:
    sent, back = hashlib.sha256(), hashlib.sha256()
    received = 0
    async with ours.open_stream(theirs.peer_id, protocol) as stream:

        async def send() -> None:
            for offset in range(0, ECHO_BYTES, CHUNK_BYTES):
                chunk = bytes([offset // CHUNK_BYTES % 251]) * CHUNK_BYTES
                sent.update(chunk)
                await stream.send_all(chunk)
            if theirs.half_closes:
                await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while theirs.half_closes or received < ECHO_BYTES:
                data = await stream.receive_some(CHUNK_BYTES)
                if not data:
                    break
                back.update(data)
                received += len(data)
    expect(received == ECHO_BYTES, f"{received} bytes came back")
    expect(sent.digest() == back.digest(), "other bytes came back")
    return None if theirs.half_closes else NO_HALF_CLOSE
