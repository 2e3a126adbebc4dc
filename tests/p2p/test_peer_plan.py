"""Whom the peer keeper dials and lets go: its plan, and newcomers among strangers that sit idle."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import p2p
from p2p.backend.endpoint import Endpoint
from p2p.discovery import (
    GRACE_S,
    LOST_WANTED_S,
    REVIEW_INTERVAL_S,
    PeerPlan,
    Standing,
)
from p2p.memory import MemoryHub, open_hub
from p2p.multiaddress import Address
from p2p.network import Network
from p2p.peer_use import NEEDED_S, PeerUses
from tests.p2p.networks import ECHO, LISTEN, echo, identity, on_both, until

LIMITS = p2p.Limits()
PEERS = [identity(number).peer_id for number in range(1, 12)]

INBOUND, OUTBOUND = p2p.Direction.INBOUND, p2p.Direction.OUTBOUND


def plan(bootstrap: Sequence[p2p.PeerId] = (), **limits: int) -> PeerPlan:
    return PeerPlan(p2p.Limits(**limits), bootstrap, random.Random(1))


def test_below_the_low_mark_known_peers_are_dialled() -> None:
    keeper = plan(peers_low=3)
    assert len(keeper.to_dial(0, [], PEERS)) == 3
    assert len(keeper.to_dial(0, PEERS[:2], PEERS)) == 1
    assert keeper.to_dial(0, PEERS[:3], PEERS) == []


def test_bootstrap_peers_are_dialled_at_any_level() -> None:
    keeper = plan([PEERS[10]], peers_low=1)
    assert keeper.to_dial(0, PEERS[:5], PEERS[:5]) == [PEERS[10]]


def test_backoff_doubles_up_to_its_ceiling() -> None:
    keeper, now_s, waits = plan(peers_low=1), 0.0, []
    for _ in range(12):
        assert keeper.to_dial(now_s, [], PEERS[:1]) == PEERS[:1]
        keeper.dial_failed(PEERS[0], now_s)
        start_s = now_s
        while not keeper.to_dial(now_s, [], PEERS[:1]):
            now_s += 0.05
        waits.append(now_s - start_s)
    assert waits[0] <= 0.6
    assert LIMITS.redial_backoff_max_s / 2 <= waits[-1] <= LIMITS.redial_backoff_max_s + 0.1


def test_a_useful_peer_that_is_lost_is_wanted_for_a_while() -> None:
    keeper = plan(peers_low=1)
    keeper.lost(PEERS[0], 0.0, lasted_s=60, was_useful=True)
    for now_s in range(10):
        keeper.dial_failed(PEERS[0], float(now_s))
    due_s = 9.0 + LIMITS.redial_wanted_max_s
    assert keeper.to_dial(due_s, PEERS[1:4], PEERS[:4]) == [PEERS[0]], "although there are enough"
    assert keeper.to_dial(LOST_WANTED_S + 1, PEERS[1:4], PEERS[:4]) == []


def test_a_peer_that_hangs_up_at_once_is_redialled_ever_more_rarely() -> None:
    """A peer of another chain accepts the connection and ends it after the status exchange."""
    keeper, now_s, dials = plan(peers_low=1), 0.0, 0
    while now_s < 600:
        if keeper.to_dial(now_s, [], PEERS[:1]):
            dials += 1
            keeper.connected(PEERS[0])
            now_s += 0.5
            keeper.lost(PEERS[0], now_s, lasted_s=0.5)
        now_s += 0.1
    assert dials < 30
    keeper.lost(PEERS[0], now_s, lasted_s=60)
    assert keeper.to_dial(now_s + 0.6, [], PEERS[:1]) == PEERS[:1], "a good one is redialled soon"


def test_a_dismissed_peer_is_left_alone_until_it_is_back() -> None:
    keeper = plan(PEERS[:1])
    keeper.dismiss(PEERS[0])
    assert keeper.to_dial(1e6, [], PEERS[:1]) == []
    keeper.connected(PEERS[0])
    assert keeper.to_dial(1e6, [], PEERS[:1]) == PEERS[:1]


def stands(since_s: float, direction: p2p.Direction = INBOUND, **reasons: Any) -> Standing:
    """A peer that is connected since then, and idle unless said otherwise."""
    return Standing(**{"direction": direction, "since_s": since_s, "idle_s": since_s, **reasons})


def test_above_the_high_mark_those_missed_least_are_released() -> None:
    keeper = plan([PEERS[0]], peers_low=1, peers_high=4)
    now_s = 10 * GRACE_S
    connected = {
        PEERS[0]: stands(0.0),  # bootstrap
        PEERS[1]: stands(0.0, is_needed=True),
        PEERS[2]: stands(1.0, OUTBOUND),  # a lookup dialled it
        PEERS[3]: stands(3.0),
        PEERS[4]: stands(2.0, idle_s=now_s - 9),
        PEERS[5]: stands(2.5),
        PEERS[6]: stands(now_s - 1),  # too new to judge
    }
    order = [PEERS[5], PEERS[3], PEERS[4], PEERS[2]]
    assert keeper.to_release(now_s, connected) == order[:3]
    more = plan([PEERS[0]], peers_low=1, peers_high=1)
    assert more.to_release(now_s, connected) == order, "the needed and the new stay at any level"
    connected[PEERS[2]] = stands(1.0, OUTBOUND, score=-1.0)
    assert keeper.to_release(now_s, connected)[0] == PEERS[2], "the lowest score first"
    del connected[PEERS[2]], connected[PEERS[3]], connected[PEERS[5]]
    assert keeper.to_release(now_s, connected) == []


def test_few_peers_with_many_connections_make_room_at_once() -> None:
    """Six peers of four connections fill the 24 inbound places of 32, below `peers_high`."""
    keeper = plan(connections_max=32, peers_high=8)
    connected = {peer: stands(1.0, connections=4, score=0.0) for peer in PEERS[:5]}
    connected[PEERS[9]] = stands(0.0)  # idle for longer, but modest
    assert not keeper.is_crowded(21)
    assert keeper.to_release(1.0, connected) == []
    connected[PEERS[5]] = stands(1.0, connections=4, is_needed=True)
    assert keeper.is_crowded(25)
    assert keeper.to_release(1.0, connected) == [min(PEERS[:5])]


def test_what_strangers_do_protects_them_less_than_what_the_program_does() -> None:
    uses = PeerUses()
    uses.connected_to(PEERS[0])
    assert uses.is_needed(PEERS[0], 0.0)
    assert not uses.is_needed(PEERS[1], 0.0)
    assert uses.active_s(PEERS[1], 0.0) == -math.inf
    uses.keep({PEERS[1]})
    assert not uses.is_needed(PEERS[0], 0.0), "forgotten with its connection"


@on_both
async def test_streams_are_uses(pair: tuple[Network, Network]) -> None:
    """Opened here: needed while it lasts and for a while; served: active, never needed."""
    server, client = pair
    near, far = client._uses, server._uses  # type: ignore[attr-defined]
    async with client.open_stream(server.peer_id, ECHO) as stream:
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        assert near.is_needed(server.peer_id, math.inf)
        assert far.active_s(client.peer_id, 1e9) == 1e9
        assert not far.is_needed(client.peer_id, trio.current_time())
    near._of(server.peer_id).is_wanted = False
    await until(lambda: far.active_s(client.peer_id, 1e9) < 1e9)
    ended_s = near.active_s(server.peer_id, 0.0)
    assert near.is_needed(server.peer_id, ended_s + NEEDED_S)
    assert not near.is_needed(server.peer_id, ended_s + NEEDED_S + 1)


@given(st.lists(st.tuples(st.sampled_from(PEERS), st.floats(0, 100)), max_size=50))
def test_the_plan_dials_nobody_it_is_connected_to(failures: list[tuple[p2p.PeerId, float]]) -> None:
    keeper = plan(PEERS[:2])
    for peer, now_s in failures:
        keeper.dial_failed(peer, now_s)
    for dialled in (keeper.to_dial(50.0, PEERS[:5], PEERS), keeper.to_dial(math.inf, [], PEERS)):
        assert len(dialled) == len(set(dialled))
    assert not set(keeper.to_dial(math.inf, PEERS[:5], PEERS)) & set(PEERS[:5])


# The keeper among strangers, on sockets

SMALL = p2p.Limits(connections_max=16, peers_low=1, peers_high=8)
INBOUND_PLACES = 12
EAGER = p2p.Limits(redial_wanted_max_s=0.5)
ADMITTED_S_MAX = 2 * REVIEW_INTERVAL_S + EAGER.redial_wanted_max_s + 1.0


async def sit(address: Address, identity: p2p.Identity) -> None:
    """Connect, answer what the wire demands, and do nothing, until thrown out."""
    with suppress(p2p.DialFailed):
        connection = await Endpoint(identity, p2p.Limits()).dial(address)
        await connection.run()


@asynccontextmanager
async def crowded(sitters: Sequence[p2p.Identity]) -> AsyncIterator[tuple[Network, Network]]:
    """A server full of sitters, and its friend, to whom its program once opened a stream."""
    async with (
        p2p.open_network(identity(1), listen=LISTEN, limits=SMALL) as server,
        p2p.open_network(identity(2)) as friend,
        trio.open_nursery() as nursery,
    ):
        await server.serve(ECHO, echo)
        await friend.serve(ECHO, echo)
        await friend.connect(server.addresses[0])
        await until(lambda: friend.peer_id in server.peers)
        async with server.open_stream(friend.peer_id, ECHO) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
        for sitter in sitters:
            nursery.start_soon(sit, Address.parse(server.addresses[0]), sitter)
        met = ("connections_inbound", "connections_refused")
        await until(lambda: sum(server.counters().get(n, 0) for n in met) > len(sitters))
        yield server, friend
        nursery.cancel_scope.cancel()


async def seconds_to_enter(server: Network) -> float:
    """How long a newcomer that knows only the server needs for its first echo."""
    start_s = trio.current_time()
    bootstrap = server.addresses
    async with p2p.open_network(p2p.Identity.generate(), bootstrap=bootstrap, limits=EAGER) as one:
        with trio.fail_after(60):
            async with one.watch_peers() as events:
                async for event in events:
                    if not isinstance(event, p2p.PeerConnected):
                        continue
                    with suppress(p2p.NetworkError):  # a full server hangs up after the handshake
                        async with one.open_stream(server.peer_id, ECHO) as stream:
                            await stream.send_all(b"x")
                            if await stream.receive_some() == b"x":
                                break
        return trio.current_time() - start_s


@pytest.mark.network
@pytest.mark.parametrize("each", [1, 4], ids=["as many peers", "three peers of four connections"])
async def test_a_newcomer_gets_in_among_strangers_that_hold_every_place(each: int) -> None:
    sitters = [identity(100 + number // each) for number in range(INBOUND_PLACES - 1)]
    async with crowded(sitters) as (server, friend):
        assert await seconds_to_enter(server) <= ADMITTED_S_MAX
        assert server.counters()["peers_released"] > 0
        assert friend.peer_id in server.peers, "who was of use lately stays"


async def come_back(hub: MemoryHub, address: str, number: int) -> None:
    """Sit, and when thrown out or refused come back as somebody else, as eager as a newcomer."""
    rng = random.Random(number)
    for turn in range(1000):
        async with hub.open_switch(identity(1000 * number + turn), p2p.Limits()) as stranger:
            with suppress(p2p.NetworkError):
                await stranger.connect(address)
                async with stranger.watch_peers() as events:
                    while not isinstance(await events.receive(), p2p.PeerDisconnected):
                        pass
        await trio.sleep(EAGER.redial_wanted_max_s * rng.uniform(0.5, 1.0))


async def test_a_newcomer_gets_in_among_strangers_that_come_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Twice as many as there are places, who leave when they must and dial again at once."""
    async with open_hub() as hub, trio.open_nursery() as nursery:
        async with hub.open_network(identity(1), listen=LISTEN, limits=SMALL) as server:
            for number in range(1, 1 + 2 * INBOUND_PLACES):
                nursery.start_soon(come_back, hub, server.addresses[0], number)
            await trio.sleep(10)
            assert server.counters()["peers_released"] > INBOUND_PLACES
            for number in range(2, 6):
                newcomer = hub.open_network(
                    identity(number), bootstrap=server.addresses, limits=EAGER
                )
                async with newcomer as one, one.watch_peers() as events:
                    with trio.fail_after(20):
                        await events.receive()
            nursery.cancel_scope.cancel()
