"""A peer's data set D_i: a shard of a real text, as bytes.

Every peer holds out the same tail of the text, so that losses of different peers compare; what is
before the tail is shared out by the peer's name, so that peers hold different, overlapping parts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.errors import DataError

HELD_OUT_FRACTION = 16  # the last sixteenth of the text is for measuring only
SHARD_FRACTION = 4  # a peer trains on a quarter of the rest
SHARD_BYTES_MIN = 1_024  # a shard is never shorter than a few windows
TEXT_BYTES_MIN = 8_192  # below this, neither part fills a batch
TEXT_BYTES_MAX = 1 << 30

Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Bytes to train on and bytes to measure on, uint8 arrays, and where they came from."""

    name: str
    train: NDArray[np.uint8]
    held_out: NDArray[np.uint8]

    def batch(self, random: np.random.Generator, *, rows: int, length: int) -> Tokens:
        """Return `rows` random windows of the training part, int64 `[rows, length]`."""
        return _windows(self.train, random.integers(0, len(self.train) - length, rows), length)

    def measure(self, *, rows: int, length: int) -> Tokens:
        """Return evenly spaced windows of the held-out part, always the same, `[rows, length]`."""
        starts = np.linspace(0, len(self.held_out) - length - 1, rows).astype(np.int64)
        return _windows(self.held_out, starts, length)


def load_corpus(path: Path | None, *, key: bytes, shard: tuple[int, int] | None = None) -> Corpus:
    """Load the text file at `path`, or the standard library's help topics, and cut a part of it.

    The part is the `shard` (index from 0, count), or a quarter placed by `key`, the peer's name.
    Raises `DataError` when the file is missing, unreadable, too short or too long.
    """
    name, text = (
        ("pydoc_data.topics", _default_text()) if path is None else (str(path), _read(path))
    )
    if len(text) < TEXT_BYTES_MIN:
        raise DataError(f"data file {name}: {len(text)} bytes, at least {TEXT_BYTES_MIN:,} needed")
    data = np.frombuffer(text, dtype=np.uint8)
    cut = len(data) - len(data) // HELD_OUT_FRACTION
    if shard is None:
        start, length = int.from_bytes(key[-8:], "big") % cut, cut // SHARD_FRACTION
    else:
        index, count = shard
        start, length = index * cut // count, max(cut // count, SHARD_BYTES_MIN)
    train = np.roll(data[:cut], -start)[:length]
    return Corpus(name=name, train=train, held_out=data[cut:])


def _default_text() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > TEXT_BYTES_MAX:
            raise DataError(f"data file {path}: {size:,} bytes, at most {TEXT_BYTES_MAX:,} allowed")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"data file {path}: {error.strerror or error}") from error


def _windows(data: NDArray[np.uint8], starts: NDArray[np.int64], length: int) -> Tokens:
    windows: Tokens = data[starts[:, None] + np.arange(length)].astype(np.int64)
    return windows
