"""What the ledger holds of one account beside its balance: keys, announcement, bond, commitment.

Rule: an account *is* a peer, named by its owner key; the peer key is a field that can be replaced
but is unique for ever. Every record has one canonical encoding; the constructor checks ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from consensus.codec import Reader, Writer
from consensus.errors import DecodeError
from consensus.types import (
    DIGEST_BYTES,
    KEY_BYTES,
    AccountId,
    Amount,
    Digest,
    Epoch,
    Height,
    Modality,
    Nonce,
    PeerKey,
)

ADDRESSES_MAX: Final = 4
"""Two transports on IPv4 and IPv6."""
ADDRESS_BYTES_MAX: Final = 224
"""A multiaddr text with a DNS name and a peer id; four of them leave an announcement < 1 KiB."""
DIM_MAX: Final = 2**16
VOCABULARY_MAX: Final = 2**24
_NOTHING: Final = Amount(0)
_NEVER: Final = Epoch(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Keys and the height of registration."""

    owner: AccountId
    peer_key: PeerKey
    registered: Height


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a peer serves and where. Raises ValueError outside the bounds."""

    modality: Modality
    """One bit, or several for a bridge."""
    dim: int
    """Width of the representations it returns."""
    vocabulary: int
    """Size of its token vocabulary, 0 where it has none."""
    addresses: tuple[str, ...] = ()
    """0 to 4 multiaddrs as printable ASCII."""

    def __post_init__(self) -> None:
        if not 1 <= self.modality <= 15:
            raise ValueError(f"modality {self.modality!r}")
        if not 1 <= self.dim <= DIM_MAX:
            raise ValueError(f"dim {self.dim}, expected 1 to {DIM_MAX}")
        if not 0 <= self.vocabulary <= VOCABULARY_MAX:
            raise ValueError(f"vocabulary {self.vocabulary}, at most {VOCABULARY_MAX}")
        if len(self.addresses) > ADDRESSES_MAX:
            raise ValueError(f"{len(self.addresses)} addresses, at most {ADDRESSES_MAX}")
        for address in self.addresses:
            if not 1 <= len(address) <= ADDRESS_BYTES_MAX:
                raise ValueError(f"an address of {len(address)} characters")
            if any(not "!" <= character <= "~" for character in address):
                raise ValueError("an address is printable ASCII without spaces")

    def encode(self) -> bytes:
        """Canonical bytes: u8 modality, u32 dim, u32 vocabulary, u8 count, each u16-prefixed."""
        writer = Writer().u8(int(self.modality)).u32(self.dim).u32(self.vocabulary)
        writer.u8(len(self.addresses))
        for address in self.addresses:
            writer.short(address.encode("ascii"))
        return writer.done()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bond:
    """An account as a voter. The default is an account that never asked to vote."""

    amount: Amount = _NOTHING
    """Base units asked to be locked; what is locked is this, at most the stake."""
    validating: bool = False
    """Wants to be in the next set."""
    leaving: int = 0
    """Order of its request to leave, from 1; 0 when it did not ask."""
    jailed: bool = False
    tombstoned: bool = False
    """Equivocated: never votes again."""
    served_until: Epoch = _NEVER
    """The epoch after the last set it was in; 0 when it never was."""

    def is_locked(self, epoch: Epoch, window_epochs: int) -> bool:
        """Whether the amount is still locked: evidence may come until the window has passed."""
        return self.validating or (
            self.served_until > 0 and epoch < self.served_until + window_epochs
        )


NO_BOND: Final = Bond()


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """A hidden row, to be shown in the next epoch."""

    epoch: Epoch
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Departed:
    """What is kept of an account that left: a returning key continues its nonces."""

    owner: AccountId
    owner_nonce: Nonce
    peer_nonce: Nonce


def read_announcement(reader: Reader) -> Announcement:
    """The next announcement of `reader`. Raises DecodeError."""
    modality, dim, vocabulary = reader.u8(), reader.u32(), reader.u32()
    count = reader.count(reader.u8(), ADDRESSES_MAX)
    try:
        return Announcement(
            modality=Modality(modality),
            dim=dim,
            vocabulary=vocabulary,
            addresses=tuple(reader.short(ADDRESS_BYTES_MAX).decode("ascii") for _ in range(count)),
        )
    except ValueError as error:  # UnicodeDecodeError is one
        raise DecodeError(str(error)) from None


def encode_account(account: Account) -> bytes:
    """owner (32), peer key (32), u64 height."""
    writer = Writer().fixed(account.owner, KEY_BYTES).fixed(account.peer_key, KEY_BYTES)
    return writer.u64(account.registered).done()


def read_account(reader: Reader) -> Account:
    """The inverse of `encode_account`. Raises DecodeError."""
    return Account(
        owner=AccountId(reader.fixed(KEY_BYTES)),
        peer_key=PeerKey(reader.fixed(KEY_BYTES)),
        registered=Height(reader.u64()),
    )


def encode_bond(bond: Bond) -> bytes:
    """u64 amount, flag validating, u64 leaving, flags jailed and tombstoned, u64 served until."""
    writer = Writer().u64(bond.amount).flag(bond.validating).u64(bond.leaving)
    return writer.flag(bond.jailed).flag(bond.tombstoned).u64(bond.served_until).done()


def read_bond(reader: Reader) -> Bond:
    """The inverse of `encode_bond`. Raises DecodeError."""
    return Bond(
        amount=Amount(reader.u64()),
        validating=reader.flag(),
        leaving=reader.u64(),
        jailed=reader.flag(),
        tombstoned=reader.flag(),
        served_until=Epoch(reader.u64()),
    )


def encode_commitment(commitment: Commitment | None) -> bytes:
    """A flag, then u64 epoch and digest (32) when it is 1."""
    if commitment is None:
        return Writer().flag(False).done()
    writer = Writer().flag(True).u64(commitment.epoch)
    return writer.fixed(commitment.digest, DIGEST_BYTES).done()


def read_commitment(reader: Reader) -> Commitment | None:
    """The inverse of `encode_commitment`. Raises DecodeError."""
    if not reader.flag():
        return None
    return Commitment(epoch=Epoch(reader.u64()), digest=Digest(reader.fixed(DIGEST_BYTES)))


def encode_departed(departed: Departed) -> bytes:
    """owner (32), u64 owner nonce, u64 peer nonce."""
    writer = Writer().fixed(departed.owner, KEY_BYTES)
    return writer.u64(departed.owner_nonce).u64(departed.peer_nonce).done()


def read_departed(reader: Reader) -> Departed:
    """The inverse of `encode_departed`. Raises DecodeError."""
    return Departed(
        owner=AccountId(reader.fixed(KEY_BYTES)),
        owner_nonce=Nonce(reader.u64()),
        peer_nonce=Nonce(reader.u64()),
    )
