"""Transactions: what owners and peers may ask of the ledger, and their one encoding.

Rule: every transaction carries chain id, account, a nonce of its key's sequence, an expiry height
and a fee, and is signed by the key that its kind asks for. The owner key (cold) moves stake and
replaces keys; the peer key (hot, on the node) publishes weights and where it is. The sequences are
separate, so neither key can void what the other has signed (ledger.md, Between boundaries).

    kind u8 | chain id 32 | account 32 | nonce u64 | expiry u64 | fee u64 | content
    | signature 64 | countersignature 64 where the kind names a new peer key

Everything before the signatures is the *payload*, which both signatures cover. Well-formedness
that no state can change (a row that is no row) is part of the encoding: DecodeError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias, assert_never

from consensus.account import Announcement, read_announcement
from consensus.codec import Reader, Writer
from consensus.crypto import Domain, H
from consensus.errors import DecodeError
from consensus.types import (
    DIGEST_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    AccountId,
    Amount,
    ChainId,
    Digest,
    Epoch,
    Height,
    Nonce,
    PeerKey,
    Signature,
)
from consensus.weights import Row, read_row

TRANSACTION_BYTES_MAX: Final = 2_048
"""Largest is a Subscribe with four addresses: below 1.4 KiB."""
EXPIRY_HEIGHTS_MAX: Final = 600
"""A transaction may wait this many heights: ten minutes of one-second blocks."""
SALT_BYTES: Final = 32


class Role(Enum):
    """Which of an account's two keys signs; the value is the domain of the signature."""

    OWNER = Domain.TRANSACTION_OWNER
    PEER = Domain.TRANSACTION_PEER


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Owner: move stake to another account."""

    recipient: AccountId
    amount: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatePeerKey:
    """Owner: replace the peer key; countersigned by the new one."""

    peer_key: PeerKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """Owner: enter the table by proof of work; countersigned by the peer key."""

    peer_key: PeerKey
    ancestor: Height
    """Height of the block whose hash the work is bound to."""
    work: int
    """u64 that makes the digest small enough."""
    announcement: Announcement


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeFor:
    """Owner: pay the entrance of another owner; countersigned by that one's peer key."""

    owner: AccountId
    peer_key: PeerKey
    announcement: Announcement


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsubscribe:
    """Owner: leave the table; what stake remains goes to `recipient`."""

    recipient: AccountId


@dataclass(frozen=True, slots=True, kw_only=True)
class Validate:
    """Owner: lock a bond and ask to vote from the next epoch on; again, to raise the bond."""

    bond: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Unvalidate:
    """Owner: ask to leave the voters at the next boundary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetWeights:
    """Peer: settle pending emission under the old row, then replace the row."""

    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitWeights:
    """Peer: settle, and bind oneself to a hidden row."""

    commitment: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealWeights:
    """Peer: show the row committed in the epoch before; free."""

    salt: bytes
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Peer: replace the announcement."""

    announcement: Announcement


@dataclass(frozen=True, slots=True, kw_only=True)
class Unjail:
    """Peer: be a candidate again from the next boundary on."""


Content: TypeAlias = (
    Transfer
    | RotatePeerKey
    | Subscribe
    | SubscribeFor
    | Unsubscribe
    | Validate
    | Unvalidate
    | SetWeights
    | CommitWeights
    | RevealWeights
    | Announce
    | Unjail
)

KINDS: Final[tuple[type[Content], ...]] = (
    *(Transfer, RotatePeerKey, Subscribe, SubscribeFor, Unsubscribe, Validate, Unvalidate),
    *(SetWeights, CommitWeights, RevealWeights, Announce, Unjail),
)
"""The kind byte is the position here plus one: append only."""
_KIND_OF: Final = {kind: number for number, kind in enumerate(KINDS, 1)}
_COUNTERSIGNED: Final = (RotatePeerKey, Subscribe, SubscribeFor)
_BY_PEER: Final = (SetWeights, CommitWeights, RevealWeights, Announce, Unjail)
FREE: Final = (Subscribe, RevealWeights)
"""Kinds whose fee is zero: work, or a commitment already paid for, stands in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A signed request. `payload`, `encoded` and `hash` follow from the fields."""

    chain_id: ChainId
    account: AccountId
    nonce: Nonce
    expiry: Height
    """Last height at which it may be executed."""
    fee: Amount
    content: Content
    signature: Signature
    countersignature: Signature | None = None
    payload: bytes = field(init=False, repr=False, compare=False)
    encoded: bytes = field(init=False, repr=False, compare=False)
    hash: Digest = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.content, _COUNTERSIGNED) == (self.countersignature is None):
            raise ValueError("exactly the kinds that name a peer key are countersigned")
        payload = encode_payload(
            chain_id=self.chain_id,
            account=self.account,
            nonce=self.nonce,
            expiry=self.expiry,
            fee=self.fee,
            content=self.content,
        )
        encoded = payload + self.signature + (self.countersignature or b"")
        object.__setattr__(self, "payload", payload)
        object.__setattr__(self, "encoded", encoded)
        object.__setattr__(self, "hash", H(b"transaction", encoded))

    @property
    def role(self) -> Role:
        """Whose signature and nonce sequence it uses."""
        return role_of(self.content)


def role_of(content: Content) -> Role:
    """Which key signs a transaction of this kind."""
    return Role.PEER if isinstance(content, _BY_PEER) else Role.OWNER


