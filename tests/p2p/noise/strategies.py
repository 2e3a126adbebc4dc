"""What the Noise tests are made of: identities, finished handshakes, and bytes that went wrong."""

from __future__ import annotations

import os
import random

from hypothesis import strategies as st

from p2p.identity import Identity
from p2p.noise import Handshake, Opener, RemoteParty, Role, Sealer, StaticKey

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))
FUZZ_INPUTS = 1000 * SCALE
"""100,000 per machine at the scale of `make fuzz`."""

Session = tuple[Sealer, Opener, RemoteParty]

DIALLER = Identity(bytes(31) + b"\x01")
LISTENER = Identity(bytes(31) + b"\x02")
DIALLER_KEY = StaticKey.certify(DIALLER, muxers=("/yamux/1.0.0",))
LISTENER_KEY = StaticKey.certify(LISTENER)

plaintexts = st.binary(max_size=2000)


def new_pair() -> tuple[Handshake, Handshake]:
    """A dialler and a listener that have not spoken."""
    return Handshake(Role.INITIATOR, DIALLER_KEY), Handshake(Role.RESPONDER, LISTENER_KEY)


def finished_pair() -> tuple[Session, Session]:
    """Both ends of a finished handshake."""
    dialler, listener = new_pair()
    listener.read(dialler.write())
    dialler.read(listener.write())
    listener.read(dialler.write())
    return dialler.split(), listener.split()


def opened(
    opener: Opener, wire: bytes, start: int = 0, end: int | None = None
) -> tuple[bytes, int]:
    """What `Opener.open` makes of all of `wire[start:end]`, and where the rest begins."""
    out = memoryview(bytearray(len(wire)))
    opened_bytes, stop = b"", len(wire) if end is None else end
    while opener.next_bytes(memoryview(wire), start, stop) >= 0:
        count, start = opener.open(memoryview(wire), start, stop, out)
        opened_bytes += out[:count]
    return opened_bytes, start


def corrupt(message: bytes, rng: random.Random) -> bytes:
    """The message with one thing wrong: a bit, its end, something more, or all of it."""
    match rng.randrange(4):
        case 0 if message:
            at = rng.randrange(len(message))
            return message[:at] + bytes([message[at] ^ 1 << rng.randrange(8)]) + message[at + 1 :]
        case 1:
            return message[: rng.randrange(len(message) + 1)]
        case 2:
            return message + rng.randbytes(rng.randrange(1, 40))
        case _:
            return rng.randbytes(rng.randrange(300))
