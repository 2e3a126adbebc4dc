"""Scopes that own background tasks, and what may leave them.

The rule: `async with open_network(...)` is a lifetime, not a nursery of the caller's: an error of
the body leaves it as it was raised. Only when a background task failed as well is there a group. A
handler's failure ends its stream and nothing else, also where it fails as it is cancelled.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from p2p.identity import PeerId

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks are cancelled when the body ends, and whose errors come out bare."""
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = _only_leaf(group)
        if error is None:
            raise
        cause, context = error.__cause__, error.__context__
        suppress = error.__suppress_context__
        try:
            raise error
        finally:
            error.__cause__, error.__context__ = cause, context
            error.__suppress_context__ = suppress


def note_failure(
    error: BaseException, peer_id: PeerId, count: Callable[[str], None]
) -> BaseException | None:
    """Count and log what a handler failed of; returns its cancellation, which must be raised.

    A handler with a nursery may end by both at once, in one group.
    """
    cancellation: BaseException | None = error
    failure: BaseException | None = None
    if isinstance(error, Exception):
        cancellation, failure = None, error
    elif isinstance(error, BaseExceptionGroup):
        cancelled, rest = error.split(trio.Cancelled)
        if isinstance(rest, Exception):
            cancellation, failure = cancelled, rest
    if failure is not None:
        count("handlers_failed")
        _log.warning("a handler failed on a stream of %s", peer_id, exc_info=failure)
    return cancellation


def _only_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error


__all__ = ["note_failure", "open_background"]
