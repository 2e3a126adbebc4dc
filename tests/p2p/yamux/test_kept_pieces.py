"""What a stream keeps of a message: the same bytes, and hardly more memory than is counted."""

from __future__ import annotations

import random

import pytest

from p2p.yamux import StreamState
from p2p.yamux.frame import encode_header
from p2p.yamux.stream import BESIDE_BYTES_MAX, KEPT_BYTES_MIN, MERGE_BYTES_MAX
from tests.p2p.yamux.strategies import DATA, new_session, open_inbound, read_all

MESSAGE_BYTES = 129 * 1024
UNKNOWN = 99
"""A stream that is forgotten here: what comes for it is dropped."""


def message(stream_id: int, payload: bytes, beside_bytes: int) -> bytes:
    """One message with a payload and other bytes that nobody wants."""
    frame = encode_header(DATA, 0, stream_id, len(payload)) + payload
    if beside_bytes:
        frame += encode_header(DATA, 0, UNKNOWN, beside_bytes) + bytes(beside_bytes)
    return frame


def held_bytes(stream: StreamState) -> int:
    """Memory that the pieces hold, whatever part of it they show."""
    objects = {id(each): len(each) for each in map(owner, stream.pieces)}
    return sum(objects.values())


def owner(piece: bytes | bytearray | memoryview) -> bytes | bytearray:
    return piece.obj if isinstance(piece, memoryview) else piece  # type: ignore[return-value]


@pytest.mark.parametrize("size", [1, MERGE_BYTES_MAX + 1, KEPT_BYTES_MIN - 1, KEPT_BYTES_MIN])
def test_a_peer_cannot_make_us_hold_more_than_is_counted(size: int) -> None:
    """Full messages, of which a part is for a stream that nobody reads, and the rest for none."""
    session = new_session()
    stream = open_inbound(session, 1)
    for _ in range(5):
        frames = message(1, bytes(size), MESSAGE_BYTES - size)
        session.receive(memoryview(frames), 0.0)
    assert stream.unread_bytes == 5 * size
    assert held_bytes(stream) <= stream.unread_bytes * 9 / 8


def test_what_fills_its_message_is_kept_where_it_lies() -> None:
    session = new_session()
    stream = open_inbound(session, 1)
    plaintext = message(1, bytes(MESSAGE_BYTES), BESIDE_BYTES_MAX - 24)
    session.receive(memoryview(plaintext), 0.0)
    assert owner(stream.pieces[0]) is plaintext


def test_what_may_change_is_copied() -> None:
    """The buffer of small messages is used again for the next ones."""
    session = new_session()
    stream = open_inbound(session, 1)
    buffer = bytearray(message(1, b"x" * MESSAGE_BYTES, 0))
    session.receive(memoryview(buffer), 0.0)
    buffer[:] = bytes(len(buffer))
    assert read_all(stream) == b"x" * MESSAGE_BYTES


@pytest.mark.parametrize("seed", range(50))
def test_pieces_read_back_the_same_by_any_calls(seed: int) -> None:
    """Kept, copied and merged pieces in a row; taken, peeked into and copied out."""
    rng = random.Random(seed)
    session = new_session()
    stream = open_inbound(session, 1)
    stream.receive_window = stream.window_bytes = 1 << 30
    expected, read = bytearray(), bytearray()
    sizes = (1, 100, MERGE_BYTES_MAX, MERGE_BYTES_MAX + 1, KEPT_BYTES_MIN, 65_536, MESSAGE_BYTES)
    for _ in range(60):
        payload = rng.randbytes(rng.choice(sizes))
        expected += payload
        frames = message(1, payload, rng.choice((0, 10, 50_000)))
        session.receive(rng.choice((bytes, memoryview))(frames), 0.0)
        if stream.pieces and rng.random() < 0.7:
            count = rng.choice(sizes)
            if rng.random() < 0.5:
                taken = stream.take(rng.choice((None, count)), 0.0)
                assert isinstance(taken, bytes)
                read += taken
            else:
                target = bytearray(count)
                read += target[: stream.take_into(memoryview(target), 0.0)]
        assert stream.unread_bytes == session.unread_bytes == len(expected) - len(read)
    read += read_all(stream)
    assert read == expected
    assert session.unread_bytes == 0
