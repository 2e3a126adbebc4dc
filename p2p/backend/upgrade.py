"""From a connected TCP socket to an authenticated link that speaks Yamux.

The rule: what comes out has proved who it is and agreed on `/noise` and `/yamux/1.0.0`, or an error
came out and the caller closes the socket. The dialler's first flight carries the header, `/noise`
and the first Noise message; between two peers that list their muxers in the Noise payload (libp2p
spec, "Inlining Muxer Negotiation") the third message completes everything: one and a half round
trips after TCP.

The caller sets the deadline. Bytes that arrive behind the handshake are handed on, never dropped.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import trio

from p2p import noise, yamux
from p2p.errors import HandshakeFailed, PeerMismatch, ProtocolViolation
from p2p.identity import PeerId
from p2p.multistream import HEADER, REFUSAL, LineReader, encode_line

MUXERS = (yamux.PROTOCOL_ID,)

PROPOSALS_MAX = 8
"""Security protocols or muxers that a peer may propose before one that is spoken here."""

LENGTH_BYTES = 2
"""Of a handshake message, before it (libp2p Noise spec, "Wire Format")."""

_RECEIVE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An authenticated socket, ready for a Yamux session."""

    sock: socket.socket  # connected, not blocking
    sealer: noise.Sealer
    opener: noise.Opener
    peer_id: PeerId
    is_initiator: bool
    round_trip_s: float  # measured within the handshake
    early_ciphertext: bytes  # received behind the handshake
    early_plaintext: bytes  # decrypted, and behind the muxer's negotiation


async def secure_outbound(
    sock: socket.socket, static: noise.StaticKey, *, expected: PeerId | None
) -> Link:
    """Run the dialler's side on a connected non-blocking socket.

    Raises:
        HandshakeFailed: the other side broke a rule, or closed the connection.
        PeerMismatch: it proved to be another peer than `expected`.
    """
    raw = _Raw(sock)
    handshake = noise.Handshake(noise.Role.INITIATOR, static)
    try:
        sent_at = trio.current_time()
        await raw.send_all(
            encode_line(HEADER) + encode_line(noise.PROTOCOL_ID) + _frame(handshake.write())
        )
        await _expect_choice(raw, noise.PROTOCOL_ID)
        handshake.read(await raw.receive_frame())
        round_trip_s = trio.current_time() - sent_at
        closing = _frame(handshake.write())
        sealer, opener, remote = handshake.split()
        if expected is not None and remote.peer_id != expected:
            raise PeerMismatch(f"expected {expected}, met {remote.peer_id}")
        sealed = _Sealed(raw, sealer, opener)
        if _is_inlined(remote):
            await raw.send_all(closing)
        else:
            proposal = encode_line(HEADER) + encode_line(yamux.PROTOCOL_ID)
            await raw.send_all(closing + sealer.seal(proposal))
            await _expect_choice(sealed, yamux.PROTOCOL_ID)
    except ProtocolViolation as error:
        raise HandshakeFailed(str(error)) from error
    return _link(sealed, remote, is_initiator=True, round_trip_s=round_trip_s)


async def secure_inbound(sock: socket.socket, static: noise.StaticKey) -> Link:
    """Run the listener's side on an accepted non-blocking socket.

    Raises:
        HandshakeFailed: the other side broke a rule, or closed the connection.
    """
    raw = _Raw(sock)
    handshake = noise.Handshake(noise.Role.RESPONDER, static)
    try:
        await _answer(raw, noise.PROTOCOL_ID)
        handshake.read(await raw.receive_frame())
        sent_at = trio.current_time()
        await raw.send_all(_frame(handshake.write()))
        handshake.read(await raw.receive_frame())
        round_trip_s = trio.current_time() - sent_at
        sealer, opener, remote = handshake.split()
        sealed = _Sealed(raw, sealer, opener)
        if not _is_inlined(remote):
            await _answer(sealed, yamux.PROTOCOL_ID)
    except ProtocolViolation as error:
        raise HandshakeFailed(str(error)) from error
    return _link(sealed, remote, is_initiator=False, round_trip_s=round_trip_s)


