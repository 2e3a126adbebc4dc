"""Our transport and stock py-libp2p, in every pairing: identify, ping, 10 MiB echo with half-close.

It also keeps watch over what `p2p.backend.transport` relies on in py-libp2p 0.8.1.
"""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

import p2p
from p2p.backend.muxed import MuxedConnection
from p2p.backend.transport import AgoraTransport, MuxedListener
from tests.p2p.transport.pairs import open_files

pytestmark = [
    pytest.mark.network,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ANYWHERE = Multiaddr("/ip4/127.0.0.1/tcp/0")
ECHO, FAULTY = "/echo/1", "/faulty/1"
ECHO_BYTES = 10 * 1024 * 1024


@pytest.fixture(autouse=True)
def _leaves_no_socket() -> Iterator[None]:
    """A host that nobody closes is found by its own test, not by whichever runs when the collector
    comes round to it."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.CRITICAL)  # it logs to the root logger, too


def ours() -> Any:
    transport = AgoraTransport(p2p.Identity.generate())
    return new_host(key_pair=transport.key_pair, transports=[transport])


def stock() -> Any:
    key_pair = create_new_key_pair()
    noise = NoiseTransport(key_pair, noise_privkey=create_new_noise_key_pair().private_key)
    return new_host(key_pair=key_pair, sec_opt={NOISE: noise})


async def echo(stream: Any) -> None:
    try:
        while data := await stream.read(65_536):
            await stream.write(data)
    except StreamEOF:
        await stream.close()


async def read_to_end(stream: Any) -> bytes:
    received = bytearray()
    try:
        while True:
            received += await stream.read(65_536)
    except StreamEOF:
        return bytes(received)


async def fail(stream: Any) -> None:
    raise RuntimeError("a bug in a handler")


@asynccontextmanager
async def hosts(
    dialler: Callable[[], Any], listener: Callable[[], Any]
) -> AsyncIterator[tuple[Any, Any]]:
    """Two connected hosts; the second echoes."""
    near, far = dialler(), listener()
    far.set_stream_handler(ECHO, echo)
    far.set_stream_handler(FAULTY, fail)
    async with near.run([ANYWHERE]), far.run([ANYWHERE]):
        await near.connect(info_from_p2p_addr(far.get_addrs()[0]))
        yield near, far
        await near.close()
        await far.close()


PAIRINGS = [(ours, ours), (ours, stock), (stock, ours)]
PAIRING_IDS = ["ours-ours", "ours-stock", "stock-ours"]


@pytest.mark.parametrize(("dialler", "listener"), PAIRINGS, ids=PAIRING_IDS)
async def test_identify_and_echo_with_half_close(
    dialler: Callable[[], Any], listener: Callable[[], Any]
) -> None:
    payload = random.Random(1).randbytes(ECHO_BYTES)
    with trio.fail_after(60):
        async with hosts(dialler, listener) as (near, far):
            stream = await near.new_stream(far.get_id(), [ECHO])

            async def send() -> None:
                for start in range(0, len(payload), 65_536):
                    await stream.write(payload[start : start + 65_536])
                await stream.close_write()

            received = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                received += await read_to_end(stream)
            assert received == payload
            with trio.fail_after(10):
                while ECHO not in (near.get_peerstore().peer_data_map[far.get_id()].protocols):
                    await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize(("dialler", "listener"), PAIRINGS[1:], ids=PAIRING_IDS[1:])
async def test_our_network_and_a_stock_host(
    dialler: Callable[[], Any], listener: Callable[[], Any]
) -> None:
    """`p2p.open_network` with stock py-libp2p: ping and echo, dialled from either side."""
    host = stock()
    host.set_stream_handler(ECHO, echo)
    listen = ["/ip4/127.0.0.1/tcp/0"]
    with trio.fail_after(30):
        async with (
            p2p.open_network(p2p.Identity.generate(), listen=listen) as network,
            host.run([ANYWHERE]),
        ):
            host_id = p2p.PeerId(str(host.get_id()))
            if dialler is ours:
                await network.connect(str(host.get_addrs()[0]))
            else:
                await host.connect(info_from_p2p_addr(Multiaddr(network.addresses[0])))

                async def serve(stream: p2p.Stream) -> None:
                    while data := await stream.receive_some():
                        await stream.send_all(data)

                await network.serve(ECHO, serve)
                theirs = await host.new_stream(
                    info_from_p2p_addr(Multiaddr(network.addresses[0])).peer_id, [ECHO]
                )
                await theirs.write(b"from stock")
                assert await theirs.read(100) == b"from stock"
            async with network.open_stream(host_id, ECHO) as stream:
                await stream.send_all(b"from ours")
                await stream.send_eof()
                assert await stream.receive_some() == b"from ours"
                assert await stream.receive_some() == b""
            assert await p2p.ping(network, host_id) < 10
            await host.close()  # `run` alone leaves the sockets that it dialled open


async def test_a_faulty_handler_costs_its_stream_only() -> None:
    with trio.fail_after(30):
        async with hosts(ours, ours) as (near, far):
            with pytest.raises((StreamError, BaseLibp2pError)):
                await read_to_end(await near.new_stream(far.get_id(), [FAULTY]))
            stream = await near.new_stream(far.get_id(), [ECHO])
            await stream.write(b"still there")
            assert await stream.read(100) == b"still there"


async def test_a_token_that_is_not_text_costs_its_stream_only() -> None:
    with trio.fail_after(30):
        async with hosts(ours, ours) as (near, far):
            muxed = near.get_network().connections[far.get_id()][0].muxed_conn
            assert isinstance(muxed, MuxedConnection)
            raw = await muxed.open_stream()
            await raw.write(b"\x13/multistream/1.0.0\n\x03\xff\xfe\n")
            with pytest.raises((StreamError, BaseLibp2pError)):
                await read_to_end(raw)
            stream = await near.new_stream(far.get_id(), [ECHO])
            await stream.write(b"still there")
            assert await stream.read(100) == b"still there"


async def test_inbound_slots_are_given_back() -> None:
    """The swarm's handler holds a slot until the swarm ends, unless it is cancelled."""
    with trio.fail_after(60):
        async with hosts(stock, ours) as (near, far):
            limiter = far.get_network()._inbound_limiter
            assert limiter.borrowed_tokens == 1
            await near.disconnect(far.get_id())
            while limiter.borrowed_tokens:
                await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_wrong_peer_id_is_not_connected() -> None:
    with trio.fail_after(30):
        async with hosts(ours, ours) as (near, far):
            other = p2p.Identity.generate().peer_id
            address = str(far.get_addrs()[0]).rsplit("/", 1)[0]
            with pytest.raises(BaseLibp2pError):
                await near.connect(info_from_p2p_addr(Multiaddr(f"{address}/{other}")))
            assert str(other) not in map(str, near.get_network().connections)


async def test_cancelling_a_host_closes_its_sockets() -> None:
    files = open_files()
    with trio.CancelScope() as scope:
        async with hosts(ours, ours) as (near, far):
            await near.new_stream(far.get_id(), [ECHO])
            scope.cancel()
            await trio.lowlevel.checkpoint()
    with trio.fail_after(5):
        while open_files() > files:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_swarm_that_has_ended_listens_nowhere() -> None:
    listener = AgoraTransport(p2p.Identity.generate()).create_listener(echo)
    assert isinstance(listener, MuxedListener)
    async with trio.open_nursery() as nursery:
        listener.background_nursery = nursery
    with pytest.raises(OpenConnectionError, match="has ended"):
        await listener.listen(ANYWHERE)
    assert listener.get_addrs() == ()


@pytest.mark.parametrize("error", [StreamError, StreamEOF])
def test_the_errors_we_translate_exist(error: type[Exception]) -> None:
    assert issubclass(error, Exception)
