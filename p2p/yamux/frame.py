"""The twelve-byte header that precedes everything on a Yamux session.

The rule: `version (1) type (1) flags (2) stream id (4) length (4)`, big-endian (libp2p Yamux spec,
"Framing"). `length` is the payload's size for DATA, a credit for WINDOW_UPDATE, an opaque value for
PING and an error code for GO_AWAY.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable

HEADER_BYTES = 12
VERSION = 0
SESSION_ID = 0
"""The stream id of frames that concern the session itself."""


class Type(enum.IntEnum):
    """What a frame is."""

    DATA = 0
    WINDOW_UPDATE = 1
    PING = 2
    GO_AWAY = 3


class Flag(enum.IntFlag):
    """What a frame says about its stream beside its content; unknown bits are ignored."""

    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class GoAway(enum.IntEnum):
    """Why a session ends."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


_HEADER = struct.Struct(">BBHII")
decode_header: Callable[..., tuple[int, int, int, int, int]] = _HEADER.unpack_from
"""`decode_header(buffer, offset)`: version, type, flags, stream id, length."""


def encode_header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """The header of one frame."""
    return _HEADER.pack(VERSION, kind, flags, stream_id, length)


__all__ = [
    "HEADER_BYTES",
    "SESSION_ID",
    "Flag",
    "GoAway",
    "Type",
    "decode_header",
    "encode_header",
]
