"""Answers on `/agora/sync/1`, from the store and from what the engine holds.

Rule: a question costs the asker before it costs us: each peer has a budget of questions and bytes
that refills with time, a reply never passes REPLY_BYTES_MAX, and whoever reads it slowly runs
into a deadline.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from node.sync.messages import (
    ITEMS_MAX,
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    Outcome,
    Question,
    Reply,
    Request,
)
from p2p.identity import PeerId
from p2p.network import Stream

from .frames import read_frame, write_frame

QUESTION_DEADLINE_S: Final = 5.0
REPLY_DEADLINE_S: Final = 30.0  # 4 MiB at 1.1 Mbit/s; then the reader is too slow to be served
REPLIES_BYTES_PER_S: Final = 8 * 1024 * 1024  # per peer: a joiner at full speed, not a flood
BUDGET_BYTES_MAX: Final = 4 * REPLY_BYTES_MAX
QUESTION_COST_BYTES: Final = 16 * 1024  # what a question costs even when nothing is found
ASKERS_MAX: Final = 1_024  # budgets remembered; the least recently seen starts anew
REPLY_FILL_BYTES: Final = REPLY_BYTES_MAX - 64 * 1024  # leaves room for counts and lengths

Answerer = Callable[[Request], Awaitable[Sequence[bytes]]]
"""Returns canonical bytes of the answer's items; what does not fit into a reply is cut off."""


@dataclass(slots=True)
class _Budget:
    bytes_left: float
    at: float


class SyncServer:
    """Serves the questions it has an answerer for; a question without one is unknown here."""

    def __init__(self, answerers: Mapping[Question, Answerer]) -> None:
        self._answerers = answerers
        self._budgets: OrderedDict[PeerId, _Budget] = OrderedDict()
        self.answered = 0
        self.refused = 0

    async def handle(self, stream: Stream) -> None:
        """Serve one stream. Raises DecodeError or trio.TooSlowError: the stream is then reset."""
        with trio.fail_after(QUESTION_DEADLINE_S):
            request = Request.decode(await read_frame(stream, bytes_max=REQUEST_BYTES_MAX))
        reply = await self._answer(stream.peer_id, request)
        with trio.fail_after(REPLY_DEADLINE_S):
            await write_frame(stream, reply.encode())

    async def _answer(self, peer: PeerId, request: Request) -> Reply:
        budget = self._budget(peer, trio.current_time())
        if budget.bytes_left <= 0:
            self.refused += 1
            return Reply(outcome=Outcome.BUSY)
        answerer = self._answerers.get(request.question)
        items: tuple[bytes, ...] = ()
        if answerer is not None:
            items = _fitting(await answerer(request))
        budget.bytes_left -= QUESTION_COST_BYTES + sum(len(item) for item in items)
        self.answered += 1
        return Reply(outcome=Outcome.FOUND if items else Outcome.UNKNOWN, items=items)

    def _budget(self, peer: PeerId, now: float) -> _Budget:
        budget = self._budgets.pop(peer, None) or _Budget(BUDGET_BYTES_MAX, now)
        refill = (now - budget.at) * REPLIES_BYTES_PER_S
        budget.bytes_left = min(BUDGET_BYTES_MAX, budget.bytes_left + refill)
        budget.at = now
        self._budgets[peer] = budget
        if len(self._budgets) > ASKERS_MAX:
            self._budgets.popitem(last=False)
        return budget


def _fitting(found: Sequence[bytes]) -> tuple[bytes, ...]:
    """The first items, as many as fit into a reply."""
    items: list[bytes] = []
    size = 0
    for item in found:
        size += len(item) + 4
        if len(items) == ITEMS_MAX or (items and size > REPLY_FILL_BYTES):
            break
        items.append(item)
    return tuple(items)
