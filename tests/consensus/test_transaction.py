"""Transactions as bytes: one encoding each, every mutation refused or another valid one."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import Reader
from consensus.crypto import Ed25519Signer, KeyedHashSigner, KeyedHashVerifier
from consensus.errors import DecodeError
from consensus.transaction import (
    KINDS,
    TRANSACTION_BYTES_MAX,
    Announce,
    CommitWeights,
    Content,
    RevealWeights,
    Role,
    RotatePeerKey,
    SetWeights,
    Subscribe,
    SubscribeFor,
    Transaction,
    Transfer,
    Unjail,
    Unsubscribe,
    Unvalidate,
    Validate,
    decode_transaction,
)
from consensus.types import AccountId, Amount, ChainId, Digest, Height, Nonce, PeerKey, Signature
from consensus.wallet import Draft, draft_of
from tests.consensus.ledger_chain import LedgerChain, account_id, make_genesis
from tests.consensus.ledger_strategies import SCALE, announcements, rows

keys = st.binary(min_size=32, max_size=32)
u64 = st.integers(0, 2**64 - 1)
NEW_PEER = KeyedHashSigner(b"new peer")
NEW_KEY = PeerKey(NEW_PEER.public_key)

contents: st.SearchStrategy[Content] = st.one_of(
    st.builds(Transfer, recipient=keys, amount=u64),
    st.just(RotatePeerKey(peer_key=NEW_KEY)),
    st.builds(
        Subscribe, peer_key=st.just(NEW_KEY), ancestor=u64, work=u64, announcement=announcements()
    ),
    st.builds(SubscribeFor, owner=keys, peer_key=st.just(NEW_KEY), announcement=announcements()),
    st.builds(Unsubscribe, recipient=keys),
    st.builds(Validate, bond=u64),
    st.just(Unvalidate()),
    st.builds(SetWeights, row=rows()),
    st.builds(CommitWeights, commitment=keys),
    st.builds(RevealWeights, salt=keys, row=rows()),
    st.builds(Announce, announcement=announcements()),
    st.just(Unjail()),
)


def signed(content: Content) -> Transaction:
    draft = Draft(
        chain_id=ChainId(b"c" * 32),
        account=AccountId(b"a" * 32),
        nonce=Nonce(7),
        expiry=Height(9),
        fee=Amount(11),
        content=content,
    )
    named = isinstance(content, RotatePeerKey | Subscribe | SubscribeFor)
    return draft.sign(KeyedHashSigner(b"key"), NEW_PEER if named else None)


@given(contents)
@settings(max_examples=200 * SCALE)
def test_every_kind_survives_its_encoding(content: Content) -> None:
    transaction = signed(content)
    assert len(transaction.encoded) <= TRANSACTION_BYTES_MAX
    back = decode_transaction(transaction.encoded)
    assert back == transaction
    assert back.hash == transaction.hash
    assert back.payload == transaction.payload


@given(contents, st.randoms(use_true_random=False))
@settings(max_examples=200 * SCALE)
def test_a_mutation_is_refused_or_is_another_encoding(content: Content, rng: random.Random) -> None:
    encoded = signed(content).encoded
    for _ in range(20):
        mutated = mutate(encoded, rng)
        try:
            back = decode_transaction(mutated)
        except DecodeError:
            continue
        assert back.encoded == mutated


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip, insert, remove, repeat or cut."""
    out = bytearray(data)
    at = rng.randrange(len(out))
    match rng.randrange(6):
        case 0:
            out[at] ^= 1 << rng.randrange(8)
        case 1:
            out.insert(at, rng.randrange(256))
        case 2:
            del out[at]
        case 3:
            out = out[:at]
        case 4:
            out += out[at:]
        case _:
            out[at] = rng.choice([0, 1, 127, 128, 255])
    return bytes(out)


