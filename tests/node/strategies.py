"""Hypothesis strategies of the node's tests."""

from __future__ import annotations

from hypothesis import strategies as st

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
