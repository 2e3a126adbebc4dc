"""RPCs, messages and hostile bytes for the tests of gossipsub."""

from __future__ import annotations

import hashlib
import os
import random

from hypothesis import strategies as st

from p2p.gossipsub.codec import Control, Rpc, encode_rpc
from p2p.gossipsub.message import WireMessage
from p2p.identity import PeerId

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
"""100 gives the full case counts."""


def peer(number: int) -> PeerId:
    """A peer id of its own for every number."""
    return PeerId.from_public_key(hashlib.sha256(number.to_bytes(8, "big")).digest())


topics = st.sampled_from(["blocks", "votes", "déjà", "x"])
ids = st.binary(min_size=1, max_size=24)
messages = st.builds(
    WireMessage,
    topic=topics,
    data=st.binary(max_size=200),
    source=st.binary(max_size=40),
    seqno=st.binary(max_size=8),
    signature=st.binary(max_size=64),
    key=st.binary(max_size=36),
)
controls = st.builds(
    Control,
    ihave=st.lists(st.tuples(topics, st.lists(ids, max_size=4).map(tuple)), max_size=3).map(tuple),
    iwant=st.lists(ids, max_size=4).map(tuple),
    graft=st.lists(topics, max_size=3).map(tuple),
    prune=st.lists(st.tuples(topics, st.integers(0, 3600)), max_size=3).map(tuple),
    idontwant=st.lists(ids, max_size=4).map(tuple),
)
rpcs = st.builds(
    Rpc,
    subscriptions=st.lists(st.tuples(st.booleans(), topics), max_size=4).map(tuple),
    messages=st.lists(messages, max_size=4).map(tuple),
    control=st.none() | controls.filter(lambda control: control != Control()),
)


def mutated(rng: random.Random, frame: bytes) -> bytes:
    """A frame with a few of its bytes changed, cut out, doubled or swapped for others."""
    hostile = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(hostile) + 1)
        match rng.choice((0, 0, 0, 0, 1, 2, 3, 4)):
            case 0 if hostile:
                hostile[at % len(hostile)] = rng.randrange(256)
            case 1:
                del hostile[at : at + rng.randrange(1, 16)]
            case 2:
                hostile[at:at] = hostile[: rng.randrange(64)]
            case 3:
                hostile[at:at] = rng.randbytes(rng.randrange(1, 12))
            case _:
                hostile[at:at] = rng.choice(
                    [b"\xff" * 10, b"\x12\xff\xff\x7f", b"\x1a\x00", b"\x0b"]
                )
    return bytes(hostile)


def hostile_frames(seed: int, count: int) -> list[bytes]:
    """Random bytes, mutated RPCs and truncations, `count` of them."""
    rng = random.Random(seed)
    seeds = [
        encode_rpc(
            Rpc(
                subscriptions=((True, "votes"),),
                messages=(WireMessage("votes", rng.randbytes(50)),),
                control=Control(
                    ihave=(("votes", (rng.randbytes(20),)),),
                    iwant=(rng.randbytes(20),),
                    graft=("votes",),
                    prune=(("votes", 60),),
                    idontwant=(rng.randbytes(20),),
                ),
            )
        )
        for _ in range(8)
    ]
    frames = []
    for _ in range(count):
        chosen = rng.choice(seeds)
        match rng.randrange(4):
            case 0:
                frames.append(rng.randbytes(rng.randrange(200)))
            case 1:
                frames.append(chosen[: rng.randrange(len(chosen))])
            case _:
                frames.append(mutated(rng, chosen))
    return frames