def test_bytes_that_are_no_transaction() -> None:
    good = signed(Unjail()).encoded
    for bad, why in (
        (b"", "bytes left"),
        (b"\x00" + good[1:], "kind 0"),
        (bytes([len(KINDS) + 1]) + good[1:], "kind 13"),
        (good + b"\x00", "after the last"),
        (bytes(TRANSACTION_BYTES_MAX + 1), "transaction of"),
    ):
        with pytest.raises(DecodeError, match=why):
            decode_transaction(bad)


def test_an_address_that_is_not_ascii_is_refused() -> None:
    chain = LedgerChain(make_genesis([10**12]))
    announcement = dataclasses.replace(
        chain.state.announcements[next(iter(chain.state.accounts))], addresses=("abc",)
    )
    encoded = signed(Announce(announcement=announcement)).encoded
    with pytest.raises(DecodeError):
        decode_transaction(encoded.replace(b"abc", b"a\xffc"))
    with pytest.raises(DecodeError):
        decode_transaction(encoded.replace(b"abc", b"a c"))


@pytest.mark.parametrize(
    "changes",
    [
        {"modality": 0},
        {"modality": 16},
        {"dim": 0},
        {"vocabulary": 2**24 + 1},
        {"addresses": ("a",) * 5},
        {"addresses": ("",)},
        {"addresses": ("a" * 225,)},
        {"addresses": ("ä",)},
    ],
)
def test_announcements_that_are_none(changes: dict[str, object]) -> None:
    from tests.consensus.ledger_chain import ANNOUNCEMENT

    with pytest.raises(ValueError):
        dataclasses.replace(ANNOUNCEMENT, **changes)  # type: ignore[arg-type]


def test_countersignatures_belong_to_some_kinds_only() -> None:
    good = signed(Unjail())
    with pytest.raises(ValueError, match="countersigned"):
        dataclasses.replace(good, countersignature=good.signature)
    with pytest.raises(ValueError, match="countersign"):
        Draft(
            chain_id=good.chain_id,
            account=good.account,
            nonce=good.nonce,
            expiry=good.expiry,
            fee=good.fee,
            content=RotatePeerKey(peer_key=NEW_KEY),
        ).sign(KeyedHashSigner(b"key"))


def test_a_cold_key_signs_elsewhere() -> None:
    """What travels to the owner's machine is the payload; the signature comes back."""
    chain = LedgerChain(make_genesis([10**12] * 2))
    content = Transfer(recipient=account_id(1), amount=Amount(3))
    draft = draft_of(chain.state, chain.parameters, account_id(0), content, ahead=2, fee=2_000_000)
    assert (draft.role, draft.nonce, draft.fee) == (Role.OWNER, 2, 2_000_000)
    cold = Ed25519Signer(b"s" * 32)
    signature = cold.sign(draft.role.value, draft.chain_id, draft.payload)
    assert draft.with_signatures(signature) == draft.sign(cold)


def test_a_departed_owner_goes_on_counting() -> None:
    chain = LedgerChain(make_genesis([10**12] * 3, bonds=[1_000, None, None]))
    chain.extend(chain.sign(2, Unsubscribe(recipient=account_id(1))))
    assert chain.draft(2, Unvalidate()).nonce == 1
    assert chain.draft(77, Unvalidate()).nonce == 0


def test_a_signature_means_one_thing_on_one_chain() -> None:
    verifier, signer = KeyedHashVerifier(), KeyedHashSigner(b"key")
    chain_id = ChainId(b"c" * 32)
    for role in Role:
        for other in Role:
            signature = signer.sign(role.value, chain_id, b"x")
            holds = verifier.verify(signer.public_key, other.value, chain_id, b"x", signature)
            assert holds == (role is other)
    assert not verifier.verify(b"short", role.value, chain_id, b"x", Signature(bytes(64)))


def test_a_reader_names_what_is_missing() -> None:
    assert Reader(Digest(bytes(32))).fixed(32) == bytes(32)
