"""The server's signed claim about one service: what, for whom, in which order, at which share.

Rule: a receipt binds the chain, both peers, the request, the result and the server's own counters,
so that two receipts may contradict each other but none can be moved to another exchange. It is a
claim, not a proof: order is judged by the callers' clocks.

    message = DOMAIN ‖ u16 len ‖ context ‖ u16 len ‖ server ‖ u16 len ‖ client ‖ request id (16)
              ‖ digest(request) (32) ‖ digest(result) (32)
              ‖ u64 service number ‖ u64 queue wait µs ‖ u32 share ppm ‖ u64 height of the weights
    digest  = blake3(DIGEST_DOMAIN ‖ u8 kind ‖ request id ‖ u8 parts
              ‖ per part: u8 modality ‖ u8 dtype ‖ u8 rank ‖ u64 per dimension
              ‖ all payloads in order)

All integers little-endian, as everywhere on this wire.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from blake3 import blake3

from tensorwire.tensor import Part

RECEIPT_DOMAIN = b"agora/tensor/receipt/1"
DIGEST_DOMAIN = b"agora/tensor/digest/1"
DIGEST_BYTES = 32
PEER_BYTES_MAX = 128  # a libp2p Ed25519 peer id has 38
SIGNATURE_BYTES_MAX = 128  # Ed25519 has 64
SHARE_ONE_PPM = 1_000_000

_COUNTERS = struct.Struct("<QQIQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One signed claim; `server` and `client` are the bytes of peer ids."""

    server: bytes
    client: bytes
    request_digest: bytes
    result_digest: bytes
    service_number: int
    queue_wait_us: int
    share_ppm: int
    weights_height: int
    signature: bytes = b""


def exchange_digest(kind: int, request_id: bytes, parts: Iterable[Part]) -> bytes:
    """blake3 of a request or an answer; about 0.3 ms per MiB of payload."""
    listed = tuple(parts)
    hasher = blake3(DIGEST_DOMAIN)
    hasher.update(struct.pack("<B16sB", kind, request_id, len(listed)))
    for part in listed:
        tensor, rank = part.tensor, len(part.tensor.shape)
        layout = struct.pack(f"<BBB{rank}Q", part.modality, tensor.dtype, rank, *tensor.shape)
        hasher.update(layout)
    for part in listed:
        hasher.update(part.tensor.data)
    return hasher.digest()


def receipt_message(receipt: Receipt, *, context: bytes, request_id: bytes) -> bytes:
    """The bytes that a receipt's signature covers; `context` is the chain id."""
    return b"".join(
        (
            RECEIPT_DOMAIN,
            _prefixed(context),
            _prefixed(receipt.server),
            _prefixed(receipt.client),
            request_id,
            receipt.request_digest,
            receipt.result_digest,
            _COUNTERS.pack(
                receipt.service_number,
                receipt.queue_wait_us,
                receipt.share_ppm,
                receipt.weights_height,
            ),
        )
    )


def verify_receipt(
    receipt: Receipt,
    verify: Callable[[bytes, bytes, bytes], bool],
    *,
    context: bytes,
    request_id: bytes,
) -> bool:
    """Whether the server signed this receipt; `verify(server, message, signature)` has its key."""
    message = receipt_message(receipt, context=context, request_id=request_id)
    return verify(receipt.server, message, receipt.signature)


def _prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "little") + data
