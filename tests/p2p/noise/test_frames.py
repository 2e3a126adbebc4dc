"""Transport messages: any cut reads back the same, and anything else ends the connection."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.ciphers import aead
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import InvariantViolation, ProtocolViolation
from p2p.noise import PLAINTEXT_BYTES_MAX, Opener, Sealer
from p2p.noise.cipher import AESGCM, CHACHAPOLY, Cipher
from p2p.noise.frames import FRAME_OVERHEAD_BYTES
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


@given(size=st.sampled_from([0, 1, 64, PLAINTEXT_BYTES_MAX - 1, PLAINTEXT_BYTES_MAX]))
@settings(max_examples=10, deadline=None)
def test_sealing_in_place_equals_sealing(size: int) -> None:
    one, opener = pair()
    payload = random.Random(size).randbytes(size)
    out = memoryview(bytearray(size + FRAME_OVERHEAD_BYTES + 10))
    length = one.seal_into(memoryview(payload), out)
    assert length == size + FRAME_OVERHEAD_BYTES
    assert opened(opener, bytes(out), 0, length) == (payload, length)


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


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_message_without_room_for_its_tag_is_refused(length: int) -> None:
    _, opener = pair()
    with pytest.raises(ProtocolViolation):
        opened(opener, length.to_bytes(2, "big") + bytes(length))


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
    assert sealer.seal(b"text") == (len(b"text") + 16).to_bytes(2, "big") + expected


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
