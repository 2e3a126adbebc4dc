"""The greeting on `/agora/status/1`: only nodes of one chain and one version stay together.

Whoever dialled opens a stream and says its status; the other side answers with its own, or with a
goodbye that names the reason. A goodbye, silence or nonsense ends the connection; a mismatch is
remembered for a while, so that a stranger's network is not dialled again and again.
"""

from collections.abc import Callable
from typing import Final

import trio

from consensus.errors import DecodeError
from consensus.types import ChainId
from node.errors import ChainMismatch, JoinError, VersionMismatch
from p2p.errors import NetworkError
from p2p.identity import PeerId
from p2p.network import Network, Stream

from .frames import read_frame, write_frame
from .messages import (
    GREETING_BYTES_MAX,
    PROTOCOL_VERSION,
    Goodbye,
    Parting,
    Status,
    decode_greeting,
)

STATUS_PROTOCOL: Final = "/agora/status/1"
GREETING_DEADLINE_S: Final = 5.0  # a round trip, a slow machine, and patience
FOREIGN_BAN_S: Final = 300.0  # a peer of another chain is not asked again for this long


async def greet(network: Network, peer: PeerId, own: Status) -> Status:
    """Greet a peer that we dialled and return its status.

    Raises ChainMismatch or VersionMismatch on its goodbye or by our own check, JoinError when it
    does not answer in time or answers nonsense.
    """
    try:
        with trio.fail_after(GREETING_DEADLINE_S):
            async with network.open_stream(peer, STATUS_PROTOCOL) as stream:
                await write_frame(stream, own.encode())
                answer = decode_greeting(await read_frame(stream, bytes_max=GREETING_BYTES_MAX))
    except (trio.TooSlowError, DecodeError, NetworkError) as error:
        raise JoinError(f"peer {peer} did not greet: {error or 'too slow'}") from error
    if isinstance(answer, Goodbye):
        raise _refusal(peer, answer.reason, answer.version, answer.chain_id)
    reason = _mismatch(own, answer)
    if reason is not None:
        raise _refusal(peer, reason, answer.version, answer.chain_id)
    return answer


async def answer_greeting(stream: Stream, own: Status, accept: Callable[[Status], None]) -> bool:
    """Serve one greeting: `accept` gets the status of a peer that belongs here.

    Returns False after a goodbye: the caller then disconnects. Raises DecodeError on nonsense and
    trio.TooSlowError on silence.
    """
    with trio.fail_after(GREETING_DEADLINE_S):
        theirs = decode_greeting(await read_frame(stream, bytes_max=GREETING_BYTES_MAX))
        if isinstance(theirs, Goodbye):
            return False
        reason = _mismatch(own, theirs)
        if reason is None:
            await write_frame(stream, own.encode())
            accept(theirs)
            return True
        parting = Goodbye(reason=reason, version=PROTOCOL_VERSION, chain_id=own.chain_id)
        await write_frame(stream, parting.encode())
        await stream.send_eof()
        return False


def _mismatch(own: Status, theirs: Status) -> Parting | None:
    if theirs.version != own.version:
        return Parting.VERSION
    if theirs.chain_id != own.chain_id:
        return Parting.CHAIN
    return None


def _refusal(peer: PeerId, reason: Parting, version: int, chain_id: ChainId) -> JoinError:
    match reason:
        case Parting.VERSION:
            return VersionMismatch(
                f"peer {peer} speaks protocol version {version}, this node {PROTOCOL_VERSION}"
            )
        case Parting.CHAIN:
            return ChainMismatch(f"peer {peer} is of another chain, {chain_id.hex()[:16]}…")