def named_peer_key(content: Content) -> PeerKey | None:
    """The new peer key that has to countersign, None for the kinds without one."""
    return content.peer_key if isinstance(content, _COUNTERSIGNED) else None


def encode_payload(
    *,
    chain_id: ChainId,
    account: AccountId,
    nonce: Nonce,
    expiry: Height,
    fee: Amount,
    content: Content,
) -> bytes:
    """What is signed."""
    writer = Writer().u8(_KIND_OF[type(content)]).fixed(chain_id, DIGEST_BYTES)
    writer.fixed(account, KEY_BYTES).u64(nonce).u64(expiry).u64(fee)
    return writer.raw(_encode_content(content)).done()


def decode_transaction(data: bytes) -> Transaction:
    """The transaction that `data` is exactly. Raises DecodeError."""
    if len(data) > TRANSACTION_BYTES_MAX:
        raise DecodeError(f"a transaction of {len(data)} bytes")
    reader = Reader(data)
    number = reader.u8()
    if not 1 <= number <= len(KINDS):
        raise DecodeError(f"transaction kind {number}")
    kind = KINDS[number - 1]
    chain_id = ChainId(reader.fixed(DIGEST_BYTES))
    account = AccountId(reader.fixed(KEY_BYTES))
    nonce, expiry, fee = reader.u64(), reader.u64(), reader.u64()
    content = _read_content(kind, reader)
    signature = Signature(reader.fixed(SIGNATURE_BYTES))
    second = Signature(reader.fixed(SIGNATURE_BYTES)) if kind in _COUNTERSIGNED else None
    reader.end()
    return Transaction(
        chain_id=chain_id,
        account=account,
        nonce=Nonce(nonce),
        expiry=Height(expiry),
        fee=Amount(fee),
        content=content,
        signature=signature,
        countersignature=second,
    )


def commitment_of(
    *,
    chain_id: ChainId,
    peer_key: PeerKey,
    registered: Height,
    epoch: Epoch,
    salt: bytes,
    row: Row,
) -> Digest:
    """What CommitWeights carries: nobody can guess the row or reuse another's commitment."""
    writer = Writer().fixed(chain_id, DIGEST_BYTES).fixed(peer_key, KEY_BYTES)
    writer.u64(registered).u64(epoch).fixed(salt, SALT_BYTES).raw(row.encoded)
    return H(b"weights-commitment", writer.done())


def _encode_content(content: Content) -> bytes:
    writer = Writer()
    match content:
        case SetWeights(row=row):
            return row.encoded
        case Transfer(recipient=recipient, amount=amount):
            return writer.fixed(recipient, KEY_BYTES).u64(amount).done()
        case RotatePeerKey(peer_key=peer_key):
            return writer.fixed(peer_key, KEY_BYTES).done()
        case Subscribe():
            writer.fixed(content.peer_key, KEY_BYTES).u64(content.ancestor).u64(content.work)
            return writer.raw(content.announcement.encode()).done()
        case SubscribeFor():
            writer.fixed(content.owner, KEY_BYTES).fixed(content.peer_key, KEY_BYTES)
            return writer.raw(content.announcement.encode()).done()
        case Unsubscribe(recipient=recipient):
            return writer.fixed(recipient, KEY_BYTES).done()
        case Validate(bond=bond):
            return writer.u64(bond).done()
        case CommitWeights(commitment=commitment):
            return writer.fixed(commitment, DIGEST_BYTES).done()
        case RevealWeights(salt=salt, row=row):
            return writer.fixed(salt, SALT_BYTES).raw(row.encoded).done()
        case Announce(announcement=announcement):
            return announcement.encode()
        case Unvalidate() | Unjail():
            return b""
        case _:
            assert_never(content)


def _read_content(kind: type[Content], reader: Reader) -> Content:
    if kind is SetWeights:
        return SetWeights(row=read_row(reader))
    if kind is Transfer:
        recipient = AccountId(reader.fixed(KEY_BYTES))
        return Transfer(recipient=recipient, amount=Amount(reader.u64()))
    if kind is RotatePeerKey:
        return RotatePeerKey(peer_key=PeerKey(reader.fixed(KEY_BYTES)))
    if kind is Subscribe:
        return Subscribe(
            peer_key=PeerKey(reader.fixed(KEY_BYTES)),
            ancestor=Height(reader.u64()),
            work=reader.u64(),
            announcement=read_announcement(reader),
        )
    if kind is SubscribeFor:
        return SubscribeFor(
            owner=AccountId(reader.fixed(KEY_BYTES)),
            peer_key=PeerKey(reader.fixed(KEY_BYTES)),
            announcement=read_announcement(reader),
        )
    if kind is Unsubscribe:
        return Unsubscribe(recipient=AccountId(reader.fixed(KEY_BYTES)))
    if kind is Validate:
        return Validate(bond=Amount(reader.u64()))
    if kind is CommitWeights:
        return CommitWeights(commitment=Digest(reader.fixed(DIGEST_BYTES)))
    if kind is RevealWeights:
        return RevealWeights(salt=reader.fixed(SALT_BYTES), row=read_row(reader))
    if kind is Announce:
        return Announce(announcement=read_announcement(reader))
    return Unvalidate() if kind is Unvalidate else Unjail()
