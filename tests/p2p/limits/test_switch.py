"""The bounds of streams, dials and identify are reached, on a switch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

import p2p
from p2p import identify
from p2p.address_book import AddressBook
from p2p.connection import Connection
from p2p.dialing import Dialer
from p2p.identify_pb2 import Identify as IdentifyMessage
from p2p.memory import open_hub
from p2p.multiaddress import Address
from p2p.switchboard import Switchboard
from tests.p2p.networks import ECHO, LISTEN, echo, identity, until


@asynccontextmanager
async def switches(**limits: float) -> AsyncIterator[tuple[Switchboard, Switchboard]]:
    """A server with limits of its own and a connected client with the defaults."""
    async with (
        open_hub() as hub,
        hub.open_switch(identity(1), p2p.Limits(**limits)) as server,  # type: ignore[arg-type]
        hub.open_switch(identity(2), p2p.Limits()) as client,
    ):
        await server.listen(LISTEN)
        server.serve(ECHO, echo)
        await client.connect(server.addresses[0])
        await until(lambda: bool(client.protocols_of(server.peer_id)))
        await until(lambda: bool(server.protocols_of(client.peer_id)))
        yield server, client


class SlowTransport:
    """Dials that never end, counted."""

    def __init__(self) -> None:
        self.dialling = 0
        self.most = 0

    listening: tuple[Address, ...] = ()

    def counters(self) -> dict[str, int]:
        return {}

    async def listen(self, addresses: Sequence[Address]) -> None:
        raise NotImplementedError

    async def dial(self, address: Address) -> Connection:
        self.dialling += 1
        self.most = max(self.most, self.dialling)
        try:
            await trio.sleep(3)
        finally:
            self.dialling -= 1
        raise p2p.DialFailed("nobody there")


async def test_dials_concurrent_max(autojump_clock: trio.testing.MockClock) -> None:
    transport = SlowTransport()
    book = AddressBook(peers_max=100, addresses_per_peer_max=4)
    dialer = Dialer(transport, book, p2p.Limits(dials_concurrent_max=3))
    failed = 0

    async def dial(number: int) -> None:
        nonlocal failed
        peer_id = identity(number).peer_id
        address = Address.parse(f"/ip4/10.0.0.1/tcp/1/p2p/{peer_id}")
        with pytest.raises(p2p.DialFailed):
            await dialer.dial(peer_id, [address], lambda: False)
        failed += 1

    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(dial, number)
    assert (failed, transport.most) == (9, 3)
    assert trio.current_time() == pytest.approx(9, abs=0.1)


async def test_dial_timeout_s(autojump_clock: trio.testing.MockClock) -> None:
    transport = SlowTransport()
    book = AddressBook(peers_max=100, addresses_per_peer_max=4)
    dialer = Dialer(transport, book, p2p.Limits(dial_timeout_s=1))
    address = Address.parse(f"/ip4/10.0.0.1/tcp/1/p2p/{identity(1).peer_id}")
    with pytest.raises(p2p.DialFailed, match="no answer in 1 s"):
        await dialer.dial(identity(1).peer_id, [address], lambda: False)
    assert transport.dialling == 0


async def test_negotiations_per_connection_max() -> None:
    async with switches(negotiations_per_connection_max=3) as (server, client):
        connection = client._newest_connection(server.peer_id)
        silent = [await connection.open_stream() for _ in range(5)]
        await until(lambda: server.counters().get("streams_refused") == 2)
        for stream in silent:
            await stream.reset()
        await until(lambda: not server._guard._negotiating)
        async with client.open_stream(server.peer_id, ECHO) as stream:
            await stream.send_all(b"again")
            assert await stream.receive_some() == b"again"


async def test_streams_total_max() -> None:
    async with switches(streams_total_max=4) as (server, client):
        async with trio.open_nursery() as nursery:
            refused = 0

            async def hold() -> None:
                nonlocal refused
                try:
                    async with client.open_stream(server.peer_id, ECHO) as stream:
                        await stream.send_all(b"x")
                        await stream.receive_some()
                        await trio.sleep_forever()
                except p2p.StreamReset:
                    refused += 1

            for _ in range(6):
                nursery.start_soon(hold)
            await until(lambda: refused == 2)
            nursery.cancel_scope.cancel()
        assert server.counters()["streams_refused"] == 2
        await until(lambda: server._guard.streams == 0)


async def test_negotiation_proposals_max() -> None:
    async with switches(negotiation_proposals_max=4) as (server, client):
        with pytest.raises((p2p.StreamReset, p2p.ProtocolUnsupported)):
            async with client.open_stream(server.peer_id, *[f"/nope/{n}" for n in range(20)]):
                raise AssertionError("it opened")
        assert server.counters()["streams_violating"] == 1


async def test_identify_bytes_max() -> None:
    async with switches(identify_bytes_max=1024) as (server, client):
        before = server.protocols_of(client.peer_id)
        async with client.open_stream(server.peer_id, identify.IDENTIFY_PUSH) as stream:
            with pytest.raises(p2p.StreamReset):  # noqa: PT012
                await stream.send_all(bytes(4096))
                await stream.send_eof()
                await stream.receive_some()
        assert server.counters()["streams_violating"] == 1
        assert server.protocols_of(client.peer_id) == before


def test_protocols_per_peer_max() -> None:
    message = IdentifyMessage(protocols=[f"/p/{number}" for number in range(50)])
    raw = message.SerializeToString()
    framed = bytes([len(raw) & 0x7F | 0x80, len(raw) >> 7]) + raw
    limits = p2p.Limits(protocols_per_peer_max=10)
    assert len(identify.decode(framed, identity(1).peer_id, limits).protocols) == 10


async def test_protocol_id_bytes_max() -> None:
    async with switches(protocol_id_bytes_max=20) as (server, _):
        with pytest.raises(ValueError, match="protocol id"):
            server.serve("/" + "x" * 30, echo)


async def test_addresses_per_peer_max_holds_for_what_peers_say() -> None:
    async with switches(addresses_per_peer_max=3) as (server, client):
        addresses = [Address.parse(f"/ip4/10.0.0.1/tcp/{port}").to_bytes() for port in range(1, 20)]
        message = IdentifyMessage(listen_addrs=addresses, protocols=["/pushed"])
        raw = message.SerializeToString()
        async with client.open_stream(server.peer_id, identify.IDENTIFY_PUSH) as stream:
            await stream.send_all(bytes([len(raw) & 0x7F | 0x80, len(raw) >> 7]) + raw)
        await until(lambda: "/pushed" in server.protocols_of(client.peer_id))
        assert len(server.addresses_of(client.peer_id)) == 3
