"""multistream-select 1.0: how the two ends of a new stream agree on what it speaks.

The rule: one line of bounded length at a time, a bounded number of proposals, and nothing that a
stranger writes becomes anything but an agreed protocol or a `ProtocolViolation`. Each line is a
varint length, UTF-8 text, and a newline (multiformats/multistream-select). The initiator proposes;
the responder echoes what it accepts, or says `na`.

A `NegotiatedStream` may be *optimistic*: the header, the proposal and the first payload leave in
one flight, and the answer is read before the first byte that is received. As such an initiator does
not wait for the answer, that leaves with the responder's first payload, or before it has to wait.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NoReturn

import trio

from p2p.connection import RawStream
from p2p.errors import ProtocolUnsupported, ProtocolViolation, StreamClosed, StreamReset
from p2p.identity import PeerId
from p2p.network import Buffer, Stream

HEADER = "/multistream/1.0.0"
REFUSAL = "na"

LINE_BYTES_MAX = 1024
"""The longest line of the specification; longer ones end the stream."""

AGREEMENTS_MAX = 256
"""Encoded lines and negotiations kept; only what our own program says comes here."""


@functools.lru_cache(maxsize=AGREEMENTS_MAX)
def encode_line(text: str) -> bytes:
    """One multistream-select line."""
    raw = text.encode() + b"\n"
    if len(raw) > LINE_BYTES_MAX:
        raise ValueError(f"a protocol id of {len(raw)} bytes")
    if len(raw) < 0x80:
        return bytes([len(raw)]) + raw
    return bytes([len(raw) & 0x7F | 0x80, len(raw) >> 7]) + raw


class LineReader:
    """Bytes in, lines out; what follows the last line taken is the surplus."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: Buffer) -> None:
        """Take what was received."""
        self._buffer += data

    def next_line(self) -> str | None:
        """The next line without its newline; None until all of it is there.

        Raises:
            ProtocolViolation: too long, not UTF-8, or without its newline.
        """
        buffer = self._buffer
        if not buffer or (buffer[0] >= 0x80 and len(buffer) < 2):
            return None
        size, start = buffer[0], 1
        if size >= 0x80:
            size, start = size & 0x7F | buffer[1] << 7, 2
        if size == 0 or size > LINE_BYTES_MAX or buffer[start - 1] >= 0x80:
            raise ProtocolViolation(f"a negotiation line of {size} bytes")
        if len(buffer) < start + size:
            return None
        raw = bytes(buffer[start : start + size])
        if not raw.endswith(b"\n"):
            raise ProtocolViolation("a negotiation line without its end")
        del buffer[: start + size]
        try:
            return raw[:-1].decode()
        except UnicodeDecodeError as error:
            raise ProtocolViolation("a negotiation line that is not text") from error

    def take_surplus(self) -> bytes:
        """Everything behind the last line."""
        surplus = bytes(self._buffer)
        self._buffer.clear()
        return surplus


async def propose(raw: RawStream, peer_id: PeerId, protocols: tuple[str, ...]) -> NegotiatedStream:
    """Agree on the first of `protocols` that the peer accepts, one round trip for each.

    Raises:
        ProtocolUnsupported: it accepts none. ProtocolViolation, StreamReset: it broke off.
    """
    reader = LineReader()
    header = encode_line(HEADER)
    for index, protocol in enumerate(protocols):
        await raw.send_all((header if index == 0 else b"") + encode_line(protocol))
        if index == 0:
            await _expect(raw, reader, HEADER)
        answer = await _read_line(raw, reader)
        if answer == protocol:
            return NegotiatedStream(raw, peer_id, protocol, surplus=reader.take_surplus())
        if answer != REFUSAL:
            raise ProtocolViolation(f"{answer!r} answers the proposal of {protocol!r}")
    raise ProtocolUnsupported(protocols)


def propose_optimistically(raw: RawStream, peer_id: PeerId, protocol: str) -> NegotiatedStream:
    """A stream that speaks `protocol` at once; nothing is sent before its first use."""
    proposal = agreement(protocol)
    return NegotiatedStream(raw, peer_id, protocol, unsent=proposal, unanswered=proposal)


