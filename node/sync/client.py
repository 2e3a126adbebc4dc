"""Questions to one peer on `/agora/sync/1`: one stream, one question, one reply, one deadline.

Rule: a peer that answers nonsense, too much or too slowly raises; what it answered well is only
bytes until the caller has checked them against a hash or a certificate.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import trio

from consensus.errors import DecodeError
from node.errors import CallTimeout, Overloaded, PeerUnreachable, RemoteError
from p2p.errors import NetworkError
from p2p.identity import PeerId
from p2p.network import Network

from .frames import read_frame, write_frame
from .messages import REPLY_BYTES_MAX, Outcome, Reply, Request

SYNC_PROTOCOL: Final = "/agora/sync/1"
ANSWER_DEADLINE_S: Final = 10.0  # 4 MiB at 3.4 Mbit/s

T = TypeVar("T")


async def ask(network: Network, peer: PeerId, request: Request) -> tuple[bytes, ...]:
    """Return the items of the peer's answer; empty when it does not know.

    Raises PeerUnreachable, CallTimeout, Overloaded, or RemoteError when the answer is not one.
    """
    try:
        with trio.fail_after(ANSWER_DEADLINE_S):
            async with network.open_stream(peer, SYNC_PROTOCOL) as stream:
                await write_frame(stream, request.encode())
                reply = Reply.decode(await read_frame(stream, bytes_max=REPLY_BYTES_MAX))
    except trio.TooSlowError:
        raise CallTimeout(f"peer {peer} did not answer within {ANSWER_DEADLINE_S:g} s") from None
    except NetworkError as error:
        raise PeerUnreachable(f"peer {peer}: {error}") from error
    except DecodeError as error:
        raise RemoteError(f"peer {peer} answered nonsense: {error}") from error
    if reply.outcome is Outcome.BUSY:
        raise Overloaded(f"peer {peer} is busy")
    return reply.items


async def ask_for(
    network: Network, peer: PeerId, request: Request, decode: Callable[[bytes], T]
) -> list[T]:
    """As `ask`, with every item decoded; an item that does not decode is a RemoteError."""
    items = await ask(network, peer, request)
    try:
        return [decode(item) for item in items]
    except DecodeError as error:
        raise RemoteError(f"peer {peer} answered nonsense: {error}") from error
