"""Report lines: what a running node tells whoever watches it, one JSON object a line.

A node is started with a *sink* that takes reports; `run --json` (and the local-network launcher)
writes them to standard output, everything else renders them for people. A report states a fact
with the moment it became true; the reader keeps the newest of each kind and never asks back, so a
slow or dead reader cannot hold the node. Two rules make the lines composable:

* `Finalized` is sent once per final block, in height order, so that readers compare state roots
  at equal heights without asking;
* `Progress` is cumulative: any line may be lost and the next one repairs it.

The first line of a node is `Started` (it can be dialled from now on) or `Failed`; the last of a
clean end is `Stopped`. Unknown kinds and unknown fields are errors: reader and writer are one
release.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, get_type_hints

LINE_BYTES_MAX: Final = 64 * 1024
"""Longest line a reader accepts: 1,000 peers with exchanges at 60 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The node listens: `addresses` are full multiaddrs that end in `/p2p/<peer id>`."""

    t_s: float
    peer_id: str
    addresses: tuple[str, ...]
    chain_id: str
    network: str
    data_dir: str
    pid: int
    height: int = 0
    api: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    """One block became final; `state_root` (hex) is the root after it, `transactions` its count."""

    t_s: float
    height: int
    epoch: int
    state_root: str
    transactions: int
    block_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Cumulative figures of one node, about once a second and once more before `Stopped`.

    `height` is the newest block this node holds notarized or final, `network_height` the highest
    a peer announced, `exchanges` the forward answers received per asked peer id, `stake` base
    units of this node's own account (0 without one), `transactions` the count in final blocks
    since genesis, losses the model's held-out loss at the start and now (None while nothing is
    trained), `halted` why the engine signs nothing any more.
    """

    t_s: float
    height: int
    finalized: int
    epoch: int
    peers: int
    transactions: int
    stake: int = 0
    network_height: int = 0
    loss_start: float | None = None
    loss: float | None = None
    exchanges: Mapping[str, int] = field(default_factory=dict)
    served: int = 0
    mempool: int = 0
    halted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something a person should read: a join, a refused peer, a warning. Programs skip it."""

    t_s: float
    level: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The node ended by request; everything is on disk."""

    t_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The node ended by itself; `error` is the line it also prints on standard error."""

    t_s: float
    error: str
    exit_code: int


Report: TypeAlias = Started | Finalized | Progress | Notice | Stopped | Failed
ReportSink: TypeAlias = Callable[[Report], None]
"""Takes a report without blocking; called from the node's trio thread only."""


class ReportError(ValueError):
    """A line is not a report of this release."""


def encode_report(report: Report) -> bytes:
    """One line, `\\n` at its end; `type` first. A loss that is not a number is written as null."""
    fields = {f.name: _finite(getattr(report, f.name)) for f in dataclasses.fields(report)}
    name = type(report).__name__.lower()
    return json.dumps({"type": name, **fields}, separators=(",", ":")).encode() + b"\n"


def decode_report(line: bytes) -> Report:
    """The report of one line. Raises ReportError for anything `encode_report` does not write."""
    if len(line) > LINE_BYTES_MAX:
        raise ReportError(f"line of {len(line)} bytes, at most {LINE_BYTES_MAX}")
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ReportError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ReportError("not a JSON object")
    kind = _KINDS.get(str(fields.pop("type", None)))
    if kind is None:
        raise ReportError("unknown report type")
    hints = get_type_hints(kind)
    for name, value in fields.items():
        if name not in hints:
            raise ReportError(f"{kind.__name__} has no field {name!r}")
        fields[name] = _checked(hints[name], name, value)
    try:
        return kind(**fields)
    except TypeError as error:
        raise ReportError(str(error)) from None


_KINDS: Final[Mapping[str, type[Report]]] = {
    kind.__name__.lower(): kind for kind in (Started, Finalized, Progress, Notice, Stopped, Failed)
}


def _finite(value: object) -> object:
    """None for the floats JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _checked(hint: Any, name: str, value: Any) -> Any:
    """`value` as the field's type, or ReportError; JSON has no tuples, bool is not a number."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (each for each in hint.__args__ if each is not type(None))
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint == tuple[str, ...] and isinstance(value, list):
        if all(isinstance(each, str) for each in value):
            return tuple(value)
    elif hint == Mapping[str, int] and isinstance(value, dict):
        if all(type(each) is int for each in value.values()):
            return value
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise ReportError(f"field {name!r} has the wrong type")
