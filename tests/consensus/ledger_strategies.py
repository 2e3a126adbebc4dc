"""Hypothesis strategies for the ledger's values, and how many cases a test runs."""

from __future__ import annotations

import os
import random
from typing import Any

from hypothesis import strategies as st

from consensus.account import Announcement
from consensus.params import SCALING_ONE, WEIGHT_ONE
from consensus.types import Modality, Uid
from consensus.weights import Row

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
"""Multiplies case counts; `make fuzz` sets 100."""

amounts = st.one_of(
    st.integers(0, 10), st.integers(0, 2**40), st.just(2**55 - 1), st.integers(0, 2**55 - 1)
)
seeds = st.integers(0, 2**63)


@st.composite
def announcements(draw: st.DrawFn) -> Announcement:
    address = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
    return Announcement(
        modality=Modality(draw(st.integers(1, 15))),
        dim=draw(st.integers(1, 2**16)),
        vocabulary=draw(st.integers(0, 2**24)),
        addresses=tuple(draw(st.lists(address, max_size=4))),
    )


@st.composite
def rows(draw: st.DrawFn, uids: int = 1000) -> Row:
    names = draw(st.sets(st.integers(0, uids - 1), min_size=1, max_size=min(uids, 64)))
    return random_row(random.Random(draw(seeds)), sorted(names))


def random_row(rng: random.Random, uids: list[int]) -> Row:
    """A row on exactly these uids, from even to one entry of 65,535 beside one of 1."""
    cuts = sorted(rng.sample(range(1, WEIGHT_ONE), len(uids) - 1))
    if len(uids) == 2 and rng.random() < 0.2:
        cuts = [rng.choice([1, WEIGHT_ONE - 1])]
    edges = [0, *cuts, WEIGHT_ONE]
    return Row(
        tuple(
            (Uid(uid), after - before)
            for uid, before, after in zip(uids, edges, edges[1:], strict=False)
        )
    )


def random_case(rng: random.Random, n: int) -> dict[str, Any]:
    """A `mechanism` case: mild, hostile and extreme values mixed."""

    def stake() -> int:
        return rng.choice([0, 1, rng.randrange(10**12), rng.randrange(2**55 // n), 10**9])

    def scaling() -> int:
        return rng.choice([0, 1, SCALING_ONE, SCALING_ONE, rng.randrange(SCALING_ONE + 1)])

    def row() -> list[list[int]]:
        size = min(n, rng.choice([1, 2, 3, 8, 64]))
        return [
            list(entry) for entry in random_row(rng, sorted(rng.sample(range(n), size))).entries
        ]

    return {
        "params": {
            "temperature": rng.choice([0, 1, 10, 10, 16]),
            "depth": rng.choice([0, 1, 2, 4, 4, 8]),
            "cutoff": rng.choice([0, 0, 1, 2**30, 2**36, rng.randrange(2**36)]),
            "rank_cutoff": rng.choice([0, 4096, 4096, 65_536]),
            "self_edge_to_pool": rng.random() < 0.5,
            "recovery": rng.choice([0, 10_737_418, 2**30]),
            "learning_rate": rng.choice([3_277, 32_768, 2**20]),
        },
        "stake": [stake() for _ in range(n)],
        "scaling": [scaling() for _ in range(n)],
        "rows": [row() for _ in range(n)],
        "pool": rng.choice([0, 1, rng.randrange(2**55)]),
    }
