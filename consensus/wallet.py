"""For clients: build and sign each kind of transaction.

Rule: the key that a kind asks for signs, a new peer key countersigns; nothing else is needed from
either, so the owner key may live on another machine: `draft_of` gives what it has to sign.
"""

from __future__ import annotations

from dataclasses import dataclass

from consensus.crypto import Domain, Signer
from consensus.params import Parameters
from consensus.state import State
from consensus.transaction import (
    EXPIRY_HEIGHTS_MAX,
    FREE,
    Content,
    Role,
    Transaction,
    encode_payload,
    named_peer_key,
    role_of,
)
from consensus.types import AccountId, Amount, ChainId, Height, Nonce, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An unsigned transaction."""

    chain_id: ChainId
    account: AccountId
    nonce: Nonce
    expiry: Height
    fee: Amount
    content: Content

    @property
    def payload(self) -> bytes:
        """What both signatures cover, in the domains `role.value` and KEY_POSSESSION."""
        return encode_payload(
            chain_id=self.chain_id,
            account=self.account,
            nonce=self.nonce,
            expiry=self.expiry,
            fee=self.fee,
            content=self.content,
        )

    @property
    def role(self) -> Role:
        """Which key has to sign."""
        return role_of(self.content)

    def with_signatures(
        self, signature: Signature, countersignature: Signature | None = None
    ) -> Transaction:
        """The transaction. Raises ValueError when a countersignature is missing or surplus."""
        return Transaction(
            chain_id=self.chain_id,
            account=self.account,
            nonce=self.nonce,
            expiry=self.expiry,
            fee=self.fee,
            content=self.content,
            signature=signature,
            countersignature=countersignature,
        )

    def sign(self, signer: Signer, peer_signer: Signer | None = None) -> Transaction:
        """Sign with the key of `role` and, where a new peer key is named, with that one.

        Raises ValueError when `peer_signer` is missing, surplus, or not the named key.
        """
        named = named_peer_key(self.content)
        if named != (peer_signer.public_key if peer_signer else None):
            raise ValueError("the named peer key, and no other, has to countersign")
        payload = self.payload
        signature = signer.sign(self.role.value, self.chain_id, payload)
        if peer_signer is None:
            return self.with_signatures(signature)
        second = peer_signer.sign(Domain.KEY_POSSESSION, self.chain_id, payload)
        return self.with_signatures(signature, second)


def draft_of(
    state: State,
    parameters: Parameters,
    account: AccountId,
    content: Content,
    *,
    ahead: int = 0,
    fee: int | None = None,
    lifetime_heights: int = EXPIRY_HEIGHTS_MAX // 2,
) -> Draft:
    """An unsigned transaction that fits on `state`, at the smallest fee.

    `ahead` counts transactions of the same key that are already under way.
    """
    free = isinstance(content, FREE)
    return Draft(
        chain_id=state.chain_id,
        account=account,
        nonce=Nonce(_next_nonce(state, account, content) + ahead),
        expiry=Height(state.height + min(lifetime_heights, EXPIRY_HEIGHTS_MAX)),
        fee=Amount(0 if free else parameters.fee if fee is None else fee),
        content=content,
    )


def _next_nonce(state: State, account: AccountId, content: Content) -> int:
    uid = state.uid_of_owner.get(account)
    if uid is not None:
        by_peer = role_of(content) is Role.PEER
        return (state.peer_nonce if by_peer else state.owner_nonce)[uid]
    former = state.departed_uid.get(account)
    return 0 if former is None else state.departed[former].owner_nonce
