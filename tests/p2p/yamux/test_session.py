"""The rules of a session one by one: windows, ends, limits, liveness."""

from __future__ import annotations

import pytest

from p2p.errors import InvariantViolation, LimitExceeded, ProtocolViolation
from p2p.yamux import WINDOW_BYTES_INITIAL, Bounds, Budget, GoAway, Side
from p2p.yamux.frame import decode_header, encode_header
from p2p.yamux.session import CONTROL_BYTES_MAX
from p2p.yamux.stream import TAKE_BYTES
from p2p.yamux.window import LEARNED_WINDOW_BYTES_MAX
from tests.p2p.yamux.strategies import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    RST,
    SMALL,
    SYN,
    UPDATE,
    drain,
    names,
    new_session,
    open_inbound,
    read_all,
    send,
)


def frames_of(data: bytes) -> list[tuple[int, int, int, int]]:
    """Type, flags, stream id and length of headers without payloads."""
    return [decode_header(data, at)[1:] for at in range(0, len(data), 12)]


def test_a_stream_opens_with_its_first_payload_and_is_acknowledged_with_the_first_reply() -> None:
    client, server = new_session(is_initiator=True), new_session()
    mine = client.open(0.0)
    assert mine.stream_id == 1
    assert drain(client) == b""
    events = server.receive(send(client, mine, b"hello"), 0.0)
    assert names(events) == ["StreamOpened", "Readable"]
    theirs = server.streams[1]
    assert read_all(theirs) == b"hello"
    assert client.unacknowledged == 1
    events = client.receive(send(server, theirs, b"hi"), 0.0)
    assert names(events) == ["Acknowledged", "Readable"]
    assert client.unacknowledged == 0
    assert read_all(mine) == b"hi"


def test_ends_in_order_and_the_stream_is_forgotten() -> None:
    client, server = new_session(is_initiator=True), new_session()
    mine = client.open(0.0)
    server.receive(send(client, mine, b"last", is_last=True), 0.0)
    theirs = server.streams[1]
    assert mine.send_side is Side.FINISHED
    assert theirs.receive_side is Side.FINISHED
    assert not theirs.is_at_end
    assert read_all(theirs) == b"last"
    assert theirs.is_at_end
    server.finish(theirs)
    client.receive(drain(server), 0.0)
    assert mine.is_at_end
    assert client.streams == server.streams == {}
    with pytest.raises(InvariantViolation):
        client.data_header(mine, 1)


def test_the_window_is_enforced_to_the_byte() -> None:
    session = new_session()
    open_inbound(session, 1)
    session.receive(encode_header(DATA, 0, 1, WINDOW_BYTES_INITIAL) + bytes(1), 0.0)
    session.receive(bytes(WINDOW_BYTES_INITIAL - 1), 0.0)
    with pytest.raises(ProtocolViolation, match="window"):
        session.receive(encode_header(DATA, 0, 1, 1), 0.0)


def test_an_overrun_is_noticed_at_the_header() -> None:
    session = new_session()
    open_inbound(session, 1)
    with pytest.raises(ProtocolViolation, match="window"):
        session.receive(encode_header(DATA, 0, 1, WINDOW_BYTES_INITIAL + 1), 0.0)
    assert session.unread_bytes == 0


@pytest.mark.parametrize("is_fast", [True, False])
def test_half_a_window_read_is_given_back_and_grows_when_read_fast(is_fast: bool) -> None:
    session = new_session()
    stream = open_inbound(session, 1)
    session.round_trip_s = 0.1
    now = 0.3 if is_fast else 0.5  # within four round trips, or not
    half = WINDOW_BYTES_INITIAL // 2
    session.receive(encode_header(DATA, 0, 1, half) + bytes(half), 0.0)
    drain(session)
    read_all(stream, now)
    grown = WINDOW_BYTES_INITIAL if is_fast else 0
    assert frames_of(drain(session)) == [(UPDATE, ACK, 1, half + grown)]
    assert stream.receive_window == stream.window_bytes == WINDOW_BYTES_INITIAL + grown


