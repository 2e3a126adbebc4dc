"""Identities, peer ids and addresses: pure mappings, and refusal of everything else."""

from __future__ import annotations

import pickle

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2p
from p2p.identity import PEER_ID_BYTES, verify
from p2p.multiaddress import Address, Host

SEEDS = st.binary(min_size=32, max_size=32)
KEYS = SEEDS.map(p2p.PeerId.from_public_key)
HOSTS = st.one_of(
    st.tuples(st.just(Host.IP4), st.ip_addresses(v=4).map(str)),
    st.tuples(st.just(Host.IP6), st.ip_addresses(v=6).map(str)),
    st.tuples(st.sampled_from([Host.DNS, Host.DNS4, Host.DNS6]), st.just("node-1.example.org")),
)
ADDRESSES = st.builds(
    lambda host, port, peer: Address(kind=host[0], host=host[1], port=port, peer_id=peer),
    HOSTS,
    st.integers(0, 65_535),
    st.none() | KEYS,
)


def test_vector_of_the_peer_ids_specification() -> None:
    """libp2p specs, peer-ids: the Ed25519 test vector."""
    seed = bytes.fromhex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d")
    key = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
    identity = p2p.Identity(seed)
    assert identity.public_key == key
    assert identity.peer_id.to_bytes().hex() == "002408011220" + key.hex()
    assert str(identity.peer_id) == base58.b58encode(identity.peer_id.to_bytes()).decode()


@given(SEEDS)
def test_peer_ids_read_back(key: bytes) -> None:
    peer_id = p2p.PeerId.from_public_key(key)
    assert peer_id.public_key == key
    assert p2p.PeerId(str(peer_id)) == p2p.PeerId.from_bytes(peer_id.to_bytes()) == peer_id
    assert str(peer_id).startswith("12D3KooW")
    assert pickle.loads(pickle.dumps(peer_id)).to_bytes() == peer_id.to_bytes()
    assert f"{peer_id}" == str(peer_id)
    assert p2p.PeerId(peer_id) is peer_id


@given(st.binary(max_size=64))
def test_other_bytes_are_no_peer_id(raw: bytes) -> None:
    if len(raw) == PEER_ID_BYTES and raw.startswith(bytes.fromhex("002408011220")):
        return
    with pytest.raises(p2p.MalformedPeerId):
        p2p.PeerId.from_bytes(raw)


@given(st.text(max_size=80))
def test_other_text_is_no_peer_id(text: str) -> None:
    with pytest.raises(p2p.MalformedPeerId):
        p2p.PeerId(text)


@pytest.mark.parametrize(
    "text",
    [
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # RSA
        "16Uiu2HAkuPvDb3yHGHGsfdvrQXrtUGxZZ3BwpfNGEpWJGRNwpTAM",  # secp256k1
        "1" * 10_000,
        "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN\n",
        " 12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
    ],
)
def test_foreign_and_near_misses(text: str) -> None:
    with pytest.raises(p2p.MalformedPeerId):
        p2p.PeerId(text)


@given(SEEDS, st.binary(max_size=100), st.integers(0, 511))
def test_signatures(seed: bytes, message: bytes, bit: int) -> None:
    identity = p2p.Identity(seed)
    signature = identity.sign(message)
    assert verify(identity.public_key, message, signature)
    assert not verify(identity.public_key, message + b"x", signature)
    broken = bytearray(signature)
    broken[bit // 8] ^= 1 << bit % 8
    assert not verify(identity.public_key, message, bytes(broken))


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_malformed_keys_and_signatures_verify_nothing(key: bytes, signature: bytes) -> None:
    assert not verify(key, b"message", signature)


def test_a_seed_is_32_bytes_and_stays_secret() -> None:
    for size in (0, 31, 33, 64):
        with pytest.raises(ValueError, match="32 bytes"):
            p2p.Identity(bytes(size))
    assert "seed" not in repr(p2p.Identity(b"\x07" * 32))
    assert p2p.Identity.generate() != p2p.Identity.generate()


@given(ADDRESSES)
def test_addresses_read_back(address: Address) -> None:
    assert Address.parse(str(address)) == address
    assert Address.from_bytes(address.to_bytes()) == address


@given(st.binary(max_size=80))
def test_binary_addresses_are_read_or_refused(raw: bytes) -> None:
    try:
        address = Address.from_bytes(raw)
    except p2p.MalformedAddress:
        return
    assert Address.parse(str(address)) == address


@given(st.text(alphabet="/ip46dnstcp2.0123:abfé \x00", max_size=60))
def test_text_addresses_are_read_or_refused(text: str) -> None:
    try:
        address = Address.parse(text)
    except p2p.MalformedAddress:
        return
    assert Address.parse(str(address)) == address


def test_a_known_binary_address() -> None:
    """multiformats/multiaddr: /ip4/127.0.0.1/tcp/4001."""
    assert Address.parse("/ip4/127.0.0.1/tcp/4001").to_bytes().hex() == "047f000001060fa1"


def test_the_older_name_of_p2p_is_read() -> None:
    peer_id = p2p.Identity(bytes(32)).peer_id
    assert Address.parse(f"/dns4/a.example/tcp/1/ipfs/{peer_id}").peer_id == peer_id
