"""Codec, hashes, signatures and parameters: the ground everything else stands on."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.codec import BYTES_MAX, Reader, Writer
from consensus.crypto import (
    Domain,
    Ed25519Signer,
    Ed25519Verifier,
    H,
    KeyedHashSigner,
    KeyedHashVerifier,
)
from consensus.errors import DecodeError, InvariantViolation, ParameterError
from consensus.params import (
    HARD_RANGES,
    LOCAL,
    PAPER,
    PRESETS,
    TESTNET,
    encode_parameters,
    read_parameters,
)
from consensus.types import ChainId, Signature

CHAIN = ChainId(b"c" * 32)
WIDTHS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "u128": 16, "u256": 32}


@given(st.sampled_from(sorted(WIDTHS)), st.data())
def test_integers_have_one_width(name: str, data: st.DataObject) -> None:
    size = WIDTHS[name]
    value = data.draw(st.integers(0, 256**size - 1))
    encoded = getattr(Writer(), name)(value).done()
    assert encoded == value.to_bytes(size, "big")
    assert getattr(Reader(encoded), name)() == value
    for outside in (-1, 256**size):
        with pytest.raises(InvariantViolation):
            getattr(Writer(), name)(outside)
    with pytest.raises(DecodeError, match="left"):
        getattr(Reader(encoded[1:]), name)()


@given(st.integers(-(2**63), 2**63 - 1))
def test_signed_integers(value: int) -> None:
    assert Reader(Writer().i64(value).done()).i64() == value


def test_fields_that_do_not_fit_are_our_fault() -> None:
    with pytest.raises(InvariantViolation):
        Writer().i64(2**63)
    with pytest.raises(InvariantViolation):
        Writer().fixed(b"abc", 4)
    with pytest.raises(InvariantViolation):
        Writer().short(bytes(65_536))


def test_variable_parts_and_the_end() -> None:
    encoded = Writer().short(b"ab").long(b"cde").flag(True).flag(False).raw(b"z").done()
    reader = Reader(encoded)
    assert reader.short(2) == b"ab"
    assert reader.long(3) == b"cde"
    assert (reader.flag(), reader.flag()) == (True, False)
    with pytest.raises(DecodeError, match="after the last"):
        reader.end()
    assert reader.remaining() == 1
    assert reader.fixed(1) == b"z"
    reader.end()
    with pytest.raises(DecodeError, match="at most 1"):
        Reader(encoded).short(1)
    with pytest.raises(DecodeError, match="flag 2"):
        Reader(b"\x02").flag()
    with pytest.raises(DecodeError, match="at most"):
        Reader(bytes(BYTES_MAX + 1))


def test_tags_separate_hashes() -> None:
    assert H(b"ab", b"c") != H(b"a", b"bc")
    assert H(b"tag", b"") != H(b"tag", b"\x00")


@pytest.mark.parametrize(
    ("signer", "verifier"),
    [
        (Ed25519Signer(b"s" * 32), Ed25519Verifier()),
        (KeyedHashSigner(b"s"), KeyedHashVerifier()),
    ],
)
def test_a_signature_binds_key_purpose_chain_and_payload(signer, verifier) -> None:
    signature = signer.sign(Domain.VOTE, CHAIN, b"payload")
    key = signer.public_key
    assert verifier.verify(key, Domain.VOTE, CHAIN, b"payload", signature)
    assert not verifier.verify(key, Domain.PROPOSAL, CHAIN, b"payload", signature)
    assert not verifier.verify(key, Domain.VOTE, ChainId(bytes(32)), b"payload", signature)
    assert not verifier.verify(key, Domain.VOTE, CHAIN, b"other", signature)
    assert not verifier.verify(b"k" * 32, Domain.VOTE, CHAIN, b"payload", signature)
    assert not verifier.verify(b"short", Domain.VOTE, CHAIN, b"payload", signature)
    wrong = Signature(signature[:-1] + bytes([signature[-1] ^ 1]))
    assert not verifier.verify(key, Domain.VOTE, CHAIN, b"payload", wrong)
    assert not verifier.verify(key, Domain.VOTE, CHAIN, b"payload", Signature(b""))


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        (1).to_bytes(32, "little"),
        (2**255 - 19).to_bytes(32, "little"),
        (2**255 - 18).to_bytes(32, "little"),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    ],
)
def test_keys_of_small_order_and_non_canonical_ones_verify_nothing(point: bytes) -> None:
    """With such a key anybody can make a signature that a lax library accepts."""
    for s in (0, 1):
        signature = Signature(point + s.to_bytes(32, "little"))
        assert not Ed25519Verifier().verify(point, Domain.VOTE, CHAIN, b"x", signature)


def test_a_signature_with_a_large_scalar_is_refused() -> None:
    signer = Ed25519Signer(b"s" * 32)
    good = signer.sign(Domain.VOTE, CHAIN, b"x")
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(good[32:], "little") + order
    malleable = Signature(good[:32] + scalar.to_bytes(32, "little"))
    assert not Ed25519Verifier().verify(signer.public_key, Domain.VOTE, CHAIN, b"x", malleable)


def test_domains_are_distinct_and_16_bytes() -> None:
    assert len({domain.value for domain in Domain}) == len(Domain)
    assert {len(domain.value) for domain in Domain} == {16}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_their_encoding(name: str) -> None:
    encoded = encode_parameters(PRESETS[name])
    reader = Reader(encoded)
    assert read_parameters(reader) == PRESETS[name]
    reader.end()


@pytest.mark.parametrize("name", sorted(HARD_RANGES))
def test_every_parameter_has_a_hard_range(name: str) -> None:
    low, high = HARD_RANGES[name]
    for value in (low, high):
        dataclasses.replace(PAPER, **{name: value})
    for value in (low - 1, high + 1, float(low), True):
        with pytest.raises(ParameterError, match=name):
            dataclasses.replace(PAPER, **{name: value})


def test_flags_are_flags() -> None:
    with pytest.raises(ParameterError, match="commit_reveal"):
        dataclasses.replace(PAPER, commit_reveal=1)


def test_parameters_out_of_range_are_refused_when_decoded() -> None:
    encoded = bytearray(encode_parameters(PAPER))
    encoded[7] = 200
    with pytest.raises(DecodeError, match="temperature"):
        read_parameters(Reader(bytes(encoded)))


def test_presets_say_what_the_design_says() -> None:
    assert (TESTNET.rank_cutoff, TESTNET.self_weight_max, TESTNET.recovery) == (
        4_096,
        32_768,
        10_737_418,
    )
    assert (TESTNET.learning_rate, TESTNET.inflation, TESTNET.supply_cap) == (
        32_768,
        4_295,
        21 * 10**15,
    )
    assert (PAPER.learning_rate, PAPER.cutoff, PAPER.fee) == (3_277, 0, 0)
    assert (LOCAL.blocks_per_epoch, LOCAL.block_interval_ms) == (5, 500)
    assert TESTNET.bond_window_epochs * 120 == 14 * 24 * 60 * 60
