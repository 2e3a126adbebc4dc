"""A node in a process of its own, to be attacked: `python -m tests.p2p.victim`.

It serves echoes, a service that never reads, and what it holds at the moment, as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import resource
from collections import Counter

import trio

import p2p
from p2p.network import Stream
from p2p.stack import StackedNetwork
from tests.p2p.networks import ECHO, LISTEN, echo, identity

DEAF = "/deaf/1"
HOLDINGS = "/holdings/1"
NEWS = "news"

REFUSED = b"bad"
"""How a message begins that the judge rejects."""

HONEST = b"honest"
"""How the messages begin that are counted."""

LIMITS = p2p.Limits(handshake_timeout_s=2, negotiation_timeout_s=2)
"""As the defaults, but for deadlines that a test can wait for."""


def judge(message: p2p.Message) -> p2p.Verdict:
    """Reject what begins with `REFUSED`."""
    return p2p.Verdict.REJECT if message.data.startswith(REFUSED) else p2p.Verdict.ACCEPT


async def never_read(stream: Stream) -> None:
    """Hold a stream open and take nothing from it."""
    await trio.sleep_forever()


def holdings(network: p2p.Network) -> dict[str, int]:
    """What the process holds: tasks, descriptors, unread bytes, resident memory, counters."""
    assert isinstance(network, StackedNetwork)
    gc.collect()
    transport = network._switch._transport
    connections = transport.endpoint.arena.connections  # type: ignore[union-attr]
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "unread_bytes": sum(connection.unread_bytes for connection in connections),
        "streams": sum(connection.streams for connection in connections),
        "rss_bytes": pages * resource.getpagesize(),
        **network.counters(),
    }


async def main() -> None:
    """Run until killed."""
    heard: Counter[bool] = Counter()
    async with p2p.open_network(identity(1), listen=LISTEN, limits=LIMITS) as network:

        async def tell_holdings(stream: Stream) -> None:
            now = holdings(network) | {"heard_honest": heard[True]}
            await stream.send_all(json.dumps(now).encode())

        await network.serve(ECHO, echo)
        await network.serve(DEAF, never_read)
        await network.serve(HOLDINGS, tell_holdings)
        async with network.subscribe(NEWS, validate=judge) as messages:
            print(network.addresses[0], flush=True)
            async for message in messages:
                heard[HONEST in message.data] += 1


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    trio.run(main)
