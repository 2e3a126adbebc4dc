"""The training loop of a peer: ask, join, learn, send gradients back, measure.

Steps 2 to 5 of "Running the network". Trio owns the network and the pace, torch runs in worker
threads (two-phase: answers are leaf tensors, their gradients leave after the step), so that no
call into torch ever waits for a peer. Cancelling `train` leaves the neuron between two steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from node.errors import CallError

from .corpus import Tokens
from .neuron import Array, Lesson, Neuron

FORWARD_DEADLINE_S = 4.0  # then the student stands in
STEPS_ALONE = 4  # steps without the network between two with it: bandwidth is the bottleneck
DUTY = 0.5  # the part of a core that training may take; the ledger comes first
ROUND_S_MIN = 0.25  # no more than four rounds of requests a second to each peer
MEASURE_EVERY_S = 1.0

T = TypeVar("T")


class Partners(Protocol):
    """The peers that can be asked, by name, and how."""

    def names(self) -> list[str]:
        """Return who can be asked now, in any order."""

    async def forward(self, name: str, tokens: NDArray[np.int64], *, deadline_s: float) -> Array:
        """Return the peer's representation `[batch, seq, dim]`; raises `CallError`."""

    async def backward(
        self, name: str, tokens: NDArray[np.int64], gradient: Array, *, deadline_s: float
    ) -> None:
        """Send the loss gradient at the peer's answer; raises `CallError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """Where training stands: held-out losses in nats per byte, steps, answers received per peer."""

    loss_start: float
    loss: float
    steps: int
    exchanges: Mapping[str, int] = field(default_factory=dict)


async def train(
    neuron: Neuron, partners: Partners, observe: Callable[[TrainingReport], None]
) -> None:
    """Train until cancelled, telling `observe` about once a second and at once at the start."""
    loss_start = await _in_thread(neuron.held_out_loss)
    exchanges: dict[str, int] = {}
    steps = 0
    observe(TrainingReport(loss_start=loss_start, loss=loss_start, steps=0))
    measured_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        while True:
            began = trio.current_time()
            lesson_batch = await _in_thread(neuron.batch)
            answered = await _round(neuron, partners, lesson_batch, nursery)
            for name in answered:
                exchanges[name] = exchanges.get(name, 0) + 1
            worked = await _alone(neuron)
            steps += 1 + STEPS_ALONE
            if trio.current_time() - measured_at >= MEASURE_EVERY_S:
                measured_at = trio.current_time()
                loss = await _in_thread(neuron.held_out_loss)
                observe(
                    TrainingReport(
                        loss_start=loss_start, loss=loss, steps=steps, exchanges=dict(exchanges)
                    )
                )
            rest = worked * (1 - DUTY) / DUTY
            spent = trio.current_time() - began
            await trio.sleep(max(rest, ROUND_S_MIN - spent))


async def _round(
    neuron: Neuron, partners: Partners, batch: Tokens, nursery: trio.Nursery
) -> list[str]:
    """Ask the chosen peers, learn from what came, start sending gradients; return who answered."""
    inputs = np.ascontiguousarray(batch[:, :-1])
    asked = await _in_thread(partial(neuron.choose, partners.names()))
    answers: dict[str, Array] = {}

    async def ask(name: str) -> None:
        try:
            answer = await partners.forward(name, inputs, deadline_s=FORWARD_DEADLINE_S)
        except CallError:
            return  # the student stands in; who failed is counted by the exchange
        if answer.shape[:2] == inputs.shape:
            answers[name] = answer

    async with trio.open_nursery() as asking:
        for name in asked:
            asking.start_soon(ask, name)
    lesson: Lesson = await _in_thread(partial(neuron.learn, batch, asked, answers))
    for name, gradient in lesson.gradients.items():
        nursery.start_soon(_send_gradient, partners, name, inputs, gradient)
    return sorted(answers)


async def _send_gradient(
    partners: Partners, name: str, inputs: NDArray[np.int64], gradient: Array
) -> None:
    try:
        await partners.backward(name, inputs, gradient, deadline_s=FORWARD_DEADLINE_S)
    except CallError:
        return  # a gradient is a gift: nothing is owed when it is refused


async def _alone(neuron: Neuron) -> float:
    """Do the steps without the network; return the seconds that one core worked, about."""
    began = trio.current_time()

    def steps() -> None:
        for _ in range(STEPS_ALONE):
            neuron.learn(neuron.batch(), [], {})

    await _in_thread(steps)
    return trio.current_time() - began


async def _in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)
