"""Hypothesis strategies of the node's tests."""

from __future__ import annotations

from hypothesis import strategies as st

from consensus.transaction import Transaction, Transfer
from consensus.types import AccountId, Amount, ChainId, Height, Nonce, Signature
from node.vote_log import Record, RecordKind

HASHES = (b"\x01" * 32, b"\x02" * 32)


def vote_records(*, epochs: int = 3, views: int = 3) -> st.SearchStrategy[Record]:
    """Votes and proposals in few places and on two blocks, so that conflicts are frequent."""

    def build(kind: RecordKind, epoch: int, view: int, block_hash: bytes) -> Record:
        block_hash = b"" if kind is RecordKind.NULLIFY else block_hash
        data = bytes([kind, epoch, view]) + block_hash
        return Record(kind=kind, epoch=epoch, view=view, block_hash=block_hash, data=data)

    return st.builds(
        build,
        st.sampled_from(RecordKind),
        st.integers(0, epochs - 1),
        st.integers(1, views),
        st.sampled_from(HASHES),
    )


def transfers(*, senders: int = 3, nonces: int = 20) -> st.SearchStrategy[Transaction]:
    """Transfers of few senders in few slots at few fees: replacements and gaps are frequent."""
    return st.builds(
        transfer,
        account=st.integers(0, senders - 1),
        nonce=st.integers(0, nonces - 1),
        fee=st.sampled_from((1, 100, 112, 113, 10_000)),
        expiry=st.integers(1, 30),
    )


def transfer(account: int, nonce: int, *, fee: int = 100, expiry: int = 50) -> Transaction:
    """An unsigned transfer of account number `account`."""
    return Transaction(
        chain_id=ChainId(bytes(32)),
        account=AccountId(account.to_bytes(32, "big")),
        nonce=Nonce(nonce),
        expiry=Height(expiry),
        fee=Amount(fee),
        content=Transfer(recipient=AccountId(b"\xff" * 32), amount=Amount(1)),
        signature=Signature(bytes(64)),
    )
