"""The bounds of peers are reached: how many are kept, how often they are dialled, what is known."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio
import trio.testing

import p2p
from p2p.discovery import GRACE_S, REVIEW_INTERVAL_S
from p2p.memory import open_hub
from tests.p2p.networks import LISTEN, identity

NOWHERE = "/ip4/10.0.0.1/tcp/1"


async def test_peers_low(autojump_clock: trio.testing.MockClock) -> None:
    async with open_hub() as hub, AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(hub.open_network(identity(2 + number), listen=LISTEN))
            for number in range(5)
        ]
        async with hub.open_network(identity(1), limits=p2p.Limits(peers_low=2)) as network:
            for other in others:
                network.add_addresses(other.peer_id, other.addresses)
            await trio.sleep(3 * REVIEW_INTERVAL_S)
            assert len(network.peers) == network.counters()["dials"] == 2


async def test_peers_high(autojump_clock: trio.testing.MockClock) -> None:
    limits = p2p.Limits(peers_low=1, peers_high=2)
    async with open_hub() as hub, AsyncExitStack() as stack:
        network = await stack.enter_async_context(
            hub.open_network(identity(1), listen=LISTEN, limits=limits)
        )
        for number in range(5):
            switch = hub.open_switch(identity(2 + number), p2p.Limits())
            visitor = await stack.enter_async_context(switch)
            await visitor.connect(network.addresses[0])
        await trio.sleep(GRACE_S - 1)
        assert len(network.peers) == 5
        await trio.sleep(2 * REVIEW_INTERVAL_S + 1)
        assert len(network.peers) == 2
        assert network.counters()["peers_released"] == 3


async def dials_failed_in(duration_s: float, limits: p2p.Limits, *, is_bootstrap: bool) -> int:
    """How often a peer that is not there is dialled, as a bootstrap peer or as a known one."""
    absent = identity(9).peer_id
    async with open_hub(seed=1) as hub:
        bootstrap = [f"{NOWHERE}/p2p/{absent}"] if is_bootstrap else []
        async with hub.open_network(identity(1), bootstrap=bootstrap, limits=limits) as network:
            network.add_addresses(absent, [NOWHERE])
            await trio.sleep(duration_s)
            return network.counters()["dials_failed"]


async def test_redial_backoff_min_s(autojump_clock: trio.testing.MockClock) -> None:
    """Waits of 4, 8, 16 … s, each shortened by up to a half, against 0.5, 1, 2 …"""
    slow = p2p.Limits(redial_backoff_min_s=4)
    assert await dials_failed_in(3.5, slow, is_bootstrap=False) <= 2
    assert await dials_failed_in(3.5, p2p.Limits(), is_bootstrap=False) >= 3


async def test_redial_backoff_max_s(autojump_clock: trio.testing.MockClock) -> None:
    limits = p2p.Limits(redial_backoff_max_s=10)
    assert 10 <= await dials_failed_in(100, limits, is_bootstrap=False) <= 26
    assert await dials_failed_in(100, p2p.Limits(), is_bootstrap=False) < 10


async def test_redial_wanted_max_s(autojump_clock: trio.testing.MockClock) -> None:
    assert 33 <= await dials_failed_in(100, p2p.Limits(), is_bootstrap=True) <= 70
    rarely = p2p.Limits(redial_wanted_max_s=30)
    assert await dials_failed_in(100, rarely, is_bootstrap=True) < 12


async def test_address_book_peers_max() -> None:
    limits = p2p.Limits(address_book_peers_max=3)
    async with open_hub() as hub, hub.open_network(identity(1), limits=limits) as network:
        peers = [identity(2 + number).peer_id for number in range(5)]
        for peer in peers:
            network.add_addresses(peer, [NOWHERE])
        assert [bool(network.addresses_of(peer)) for peer in peers] == [False] * 2 + [True] * 3
        assert network.counters()["address_book_peers_forgotten"] == 2


async def test_addresses_per_peer_max() -> None:
    limits = p2p.Limits(addresses_per_peer_max=3)
    async with open_hub() as hub, hub.open_network(identity(1), limits=limits) as network:
        claims = [f"/ip4/10.0.0.1/tcp/{port}" for port in range(1, 20)]
        network.add_addresses(identity(2).peer_id, claims)
        assert len(network.addresses_of(identity(2).peer_id)) == 3
        assert network.counters()["addresses_left_out"] == 16
