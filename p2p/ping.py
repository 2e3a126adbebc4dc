"""ping 1.0: thirty-two bytes there and back again (libp2p specs/ping)."""

from __future__ import annotations

import secrets

import trio

from p2p.errors import ProtocolViolation, StreamReset
from p2p.identity import PeerId
from p2p.network import Network, Stream
from p2p.switch import Switch

PING = "/ipfs/ping/1.0.0"
PING_BYTES = 32


async def answer_pings(stream: Stream) -> None:
    """Echo until the peer ends the stream; pings are answered in whole blocks of 32 bytes."""
    pending = bytearray()
    while data := await stream.receive_some():
        pending += data
        whole = len(pending) - len(pending) % PING_BYTES
        if whole:
            await stream.send_all(bytes(pending[:whole]))
            del pending[:whole]


async def ping(network: Network | Switch, peer_id: PeerId) -> float:
    """The round-trip time to a peer, in seconds; errors are those of `open_stream`."""
    payload = secrets.token_bytes(PING_BYTES)
    async with network.open_stream(peer_id, PING) as stream:
        start_s = trio.current_time()
        await stream.send_all(payload)
        answer = bytearray()
        while len(answer) < PING_BYTES:
            data = await stream.receive_some(PING_BYTES - len(answer))
            if not data:
                raise StreamReset("the stream ended before the answer")
            answer += data
        if answer != payload:
            raise ProtocolViolation("a ping answered with other bytes")
        return trio.current_time() - start_s


__all__ = ["PING", "answer_pings", "ping"]
