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

from collections.abc import Callable

from p2p.connection import RawStream
from p2p.errors import ProtocolUnsupported, ProtocolViolation, StreamClosed, StreamReset
from p2p.identity import PeerId
from p2p.network import Buffer, Stream

HEADER = "/multistream/1.0.0"
REFUSAL = "na"

LINE_BYTES_MAX = 1024
"""The longest line of the specification; longer ones end the stream."""


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
    proposal = encode_line(HEADER) + encode_line(protocol)
    return NegotiatedStream(raw, peer_id, protocol, unsent=proposal, is_answered=False)


async def respond(
    raw: RawStream, peer_id: PeerId, is_served: Callable[[str], bool], proposals_max: int
) -> NegotiatedStream:
    """Agree on the first proposal that is served here.

    The header waits for the proposal behind it, so that both answers leave in one flight; an
    initiator that waits for our header first gets it.

    Raises:
        ProtocolViolation: anything else than lines, or `proposals_max` proposals without one
        served. StreamReset: the peer broke off.
    """
    reader = LineReader()
    await _expect(raw, reader, HEADER)
    answer = encode_line(HEADER)
    for _ in range(proposals_max):
        protocol = reader.next_line()
        if protocol is None:
            if answer:
                await raw.send_all(answer)
                answer = b""
            protocol = await _read_line(raw, reader)
        if is_served(protocol):
            answer += encode_line(protocol)
            surplus = reader.take_surplus()
            if not surplus:
                await raw.send_all(answer)
                answer = b""
            return NegotiatedStream(raw, peer_id, protocol, surplus=surplus, unsent=answer)
        await raw.send_all(answer + encode_line(REFUSAL))
        answer = b""
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
        is_answered: bool = True,
    ) -> None:
        """`surplus` came behind the negotiation; `unsent` is what of it has yet to leave."""
        self._raw = raw
        self._peer_id = peer_id
        self._protocol = protocol
        self._surplus = surplus
        self._unsent = unsent
        self._answer: LineReader | None = None if is_answered else LineReader()

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    async def send_all(self, data: Buffer) -> None:
        if self._unsent:
            await self._raw.send_behind(self._take_unsent(), data)
        else:
            await self._raw.send_all(data)

    async def send_last(self, *segments: Buffer) -> None:
        if self._unsent:
            segments = (self._take_unsent(), *segments)
        await self._raw.send_last(*segments)

    async def wait_send_all_might_not_block(self) -> None:
        await self._raw.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._flush()
        await self._raw.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._answer is not None:
            await self._flush()
            await self._read_answer(self._answer)
        if self._surplus and (max_bytes is None or max_bytes > 0):
            size = len(self._surplus) if max_bytes is None else max_bytes
            data, self._surplus = self._surplus[:size], self._surplus[size:]
            return data
        if self._unsent and not self._raw.is_readable:
            await self._flush()
        return await self._raw.receive_some(max_bytes)

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        target = memoryview(buffer).cast("B")
        if self._answer is not None:
            await self._flush()
            await self._read_answer(self._answer)
        count = min(len(self._surplus), len(target))
        target[:count], self._surplus = self._surplus[:count], self._surplus[count:]
        if count == len(target):
            return count
        await self._flush()
        return count + await self._raw.receive_into(target[count:])

    async def wait_ended(self) -> None:
        await self._raw.wait_ended()

    async def aclose(self) -> None:
        try:
            await self._flush()
        except (StreamReset, StreamClosed):
            pass
        finally:
            await self._raw.aclose()

    async def reset(self) -> None:
        await self._raw.reset()

    def _take_unsent(self) -> bytes:
        """What of the negotiation no payload has carried yet; it must leave now."""
        unsent, self._unsent = self._unsent, b""
        return unsent

    async def _flush(self) -> None:
        """Send what of the negotiation is unsent: the peer may wait for it."""
        if self._unsent:
            await self._raw.send_all(self._take_unsent())

    async def _read_answer(self, reader: LineReader) -> None:
        await _expect(self._raw, reader, HEADER)
        answer = await _read_line(self._raw, reader)
        if answer == self._protocol:
            self._surplus = reader.take_surplus()
            self._answer = None
            return
        await self._raw.reset()
        if answer == REFUSAL:
            raise ProtocolUnsupported((self._protocol,))
        raise ProtocolViolation(f"{answer!r} answers the proposal of {self._protocol!r}")


async def _expect(raw: RawStream, reader: LineReader, line: str) -> None:
    received = await _read_line(raw, reader)
    if received != line:
        raise ProtocolViolation(f"{received!r} where {line!r} must stand")


async def _read_line(raw: RawStream, reader: LineReader) -> str:
    while (line := reader.next_line()) is None:
        # No more than a line: what lies behind it stays counted, and bounded, by the connection.
        data = await raw.receive_some(LINE_BYTES_MAX)
        if not data:
            raise StreamReset("the stream ended during negotiation")
        reader.feed(data)
    return line


__all__ = [
    "HEADER",
    "LineReader",
    "NegotiatedStream",
    "encode_line",
    "propose",
    "propose_optimistically",
    "respond",
]
