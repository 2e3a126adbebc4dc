"""Peers for autograd: calls to many at once, from the thread that torch runs in.

Rule: a thread asks, trio's thread talks, and a cancelled run ends both (`trio.from_thread.run`
without a token, else cancellation would be ignored until the call ends). A peer that fails is left
out: the caller has a student to stand in for it, never zeros.
"""

from collections.abc import Mapping, Sequence

import trio

from node.dendrite import Dendrite
from node.errors import CallError
from p2p.identity import PeerId
from tensorwire import Part, WireTensor


class RemotePeers:
    """`tensorwire.torch_bridge.Peers` on a dendrite; names are peer ids.

    Use it in a function that runs under `trio.to_thread.run_sync`. `deadline_s` bounds each call;
    None takes what is usual for each peer.
    """

    def __init__(self, dendrite: Dendrite, *, deadline_s: float | None = None) -> None:
        self._dendrite = dendrite
        self._deadline_s = deadline_s

    def forward(self, names: Sequence[str], parts: Sequence[Part]) -> Mapping[str, WireTensor]:
        """The answers of those that gave one."""
        return trio.from_thread.run(self._forward_all, names, parts)

    def backward(
        self, parts: Sequence[Part], gradients: Mapping[str, WireTensor]
    ) -> Mapping[str, Sequence[Part]]:
        """Send each its output gradient; the input gradients of those that gave them."""
        return trio.from_thread.run(self._backward_all, parts, gradients)

    async def _forward_all(
        self, names: Sequence[str], parts: Sequence[Part]
    ) -> dict[str, WireTensor]:
        answers: dict[str, WireTensor] = {}

        async def ask(name: str) -> None:
            try:
                answer = await self._dendrite.forward(
                    PeerId(name), parts, deadline_s=self._deadline_s
                )
            except CallError:
                return  # counted by the dendrite
            answers[name] = answer.output

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(ask, name)
        return answers

    async def _backward_all(
        self, parts: Sequence[Part], gradients: Mapping[str, WireTensor]
    ) -> dict[str, Sequence[Part]]:
        returned: dict[str, Sequence[Part]] = {}

        async def teach(name: str, gradient: WireTensor) -> None:
            try:
                taught = await self._dendrite.backward(
                    PeerId(name), parts, gradient, deadline_s=self._deadline_s
                )
            except CallError:
                return
            returned[name] = taught.gradients

        async with trio.open_nursery() as nursery:
            for name, gradient in gradients.items():
                nursery.start_soon(teach, name, gradient)
        return returned
