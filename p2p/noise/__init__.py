"""Noise XX with libp2p identities: handshake and transport messages as machines without I/O."""

from __future__ import annotations

from p2p.noise.cipher import faster_ciphers
from p2p.noise.frames import Opener, Sealer
from p2p.noise.handshake import Handshake, Role
from p2p.noise.payload import RemoteParty, StaticKey

PROTOCOL_ID = "/noise"

__all__ = [
    "PROTOCOL_ID",
    "Handshake",
    "Opener",
    "RemoteParty",
    "Role",
    "Sealer",
    "StaticKey",
    "faster_ciphers",
]
