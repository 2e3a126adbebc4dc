"""Scopes that own background tasks, and what may leave them.

The rule: `async with open_network(...)` is a lifetime, not a nursery of the caller's: an error of
the body leaves it as it was raised. Only when a background task failed as well is there a group. A
handler's failure ends its stream and nothing else, also where it fails as it is cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


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


def part(error: BaseException) -> tuple[BaseException | None, Exception | None]:
    """What of a handler's end must be raised, its cancellation, and what is its own failure.

    A handler with a nursery may end by both at once, in one group.
    """
    if isinstance(error, Exception):
        return None, error
    if isinstance(error, BaseExceptionGroup):
        cancelled, failures = error.split(trio.Cancelled)
        if isinstance(failures, Exception):
            return cancelled, failures
    return error, None


def _only_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error


__all__ = ["open_background", "part"]
