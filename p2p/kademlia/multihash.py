"""Multihashes: the form in which provider keys travel.

The rule: every key has one wire form. What already is a multihash of a known function and length
stays as it is, so that content ids of other libp2p programs can be provided and found; any other
key becomes its own SHA-256 multihash (multiformats/multihash: code, length, digest).
"""

from __future__ import annotations

import hashlib

SHA2_256 = 0x12

DIGEST_BYTES = {
    b"\x12\x20": 32,  # sha2-256
    b"\x13\x40": 64,  # sha2-512
    b"\x1e\x20": 32,  # blake3
    b"\xa0\xe4\x02\x20": 32,  # blake2b-256
}
"""Digest sizes by prefix: the function's code and the length of its digest."""


def provider_key(key: bytes) -> bytes:
    """The wire form of a key; `ValueError` for the empty one."""
    if not key:
        raise ValueError("a provider key cannot be empty")
    if any(
        key.startswith(prefix) and len(key) == len(prefix) + size
        for prefix, size in DIGEST_BYTES.items()
    ):
        return bytes(key)
    return bytes((SHA2_256, hashlib.sha256().digest_size)) + hashlib.sha256(key).digest()
