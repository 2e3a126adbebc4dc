"""Running a topic's judge: at once when it can, in a bounded number of tasks when it must wait.

The rule: a judge sees a message once, and its defect or slowness costs that message (IGNORE,
counted) and never the node. Judges that are coroutines run at most `concurrent_max` at a time per
topic, in the order of arrival; at most `JUDGE_QUEUE_MAX` messages wait for them. Readers of peers
wait for room up to `JUDGE_WAIT_S`; after that a message that finds the queue full is dropped.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from p2p.network import Message, Validator, Verdict

JUDGE_QUEUE_MAX = 1024
"""Messages of one topic that wait for a judge that is a coroutine."""

JUDGE_WAIT_S = 0.5
"""How long the reader of a peer waits when such a queue is full: back-pressure on that peer alone,
short enough that a stuck judge does not silence the other topics."""

JUDGE_TIMEOUT_S = 30.0
"""A judge that takes longer counts as IGNORE."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Bench:
    """What one topic's judge has before it."""

    queue: deque[tuple[Message, Validator | Awaitable[Verdict]]] = field(default_factory=deque)
    running: int = 0


class Judges:
    """The judges of all topics; `answer(message_id, verdict)` gets what tasks find out."""

    def __init__(
        self,
        nursery: trio.Nursery,
        concurrent_max: int,
        counters: Counter[str],
        answer: Callable[[bytes, Verdict], None],
    ) -> None:
        self._nursery = nursery
        self._concurrent_max = concurrent_max
        self._counters = counters
        self._answer = answer
        self._benches: dict[str, _Bench] = {}
        self._room = trio.Event()
        self._full: set[str] = set()

    @property
    def is_congested(self) -> bool:
        """Whether a topic's queue is full, so that readers should wait."""
        return bool(self._full)

    async def wait_for_room(self) -> None:
        """Wait until a full queue has room, or `JUDGE_WAIT_S`."""
        with trio.move_on_after(JUDGE_WAIT_S):
            await self._room.wait()

    def judge(self, validate: Validator, message: Message) -> Verdict | None:
        """The verdict; None when it will be given to `answer` later."""
        if inspect.iscoroutinefunction(validate):
            return self._enqueue(message, validate)
        answer = self._call(validate, message)
        return answer if isinstance(answer, Verdict) else self._enqueue(message, answer)

    async def judge_now(self, validate: Validator, message: Message) -> Verdict:
        """The verdict on a message of our own, awaited here; cancellation cancels the judge."""
        answer = self._call(validate, message)
        return answer if isinstance(answer, Verdict) else await self._await(message, answer)

    def _call(self, validate: Validator, message: Message) -> Verdict | Awaitable[Verdict]:
        try:
            answer = validate(message)
        except Exception:  # noqa: BLE001 - the program's judge: its defect must not end the node
            return self._failed(message, "raised")
        if isinstance(answer, Verdict) or inspect.isawaitable(answer):
            return answer
        return self._failed(message, f"gave {answer!r} instead of a Verdict")

    async def _await(self, message: Message, answer: Awaitable[Verdict]) -> Verdict:
        verdict: object = None
        with trio.move_on_after(JUDGE_TIMEOUT_S) as scope:
            try:
                verdict = await answer
            except Exception:  # noqa: BLE001 - as above
                return self._failed(message, "raised")
        if scope.cancelled_caught:
            self._counters["judge_timed_out"] += 1
            return Verdict.IGNORE
        if isinstance(verdict, Verdict):
            return verdict
        return self._failed(message, f"gave {verdict!r} instead of a Verdict")

    def _failed(self, message: Message, what: str) -> Verdict:
        log.error("the judge of %s %s", message.topic, what, exc_info=True)
        self._counters["judge_failed"] += 1
        return Verdict.IGNORE

    def _enqueue(self, message: Message, work: Validator | Awaitable[Verdict]) -> Verdict | None:
        bench = self._benches.setdefault(message.topic, _Bench())
        if len(bench.queue) >= JUDGE_QUEUE_MAX:
            self._counters["judge_queue_full"] += 1
            if inspect.iscoroutine(work):
                work.close()
            return Verdict.IGNORE
        bench.queue.append((message, work))
        if len(bench.queue) >= JUDGE_QUEUE_MAX:
            self._full.add(message.topic)
        if bench.running < self._concurrent_max:
            bench.running += 1
            self._nursery.start_soon(self._work, message.topic, bench)
        return None

    async def _work(self, topic: str, bench: _Bench) -> None:
        """Take from the queue until it is empty."""
        try:
            while bench.queue:
                message, work = bench.queue.popleft()
                if topic in self._full:
                    self._full.discard(topic)
                    self._room.set()
                    self._room = trio.Event()
                answer = self._call(work, message) if callable(work) else work
                if not isinstance(answer, Verdict):
                    answer = await self._await(message, answer)
                self._answer(message.message_id, answer)
        finally:
            bench.running -= 1
            if not bench.running and not bench.queue:
                self._benches.pop(topic, None)
