"""The contract of `p2p.Network`: one suite, run on real sockets and in one process."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

import p2p
from p2p.network import Network, PubSub, Stream
from tests.p2p.networks import ECHO, World, echo, identity, on_both, receive_all, until


@on_both
async def test_what_a_network_is(world: World) -> None:
    network = await world.enter(1)
    assert isinstance(network, PubSub)
    assert network.peer_id == identity(1).peer_id
    assert network.peers == frozenset()
    [address] = network.addresses
    assert address.endswith(f"/p2p/{network.peer_id}")
    assert "/tcp/0/" not in address


# Connecting


@on_both
async def test_connect_is_seen_from_both_sides(pair: tuple[Network, Network]) -> None:
    server, client = pair
    await until(lambda: client.peer_id in server.peers)
    assert client.peers == {server.peer_id}
    assert await client.connect(server.addresses[0]) == server.peer_id, "again: no-op"
    assert await client.connect(server.peer_id) == server.peer_id


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWnonsense",
        "/ip4/127.0.0.256/tcp/4001/p2p/{id}",
        "/ip4/127.0.0.1/tcp/70000/p2p/{id}",
        "/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{id}",
        "/ip4/127.0.0.1/tcp/4001/p2p/{own}",
    ],
)
@on_both
async def test_malformed_addresses(world: World, address: str) -> None:
    network = await world.enter(1)
    text = address.format(id=identity(9).peer_id, own=network.peer_id)
    with pytest.raises(p2p.MalformedAddress):
        await network.connect(text)


@on_both
async def test_malformed_bootstrap_and_listen_start_nothing(world: World) -> None:
    for options in ({"bootstrap": ["/ip4/1.2.3.4/tcp/1"]}, {"listen": ["/ip4/300.0.0.1/tcp/0"]}):
        with pytest.raises(p2p.MalformedAddress):
            async with world.open(1, **options):  # type: ignore[arg-type]
                raise AssertionError("it opened")


@on_both
async def test_nobody_there(world: World) -> None:
    network = await world.enter(1)
    async with world.open(2) as gone:
        [address] = gone.addresses
    with pytest.raises(p2p.DialFailed) as failed:
        await network.connect(address)
    assert str(failed.value).count(address) == 1, "it says once who could not be reached"
    with pytest.raises(p2p.NotConnected):
        await network.connect(identity(5).peer_id)


@on_both
async def test_somebody_else_there(world: World) -> None:
    network, other = await world.enter(1), await world.enter(2)
    wrong = other.addresses[0].replace(str(other.peer_id), str(identity(7).peer_id))
    with pytest.raises(p2p.PeerMismatch):
        await network.connect(wrong)
    assert network.peers == frozenset()


@on_both
async def test_port_in_use_is_an_error(world: World) -> None:
    network = await world.enter(1)
    taken = network.addresses[0].partition("/p2p/")[0]
    with pytest.raises(p2p.PortInUse):
        async with world.open(2, listen=[taken]):
            raise AssertionError("it opened")


@on_both
async def test_many_connects_at_once_make_one_connection(world: World) -> None:
    server, client = await world.enter(1), await world.enter(2)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(client.connect, server.addresses[0])
    assert client.counters()["connections_outbound"] == 1


@on_both
async def test_peers_come_and_go(pair: tuple[Network, Network], world: World) -> None:
    server, client = pair
    async with server.watch_peers() as events:
        first = await events.receive()
        assert isinstance(first, p2p.PeerConnected)
        assert (first.peer_id, first.direction) == (client.peer_id, p2p.Direction.INBOUND)
        async with world.open(3) as third:
            await third.connect(server.addresses[0])
            second = await events.receive()
            assert isinstance(second, p2p.PeerConnected)
            assert second.peer_id == third.peer_id
        assert await events.receive() == p2p.PeerDisconnected(peer_id=identity(3).peer_id)
        await client.disconnect(server.peer_id)
        assert await events.receive() == p2p.PeerDisconnected(peer_id=client.peer_id)
    assert client.peers == frozenset()


@on_both
async def test_a_banned_peer_is_refused_until_the_ban_ends(pair: tuple[Network, Network]) -> None:
    server, client = pair
    server.ban(client.peer_id, duration_s=0.5)
    await until(lambda: client.peer_id not in server.peers)
    await until(lambda: server.peer_id not in client.peers)
    with suppress(p2p.DialFailed):  # the refusal may come after the handshake
        await client.connect(server.addresses[0])
    await until(lambda: server.peer_id not in client.peers)
    await trio.sleep(0.6)
    await client.connect(server.addresses[0])
    await until(lambda: client.peer_id in server.peers)


@on_both
async def test_addresses_are_remembered(world: World) -> None:
    server, client = await world.enter(1), await world.enter(2)
    client.add_addresses(server.peer_id, server.addresses)
    assert client.addresses_of(server.peer_id) == server.addresses
    assert await client.connect(server.peer_id) == server.peer_id
    with pytest.raises(p2p.MalformedAddress):
        client.add_addresses(server.peer_id, ["nonsense"])


# Streams


@on_both
async def test_echo_and_half_close(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as stream:
        assert (stream.peer_id, stream.protocol) == (server.peer_id, ECHO)
        await stream.send_all(b"one ")
        assert await stream.receive_some() == b"one "
        await stream.send_all(b"two")
        await stream.send_eof()
        assert await receive_all(stream) == b"two"
        assert await stream.receive_some() == b""
        with pytest.raises(p2p.StreamClosed):
            await stream.send_all(b"x")
    with pytest.raises(p2p.StreamClosed):
        await stream.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")


@on_both
async def test_the_answering_side_can_open_streams_too(pair: tuple[Network, Network]) -> None:
    server, client = pair
    await client.serve("/other/1", echo)
    async with server.open_stream(client.peer_id, "/other/1") as stream:
        await stream.send_all(b"back")
        assert await stream.receive_some() == b"back"


@on_both
async def test_a_large_body_arrives_whole(pair: tuple[Network, Network]) -> None:
    server, client = pair
    body = bytes(range(256)) * 8192
    async with client.open_stream(server.peer_id, ECHO) as stream:
        received = b""

        async def receive() -> None:
            nonlocal received
            received = await receive_all(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await stream.send_all(body)
            await stream.send_eof()
    assert received == body


@on_both
async def test_a_reader_takes_what_it_asks_for(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as stream:
        await stream.send_all(b"abcdef")
        received = b""
        while len(received) < 6:
            part = await stream.receive_some(2)
            assert 1 <= len(part) <= 2
            received += part
        assert received == b"abcdef"


@on_both
async def test_back_pressure(pair: tuple[Network, Network]) -> None:
    """A writer waits for a reader that does not read, and goes on when it does."""
    server, client = pair
    may_read = trio.Event()
    received = 0

    async def slow(stream: Stream) -> None:
        nonlocal received
        await may_read.wait()
        while data := await stream.receive_some():
            received += len(data)

    await server.serve("/slow/1", slow)
    total = 24 * 1024 * 1024
    sent = 0
    async with client.open_stream(server.peer_id, "/slow/1") as stream:
        with trio.move_on_after(1.5):
            while sent < total:
                await stream.send_all(bytes(65_536))
                sent += 65_536
        assert 0 < sent <= 17 * 1024 * 1024, "a writer must not run ahead without bound"
        may_read.set()
        with trio.fail_after(10):
            await stream.send_all(bytes(65_536))
            await stream.send_eof()
            assert await receive_all(stream) == b""
    assert received >= sent


@on_both
async def test_reset_is_seen_by_the_peer(pair: tuple[Network, Network]) -> None:
    server, client = pair
    outcome: list[str] = []
    done = trio.Event()

    async def handler(stream: Stream) -> None:
        try:
            while await stream.receive_some():
                pass
            outcome.append("end")
        except p2p.StreamReset:
            outcome.append("reset")
            raise
        finally:
            done.set()

    await server.serve("/watch/1", handler)
    async with client.open_stream(server.peer_id, "/watch/1") as stream:
        await stream.send_all(b"x")
        await stream.reset()
        await stream.reset()
        with pytest.raises(p2p.StreamClosed):
            await stream.send_all(b"y")
    await done.wait()
    assert outcome == ["reset"]


@on_both
async def test_an_exception_in_the_block_resets_the_stream(pair: tuple[Network, Network]) -> None:
    server, client = pair
    outcome: list[type[BaseException]] = []
    done = trio.Event()

    async def handler(stream: Stream) -> None:
        try:
            await receive_all(stream)
        except BaseException as error:
            outcome.append(type(error))
            raise
        finally:
            done.set()

    await server.serve("/watch/1", handler)
    with pytest.raises(KeyError):  # noqa: PT012
        async with client.open_stream(server.peer_id, "/watch/1") as stream:
            await stream.send_all(b"x")
            raise KeyError
    await done.wait()
    assert outcome == [p2p.StreamReset]


@on_both
async def test_unsupported_protocols(pair: tuple[Network, Network]) -> None:
    server, client = pair
    with pytest.raises(p2p.ProtocolUnsupported):
        async with client.open_stream(server.peer_id, "/nope/1", "/nope/2"):
            raise AssertionError("it opened")
    async with client.open_stream(server.peer_id, "/nope/1", ECHO) as stream:
        assert stream.protocol == ECHO
        await stream.send_all(b"still here")
        assert await stream.receive_some() == b"still here"


@on_both
async def test_serving_and_not_serving(pair: tuple[Network, Network]) -> None:
    server, client = pair
    with pytest.raises(ValueError, match="served already"):
        await server.serve(ECHO, echo)
    await server.unserve(ECHO)
    await server.unserve(ECHO)
    with pytest.raises((p2p.ProtocolUnsupported, p2p.StreamReset)):  # noqa: PT012
        async with client.open_stream(server.peer_id, ECHO) as stream:
            await stream.send_all(b"x")
            await stream.receive_some()


@on_both
async def test_a_failing_handler_ends_its_stream_only(pair: tuple[Network, Network]) -> None:
    server, client = pair

    async def broken(stream: Stream) -> None:
        await stream.receive_some()
        raise RuntimeError("a defect of the program")

    await server.serve("/broken/1", broken)
    async with client.open_stream(server.peer_id, ECHO) as healthy:
        await healthy.send_all(b"before")
        assert await healthy.receive_some() == b"before"
        with pytest.raises(p2p.StreamReset):  # noqa: PT012
            async with client.open_stream(server.peer_id, "/broken/1") as stream:
                await stream.send_all(b"x")
                await stream.receive_some()
        await healthy.send_all(b"after")
        assert await healthy.receive_some() == b"after"
    assert server.counters()["handlers_failed"] == 1


@on_both
async def test_a_handler_that_fails_as_it_is_cancelled_ends_its_stream_only(
    pair: tuple[Network, Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its cancellation and a failure in one group, after its connection was lost."""
    for transport in ("backend.connection", "memory.hub"):
        monkeypatch.setattr(f"p2p.{transport}.HANDLER_GRACE_S", 0.05)
    server, client = pair

    async def say_goodbye(stream: Stream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await stream.send_all(b"goodbye")

    async def broken(stream: Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_goodbye, stream)
            await stream.send_all(b"begun")
            await trio.sleep_forever()

    await server.serve("/broken/1", broken)
    with pytest.raises(p2p.StreamReset):  # noqa: PT012
        async with client.open_stream(server.peer_id, "/broken/1") as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"begun"
            await server.disconnect(client.peer_id)
            await stream.receive_some()
    await until(lambda: server.counters().get("handlers_failed") == 1)
    await client.connect(server.addresses[0])
    async with client.open_stream(server.peer_id, ECHO) as stream:
        await stream.send_all(b"still here")
        assert await stream.receive_some() == b"still here"


@on_both
async def test_losing_the_connection_resets_its_streams(pair: tuple[Network, Network]) -> None:
    server, client = pair
    with pytest.raises(p2p.StreamReset):  # noqa: PT012
        async with client.open_stream(server.peer_id, ECHO) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            await server.disconnect(client.peer_id)
            await stream.receive_some()


@on_both
async def test_one_sender_and_one_receiver_at_a_time(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as stream:
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked(0.05)
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_some()
            await stream.send_all(b"y")


@on_both
async def test_a_cancelled_receive_has_taken_nothing(pair: tuple[Network, Network]) -> None:
    server, client = pair
    async with client.open_stream(server.peer_id, ECHO) as stream:
        with trio.move_on_after(0.05):
            await stream.receive_some()
        await stream.send_all(b"whole")
        assert await stream.receive_some() == b"whole"


@on_both
async def test_many_streams_at_once(pair: tuple[Network, Network]) -> None:
    server, client = pair
    answers: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        async with client.open_stream(server.peer_id, ECHO) as stream:
            await stream.send_all(b"%d" % number)
            await stream.send_eof()
            answers[number] = await receive_all(stream)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, number)
    assert answers == {number: b"%d" % number for number in range(100)}


@on_both
async def test_opening_a_stream_dials(world: World) -> None:
    server, client = await world.enter(1), await world.enter(2)
    await server.serve(ECHO, echo)
    client.add_addresses(server.peer_id, server.addresses)
    async with client.open_stream(server.peer_id, ECHO) as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


@on_both
async def test_ping(pair: tuple[Network, Network]) -> None:
    server, client = pair
    assert 0 <= await p2p.ping(client, server.peer_id) < 5


# Gossip


@on_both
async def test_gossip_reaches_every_subscriber(world: World) -> None:
    networks = [await world.enter(1)]
    for number in (2, 3, 4):
        networks.append(await world.enter(number, bootstrap=list(networks[0].addresses)))
    received: dict[int, list[bytes]] = {number: [] for number in range(4)}

    async def read(number: int, messages: p2p.Subscription) -> None:
        async for message in messages:
            received[number].append(message.data)

    async with trio.open_nursery() as nursery:
        for number, network in enumerate(networks):
            nursery.start_soon(_subscribe_and, network, read, number)
        await until(lambda: all(len(n.topic_peers("news")) >= 3 for n in networks))
        for number, network in enumerate(networks):
            await network.publish("news", b"from %d" % number)
        await until(lambda: all(len(got) == 4 for got in received.values()))
        nursery.cancel_scope.cancel()
    for got in received.values():
        assert sorted(got) == [b"from 0", b"from 1", b"from 2", b"from 3"], "each once"


@on_both
async def test_verdicts(pair: tuple[Network, Network]) -> None:
    server, client = pair
    judged: list[bytes] = []

    async def judge(message: p2p.Message) -> p2p.Verdict:
        judged.append(message.data)
        await trio.lowlevel.checkpoint()
        return p2p.Verdict.ACCEPT if message.data.startswith(b"good") else p2p.Verdict.REJECT

    async with (
        server.subscribe("votes", validate=judge) as messages,
        client.subscribe("votes"),
    ):
        await until(lambda: bool(client.topic_peers("votes")) and bool(server.topic_peers("votes")))
        await client.publish("votes", b"bad")
        await client.publish("votes", b"good")
        message = await messages.receive()
    assert message.data == b"good"
    assert (message.topic, message.received_from) == ("votes", client.peer_id)
    assert judged == [b"bad", b"good"], "each is judged once"


@on_both
async def test_too_large_a_message_raises(pair: tuple[Network, Network]) -> None:
    _, client = pair
    options = p2p.TopicOptions(payload_bytes_max=100)
    async with client.subscribe("small", options=options):
        with pytest.raises(p2p.PayloadTooLarge):
            await client.publish("small", bytes(101))


# Content routing


@on_both
async def test_providers_are_found(world: World) -> None:
    networks = [await world.enter(1)]
    for number in (2, 3, 4):
        networks.append(await world.enter(number, bootstrap=list(networks[0].addresses)))
    await until(lambda: all(n.counters().get("kademlia_table_peers", 0) >= 1 for n in networks))
    await networks[1].provide(b"a key")
    assert await networks[3].find_providers(b"a key") == [networks[1].peer_id]
    assert await networks[3].find_peer(networks[1].peer_id)
    with pytest.raises(p2p.LookupFailed):
        await networks[3].get_record(b"/nothing/here")


# Lifetime


@on_both
async def test_errors_of_the_block_come_out_bare(world: World) -> None:
    with pytest.raises(KeyError):
        async with world.open(1):
            raise KeyError("mine")


@on_both
async def test_a_closed_network_frees_its_port(world: World) -> None:
    async with world.open(1) as first:
        address = first.addresses[0].partition("/p2p/")[0]
    async with world.open(2, listen=[address]) as second:
        assert second.addresses[0].startswith(address)


@on_both
async def test_use_after_close(world: World) -> None:
    other = await world.enter(1)
    async with world.open(2) as closed:
        pass
    with pytest.raises(p2p.NetworkError):
        await closed.connect(other.addresses[0])


@on_both
async def test_a_restarted_peer_is_found_again(world: World) -> None:
    hub = await world.enter(1)
    async with world.open(2, bootstrap=list(hub.addresses)) as first:
        await until(lambda: first.peer_id in hub.peers)
        address = first.addresses[0].partition("/p2p/")[0]
    await until(lambda: identity(2).peer_id not in hub.peers)
    async with world.open(2, listen=[address]):  # without a bootstrap list: hub must redial
        await until(lambda: identity(2).peer_id in hub.peers, timeout_s=10)


async def _subscribe_and(network: Network, then: object, number: int) -> None:
    async with network.subscribe("news") as messages:
        await then(number, messages)  # type: ignore[operator]