def _is_inlined(remote: noise.RemoteParty) -> bool:
    """Whether both sides listed muxers; having listed none in common is the end."""
    if not remote.muxers:
        return False
    if yamux.PROTOCOL_ID not in remote.muxers:
        raise HandshakeFailed("the peer does not speak Yamux")
    return True


def _link(
    sealed: _Sealed, remote: noise.RemoteParty, *, is_initiator: bool, round_trip_s: float
) -> Link:
    return Link(
        sock=sealed.raw.sock,
        sealer=sealed.sealer,
        opener=sealed.opener,
        peer_id=remote.peer_id,
        is_initiator=is_initiator,
        round_trip_s=round_trip_s,
        early_ciphertext=sealed.raw.lines.take_surplus(),
        early_plaintext=sealed.lines.take_surplus(),
    )


def _frame(message: bytes) -> bytes:
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


async def _expect_choice(source: _Lines, protocol: str) -> None:
    """Read the answer to the header and one proposal."""
    if await source.receive_line() != HEADER:
        raise HandshakeFailed("the peer does not speak multistream-select")
    if await source.receive_line() != protocol:
        raise HandshakeFailed(f"the peer does not speak {protocol}")


async def _answer(source: _Lines, protocol: str) -> None:
    """Agree on `protocol` as the listener.

    The header is held back while a proposal is already there, so that both leave in one flight; a
    dialler that waits for the header first gets it.
    """
    if await source.receive_line() != HEADER:
        raise HandshakeFailed("the peer does not speak multistream-select")
    answer = encode_line(HEADER)
    for _ in range(PROPOSALS_MAX):
        proposal = source.next_line()
        if proposal is None:
            await source.send_all(answer)
            answer = b""
            proposal = await source.receive_line()
        if proposal == protocol:
            await source.send_all(answer + encode_line(protocol))
            return
        await source.send_all(answer + encode_line(REFUSAL))
        answer = b""
    raise HandshakeFailed(f"the peer does not propose {protocol}")


class _Lines:
    """Lines from somewhere; what follows them stays in `lines`."""

    def __init__(self) -> None:
        self.lines = LineReader()

    def next_line(self) -> str | None:
        return self.lines.next_line()

    async def receive_line(self) -> str:
        while (line := self.next_line()) is None:
            await self.receive_more()
        return line

    async def receive_more(self) -> None:
        raise NotImplementedError

    async def send_all(self, data: bytes) -> None:
        raise NotImplementedError


class _Raw(_Lines):
    """The socket before there is a session."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock

    async def receive_frame(self) -> bytes:
        received = bytearray()
        while True:
            received += self.lines.take_surplus()
            end = LENGTH_BYTES + int.from_bytes(received[:LENGTH_BYTES], "big")
            if len(received) >= max(end, LENGTH_BYTES):
                self.lines.feed(received[end:])
                return bytes(received[LENGTH_BYTES:end])
            await self.receive_more()

    async def receive_more(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.sock.fileno())
            try:
                piece = self.sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise HandshakeFailed(f"the connection broke: {error}") from error
            if not piece:
                raise HandshakeFailed("the peer closed the connection")
            self.lines.feed(piece)
            return

    async def send_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock.fileno())
            except OSError as error:
                raise HandshakeFailed(f"the connection broke: {error}") from error


class _Sealed(_Lines):
    """The same behind the Noise handshake, for the negotiation of the muxer."""

    def __init__(self, raw: _Raw, sealer: noise.Sealer, opener: noise.Opener) -> None:
        super().__init__()
        self.raw = raw
        self.sealer = sealer
        self.opener = opener

    def next_line(self) -> str | None:
        arrived = self.raw.lines.take_surplus()
        plaintext = memoryview(bytearray(len(arrived)))
        count, stop = self.opener.open(memoryview(arrived), 0, len(arrived), plaintext)
        self.raw.lines.feed(arrived[stop:])
        self.lines.feed(plaintext[:count])
        return self.lines.next_line()

    async def receive_more(self) -> None:
        await self.raw.receive_more()

    async def send_all(self, data: bytes) -> None:
        if data:  # py-libp2p takes an empty Noise message for the end of the connection
            await self.raw.send_all(self.sealer.seal(data))


__all__ = ["MUXERS", "Link", "secure_inbound", "secure_outbound"]
