"""Length-prefixed frames on a p2p stream: u32 big-endian length, then that many bytes.

Rule: a length over the caller's bound is refused before anything is allocated for it, and whoever
is slow runs into the caller's deadline; a frame that comes is whole.
"""

import trio

from consensus.errors import DecodeError

LENGTH_BYTES = 4
PIECE_BYTES = 64 * 1024


async def write_frame(stream: trio.abc.SendStream, data: bytes) -> None:
    """Send one frame. Cancelling it leaves the stream fit only for a reset."""
    await stream.send_all(len(data).to_bytes(LENGTH_BYTES, "big") + data)


async def read_frame(
    stream: trio.abc.ReceiveStream, *, bytes_max: int, end_ok: bool = False
) -> bytes:
    """Return the next frame. Raises DecodeError when it is too long or the stream ends in it.

    With `end_ok` a stream that ends before the frame gives b"".
    """
    head = await _exactly(stream, LENGTH_BYTES, end_ok=end_ok)
    length = int.from_bytes(head, "big")
    if length > bytes_max:
        raise DecodeError(f"a frame of {length} bytes, at most {bytes_max}")
    return await _exactly(stream, length)


async def _exactly(stream: trio.abc.ReceiveStream, length: int, *, end_ok: bool = False) -> bytes:
    received = bytearray()
    while len(received) < length:
        piece = await stream.receive_some(min(PIECE_BYTES, length - len(received)))
        if not piece:
            if end_ok and not received:
                break
            raise DecodeError(f"the stream ended after {len(received)} of {length} bytes")
        received += piece
    return bytes(received)
