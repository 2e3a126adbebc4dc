"""Our Noise against py-libp2p's, in both roles: the same identities and the same bytes."""

from __future__ import annotations

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.messages import NoiseExtensions, NoiseHandshakePayload
from libp2p.security.noise.patterns import PatternXX

from p2p.noise import Handshake, Role
from tests.p2p.noise.strategies import DIALLER, DIALLER_KEY, opened

SEED = bytes(31) + b"\x07"


class Pipe(ReadWriteCloser):
    """A trio memory stream under py-libp2p's names."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await self.stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


class PatternWithEarlyData(PatternXX):
    """Sends extensions with what py-libp2p calls early data."""

    def make_handshake_payload(
        self, extensions: NoiseExtensions | None = None
    ) -> NoiseHandshakePayload:
        return super().make_handshake_payload(
            NoiseExtensions(stream_muxers=["/yamux/1.0.0"], early_data=b"early")
        )


async def receive_message(stream: trio.abc.Stream) -> bytes:
    received = b""
    while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
        received += await stream.receive_some(65_537)
    return received[2:]


async def send_message(stream: trio.abc.Stream, message: bytes) -> None:
    await stream.send_all(len(message).to_bytes(2, "big") + message)


@pytest.mark.parametrize("pattern_type", [PatternXX, PatternWithEarlyData])
@pytest.mark.parametrize("role", list(Role))
async def test_handshake_and_messages(role: Role, pattern_type: type[PatternXX]) -> None:
    key_pair = create_new_key_pair(SEED)
    their_id = ID.from_pubkey(key_pair.public_key)
    noise_key = create_new_noise_key_pair().private_key
    pattern = pattern_type(their_id, key_pair.private_key, noise_key)
    ours, theirs = trio.testing.memory_stream_pair()
    raw = RawConnection(Pipe(theirs), role is Role.RESPONDER)
    sessions = []

    async def run_theirs() -> None:
        if role is Role.RESPONDER:
            sessions.append(await pattern.handshake_outbound(raw, ID(DIALLER.peer_id.to_bytes())))
        else:
            sessions.append(await pattern.handshake_inbound(raw))

    handshake = Handshake(role, DIALLER_KEY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_theirs)
        while not handshake.is_complete:
            if handshake.is_our_turn:
                await send_message(ours, handshake.write())
            else:
                handshake.read(await receive_message(ours))
    sealer, opener, remote = handshake.split()
    session = sessions[0]
    assert remote.peer_id.to_bytes() == their_id.to_bytes()
    assert session.get_remote_peer().to_bytes() == DIALLER.peer_id.to_bytes()
    assert remote.muxers == (("/yamux/1.0.0",) if pattern_type is PatternWithEarlyData else ())

    await ours.send_all(sealer.seal(b"from us"))
    assert await session.read(len(b"from us")) == b"from us"
    await session.write(b"from them" * 10_000)
    frames = plain = b""
    start = 0
    while len(plain) < 90_000:
        frames += await ours.receive_some()
        piece, start = opened(opener, frames, start)
        plain += piece
    assert plain == b"from them" * 10_000
