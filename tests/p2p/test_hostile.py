"""A node process among strangers: it stays up, serves an honest peer meanwhile, and forgets them.

Every attack of `tests.p2p.strangers` runs against one and the same process. `AGORA_TEST_SCALE=10`
gives each fuzzer 2,000 inputs, 1,000 half-open sockets, 10,000 streams and 10,000 connects.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

import p2p
from p2p.multiaddress import Address
from tests.p2p import rogues, strangers
from tests.p2p.networks import ECHO, SCALE, identity, receive_all, until
from tests.p2p.strangers import Attack, Target
from tests.p2p.victim import HOLDINGS, HONEST, NEWS

INPUTS = 200 * SCALE
ECHO_S_MAX = 2.0
"""An honest echo under attack, on a machine with two busy cores."""

DIAL_S_MAX = 3.0
RECOVERY_S_MAX = 15.0
RSS_GROWTH_MAX_BYTES = 64 * 1024 * 1024

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def victim() -> Iterator[Address]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.p2p.victim"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Address.parse(process.stdout.readline().strip())
        assert process.poll() is None, "the process has ended"
        process.kill()


async def holdings(network: p2p.Network, peer_id: p2p.PeerId) -> dict[str, int]:
    """What the victim holds now."""
    async with network.open_stream(peer_id, HOLDINGS) as stream:
        await stream.send_eof()
        told: dict[str, int] = json.loads(await receive_all(stream))
    return told


async def be_honest(network: p2p.Network, peer_id: p2p.PeerId, delays_s: list[float]) -> None:
    """Ask for echoes without end and note how long each takes."""
    while True:
        start_s = trio.current_time()
        async with network.open_stream(peer_id, ECHO) as stream:
            await stream.send_all(b"are you still there?")
            await stream.send_eof()
            assert await receive_all(stream) == b"are you still there?"
        delays_s.append(trio.current_time() - start_s)
        await network.publish(NEWS, HONEST + b" %d" % len(delays_s) + network.peer_id.to_bytes())
        await trio.sleep(0.02)


async def be_heard(network: p2p.Network, peer_id: p2p.PeerId) -> None:
    """Wait until the gossip of `be_honest` still arrives."""
    heard = (await holdings(network, peer_id))["heard_honest"]
    with trio.fail_after(RECOVERY_S_MAX):
        while (await holdings(network, peer_id))["heard_honest"] == heard:  # noqa: ASYNC110
            await trio.sleep(0.05)


@pytest.mark.parametrize(
    "attack", [*strangers.ATTACKS, *rogues.ATTACKS], ids=lambda attack: attack.__name__
)
async def test_attack(victim: Address, attack: Attack) -> None:
    target = Target(victim, random.Random(7), INPUTS)
    async with (
        p2p.open_network(p2p.Identity.generate()) as honest,
        honest.subscribe(NEWS),
    ):
        peer_id = await honest.connect(str(victim))
        await until(lambda: peer_id in honest.topic_peers(NEWS))
        await trio.sleep(0.3)  # both have opened the streams that belong to a connection
        before = await holdings(honest, peer_id)
        delays_s: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_honest, honest, peer_id, delays_s)
            await attack(target)
            await be_heard(honest, peer_id)
            nursery.cancel_scope.cancel()
        assert delays_s, "no echo came back at all"
        assert max(delays_s) <= ECHO_S_MAX
        assert "handlers_failed" not in await recovered(honest, peer_id, before)
    async with p2p.open_network(identity(3)) as newcomer:
        with trio.fail_after(DIAL_S_MAX):
            await newcomer.connect(str(victim))


async def recovered(
    network: p2p.Network, peer_id: p2p.PeerId, before: dict[str, int]
) -> dict[str, int]:
    """Wait for the baseline: tasks, descriptors and buffers as before, memory within its bound."""
    now: dict[str, int] = {}
    excess: dict[str, int] = {}
    with trio.move_on_after(RECOVERY_S_MAX):
        while True:
            now = await holdings(network, peer_id)
            excess = {
                name: now[name] - before[name]
                for name in ("tasks", "descriptors", "unread_bytes", "streams")
                if now[name] > before[name]
            }
            if not excess:
                break
            await trio.sleep(0.1)
    assert not excess, f"not given back: {excess}"
    assert now["rss_bytes"] - before["rss_bytes"] <= RSS_GROWTH_MAX_BYTES
    return now


async def test_a_newcomer_is_let_in_among_half_open_sockets(victim: Address) -> None:
    """From another address than the attacker's, and from the same."""
    target = Target(victim, random.Random(1), INPUTS, "127.0.0.2")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(strangers.half_open, target)
        await trio.sleep(0.3)
        async with p2p.open_network(identity(4)) as newcomer:
            start_s = trio.current_time()
            await newcomer.connect(str(victim))
            assert trio.current_time() - start_s <= DIAL_S_MAX
        nursery.cancel_scope.cancel()


async def sit(
    target: Target,
    who: p2p.Identity,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Finish a handshake and do nothing more, until thrown out."""
    with suppress(p2p.DialFailed):
        async with strangers.secured(target, who) as connection:
            task_status.started()
            await connection.closed.wait()
            return
    task_status.started()


async def test_a_newcomer_is_let_in_among_peers_that_hold_every_place(victim: Address) -> None:
    """A hundred peers of four connections each, more than there are places, who only sit there."""
    target = Target(victim, random.Random(2), INPUTS)
    async with trio.open_nursery() as nursery, p2p.open_network(identity(5)) as newcomer:
        for number in range(400):
            await nursery.start(sit, target, identity(10 + number // 4))
        start_s = trio.current_time()
        peer_id = await newcomer.connect(str(victim))
        async with newcomer.open_stream(peer_id, ECHO) as stream:
            await stream.send_all(b"is there room?")
            await stream.send_eof()
            assert await receive_all(stream) == b"is there room?"
        assert trio.current_time() - start_s <= DIAL_S_MAX
        assert (await holdings(newcomer, peer_id))["peers_released"] > 0
        nursery.cancel_scope.cancel()
