"""Transport messages: any cut reads back the same, and anything else ends the connection."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import InvariantViolation, ProtocolViolation
from p2p.noise import PLAINTEXT_BYTES_MAX, Opener, Sealer
from p2p.noise.frames import FRAME_OVERHEAD_BYTES, NONCE_MAX
from tests.p2p.noise.strategies import FUZZ_INPUTS, corrupt, finished_pair, plaintexts


def pair() -> tuple[Sealer, Opener]:
    (sealer, _, _), (_, opener, _) = finished_pair()
    return sealer, opener


@given(messages=st.lists(plaintexts, max_size=8), cuts=st.lists(st.integers(1, 500), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_cut_reads_back_the_same(messages: list[bytes], cuts: list[int]) -> None:
    sealer, opener = pair()
    wire = b"".join(sealer.seal(message) for message in messages)
    received: list[bytes] = []
    start = end = 0
    for cut in [*cuts, len(wire)]:
        end = min(end + cut, len(wire))
        plain, start = opener.open(memoryview(wire), start, end)
        received += plain
    assert received == messages
    assert start == len(wire)


@given(size=st.sampled_from([0, 1, 64, PLAINTEXT_BYTES_MAX - 1, PLAINTEXT_BYTES_MAX]))
@settings(max_examples=10, deadline=None)
def test_sealing_in_place_equals_sealing(size: int) -> None:
    (one, _, _), (_, opener, _) = finished_pair()
    payload = random.Random(size).randbytes(size)
    out = memoryview(bytearray(size + FRAME_OVERHEAD_BYTES + 10))
    length = one.seal_into(memoryview(payload), out)
    assert length == size + FRAME_OVERHEAD_BYTES
    assert opener.open(out, 0, length) == ([payload], length)


def test_a_repeated_message_is_refused() -> None:
    sealer, opener = pair()
    frame = memoryview(sealer.seal(b"once"))
    opener.open(frame, 0, len(frame))
    with pytest.raises(ProtocolViolation):
        opener.open(frame, 0, len(frame))


def test_a_message_left_out_is_noticed() -> None:
    sealer, opener = pair()
    sealer.seal(b"lost")
    frame = memoryview(sealer.seal(b"next"))
    with pytest.raises(ProtocolViolation):
        opener.open(frame, 0, len(frame))


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_message_without_room_for_its_tag_is_refused(length: int) -> None:
    _, opener = pair()
    frame = memoryview(length.to_bytes(2, "big") + bytes(length))
    with pytest.raises(ProtocolViolation):
        opener.open(frame, 0, len(frame))


def test_the_nonce_is_never_reused() -> None:
    sealer, _ = pair()
    sealer._nonce = NONCE_MAX
    sealer.seal(b"the last one")
    with pytest.raises(InvariantViolation):
        sealer.seal(b"one too many")


def test_fuzz_corrupted_frames_are_refused() -> None:
    rng = random.Random("noise frames")
    sealer, opener = pair()
    opened = 0
    for _ in range(FUZZ_INPUTS):
        frame = sealer.seal(rng.randbytes(rng.randrange(100)))
        nonce = opener._nonce
        damaged = corrupt(frame, rng)
        try:
            plain, stop = opener.open(memoryview(damaged), 0, len(damaged))
        except ProtocolViolation:
            plain = []
        else:
            assert stop <= len(damaged)
        opened += bool(plain) and damaged[: len(frame)] != frame
        opener._nonce = nonce + 1  # as if the frame had come
    assert opened == 0
