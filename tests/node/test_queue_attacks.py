"""Attacks on the queue through the real handler, over a network: none gains service.

Callers see every answer arrive, and the model serves one request for every permit, so that the
order in which they are served is the queue's alone. The server's stopwatch is the model's own
clock: what a request is measured to take does not depend on the machine.
"""

import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import trio
from numpy.typing import NDArray

from node.errors import Overloaded
from node.exchange import ServingOptions
from p2p.identity import PeerId
from tensorwire import Modality, Part
from tensorwire.queue import FLOOR_SHARE_PPM
from tests.node.test_exchange import World, open_world, tokens, until

DEADLINE_S = 100.0
STEP_S = 0.001  # what a step takes, by the model's clock
PERMITS_MAX = 10_000  # closing waits for the model call that is running


@dataclass
class MeteredModel:
    """Serves one call for every permit; a step of a request that says `token` takes `STEP_S` times
    its `slowness`. Also the stopwatch that the server measures it by."""

    slowness: dict[int, int] = field(default_factory=dict)
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    entered: int = 0
    now_s: float = 0.0
    modalities: frozenset[Modality] = frozenset({Modality.TEXT})
    dim: int = 4
    vocabulary: int = 256

    def forward(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        self.entered += 1
        self.permits.acquire()
        token = int(parts[0].tensor.to_numpy()[0, 0])
        rows, steps = parts[0].tensor.shape
        self.now_s += steps * STEP_S * self.slowness.get(token, 1)
        return np.zeros((rows, steps, self.dim), np.float32)

    def stopwatch(self) -> float:
        return self.now_s


@dataclass
class Market:
    """One server, and callers by name; who has no weight is at the floor."""

    world: World
    model: MeteredModel
    callers: dict[str, int]
    nursery: trio.Nursery
    sender: trio.MemorySendChannel[str]
    answers: trio.MemoryReceiveChannel[str]
    refused: Counter[str] = field(default_factory=Counter)

    async def ask(self, name: str, steps: int = 1, token: int = 1) -> None:
        """One request; its answer, or that it was refused, is noted."""
        dendrite = self.world.dendrite(self.callers[name], receipts=False)
        parts = tokens(1, steps, value=token)
        try:
            await dendrite.forward(self.world.peer, parts, deadline_s=DEADLINE_S)
        except Overloaded as busy:
            self.refused[name] += busy.retry_after_s > 0  # each is told when to come back
        else:
            self.sender.send_nowait(name)

    async def wait_with(self, name: str, count: int, steps: int = 1, token: int = 1) -> None:
        """`count` requests more, each of which waits or was refused when this returns."""
        settled = self.settled + count
        for _ in range(count):
            self.nursery.start_soon(self.ask, name, steps, token)
        await until(lambda: self.settled == settled)

    @property
    def settled(self) -> int:
        """Requests that wait or were refused."""
        return self.world.server.waiting + self.refused.total()

    async def serve(self, count: int) -> list[str]:
        """Let `count` requests be served, one at a time: whose they were, as the callers see it."""
        served = []
        with trio.fail_after(60):
            for _ in range(count):
                self.model.permits.release()
                served.append(await self.answers.receive())
        return served


@asynccontextmanager
async def open_market(
    weights: Mapping[str, int],
    *,
    slowness: Mapping[int, int] | None = None,
    **options: int,
) -> AsyncIterator[Market]:
    """Callers with `weights`; the model is busy with somebody else until all has been sent."""
    model = MeteredModel(slowness=dict(slowness or {}))
    callers = {name: index for index, name in enumerate(("first", *weights))}
    known: dict[PeerId, int] = {}
    serving = ServingOptions(batch_rows_max=1, **options)
    async with open_world(
        model,
        callers=len(callers),
        weight=lambda peer: known.get(peer, 1),
        options=serving,
        stopwatch=model.stopwatch,
    ) as world:
        for name, weight in weights.items():
            known[world.callers[callers[name]].peer_id] = weight
        sender, answers = trio.open_memory_channel[str](PERMITS_MAX)
        async with trio.open_nursery() as nursery:
            market = Market(world, model, callers, nursery, sender, answers)
            try:
                nursery.start_soon(market.ask, "first")
                await until(lambda: model.entered == 1)
                yield market
            finally:
                model.permits.release(PERMITS_MAX)
                nursery.cancel_scope.cancel()


async def test_fresh_identities_gain_nothing() -> None:
    """Twenty of them share what one caller without weight would have had alone."""
    fresh = [f"fresh{number}" for number in range(20)]
    weights = {"honest": 50, "rival": 50} | dict.fromkeys(fresh, 0)
    async with open_market(weights) as market:
        for name in fresh:
            await market.wait_with(name, 2)
        for name in ("honest", "rival"):
            await market.wait_with(name, 60)
        served = Counter((await market.serve(101))[1:])
        floor = sum(served[name] for name in fresh)
        assert floor <= 100 * FLOOR_SHARE_PPM / 1e6 + 1
        assert min(served["honest"], served["rival"]) >= (100 - floor) / 2 - 1
        assert not market.refused


async def test_tiny_requests_gain_nothing() -> None:
    """Shares are shares of work: sixteen small requests go for one that is sixteen times as big."""
    steps = {"honest": 16, "tiny": 1}
    async with open_market({"honest": 1, "tiny": 1}, per_sender_max=200) as market:
        await market.wait_with("tiny", 150)
        await market.wait_with("honest", 10, steps=steps["honest"])
        await market.serve(1)
        work: Counter[str] = Counter()
        while work.total() < 200:
            (name,) = await market.serve(1)
            work[name] += steps[name]
            assert abs(work["honest"] - work["tiny"]) <= 2 * steps["honest"], work
        assert work["tiny"] <= work.total() / 2 + steps["honest"]


async def test_cancel_and_resend_gains_nothing() -> None:
    """What was taken back is charged as if it had been served: by resetting its stream, or by
    dropping the connection, after which the attacker's own dendrite sends it again."""
    async with open_market({"honest": 7, "attacker": 7}) as market:
        server = market.world.server
        await market.wait_with("honest", 30)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(market.ask, "attacker")
            await until(lambda: server.waiting == 35)
            nursery.cancel_scope.cancel()
        await until(lambda: server.waiting == 30)
        await market.wait_with("attacker", 5)
        await market.world.callers[market.callers["attacker"]].disconnect(market.world.peer)
        await until(lambda: (server.waiting, server.counters["cancelled"]) == (35, 10))
        await market.wait_with("attacker", 5)
        served = (await market.serve(31))[1:]
        assert set(served[:9]) == {"honest"}, "ten were charged already"
        assert served.count("attacker") <= (30 - 10) / 2 + 1


async def test_being_displaced_gains_nothing() -> None:
    """Who fills the queue gives way to its share, and has paid for what was displaced."""
    weights = {"honest": 1, "attacker": 1}
    async with open_market(weights, items_max=32) as market:
        await market.wait_with("attacker", 32)
        await market.wait_with("honest", 16)
        assert market.refused == {"attacker": 16}
        await market.wait_with("attacker", 8)  # again at once, whatever retry-after says
        assert market.refused == {"attacker": 24}
        served = (await market.serve(18))[1:]
        assert served.count("honest") == 16, served
        assert set(await market.serve(15)) == {"attacker"}


async def test_displacing_others_is_for_nobody_beyond_its_share() -> None:
    """Whoever is within its share stays, and is served as if the flood were not there."""
    weights = {"honest": 3, "attacker": 1, "floor": 0}
    async with open_market(weights, items_max=32) as market:
        await market.wait_with("honest", 22)
        await market.wait_with("floor", 2)
        await market.wait_with("attacker", 40)
        assert market.refused == {"attacker": 32}
        served = (await market.serve(25))[1:]
        assert served.count("attacker") <= 24 / 4 + 1
        assert served.count("honest") >= 24 * 3 / 4 - 2
        await market.serve(8)
        assert market.refused == {"attacker": 32}


async def test_cost_lies_gain_nothing() -> None:
    """Requests that take three times what their headers promise: once the server has learned it,
    the liar has about half of the time instead of three quarters."""
    honest, liar = 1, 2
    async with open_market(
        {"honest": 1, "liar": 1}, slowness={liar: 3}, per_sender_max=200
    ) as market:
        await market.wait_with("liar", 100, steps=8, token=liar)
        await market.wait_with("honest", 160, steps=8, token=honest)
        await market.serve(1 + 40)
        served = Counter(await market.serve(100))
        time = {"honest": served["honest"], "liar": 3 * served["liar"]}
        assert time["liar"] <= 0.6 * sum(time.values()), time
