"""Requests of several callers in one forward of a torch model: every row is what it is alone."""

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from node.dendrite import Dendrite
from node.errors import RemoteError
from node.exchange import Server
from p2p.identity import Identity, PeerId
from p2p.memory import open_hub
from p2p.network import Network
from tensorwire import (
    ClientExchange,
    Failure,
    FailureCode,
    Forward,
    Modality,
    Part,
    WireTensor,
)
from tensorwire.exchange import PROTOCOL

torch = pytest.importorskip("torch")

Array = NDArray[np.float32]
DIM = 8
POISON = 1e4  # the largest value that may cross: its exponential does not fit into float32


class Attending(torch.nn.Module):
    """Steps of a row see each other, so padding would show; rows do not. POISON becomes NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(DIM, 2, dropout=0.5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return seen + (x.exp() - x.exp())


class GatedModule:
    """A torch module in eval mode as a `Model`; every call waits for the gate."""

    modalities = frozenset({Modality.TENSOR})
    dim = DIM
    vocabulary = 1

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = Attending().eval()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.calls: list[Array] = []

    def forward(self, parts: Sequence[Part]) -> Array:
        self.entered.set()
        self.gate.wait(30)
        self.calls.append(np.array(parts[0].tensor.to_numpy()))
        return self.alone(self.calls[-1])

    def alone(self, x: Array) -> Array:
        with torch.no_grad():
            answer: Array = self.module(torch.from_numpy(x)).numpy()
        return answer


@dataclass
class World:
    """A server whose model is busy with one call, and callers."""

    model: GatedModule
    server: Server
    peer: PeerId
    callers: list[Network]

    async def waiting(self, count: int) -> None:
        """Return when so many requests are in the queue."""
        while self.server.waiting < count:
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_world(callers: int) -> AsyncIterator[World]:
    model = GatedModule()
    identity = Identity.generate()
    with trio.fail_after(60):
        async with open_hub(seed=11) as hub, trio.open_nursery() as nursery:

            async def call(*, task_status: trio.TaskStatus[Network]) -> None:
                async with hub.open_network(Identity.generate()) as network:
                    await network.connect(address)
                    task_status.started(network)
                    await trio.sleep_forever()

            async with hub.open_network(identity, listen=["/ip4/127.0.0.1/tcp/0"]) as network:
                address = network.addresses[0]
                async with trio.open_nursery() as serving:
                    server = Server(network, model, weight_of=lambda _: 1)
                    await serving.start(server.run)
                    networks = [await nursery.start(call) for _ in range(callers)]
                    try:
                        yield World(model, server, network.peer_id, networks)
                    finally:
                        model.gate.set()
                    serving.cancel_scope.cancel()
                nursery.cancel_scope.cancel()


def rows_of(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=(*shape, DIM)).astype(np.float32)


def request(x: Array) -> list[Part]:
    return [Part(Modality.TENSOR, WireTensor.from_numpy(x))]


async def ask_all(world: World, asked: Sequence[Array]) -> list[Array | str]:
    """The first call keeps the model busy; the others wait and are joined. Answers or codes."""
    outcomes: list[Array | str] = ["none"] * len(asked)

    async def ask(index: int) -> None:
        try:
            dendrite = Dendrite(world.callers[index])
            answer = await dendrite.forward(world.peer, request(asked[index]), deadline_s=50)
            outcomes[index] = np.array(answer.output.to_numpy())
        except RemoteError as error:
            outcomes[index] = error.code

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 0)
        await trio.to_thread.run_sync(world.model.entered.wait, 30)
        for index in range(1, len(asked)):
            nursery.start_soon(ask, index)
        await world.waiting(len(asked) - 1)
        world.model.gate.set()
    return outcomes


def assert_as_alone(model: GatedModule, x: Array, outcome: Array | str) -> None:
    assert isinstance(outcome, np.ndarray), outcome
    np.testing.assert_allclose(outcome, model.alone(x), rtol=1e-5, atol=1e-6)


async def test_a_row_that_becomes_nan_harms_its_caller_only() -> None:
    asked = [rows_of(seed, 2, 4) for seed in range(5)]
    asked[2][1] = POISON
    async with open_world(len(asked)) as world:
        outcomes = await ask_all(world, asked)
    assert [len(call) for call in world.model.calls] == [2, 8], "those that waited were joined"
    assert outcomes[2] == FailureCode.INTERNAL.name
    for index in (0, 1, 3, 4):
        assert_as_alone(world.model, asked[index], outcomes[index])


async def test_rows_of_another_length_are_not_padded_into_a_call() -> None:
    asked = [rows_of(seed, 1, 3 + 2 * (seed % 2)) for seed in range(7)]
    async with open_world(len(asked)) as world:
        outcomes = await ask_all(world, asked)
    assert sorted(call.shape[:2] for call in world.model.calls) == [(1, 3), (3, 3), (3, 5)]
    for x, outcome in zip(asked, outcomes, strict=True):
        assert_as_alone(world.model, x, outcome)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2 * POISON])
async def test_what_is_not_finite_on_the_wire_never_reaches_the_model(bad: float) -> None:
    asked = [rows_of(seed, 1, 2) for seed in range(3)]
    poisoned = rows_of(9, 1, 2)
    poisoned[0, 1, 3] = bad
    async with open_world(len(asked) + 1) as world:
        async with world.callers[-1].open_stream(world.peer, PROTOCOL) as stream:
            exchange = ClientExchange(request_id=bytes(16))
            for segment in exchange.send(Forward(parts=request(poisoned))):
                await stream.send_all(segment)
            outcomes = await ask_all(world, asked)
            events = exchange.receive_data(await stream.receive_some())
    assert isinstance(events[0], Failure)
    assert events[0].code is FailureCode.BAD_VALUE
    assert all(np.isfinite(call).all() for call in world.model.calls)
    for x, outcome in zip(asked, outcomes, strict=True):
        assert_as_alone(world.model, x, outcome)
