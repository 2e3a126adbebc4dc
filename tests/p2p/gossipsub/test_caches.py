"""The seen cache, the message cache and the outbox: order, windows and bounds."""

from __future__ import annotations

from p2p.gossipsub.cache import MessageCache, SeenCache
from p2p.gossipsub.codec import Control, FrameReader, decode_rpc, encode_control, encode_publish
from p2p.gossipsub.message import CachedMessage, WireMessage
from p2p.gossipsub.outbox import CONTROL_BYTES_MAX, WRITE_BYTES, Outbox
from tests.p2p.gossipsub.strategies import peer


def cached(number: int, size: int = 10, topic: str = "t") -> CachedMessage:
    message = WireMessage(topic, number.to_bytes(4, "big").ljust(size, b"."))
    return CachedMessage(b"%d" % number, message, encode_publish(message), peer(0))


def test_seen_cache_expires_and_is_bounded() -> None:
    seen = SeenCache(120, seen_max=3)
    for number in range(5):
        seen.add(b"%d" % number, now=number, rejected=number == 3)
    assert [number for number in range(5) if b"%d" % number in seen] == [2, 3, 4]
    assert seen.was_rejected(b"3")
    assert not seen.was_rejected(b"4")
    assert seen.seen_at(b"4") == 4
    seen.add(b"4", now=100)
    assert seen.seen_at(b"4") == 4
    seen.expire(now=123.5)
    assert len(seen) == 1
    assert not seen.was_rejected(b"3")


def test_message_cache_announces_three_windows_and_keeps_five() -> None:
    cache = MessageCache(5, 3)
    for number in range(6):
        cache.put(cached(number))
        cache.put(cached(number))
        cache.put(cached(100 + number, topic="u"))
        cache.shift()
    assert cache.gossip_ids("t") == [b"5", b"4"]  # the newest window is empty
    assert cache.gossip_ids("v") == []
    assert [number for number in range(6) if cache.get(b"%d" % number)] == [2, 3, 4, 5]
    for _ in range(5):
        cache.shift()
    assert len(cache) == cache.size_bytes == 0


def test_message_cache_is_bounded_by_number_and_bytes() -> None:
    cache = MessageCache(5, 3, messages_max=3, bytes_max=1000)
    for number in range(5):
        cache.put(cached(number))
    assert cache.gossip_ids("t") == [b"4", b"3", b"2"]
    cache.put(cached(5, size=900))
    assert cache.size_bytes <= 1000
    assert cache.gossip_ids("t")[0] == b"5"


def test_message_cache_counts_what_it_sent() -> None:
    cache = MessageCache(5, 3)
    cache.put(cached(1))
    assert [cache.times_sent(b"1", peer(1)) for _ in range(3)] == [1, 2, 3]
    assert cache.times_sent(b"1", peer(2)) == 1


def test_outbox_sends_all_in_one_rpc_own_messages_first() -> None:
    outbox = Outbox(10)
    assert not outbox
    assert outbox.take() == b""
    assert outbox.push_message(cached(1), own=False)
    assert outbox.push_message(cached(2), own=True)
    assert outbox.push_control(encode_control(Control(graft=("t",))))
    assert outbox.push_control(encode_control(Control(graft=("u",))))
    [frame] = FrameReader(10_000).feed(outbox.take())
    rpc = decode_rpc(frame)
    assert [message.data[3] for message in rpc.messages] == [2, 1]
    assert rpc.control == Control(graft=("t", "u"))
    assert not outbox


def test_outbox_refuses_when_full_and_recovers() -> None:
    outbox = Outbox(4, bytes_max=10_000)
    assert all(outbox.push_message(cached(number), own=True) for number in range(4))
    assert outbox.is_full
    assert not outbox.push_message(cached(5), own=True)
    outbox.take()
    assert outbox.is_half_empty
    assert outbox.push_message(cached(6, size=10_000), own=True)
    assert not outbox.push_message(cached(7), own=True)
    full = encode_control(Control(iwant=(bytes(100),)))
    while outbox.push_control(full):
        pass
    outbox.clear()
    assert not outbox
    assert outbox.push_control(full)


def test_outbox_cuts_large_queues_into_several_rpcs() -> None:
    outbox = Outbox(1000)
    for number in range(300):
        outbox.push_message(cached(number, size=1000), own=False)
    outbox.push_message(cached(300, size=3 * WRITE_BYTES), own=True)
    chunk = encode_control(Control(ihave=(("t", tuple(bytes([i]) * 100 for i in range(200))),)))
    pushed = 0
    while outbox.push_control(chunk):
        pushed += 1
    assert pushed * len(chunk) <= CONTROL_BYTES_MAX
    frames = []
    while wire := outbox.take():
        frames += FrameReader(1 << 22).feed(wire)
    rpcs = [decode_rpc(frame) for frame in frames]
    data = [message.data[:4] for rpc in rpcs for message in rpc.messages]
    assert sorted(data) == [number.to_bytes(4, "big") for number in range(301)]
    assert data[0] == (300).to_bytes(4, "big")
    assert sum(len(rpc.control.ihave) for rpc in rpcs if rpc.control) == pushed
    assert all(len(frame) < WRITE_BYTES + 300_000 for frame in frames[1:])