def test_less_than_half_a_window_is_not_worth_an_update() -> None:
    session = new_session()
    stream = open_inbound(session, 1)
    session.receive(encode_header(DATA, 0, 1, 1000) + bytes(1000), 0.0)
    read_all(stream)
    assert drain(session) == b""


def test_windows_stop_growing_at_each_bound() -> None:
    def grown_to(bounds: Bounds, budget: Budget) -> int:
        session = new_session(bounds=bounds, budget=budget)
        stream = open_inbound(session, 1)
        for _ in range(12):
            size = stream.receive_window
            session.receive(encode_header(DATA, 0, 1, size) + bytes(size), 0.0)
            read_all(stream)
        return stream.window_bytes

    mib = 1024 * 1024
    large = Bounds()
    assert grown_to(large, Budget()) == 16 * mib
    assert grown_to(SMALL, Budget()) == SMALL.window_bytes_max
    assert grown_to(Bounds(session_bytes_max=3 * mib), Budget()) == 2 * mib
    assert grown_to(large, Budget(bytes_max=5 * mib)) == 4 * mib


def test_growth_is_given_back_and_learned() -> None:
    budget = Budget()
    client = new_session(is_initiator=True, bounds=Bounds(), budget=budget)
    stream = client.open(0.0)
    send(client, stream, b"x")
    for _ in range(12):
        size = stream.receive_window
        client.receive(encode_header(DATA, ACK, 1, size) + bytes(size), 0.0)
        read_all(stream)
    drain(client)
    assert budget.granted_bytes == stream.window_bytes - WINDOW_BYTES_INITIAL
    client.reset(stream)
    assert budget.granted_bytes == 0
    drain(client)
    successor = client.open(0.0)
    opening = client.data_header(successor, 0)
    learned = LEARNED_WINDOW_BYTES_MAX - WINDOW_BYTES_INITIAL
    assert frames_of(opening)[0] == (UPDATE, SYN, 3, learned)
    assert budget.granted_bytes == learned


