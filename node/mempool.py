"""Transactions that wait for a block: bounded, ordered by what they pay, and pure.

The rule: nothing that a stranger sends makes this grow past TRANSACTIONS_MAX and BYTES_MAX, nor
cost more than the size of what he sent. Each sender (an account's owner or peer key; they have
separate nonces) holds at most NONCE_WINDOW transactions, one a nonce. When full, the lowest fee
density leaves first, with the sender's later nonces, which cannot be executed without it; a
newcomer that would be the one to leave is refused.

After a block only the senders that it touched are looked at again (`advance`); expiry is found by
height. The state is asked through `Ledger`, so that a pool serves the final state and a block's
parent state alike. No clock, no chance, no I/O: the same calls give the same pool.

Free kinds (a subscription's work, a reveal already paid for) rank as if they paid the chain's
smallest fee; otherwise any paying flood would keep newcomers out.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from consensus.transaction import EXPIRY_HEIGHTS_MAX, FREE, Role, Transaction
from consensus.types import AccountId

NONCE_WINDOW: Final = 16
"""Nonces from the next one on: enough for a busy sender between two blocks."""
TRANSACTIONS_MAX: Final = 20_000
BYTES_MAX: Final = 32 << 20
REPLACEMENT_DIVISOR: Final = 8
"""A replacement pays an eighth (12.5 %) more, or a stranger would gossip one slot for ever."""
DENSITY_SHIFT: Final = 32
"""Fee density is base units a byte with this many fractional bits."""

Sender: TypeAlias = tuple[AccountId, Role]


class Ledger(Protocol):
    """What the pool asks of a state; `refusal` sees everything but nonce order."""

    @property
    def height(self) -> int:
        """Height of the last block of this state."""
        ...

    def next_nonce(self, account: AccountId, role: Role) -> int:
        """The nonce the key's next transaction must carry; 0 for an unknown account."""
        ...

    def refusal(self, transaction: Transaction) -> str | None:
        """Why it cannot be executed whatever comes before it (signature, funds, work)."""
        ...


class Refusal(enum.Enum):
    """Why a transaction was not taken. All but INVALID depend on the moment: ignore, not reject."""

    DUPLICATE = "already here"
    NONCE_PASSED = "its nonce was used"
    NONCE_FAR = "its nonce is too far ahead"
    EXPIRED = "it has expired"
    EXPIRY_FAR = "it expires too late"
    UNDERPRICED = "it replaces another and must pay 12.5 % more"
    FULL = "the pool is full of better paying transactions"
    INVALID = "the ledger refuses it"


@dataclass(frozen=True, slots=True)
class Refused:
    """A transaction was not taken; `reason` is for a person."""

    refusal: Refusal
    reason: str


class Choice(enum.Enum):
    """What a block builder says of an offered transaction."""

    TAKE = "taken; offer the sender's next one"
    SKIP = "not in this block, and so none of the sender's later ones"
    STOP = "the block is full"


@dataclass(frozen=True, slots=True)
class _Entry:
    transaction: Transaction
    arrival: int
    density: int
    size: int

    @property
    def sender(self) -> Sender:
        return _sender(self.transaction)

    @property
    def rank(self) -> tuple[int, int]:
        """Greater leaves later: higher density, then earlier arrival."""
        return (self.density, -self.arrival)