def meet_optimist(
    raw: RawStream, peer_id: PeerId, served: Mapping[bytes, str], received: bytes
) -> NegotiatedStream | None:
    """The stream of an initiator whose proposal and first payload have come in one flight.

    `served` has the protocols by their `agreement`. None where `received` is anything else than one
    of those, and more: then `respond` to it.
    """
    line_at = len(encode_line(HEADER))
    end = line_at + 1 + int.from_bytes(received[line_at : line_at + 1])
    said = received[:end]
    protocol = served.get(said)
    if protocol is None or len(received) == end:
        return None
    return NegotiatedStream(raw, peer_id, protocol, surplus=received[end:], unsent=said)


async def respond(
    raw: RawStream,
    peer_id: PeerId,
    is_served: Callable[[str], bool],
    proposals_max: int,
    received: bytes = b"",
) -> NegotiatedStream:
    """Agree on the first proposal that is served here; `received` has come of it already.

    The header waits for the proposal behind it, so that both answers leave in one flight; an
    initiator that waits for our header first gets it.

    Raises:
        ProtocolViolation: anything else than lines, or `proposals_max` proposals without one
        served. StreamReset: the peer broke off.
    """
    reader = LineReader()
    reader.feed(received)
    await _expect(raw, reader, HEADER)
    answers_header = True
    for _ in range(proposals_max):
        protocol = reader.next_line()
        if protocol is None:
            if answers_header:
                await raw.send_all(encode_line(HEADER))
                answers_header = False
            protocol = await _read_line(raw, reader)
        if is_served(protocol):
            answer = agreement(protocol) if answers_header else encode_line(protocol)
            surplus = reader.take_surplus()
            if not surplus:
                await raw.send_all(answer)
                answer = b""
            return NegotiatedStream(raw, peer_id, protocol, surplus=surplus, unsent=answer)
        await raw.send_all((encode_line(HEADER) if answers_header else b"") + encode_line(REFUSAL))
        answers_header = False
    raise ProtocolViolation(f"{proposals_max} proposals, none of them served")


