"""What every trial begins with: our network beside a foreign peer, connected.

The rule: our side serves the same three protocols as theirs, and everything is fresh.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

from interop.peers.port import DIGEST, ECHO, PAUSE_S, SLOW, ForeignPeer, PeerOptions
from p2p import Identity, Network, Stream, open_network

LISTEN = ("/ip4/127.0.0.1/tcp/0",)
CHUNK_BYTES = 64 * 1024
IPFS_KADEMLIA = "/ipfs/kad/1.0.0"

OpenPeer = Callable[[PeerOptions], AbstractAsyncContextManager[ForeignPeer]]
Trial = Callable[[OpenPeer], Awaitable[str | None]]


class TrialFailed(Exception):
    """The other side did not do, or get, what the trial wants."""


@dataclass(frozen=True, slots=True)
class Greatest:
    """Namespace t of the trials: every value is valid, the greatest is best."""

    def validate(self, key: bytes, value: bytes) -> None:
        """Accept."""

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        """The greatest."""
        return values.index(max(values))


@asynccontextmanager
async def pair(
    open_peer: OpenPeer,
    *,
    dial: bool = True,
    kademlia: str = IPFS_KADEMLIA,
    mplex_first: bool = False,
) -> AsyncIterator[tuple[Network, ForeignPeer]]:
    """Our network and a foreign peer; connected by our dial, unless told otherwise."""
    options = PeerOptions(kademlia_protocol=kademlia, mplex_first=mplex_first)
    async with (
        open_peer(options) as theirs,
        open_network(
            Identity.generate(),
            listen=LISTEN,
            kademlia_protocol=kademlia,
            record_validators={"t": Greatest()},
        ) as ours,
    ):
        await ours.serve(ECHO, _echo)
        await ours.serve(SLOW, _slow)
        await ours.serve(DIGEST, _digest)
        if dial and theirs.dials:
            await theirs.dial(ours.addresses[0])
            await until(lambda: theirs.peer_id in ours.peers, "not connected")
        elif dial:
            await ours.connect(theirs.addresses[0])
        yield ours, theirs


def expect(holds: bool, otherwise: str) -> None:
    """Raise `TrialFailed` unless it holds."""
    if not holds:
        raise TrialFailed(otherwise)


async def until(reached: Callable[[], bool], otherwise: str, *, timeout_s: float = 10.0) -> None:
    """Wait for what another process brings about."""
    with trio.move_on_after(timeout_s):
        while not reached():  # noqa: ASYNC110 - another process has no event for us
            await trio.sleep(0.02)
        return
    raise TrialFailed(otherwise)


async def again(attempt: Callable[[], Awaitable[None]], *, times: int = 20) -> None:
    """Repeat what can only succeed once the other side has taken us into its routing table."""
    for _ in range(times - 1):
        try:
            return await attempt()
        except Exception:  # noqa: BLE001 - whatever either side says: the last attempt raises it
            await trio.sleep(0.25)
    return await attempt()


async def _echo(stream: Stream) -> None:
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def _slow(stream: Stream) -> None:
    data = await stream.receive_some(CHUNK_BYTES)
    await trio.sleep(PAUSE_S)
    await stream.send_all(data)
    await _echo(stream)


async def _digest(stream: Stream) -> None:
    total = hashlib.sha256()
    async for data in stream:
        total.update(data)
    await stream.send_all(total.digest())
    await stream.send_eof()
