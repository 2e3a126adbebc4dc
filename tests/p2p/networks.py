"""Both implementations of `Network` behind one opener, so that one suite can run on either."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

import p2p
from p2p.memory import open_hub
from p2p.network import Network, Stream

TEST_TIMEOUT_S = 60

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))

LISTEN = ("/ip4/127.0.0.1/tcp/0",)

ECHO = "/echo/1"

Opener = Callable[..., AbstractAsyncContextManager[Network]]


@dataclass
class World:
    """Opens networks that can reach each other."""

    opener: Opener
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def open(
        self, number: int, *, listen: Sequence[str] = LISTEN, **options: object
    ) -> AbstractAsyncContextManager[Network]:
        """The network of the peer with that number, listening on loopback."""
        return self.opener(identity(number), listen=list(listen), **options)

    async def enter(self, number: int, **options: object) -> Network:
        """As `open`; closed with the world."""
        return await self.stack.enter_async_context(self.open(number, **options))


@asynccontextmanager
async def open_world(kind: str) -> AsyncIterator[World]:
    """A world of the given kind: `memory` or `backend`."""
    if kind == "backend":
        world = World(p2p.open_network)
        async with world.stack:
            yield world
        return
    async with open_hub(seed=1) as hub:
        world = World(hub.open_network)
        async with world.stack:
            yield world


def on_both(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Run a test in a world of each kind; it may ask for `world`, and for `pair`: two networks,
    the second connected to the first, which serves echoes."""
    wanted = inspect.signature(test).parameters

    async def run(kind: str, **arguments: object) -> None:
        with trio.fail_after(TEST_TIMEOUT_S):
            async with open_world(kind) as world:
                if "world" in wanted:
                    arguments["world"] = world
                if "pair" in wanted:
                    arguments["pair"] = await _connected_pair(world)
                await test(**arguments)

    kept = [one for name, one in wanted.items() if name not in ("world", "pair")]
    kind = inspect.Parameter("kind", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    functools.update_wrapper(run, test)
    run.__signature__ = inspect.Signature([kind, *kept])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("kind", ["memory", "backend"])(run)


async def _connected_pair(world: World) -> tuple[Network, Network]:
    server, client = await world.enter(1), await world.enter(2)
    await server.serve(ECHO, echo)
    await client.connect(server.addresses[0])
    return server, client


def identity(number: int) -> p2p.Identity:
    """The identity of a numbered peer."""
    return p2p.Identity(number.to_bytes(32, "big"))


async def echo(stream: Stream) -> None:
    """Send everything back, and end when the peer ends."""
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.send_eof()


async def receive_all(stream: Stream) -> bytes:
    """Everything up to the end of the peer's direction."""
    received = bytearray()
    while data := await stream.receive_some():
        received += data
    return bytes(received)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a state that no event announces; polls, because it looks into real sockets."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)
