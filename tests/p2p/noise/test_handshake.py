"""The XX handshake: who it authenticates, what it refuses, and that nothing else can come of it."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2p.errors import HandshakeFailed, InvariantViolation
from p2p.identity import Identity
from p2p.noise import Handshake, Role, StaticKey, faster_ciphers
from p2p.noise.cipher import AESGCM, CHACHAPOLY, Cipher
from p2p.noise.payload import SIGNATURE_PREFIX, authenticate
from p2p.noise.payload_pb2 import NoiseHandshakePayload
from tests.p2p.noise.strategies import (
    DIALLER,
    DIALLER_KEY,
    FUZZ_INPUTS,
    LISTENER,
    LISTENER_KEY,
    corrupt,
    finished_pair,
    new_pair,
    opened,
)


def test_each_side_learns_who_the_other_is() -> None:
    (_, _, met_by_dialler), (_, _, met_by_listener) = finished_pair()
    assert met_by_dialler.peer_id == LISTENER.peer_id
    assert met_by_listener.peer_id == DIALLER.peer_id
    assert met_by_listener.muxers == ("/yamux/1.0.0",)
    assert met_by_dialler.muxers == ()


def test_the_directions_fit_and_differ() -> None:
    (seal_up, open_down, _), (seal_down, open_up, _) = finished_pair()
    up, down = seal_up.seal(b"up"), seal_down.seal(b"down")
    assert up[2:] != seal_down.seal(b"up")[2:]
    assert opened(open_up, up) == (b"up", len(up))
    assert opened(open_down, down) == (b"down", len(down))


AES, NONE = (AESGCM.name,), ()


@pytest.mark.parametrize(
    ("dialler_lists", "listener_lists", "agreed"),
    [
        (AES, AES, AESGCM),
        (AES, NONE, CHACHAPOLY),
        (NONE, AES, CHACHAPOLY),
        (("a cipher to come", *AES), AES, AESGCM),
        (("a cipher to come",), ("a cipher to come",), CHACHAPOLY),
        (("AESGCM",), ("AESGCM", *AES), CHACHAPOLY),  # in messages of Noise's length: not spoken
    ],
)
def test_both_sides_agree_on_a_cipher_that_both_list(
    dialler_lists: tuple[str, ...], listener_lists: tuple[str, ...], agreed: Cipher
) -> None:
    dialler = Handshake(Role.INITIATOR, StaticKey.certify(DIALLER, ciphers=dialler_lists))
    listener = Handshake(Role.RESPONDER, StaticKey.certify(LISTENER, ciphers=listener_lists))
    listener.read(dialler.write())
    dialler.read(listener.write())
    listener.read(dialler.write())
    (seal_up, open_down, _), (seal_down, open_up, _) = dialler.split(), listener.split()
    assert {each.cipher for each in (seal_up, open_down, seal_down, open_up)} == {agreed}
    assert opened(open_up, seal_up.seal(b"up"))[0] == b"up"
    assert opened(open_down, seal_down.seal(b"down"))[0] == b"down"


def test_only_a_faster_cipher_is_listed() -> None:
    assert set(faster_ciphers()) <= {AESGCM.name}
    assert faster_ciphers() is faster_ciphers()  # measured once a process


def test_turns_are_kept() -> None:
    dialler, listener = new_pair()
    assert dialler.is_our_turn
    assert not listener.is_our_turn
    with pytest.raises(InvariantViolation):
        listener.write()
    with pytest.raises(InvariantViolation):
        dialler.read(b"")
    with pytest.raises(InvariantViolation):
        dialler.split()


def test_early_data_in_the_first_message_is_tolerated() -> None:
    """Older peers put data there; it is hashed, so the handshake still binds it."""
    dialler, listener = new_pair()
    listener.read(dialler.write() + b"early data")
    assert listener.is_our_turn
    with pytest.raises(HandshakeFailed):
        dialler.read(listener.write())  # this dialler did not send it


def test_unknown_payload_fields_are_tolerated() -> None:
    message = NoiseHandshakePayload()
    message.ParseFromString(DIALLER_KEY.payload)
    raw = message.SerializeToString() + bytes([3 << 3 | 2, 5]) + b"early"  # field 3: old data
    assert authenticate(raw, DIALLER_KEY.public).peer_id == DIALLER.peer_id


def test_a_signature_of_another_static_key_is_refused() -> None:
    with pytest.raises(HandshakeFailed, match="not signed"):
        authenticate(DIALLER_KEY.payload, LISTENER_KEY.public)


def test_an_identity_that_did_not_sign_is_refused() -> None:
    """Whoever knows a public key cannot pose as its owner."""
    thief = Identity.generate()
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    payload = NoiseHandshakePayload(
        identity_key=b"\x08\x01\x12\x20" + LISTENER.public_key,
        identity_sig=thief.sign(SIGNATURE_PREFIX + public),
    )
    stolen = StaticKey(private=private, public=public, payload=payload.SerializeToString())
    dialler = Handshake(Role.INITIATOR, DIALLER_KEY)
    listener = Handshake(Role.RESPONDER, stolen)
    listener.read(dialler.write())
    with pytest.raises(HandshakeFailed, match="not signed"):
        dialler.read(listener.write())


@pytest.mark.parametrize(
    "identity_key",
    [b"", b"\x08\x00\x12\x20" + bytes(32), b"\x08\x01\x12\x21" + bytes(33), b"\x08\x01\x12\x20"],
    ids=["none", "RSA", "too long", "too short"],
)
def test_other_identity_keys_are_refused(identity_key: bytes) -> None:
    payload = NoiseHandshakePayload(identity_key=identity_key, identity_sig=bytes(64))
    with pytest.raises(HandshakeFailed):
        authenticate(payload.SerializeToString(), bytes(32))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)], ids=["zero", "one"])
def test_points_of_small_order_are_refused(point: bytes) -> None:
    """Their shared secret is zero whatever our key is (RFC 7748, section 6.1)."""
    listener = Handshake(Role.RESPONDER, LISTENER_KEY)
    listener.read(point)
    with pytest.raises(HandshakeFailed, match="weak"):
        listener.write()


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_every_message_cut_short_is_refused(turn: int) -> None:
    dialler, listener = new_pair()
    sides = [(dialler, listener), (listener, dialler), (dialler, listener)]
    for sender, receiver in sides[: turn - 1]:
        receiver.read(sender.write())
    sender, receiver = sides[turn - 1]
    with pytest.raises(HandshakeFailed):
        receiver.read(sender.write()[:31])


def test_fuzz_a_corrupted_handshake_fails_or_is_none() -> None:
    """Corrupt one message anywhere: nobody ends with a session that the other side has not."""
    rng = random.Random("noise handshake")
    sessions = 0
    for _ in range(FUZZ_INPUTS // 4):  # up to three messages are read per handshake
        dialler, listener = new_pair()
        victim = rng.randrange(3)
        try:
            for turn, (sender, receiver) in enumerate(
                ((dialler, listener), (listener, dialler), (dialler, listener))
            ):
                message = sender.write()
                receiver.read(corrupt(message, rng) if turn == victim else message)
        except HandshakeFailed:
            continue
        sessions += 1
        (sealer, _, _), (_, opener, _) = dialler.split(), listener.split()
        frame = sealer.seal(b"hello")
        assert opened(opener, frame)[0] == b"hello"
    assert sessions < FUZZ_INPUTS / 50  # a corruption that cuts nothing off, now and then


def test_fuzz_any_bytes_at_any_turn() -> None:
    rng = random.Random("noise bytes")
    for _ in range(FUZZ_INPUTS):
        dialler, listener = new_pair()
        machine = listener
        if rng.randrange(2):
            dialler.write()
            machine = dialler
        try:
            machine.read(rng.randbytes(rng.choice((0, 31, 32, 96, rng.randrange(600)))))
        except HandshakeFailed:
            continue
        assert machine is listener  # only a first message can be anything
