"""Transport messages: any cut reads back the same, and anything else ends the connection."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.ciphers import aead
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import InvariantViolation, ProtocolViolation
from p2p.noise import Opener, Sealer
from p2p.noise.cipher import AESGCM, CHACHAPOLY, TAG_BYTES, Cipher
from p2p.noise.frames import BULK_BYTES_MIN
from tests.p2p.noise.strategies import FUZZ_INPUTS, corrupt, opened, plaintexts

CIPHERS = pytest.mark.parametrize("cipher", [CHACHAPOLY, AESGCM], ids=lambda each: each.name)


def pair(cipher: Cipher = CHACHAPOLY) -> tuple[Sealer, Opener]:
    return Sealer(bytes(32), cipher), Opener(bytes(32), cipher)


@given(messages=st.lists(plaintexts, max_size=8), cuts=st.lists(st.integers(1, 500), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_cut_reads_back_the_same(messages: list[bytes], cuts: list[int]) -> None:
    sealer, opener = pair()
    wire = b"".join(sealer.seal(message) for message in messages)
    received = b""
    start = end = 0
    for cut in [*cuts, len(wire)]:
        end = min(end + cut, len(wire))
        plain, start = opened(opener, wire, start, end)
        received += plain
    assert received == b"".join(messages)
    assert start == len(wire)


@given(messages=st.lists(plaintexts, min_size=1, max_size=8), room=st.integers(2000, 6000))
@settings(max_examples=60, deadline=None)
def test_no_more_is_opened_than_there_is_room_for(messages: list[bytes], room: int) -> None:
    sealer, opener = pair()
    wire = memoryview(b"".join(sealer.seal(message) for message in messages))
    out = memoryview(bytearray(room))
    received, start = b"", 0
    while start < len(wire):
        count, stop = opener.open(wire, start, len(wire), out)
        assert stop > start
        received, start = received + out[:count], stop
    assert received == b"".join(messages)


@CIPHERS
@pytest.mark.parametrize("size", [0, 1, 64, -1, None])
def test_sealing_in_place_equals_sealing(cipher: Cipher, size: int | None) -> None:
    one, opener = pair(cipher)
    size = cipher.plaintext_bytes_max if size is None else size % cipher.plaintext_bytes_max
    payload = random.Random(size).randbytes(size)
    out = memoryview(bytearray(size + cipher.overhead_bytes + 10))
    length = one.seal_into(memoryview(payload), out)
    assert length == size + cipher.overhead_bytes
    assert opened(opener, bytes(out), 0, length) == (payload, length)


@CIPHERS
def test_all_ways_of_opening_agree(cipher: Cipher) -> None:
    sealer, opener = pair(cipher)
    payload = random.Random("ways").randbytes(cipher.plaintext_bytes_max)
    wire = memoryview(b"".join(sealer.seal(payload) for _ in range(3)))
    assert opener.next_bytes(wire, 0, len(wire)) == len(payload)
    assert opener.next_bytes(wire, 0, len(payload)) == -1
    target = bytearray(len(payload))
    stop = opener.open_into(wire, 0, memoryview(target))
    assert target == payload
    kept, stop = opener.open_bytes(wire, stop, len(payload))
    assert kept == payload
    assert opened(opener, bytes(wire), stop) == (payload, len(wire))


def test_bulk_behind_others_is_left_for_its_own_call() -> None:
    sealer, opener = pair()
    wire = memoryview(b"".join(sealer.seal(bytes(size)) for size in (10, BULK_BYTES_MIN, 20)))
    out = memoryview(bytearray(len(wire)))
    count, start = opener.open(wire, 0, len(wire), out)
    assert count == 10
    count, start = opener.open(wire, start, len(wire), out)
    assert count == BULK_BYTES_MIN + 20
    assert start == len(wire)


def test_a_longer_message_than_may_be_is_refused_by_its_length_alone() -> None:
    _, opener = pair(AESGCM)
    longest = AESGCM.plaintext_bytes_max + TAG_BYTES
    assert opened(opener, longest.to_bytes(4, "big")) == (b"", 0)
    with pytest.raises(ProtocolViolation):
        opened(opener, (longest + 1).to_bytes(4, "big"))


def test_a_repeated_message_is_refused() -> None:
    sealer, opener = pair()
    frame = sealer.seal(b"once")
    opened(opener, frame)
    with pytest.raises(ProtocolViolation):
        opened(opener, frame)


def test_a_message_left_out_is_noticed() -> None:
    sealer, opener = pair()
    sealer.seal(b"lost")
    frame = sealer.seal(b"next")
    with pytest.raises(ProtocolViolation):
        opened(opener, frame)


@CIPHERS
@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_message_without_room_for_its_tag_is_refused(cipher: Cipher, length: int) -> None:
    _, opener = pair(cipher)
    with pytest.raises(ProtocolViolation):
        opened(opener, cipher.length.pack(length) + bytes(length))


@CIPHERS
def test_the_nonce_is_never_reused(cipher: Cipher) -> None:
    sealer, opener = pair(cipher)
    sealer._nonce = opener._nonce = cipher.messages_max - 1
    last = sealer.seal(b"the last one")
    assert opened(opener, last)[0] == b"the last one"
    with pytest.raises(InvariantViolation):
        sealer.seal(b"one too many")
    with pytest.raises(ProtocolViolation):
        opened(opener, last)


@CIPHERS
def test_the_ciphers_are_those_of_the_specification(cipher: Cipher) -> None:
    """The second message of a key, from the primitives alone: section 12 writes the nonces out."""
    sealer, _ = pair(cipher)
    sealer.seal(b"")
    if cipher is AESGCM:
        expected = aead.AESGCM(bytes(32)).encrypt(bytes(11) + b"\x01", b"text", None)
    else:
        expected = aead.ChaCha20Poly1305(bytes(32)).encrypt(
            b"\0\0\0\0\x01" + bytes(7), b"text", None
        )
    length_bytes = 4 if cipher is AESGCM else 2
    assert sealer.seal(b"text") == (len(b"text") + 16).to_bytes(length_bytes, "big") + expected


@CIPHERS
def test_fuzz_corrupted_frames_are_refused(cipher: Cipher) -> None:
    rng = random.Random("noise frames")
    sealer, opener = pair(cipher)
    accepted = 0
    for _ in range(FUZZ_INPUTS):
        frame = sealer.seal(rng.randbytes(rng.randrange(100)))
        nonce = opener._nonce
        damaged = corrupt(frame, rng)
        try:
            plain, stop = opened(opener, damaged)
        except ProtocolViolation:
            plain = b""
        else:
            assert stop <= len(damaged)
        accepted += bool(plain) and damaged[: len(frame)] != frame
        opener._nonce = nonce + 1  # as if the frame had come
    assert accepted == 0