class Mempool:
    """The pool of one chain; `fee_min` is the chain's smallest fee, for the rank of free kinds."""

    def __init__(
        self,
        *,
        fee_min: int,
        transactions_max: int = TRANSACTIONS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self._fee_min = fee_min
        self._transactions_max = transactions_max
        self._bytes_max = bytes_max
        self._entries: dict[bytes, _Entry] = {}
        self._senders: dict[Sender, dict[int, _Entry]] = {}
        self._expiring: dict[int, set[bytes]] = {}
        self._worst: list[tuple[tuple[int, int], bytes]] = []
        self._bytes = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, transaction_hash: bytes) -> bool:
        return transaction_hash in self._entries

    @property
    def bytes_held(self) -> int:
        """Encoded bytes of everything held."""
        return self._bytes

    def get(self, transaction_hash: bytes) -> Transaction | None:
        """A held transaction, None when not held."""
        entry = self._entries.get(transaction_hash)
        return None if entry is None else entry.transaction

    def __iter__(self) -> Iterator[Transaction]:
        """All held, in order of arrival."""
        return iter([entry.transaction for entry in self._entries.values()])

    def next_free_nonce(self, ledger: Ledger, account: AccountId, role: Role) -> int:
        """The first nonce of a key that neither the state nor the pool has used."""
        nonce = ledger.next_nonce(account, role)
        held = self._senders.get((account, role), {})
        while nonce in held:
            nonce += 1
        return nonce

    def add(self, transaction: Transaction, ledger: Ledger) -> Refused | None:
        """Take a transaction; None when it was taken, else why not.

        The cheap checks come first; `ledger.refusal` (signatures) only for what could be kept.
        """
        refusal = self._place_refusal(transaction, ledger)
        if refusal is not None:
            return Refused(refusal, refusal.value)
        sender = _sender(transaction)
        held = self._senders.get(sender, {}).get(transaction.nonce)
        entry = self._new_entry(transaction)
        if held is not None and not _pays_more(transaction, held.transaction):
            if ledger.refusal(held.transaction) is None:
                return Refused(Refusal.UNDERPRICED, Refusal.UNDERPRICED.value)
            # The one in the way cannot be executed any more: it makes room for any fee.
        elif held is None and not self._has_room_for(entry):
            return Refused(Refusal.FULL, Refusal.FULL.value)
        reason = ledger.refusal(transaction)
        if reason is not None:
            return Refused(Refusal.INVALID, reason)
        if held is not None:
            self._drop(held)
        self._insert(entry)
        self._shrink()
        if transaction.hash not in self._entries:
            return Refused(Refusal.FULL, Refusal.FULL.value)
        return None

    def advance(self, ledger: Ledger, touched: Iterable[AccountId] | None) -> int:
        """Follow the state after a block; returns how many transactions left.

        `touched` are the accounts whose nonce, stake or keys the block changed; None means any
        (an epoch's boundary, a snapshot): then every sender is looked at again.
        """
        before = len(self._entries)
        # Heights are few: at most EXPIRY_HEIGHTS_MAX above the last one.
        for expiry in [height for height in self._expiring if height <= ledger.height]:
            for transaction_hash in list(self._expiring[expiry]):
                self._drop(self._entries[transaction_hash])
        accounts = {account for account, _ in self._senders} if touched is None else set(touched)
        for account in sorted(accounts):
            for role in Role:
                self._recheck((account, role), ledger)
        return before - len(self._entries)

    def remove(self, transaction_hash: bytes) -> None:
        """Forget a transaction, as one that a block builder found impossible."""
        entry = self._entries.get(transaction_hash)
        if entry is not None:
            self._drop(entry)

    def select(
        self,
        ledger: Ledger,
        *,
        bytes_max: int,
        choose: Callable[[Transaction], Choice] = lambda _: Choice.TAKE,
    ) -> list[Transaction]:
        """Transactions for a block on `ledger`: best fee density first, nonces in order.

        `choose` executes an offered transaction on the builder's own state and says what to do;
        one that is larger than what is left of `bytes_max` is skipped without being offered.
        """
        heads: list[tuple[int, int, Sender]] = []
        order: dict[Sender, int] = {}
        for sender, held in self._senders.items():
            order[sender] = nonce = ledger.next_nonce(*sender)
            if nonce in held:
                heads.append((-held[nonce].density, held[nonce].arrival, sender))
        heapq.heapify(heads)
        taken: list[Transaction] = []
        room = bytes_max
        while heads:
            _, _, sender = heapq.heappop(heads)
            entry = self._senders[sender][order[sender]]
            if entry.size > room or entry.transaction.expiry <= ledger.height:
                continue
            choice = choose(entry.transaction)
            if choice is Choice.STOP:
                break
            if choice is Choice.SKIP:
                continue
            taken.append(entry.transaction)
            room -= entry.size
            order[sender] += 1
            following = self._senders[sender].get(order[sender])
            if following is not None:
                heapq.heappush(heads, (-following.density, following.arrival, sender))
        return taken

    def _place_refusal(self, transaction: Transaction, ledger: Ledger) -> Refusal | None:
        """Why there is no place for it, by nonce, expiry and identity."""
        if transaction.hash in self._entries:
            return Refusal.DUPLICATE
        if transaction.expiry <= ledger.height:
            return Refusal.EXPIRED
        if transaction.expiry > ledger.height + EXPIRY_HEIGHTS_MAX:
            return Refusal.EXPIRY_FAR
        next_nonce = ledger.next_nonce(*_sender(transaction))
        if transaction.nonce < next_nonce:
            return Refusal.NONCE_PASSED
        if transaction.nonce >= next_nonce + NONCE_WINDOW:
            return Refusal.NONCE_FAR
        return None

    def _new_entry(self, transaction: Transaction) -> _Entry:
        free = isinstance(transaction.content, FREE)
        fee = max(transaction.fee, self._fee_min) if free else transaction.fee
        size = len(transaction.encoded)
        self._arrivals += 1
        density = (fee << DENSITY_SHIFT) // size
        return _Entry(transaction, arrival=self._arrivals, density=density, size=size)

    def _has_room_for(self, entry: _Entry) -> bool:
        """Whether it would stay: there is room, or it outranks the worst."""
        roomy = self._bytes + entry.size <= self._bytes_max
        if roomy and len(self._entries) < self._transactions_max:
            return True
        worst = self._peek_worst()
        if worst is None or entry.rank <= worst.rank:
            return False
        # The worst takes its sender's later nonces along: that would include this one.
        needed = worst.sender == entry.sender
        return not (needed and worst.transaction.nonce < entry.transaction.nonce)

    def _insert(self, entry: _Entry) -> None:
        transaction = entry.transaction
        self._entries[transaction.hash] = entry
        self._senders.setdefault(entry.sender, {})[transaction.nonce] = entry
        self._expiring.setdefault(transaction.expiry, set()).add(transaction.hash)
        self._bytes += entry.size
        heapq.heappush(self._worst, (entry.rank, transaction.hash))
        # Entries that left stay in the heap until popped; rebuilt before they are the majority.
        if len(self._worst) > 2 * len(self._entries) + 64:
            self._worst = [(each.rank, key) for key, each in self._entries.items()]
            heapq.heapify(self._worst)

    def _drop(self, entry: _Entry) -> None:
        transaction, sender = entry.transaction, entry.sender
        del self._entries[transaction.hash]
        held = self._senders[sender]
        del held[transaction.nonce]
        if not held:
            del self._senders[sender]
        expiring = self._expiring[transaction.expiry]
        expiring.remove(transaction.hash)
        if not expiring:
            del self._expiring[transaction.expiry]
        self._bytes -= entry.size

    def _peek_worst(self) -> _Entry | None:
        while self._worst:
            # One that left and came back stands here twice; its later arrival ranks first.
            entry = self._entries.get(self._worst[0][1])
            if entry is not None:
                return entry
            heapq.heappop(self._worst)
        return None

    def _shrink(self) -> None:
        """Drop the worst, each with its sender's later nonces, until the bounds hold."""
        while len(self._entries) > self._transactions_max or self._bytes > self._bytes_max:
            worst = self._peek_worst()
            if worst is None:
                return
            held = self._senders[worst.sender]
            for nonce in sorted(held, reverse=True):
                if nonce >= worst.transaction.nonce:
                    self._drop(held[nonce])

    def _recheck(self, sender: Sender, ledger: Ledger) -> None:
        held = self._senders.get(sender)
        if held is None:
            return
        next_nonce = ledger.next_nonce(*sender)
        for nonce in sorted(held):
            entry = held[nonce]
            if nonce < next_nonce or ledger.refusal(entry.transaction) is not None:
                self._drop(entry)


def _sender(transaction: Transaction) -> Sender:
    return (transaction.account, transaction.role)


def _pays_more(new: Transaction, old: Transaction) -> bool:
    """Whether a replacement pays the eighth more that the rule asks for."""
    return new.fee > old.fee and (new.fee - old.fee) * REPLACEMENT_DIVISOR >= old.fee