@pytest.mark.parametrize("size", [WINDOW_BYTES_INITIAL // 2, WINDOW_BYTES_INITIAL // 2 + 1])
def test_who_begins_with_much_is_granted_more_at_once(size: int) -> None:
    session = new_session(bounds=Bounds())
    first = open_inbound(session, 1)
    for _ in range(12):
        window = first.receive_window
        session.receive(encode_header(DATA, 0, 1, window) + bytes(window), 0.0)
        read_all(first)
    drain(session)
    session.receive(encode_header(UPDATE, SYN, 3, 0) + encode_header(DATA, 0, 3, size), 0.0)
    learned = LEARNED_WINDOW_BYTES_MAX - WINDOW_BYTES_INITIAL
    granted = [(UPDATE, ACK, 3, learned)] if size > WINDOW_BYTES_INITIAL // 2 else []
    assert frames_of(drain(session)) == granted
    assert session.streams[3].receive_window == WINDOW_BYTES_INITIAL - size + learned * len(granted)


def test_a_shut_window_opens_with_an_event() -> None:
    client = new_session(is_initiator=True)
    stream = client.open(0.0)
    send(client, stream, bytes(WINDOW_BYTES_INITIAL))
    with pytest.raises(InvariantViolation):
        client.data_header(stream, 1)
    assert names(client.receive(encode_header(UPDATE, 0, 1, 5), 0.0)) == ["Writable"]
    assert names(client.receive(encode_header(UPDATE, 0, 1, 5), 0.0)) == []
    assert stream.send_window == 10


def test_a_send_window_cannot_overflow() -> None:
    client = new_session(is_initiator=True)
    client.open(0.0)
    with pytest.raises(ProtocolViolation):
        client.receive(encode_header(UPDATE, 0, 1, 2**32 - 1), 0.0)


def test_reset_by_the_peer_keeps_what_came_before() -> None:
    session = new_session()
    stream = open_inbound(session, 1)
    session.receive(encode_header(DATA, 0, 1, 3) + b"abc", 0.0)
    events = session.receive(encode_header(UPDATE, RST, 1, 0), 0.0)
    assert names(events) == ["Readable", "Writable"]
    assert stream.send_side is stream.receive_side is Side.RESET
    assert read_all(stream) == b"abc"
    assert session.unread_bytes == 0
    assert session.streams == {}


def test_late_data_of_a_reset_stream_is_dropped() -> None:
    session = new_session()
    stream = open_inbound(session, 1)
    session.reset(stream)
    assert frames_of(drain(session)) == [(UPDATE, RST, 1, 0)]
    session.receive(encode_header(DATA, 0, 1, 100) + bytes(100), 0.0)
    session.receive(encode_header(DATA, FIN, 1, 0), 0.0)
    session.receive(encode_header(UPDATE, 0, 1, 10), 0.0)
    assert session.unread_bytes == 0
    assert drain(session) == b""


def test_data_after_its_own_end_resets_the_stream() -> None:
    session = new_session()
    stream = open_inbound(session, 1)
    session.receive(encode_header(DATA, FIN, 1, 0), 0.0)
    session.receive(encode_header(DATA, 0, 1, 4) + b"more", 0.0)
    assert stream.receive_side is Side.RESET
    assert frames_of(drain(session)) == [(UPDATE, RST, 1, 0)]


def test_what_nobody_reads_is_dropped_and_counted_off() -> None:
    session = new_session()
    stream = open_inbound(session, 1)
    session.receive(encode_header(DATA, 0, 1, 50) + bytes(50), 0.0)
    session.discard(stream)
    session.receive(encode_header(DATA, 0, 1, 50) + bytes(50), 0.0)
    assert session.unread_bytes == stream.unread_bytes == 0
    assert not stream.pieces


@pytest.mark.parametrize(
    "frame",
    [
        bytes([1]) + encode_header(PING, SYN, 0, 0)[1:],
        encode_header(4, 0, 0, 0),
        encode_header(DATA, 0, 0, 0),
        encode_header(UPDATE, SYN, 0, 0),
        encode_header(DATA, SYN, 2, 0),
        encode_header(UPDATE, SYN, 5, 0) * 2,
        encode_header(DATA, 0, 9, 2**32 - 1),
        encode_header(DATA, SYN, 1, WINDOW_BYTES_INITIAL + 1),
    ],
    ids=[
        "version",
        "type",
        "data on the session",
        "stream 0",
        "id of the other side",
        "opened twice",
        "oversize for no stream",
        "oversize at once",
    ],
)
def test_violations_end_the_session(frame: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        new_session().receive(frame, 0.0)


def test_streams_over_the_cap_are_reset_at_once() -> None:
    session = new_session()
    for stream_id in range(1, 2 * SMALL.inbound_streams_max, 2):
        open_inbound(session, stream_id)
    session.receive(encode_header(DATA, SYN, 101, 5) + b"first", 0.0)
    assert 101 not in session.streams
    assert session.refused_streams == 1
    assert frames_of(drain(session)) == [(UPDATE, RST, 101, 0)]
    session.reset(session.streams[1])
    drain(session)
    open_inbound(session, 103)
    assert 103 in session.streams


def test_the_process_has_only_so_many_streams() -> None:
    budget = Budget(streams_max=2)
    one = new_session(is_initiator=True, budget=budget)
    other = new_session(budget=budget)
    stream = one.open(0.0)
    open_inbound(other, 1)
    with pytest.raises(LimitExceeded):
        one.open(0.0)
    other.receive(encode_header(UPDATE, SYN, 3, 0), 0.0)
    assert list(other.streams) == [1]
    one.reset(stream)
    one.open(0.0)


def test_too_much_unread_resets_the_stream_that_brought_it() -> None:
    session = new_session()
    for stream_id in range(1, 17, 2):
        open_inbound(session, stream_id)
    size = WINDOW_BYTES_INITIAL
    for stream_id in range(1, 17, 2):
        session.receive(encode_header(DATA, 0, stream_id, size) + bytes(size), 0.0)
    assert session.unread_bytes <= SMALL.session_bytes_max  # 8 x 256 KiB fit exactly
    tight = new_session(bounds=Bounds(session_bytes_max=300_000))
    open_inbound(tight, 1)
    tight.receive(encode_header(DATA, 0, 1, size) + bytes(size), 0.0)
    open_inbound(tight, 3)
    tight.receive(encode_header(DATA, 0, 3, size) + bytes(size), 0.0)
    assert list(tight.streams) == [1]
    assert tight.unread_bytes == size


def test_pings_are_answered_and_measured() -> None:
    session = new_session()
    session.receive(encode_header(PING, SYN, 0, 77), 0.0)
    assert frames_of(drain(session)) == [(PING, ACK, 0, 77)]
    session.ping(10.0)
    session.ping(10.1)  # one at a time
    ((_, _, _, value),) = frames_of(drain(session))
    session.receive(encode_header(PING, ACK, 0, value + 1), 10.2)
    session.receive(encode_header(PING, ACK, 0, value), 10.25)
    assert session.round_trip_s == pytest.approx(0.25)


def test_replies_that_are_not_read_end_the_session() -> None:
    session = new_session()
    ping = encode_header(PING, SYN, 0, 1)
    for _ in range(CONTROL_BYTES_MAX // len(ping)):
        session.receive(ping, 0.0)
    with pytest.raises(ProtocolViolation, match="replies"):
        session.receive(ping, 0.0)
    assert len(session.control) <= CONTROL_BYTES_MAX + 12


def test_the_peer_goes_away() -> None:
    session = new_session()
    assert names(session.receive(encode_header(GO_AWAY, 0, 0, GoAway.NORMAL), 0.0)) == ["GoneAway"]
    assert session.gone_away == GoAway.NORMAL


def test_closing_resets_every_stream_and_gives_everything_back() -> None:
    budget = Budget()
    session = new_session(budget=budget)
    stream = open_inbound(session, 1)
    session.receive(encode_header(DATA, 0, 1, 9) + b"remainder", 0.0)
    assert session.close() == [stream]
    assert stream.send_side is Side.RESET
    assert (budget.unread_bytes, budget.granted_bytes, budget.streams) == (0, 0, 0)
    assert read_all(stream) == b"remainder"
    assert budget.unread_bytes == 0


def test_many_small_pieces_take_little_memory() -> None:
    """A frame per byte must not cost an object per byte."""
    session = new_session()
    stream = open_inbound(session, 1)
    frame = encode_header(DATA, 0, 1, 1) + b"x"
    session.receive(frame * 100_000, 0.0)
    assert stream.unread_bytes == 100_000
    assert len(stream.pieces) <= 100_000 // TAKE_BYTES + 2
    assert read_all(stream) == b"x" * 100_000


def test_take_gives_at_most_what_is_asked_for() -> None:
    session = new_session()
    stream = open_inbound(session, 1)
    payload = bytes(range(256)) * 300
    session.receive(encode_header(DATA, 0, 1, len(payload)), 0.0)
    session.receive(payload, 0.0)
    assert stream.take(1, 0.0) == payload[:1]
    assert stream.take(10, 0.0) == payload[1:11]
    assert stream.take(None, 0.0) == payload[11:]
    assert stream.unread_bytes == session.unread_bytes == 0


def test_what_is_announced_and_has_not_arrived_is_no_credit() -> None:
    server = new_session(is_initiator=False)
    stream = open_inbound(server, 1)
    server.receive(encode_header(DATA, 0, 1, WINDOW_BYTES_INITIAL) + bytes(1000), 0.0)
    stream.take(500, 0.0)
    stream.take(500, 0.0)
    assert drain(server) == b""
    server.receive(bytes(WINDOW_BYTES_INITIAL - 1000), 0.0)
    assert stream.unread_bytes + stream.receive_window <= stream.window_bytes
    read_all(stream)
    assert stream.receive_window == stream.window_bytes