class NegotiatedStream(Stream):
    """A stream that speaks a protocol, or will once the answer to its proposal has come."""

    def __init__(
        self,
        raw: RawStream,
        peer_id: PeerId,
        protocol: str,
        *,
        surplus: bytes = b"",
        unsent: bytes = b"",
        unanswered: bytes = b"",
    ) -> None:
        """`surplus` came behind the negotiation; `unsent` is what of it has yet to leave, and
        `unanswered` what of it the peer has yet to echo.
        """
        self._raw = raw
        self._peer_id = peer_id
        self._protocol = protocol
        self._surplus = surplus
        self._unsent = unsent
        self._unanswered = unanswered
        self._flushed: trio.Event | None = None  # set when `_flush` is done
        self._refusal = b""  # of the answer to our proposal, once it is not its echo

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def deadline_s(self) -> float:
        return self._raw.deadline_s

    @deadline_s.setter
    def deadline_s(self, at_s: float) -> None:
        self._raw.deadline_s = at_s

    async def send_all(self, data: Buffer) -> None:
        if self._unsent:
            await self._raw.send_behind(await self._take_unsent(), data)
        else:
            await self._raw.send_all(data)

    async def send_last(self, *segments: Buffer) -> None:
        if self._unsent:
            segments = (await self._take_unsent(), *segments)
        await self._raw.send_last(*segments)

    async def wait_send_all_might_not_block(self) -> None:
        await self._raw.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._flush()
        await self._raw.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._unanswered:
            await self._read_answer()
        if self._surplus and (max_bytes is None or max_bytes > 0):
            size = len(self._surplus) if max_bytes is None else max_bytes
            data, self._surplus = self._surplus[:size], self._surplus[size:]
            return data
        if self._unsent and not self._raw.readable_bytes:
            await self._flush()
        return await self._raw.receive_some(max_bytes)

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        target = memoryview(buffer).cast("B")
        if self._unanswered:
            await self._read_answer()
        count = min(len(self._surplus), len(target))
        target[:count], self._surplus = self._surplus[:count], self._surplus[count:]
        if count == len(target):
            return count
        if self._unsent and self._raw.readable_bytes < len(target) - count:
            await self._flush()
        return count + await self._raw.receive_into(target[count:])

    async def wait_ended(self) -> None:
        await self._raw.wait_ended()

    async def aclose(self) -> None:
        try:
            await self._flush()
        except (StreamReset, StreamClosed, trio.TooSlowError):
            pass
        finally:
            await self._raw.aclose()

    async def leave(self) -> None:
        """As `aclose`, but other tasks get no turn where both directions have ended in order."""
        if self._unsent or not self._raw.close_now():
            await self.aclose()

    async def reset(self) -> None:
        await self._raw.reset()

    async def _take_unsent(self) -> bytes:
        """What of the negotiation no payload has carried yet; it must leave now."""
        await self._wait_flushed()
        unsent, self._unsent = self._unsent, b""
        return unsent

    async def _flush(self) -> None:
        """Send what of the negotiation is unsent: the peer may wait for it.

        Cancelled, it is unsent still: so little has no first part. A reader does this, and is no
        second sender: whoever sends meanwhile waits for it.
        """
        await self._wait_flushed()
        if not self._unsent:
            return
        self._flushed = flushed = trio.Event()
        try:
            await self._raw.send_all(self._unsent)
            self._unsent = b""
        finally:
            self._flushed = None
            flushed.set()

    async def _wait_flushed(self) -> None:
        if self._flushed is not None:
            with self._patience():
                while self._flushed is not None:
                    await self._flushed.wait()

    async def _read_answer(self) -> None:
        """Read the echo of our proposal; cancelled, go on the next time."""
        await self._flush()
        while self._unanswered:
            if self._refusal:
                await self._fail()
            data = await _receive_more(self._raw)
            if data.startswith(self._unanswered):
                self._surplus = data[len(self._unanswered) :]
                self._unanswered = b""
            elif self._unanswered.startswith(data):
                self._unanswered = self._unanswered[len(data) :]
            else:
                proposal = agreement(self._protocol)
                self._refusal = proposal[: len(proposal) - len(self._unanswered)] + data

    async def _fail(self) -> NoReturn:
        """Say why an answer is not the echo of our proposal; cancelled, go on the next time."""
        while (answer := _answer_in(self._refusal)) is None:
            self._refusal += await _receive_more(self._raw)
        await self._raw.reset()
        if answer == REFUSAL:
            raise ProtocolUnsupported((self._protocol,))
        raise ProtocolViolation(f"{answer!r} answers the proposal of {self._protocol!r}")


@functools.lru_cache(maxsize=AGREEMENTS_MAX)
def agreement(protocol: str) -> bytes:
    """What both sides say in order to agree on a protocol that is spoken here."""
    return encode_line(HEADER) + encode_line(protocol)


def _answer_in(said: bytes) -> str | None:
    """The line behind the header; None until all of it is there."""
    reader = LineReader()
    reader.feed(said)
    header = reader.next_line()
    if header not in (None, HEADER):
        raise ProtocolViolation(f"{header!r} where {HEADER!r} must stand")
    return None if header is None else reader.next_line()


async def _expect(raw: RawStream, reader: LineReader, line: str) -> None:
    received = await _read_line(raw, reader)
    if received != line:
        raise ProtocolViolation(f"{received!r} where {line!r} must stand")


async def _read_line(raw: RawStream, reader: LineReader) -> str:
    while (line := reader.next_line()) is None:
        reader.feed(await _receive_more(raw))
    return line


async def _receive_more(raw: RawStream) -> bytes:
    # No more than a line: what lies behind it stays counted, and bounded, by the connection.
    data = await raw.receive_some(LINE_BYTES_MAX)
    if not data:
        raise StreamReset("the stream ended during negotiation")
    return data


__all__ = [
    "HEADER",
    "LineReader",
    "NegotiatedStream",
    "agreement",
    "encode_line",
    "meet_optimist",
    "propose",
    "propose_optimistically",
    "respond",
]
