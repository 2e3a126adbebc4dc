"""Serving and asking over the network: outcomes, admission, order, cancellation, hostile peers."""

import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import trio
from numpy.typing import NDArray
from trio.testing import wait_all_tasks_blocked

from node.byte_budget import BudgetExceeded, ByteBudget, ByteBudgetLimits
from node.cost_meter import SENDERS_MAX, CostMeter
from node.deadline import DEADLINE_MAX_S, DEADLINE_MIN_S, DEADLINE_UNKNOWN_S, PEERS_MAX, Deadlines
from node.dendrite import Dendrite
from node.errors import CallTimeout, Overloaded, PeerUnreachable, RemoteError
from node.exchange import Server, ServingOptions
from node.test_model import TestModel
from p2p.identity import Identity, PeerId
from p2p.memory import open_hub
from p2p.network import Network, Stream
from tensorwire import (
    Backward,
    ClientExchange,
    DType,
    Failure,
    FailureCode,
    Forward,
    Limits,
    Modality,
    Part,
    RemoteProtocolError,
    ServerExchange,
    WireTensor,
)
from tensorwire.exchange import PROTOCOL

ID = bytes(range(16))
CONTEXT = b"test-chain"
Array = NDArray[np.float32]


@dataclass
class GatedModel:
    """Counts its calls and waits in each until the test opens the gate."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: int = 0
    calls: list[tuple[int, ...]] = field(default_factory=list)
    fault: Callable[[Array], Any] | None = None
    modalities: frozenset[Modality] = frozenset({Modality.TEXT, Modality.TENSOR})
    dim: int = 4
    vocabulary: int = 256

    def forward(self, parts: Sequence[Part]) -> Any:
        self.entered += 1
        self.gate.wait(20)
        rows = parts[0].tensor.shape[0]
        steps = sum(part.tensor.shape[1] for part in parts)
        self.calls.append((rows, steps))
        first = parts[0].tensor.to_numpy().reshape(rows, -1)[:, :1].astype(np.float32)
        output = np.broadcast_to(first[:, :, None], (rows, steps, self.dim)).copy()
        return output if self.fault is None else self.fault(output)


@dataclass
class InstantModel(GatedModel):
    """Says that it takes no time, and notes in which thread it ran."""

    is_instant: bool = True
    threads: list[int] = field(default_factory=list)

    def forward(self, parts: Sequence[Part]) -> Any:
        self.threads.append(threading.get_ident())
        return super().forward(parts)


def open_gate(model: GatedModel) -> GatedModel:
    model.gate.set()
    return model


@dataclass
class World:
    """A server and callers in one process."""

    server: Server
    network: Network
    callers: list[Network]
    nursery: trio.Nursery

    @property
    def peer(self) -> PeerId:
        return self.network.peer_id

    def dendrite(self, index: int = 0, **options: Any) -> Dendrite:
        return Dendrite(self.callers[index], context=CONTEXT, **options)


@asynccontextmanager
async def open_world(
    model: Any,
    *,
    callers: int = 1,
    weight: Any = 5,
    options: ServingOptions | None = None,
    stopwatch: Callable[[], float] = time.perf_counter,
) -> AsyncIterator[World]:
    identity = Identity.generate()
    async with open_hub(seed=1) as hub:
        async with hub.open_network(identity, listen=["/ip4/127.0.0.1/tcp/0"]) as network:
            async with trio.open_nursery() as nursery:
                weight_of = weight if callable(weight) else lambda _: weight
                server = Server(
                    network,
                    model,
                    weight_of=weight_of,
                    options=options,
                    sign=identity.sign,
                    context=CONTEXT,
                    height_of=lambda: 42,
                    stopwatch=stopwatch,
                )
                await nursery.start(server.run)
                async with open_callers(hub, callers) as networks:
                    for each in networks:
                        await each.connect(network.addresses[0])
                    yield World(server, network, networks, nursery)
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_callers(hub: Any, count: int) -> AsyncIterator[list[Network]]:
    if count == 0:
        yield []
        return
    async with hub.open_network(Identity.generate()) as network:
        async with open_callers(hub, count - 1) as others:
            yield [network, *others]


def tokens(*shape: int, value: int = 1) -> list[Part]:
    return [Part(Modality.TEXT, WireTensor.from_numpy(np.full(shape, value)))]


def floats(*shape: int) -> list[Part]:
    values = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
    return [Part(Modality.TENSOR, WireTensor.from_numpy(values))]


def raw_frame(parts: Sequence[Part], remaining_ms: int = 5_000) -> bytes:
    request = Forward(parts=parts, remaining_ms=remaining_ms)
    return b"".join(map(bytes, ClientExchange(request_id=ID).send(request)))


async def failure_of(stream: Stream) -> Failure:
    """The failure that the server answers with."""
    client = ClientExchange(request_id=ID)
    client.send(Forward(parts=tokens(1, 1)))
    while True:
        events = client.receive_data(await stream.receive_some())
        if events:
            assert isinstance(events[0], Failure)
            return events[0]


# Whole calls.


async def test_a_representation_with_its_receipt() -> None:
    async with open_world(TestModel()) as world:
        parts = [*tokens(2, 3, value=7), *floats(2, 2, 5)]
        dendrite = world.dendrite()
        answer = await dendrite.forward(world.peer, parts)
        assert np.array_equal(answer.output.to_numpy(), TestModel().forward(parts))
        receipt = answer.receipt
        assert receipt is not None
        assert (receipt.service_number, receipt.weights_height) == (1, 42)
        assert receipt.client == world.callers[0].peer_id.to_bytes()
        assert receipt.share_ppm == 1_000_000
        assert dendrite.counters["answered"] == 1
        assert world.server.counters["result"] == 1


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16, DType.INT8_BLOCK])
async def test_the_reply_has_the_dtype_asked_for(dtype: DType) -> None:
    async with open_world(TestModel()) as world:
        answer = await world.dendrite().forward(world.peer, floats(1, 2, 3), reply_dtype=dtype)
        assert answer.output.dtype is dtype


async def test_gradients_come_back_for_every_part_but_text() -> None:
    async with open_world(TestModel()) as world:
        parts = [*tokens(1, 2), *floats(1, 3, 4)]
        gradient = WireTensor.from_numpy(np.ones((1, 5, 16), np.float32))
        taught = await world.dendrite().backward(world.peer, parts, gradient)
        (part,) = taught.gradients
        assert part.spec.shape == (1, 3, 4)
        assert np.all(part.tensor.to_numpy() == 16)
        assert taught.receipt is not None


async def test_a_large_exchange_goes_through_in_pieces() -> None:
    async with open_world(TestModel()) as world:
        answer = await world.dendrite().forward(world.peer, floats(8, 64, 1024), deadline_s=20)
        assert answer.output.shape == (8, 64, 16)
        assert answer.receipt is not None


async def test_without_a_key_there_are_no_receipts_and_a_wrong_chain_refuses_them() -> None:
    async with open_world(TestModel()) as world:
        other = Dendrite(world.callers[0], context=b"another chain")
        answer = await other.forward(world.peer, tokens(1, 1))
        assert answer.receipt is None
        assert other.counters["receipt_refused"] == 1
        none = await world.dendrite(receipts=False).forward(world.peer, tokens(1, 1))
        assert none.receipt is None


# Refusals: each costs its header only.


async def test_what_the_model_does_not_serve_is_refused() -> None:
    model = open_gate(GatedModel())
    async with open_world(model, weight=0) as world:
        dendrite = world.dendrite()
        speech = [Part(Modality.SPEECH, WireTensor.from_numpy(np.zeros((1, 1, 4000), np.float32)))]
        gradient = WireTensor.from_numpy(np.ones((1, 1, 4), np.float32))
        for call, code in (
            (dendrite.forward(world.peer, speech), FailureCode.UNKNOWN_MODALITY),
            (dendrite.forward(world.peer, tokens(1, 1, value=999)), FailureCode.BAD_VALUE),
            (
                dendrite.backward(world.peer, floats(1, 1, 4), gradient),
                FailureCode.BACKWARD_REFUSED,
            ),
        ):
            with pytest.raises(RemoteError) as caught:
                await call
            assert caught.value.code == code.name
        assert model.calls == []


async def test_a_gradient_of_another_width_and_too_large_an_answer_are_refused() -> None:
    model = open_gate(GatedModel(dim=4))
    options = ServingOptions(limits=Limits(payload_bytes_max=1_000))
    async with open_world(TestModel(), options=options) as world:
        narrow = WireTensor.from_numpy(np.ones((1, 1, 4), np.float32))
        with pytest.raises(RemoteError) as caught:
            await world.dendrite().backward(world.peer, floats(1, 1, 4), narrow)
        assert caught.value.code == "BAD_SHAPE"
        with pytest.raises(RemoteError) as caught:
            await world.dendrite().forward(world.peer, tokens(4, 20))
        assert caught.value.code == "TOO_LARGE"
    assert model.calls == []


async def test_a_model_that_fails_or_lies_is_an_internal_failure() -> None:
    def explode(_: Array) -> Array:
        raise ZeroDivisionError

    model = open_gate(GatedModel())
    async with open_world(model) as world:
        for fault in (explode, lambda output: output[:, :, :1], lambda output: output * np.nan):
            model.fault = fault
            with pytest.raises(RemoteError) as caught:
                await world.dendrite().forward(world.peer, tokens(1, 1))
            assert caught.value.code == "INTERNAL"
        model.fault = None
        await world.dendrite().forward(world.peer, tokens(1, 1))


async def test_one_callers_bad_row_does_not_reach_another() -> None:
    """Only the caller whose output is not finite gets INTERNAL, in one and the same model call."""
    model = GatedModel()
    model.fault = lambda output: np.where(output == 13, np.nan, output)
    outcomes: dict[int, str] = {}

    async with open_world(model, callers=2) as world:

        async def ask(value: int) -> None:
            try:
                await world.dendrite(value % 2).forward(
                    world.peer, tokens(1, 2, value=value), deadline_s=20
                )
                outcomes[value] = "answered"
            except RemoteError as error:
                outcomes[value] = error.code

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 1)
            await until(lambda: model.entered == 1)
            for value in (13, 14, 15):
                nursery.start_soon(ask, value)
            await until(lambda: world.server.waiting == 3)
            model.gate.set()
    assert outcomes[13] == "INTERNAL"
    assert {outcomes[value] for value in (1, 14, 15)} == {"answered"}
    assert (3, 2) in model.calls, "those that waited were served in one call"


async def test_busy_says_when_to_come_back() -> None:
    model = GatedModel()
    options = ServingOptions(items_max=16, per_sender_max=2)
    async with open_world(model, options=options) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_quietly, world, 0)
            await until(lambda: model.entered == 1)
            for _ in range(2):
                nursery.start_soon(ask_quietly, world, 0)
            await until(lambda: world.server.waiting == 2)
            with pytest.raises(Overloaded) as caught:
                await world.dendrite().forward(world.peer, tokens(1, 1), deadline_s=20)
            assert caught.value.retry_after_s >= 0.05
            model.gate.set()
        assert world.server.counters["busy"] == 1
        assert world.server.counters["result"] == 3


async def ask_quietly(world: World, index: int) -> None:
    await world.dendrite(index).forward(world.peer, tokens(1, 1), deadline_s=20)


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not holds():  # noqa: ASYNC110 - a condition of the server's own, over real threads
            await trio.sleep(0.005)


async def test_bytes_are_bounded_before_a_payload_is_read() -> None:
    options = ServingOptions(bytes_per_peer_max=300_000)
    async with open_world(open_gate(GatedModel()), options=options) as world:
        with pytest.raises(Overloaded):
            await world.dendrite().forward(world.peer, floats(16, 16, 512), deadline_s=20)
        await world.dendrite().forward(world.peer, floats(2, 2, 2))


# Order.


async def test_stake_decides_who_is_served_under_contention() -> None:
    """The real handler: 3 callers kept backlogged, weights 1 : 2 : 4, equal cost."""
    model = GatedModel()
    weights = {}
    counts = [0, 0, 0]
    async with open_world(
        model,
        callers=3,
        weight=lambda peer: weights.get(peer, 0),
        options=ServingOptions(batch_rows_max=1),
        stopwatch=itertools.count().__next__,  # every call takes as long
    ) as world:
        for index, network in enumerate(world.callers):
            weights[network.peer_id] = 1_000 * 2**index

        async def keep_asking(index: int) -> None:
            dendrite = world.dendrite(index, receipts=False)
            while counts[0] < 10:
                await dendrite.forward(world.peer, tokens(1, 1), deadline_s=60)
                counts[index] += counts[0] < 10

        async with trio.open_nursery() as nursery:
            for index in (0, 1, 2):
                for _ in range(8):
                    nursery.start_soon(keep_asking, index)
            await until(lambda: world.server.waiting == 23)
            model.gate.set()
    total = sum(counts)
    for index in range(3):
        assert counts[index] / total == pytest.approx(2**index / 7, rel=0.2), counts


async def test_new_weights_reorder_what_waits() -> None:
    model = GatedModel()
    weights: dict[PeerId, int] = {}
    order: list[int] = []
    async with open_world(
        model,
        callers=2,
        weight=lambda peer: weights[peer],
        options=ServingOptions(batch_rows_max=1),
        stopwatch=itertools.count().__next__,
    ) as world:
        for network, weight in zip(world.callers, (1, 1_000_000), strict=True):
            weights[network.peer_id] = weight

        async def ask(index: int) -> None:
            await world.dendrite(index).forward(world.peer, tokens(1, 1), deadline_s=20)
            order.append(index)

        async with trio.open_nursery() as nursery:
            for index in (0, 1):
                for _ in range(6):
                    nursery.start_soon(ask, index)
            await until(lambda: world.server.waiting == 11)
            weights[world.callers[0].peer_id] = 1_000_000_000
            world.server.weights_changed()
            model.gate.set()
    assert order.index(1) >= 5 or order[:7].count(0) >= 5, order


# Instant models.


@pytest.mark.parametrize(
    ("parts", "dim", "is_here"),
    [
        (tokens(1, 1), 4, True),
        (floats(4, 16, 1_024), 1_024, True),  # 256 KiB each way
        (floats(8, 64, 1_024), 4, False),
        (tokens(8, 64), 1_024, False),  # 4 KiB of tokens, and 2 MiB of an answer to them
    ],
)
async def test_an_instant_model_runs_in_place_for_what_is_small_both_ways(
    parts: list[Part], dim: int, is_here: bool
) -> None:
    model = InstantModel(dim=dim)
    open_gate(model)
    async with open_world(model) as world:
        answer = await world.dendrite().forward(world.peer, parts, deadline_s=20)
        assert answer.output.shape[2] == dim
        assert (model.threads == [threading.get_ident()]) is is_here


# Cancellation and deadlines.


async def test_a_cancelled_call_leaves_the_queue() -> None:
    model = GatedModel()
    async with open_world(model) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_quietly, world, 0)
            await until(lambda: model.entered == 1)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    for _ in range(3):
                        inner.start_soon(ask_quietly, world, 0)
                    await until(lambda: world.server.waiting >= 2)
                    scope.cancel()
            await until(lambda: world.server.waiting == 0)
            model.gate.set()
        await until(lambda: world.server.counters["cancelled"] >= 2)


async def test_a_call_ends_at_its_deadline() -> None:
    model = GatedModel()
    async with open_world(model) as world:
        dendrite = world.dendrite()
        with pytest.raises(CallTimeout):
            await dendrite.forward(world.peer, tokens(1, 1), deadline_s=0.2)
        assert dendrite.counters["timeout"] == 1
        model.gate.set()


async def test_a_request_out_of_time_is_dropped_before_work_begins() -> None:
    model = GatedModel()
    async with open_world(model) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_quietly, world, 0)
            await until(lambda: model.entered == 1)
            async with world.callers[0].open_stream(world.peer, PROTOCOL) as stream:
                await stream.send_all(raw_frame(tokens(1, 1), remaining_ms=100))
                failure = await failure_of(stream)
            assert failure.code is FailureCode.DEADLINE
            model.gate.set()
        assert len(model.calls) == 1
        assert world.server.waiting == 0


async def test_nobody_there_is_unreachable() -> None:
    async with open_world(TestModel()) as world:
        stranger = Identity.generate().peer_id
        with pytest.raises(PeerUnreachable):
            await world.dendrite().forward(stranger, tokens(1, 1))
        with pytest.raises(PeerUnreachable):
            await world.dendrite().backward(
                stranger, tokens(1, 1), WireTensor.from_numpy(np.ones((1, 1, 2), np.float32))
            )


# Hostile servers: every answer becomes a typed outcome.


@asynccontextmanager
async def open_liar(reply: Callable[[Stream], Any]) -> AsyncIterator[tuple[Dendrite, PeerId]]:
    async with (
        open_hub(seed=2) as hub,
        hub.open_network(Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"]) as liar,
        hub.open_network(Identity.generate()) as caller,
    ):
        await liar.serve(PROTOCOL, reply)
        await caller.connect(liar.addresses[0])
        yield Dendrite(caller, context=CONTEXT), liar.peer_id


async def test_a_liar_is_a_remote_error() -> None:
    async def garbage(stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def short(stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"AGT\x01")

    for reply in (garbage, short):
        async with open_liar(reply) as (dendrite, peer):
            with pytest.raises(RemoteError) as caught:
                await dendrite.forward(peer, tokens(1, 1))
            assert caught.value.code == "MALFORMED"


async def test_a_broken_forward_is_asked_once_more_and_a_backward_never() -> None:
    calls = 0

    async def break_off(stream: Stream) -> None:
        nonlocal calls
        calls += 1
        await stream.receive_some()
        await stream.reset()

    async with open_liar(break_off) as (dendrite, peer):
        with pytest.raises(PeerUnreachable):
            await dendrite.forward(peer, tokens(1, 1))
        assert (calls, dendrite.counters["retried"]) == (2, 1)
        gradient = WireTensor.from_numpy(np.ones((1, 1, 2), np.float32))
        with pytest.raises(PeerUnreachable):
            await dendrite.backward(peer, tokens(1, 1), gradient)
        assert calls == 3


async def test_a_peer_that_stops_reading_a_large_request_is_left() -> None:
    async def refuse(stream: Stream) -> None:
        await stream.receive_some()
        failure = Failure(code=FailureCode.BUSY, retry_after_ms=123)
        for segment in ServerExchange().send(failure):
            await stream.send_all(segment)
        await trio.sleep_forever()

    async def vanish(stream: Stream) -> None:
        await stream.receive_some()
        await stream.reset()

    async with open_liar(refuse) as (dendrite, peer):
        with pytest.raises(Overloaded) as caught:
            await dendrite.forward(peer, floats(16, 64, 1024), deadline_s=20)
        assert caught.value.retry_after_s == pytest.approx(0.123)
    async with open_liar(vanish) as (dendrite, peer):
        with pytest.raises(PeerUnreachable):
            await dendrite.forward(peer, floats(16, 64, 1024), deadline_s=20)


async def test_a_silent_peer_is_a_timeout_and_is_given_longer_next_time() -> None:
    async def say_nothing(_: Stream) -> None:
        await trio.sleep_forever()

    async with open_liar(say_nothing) as (dendrite, peer):
        dendrite.deadlines.answered(peer, 0.001)
        with pytest.raises(CallTimeout):
            await dendrite.forward(peer, tokens(1, 1))
        assert dendrite.deadlines.deadline_s(peer) > DEADLINE_MIN_S


# Hostile callers: each is answered or ended, honest ones go on.


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n", FailureCode.MALFORMED),
        (b"AGT\x07", FailureCode.VERSION),
        (b"AGT\x01\xff\xff\xff\x7f", FailureCode.TOO_LARGE),
        (b"AGT\x01\x04\x00\x00\x00\xff\xff\xff\xff", FailureCode.MALFORMED),
    ],
)
async def test_garbage_is_answered_with_its_code(data: bytes, code: FailureCode) -> None:
    async with open_world(TestModel()) as world:
        async with world.callers[0].open_stream(world.peer, PROTOCOL) as stream:
            await stream.send_all(data)
            assert (await failure_of(stream)).code is code
        await ask_quietly(world, 0)


async def test_a_truncated_request_is_malformed() -> None:
    async with open_world(TestModel()) as world:
        for cut in (3, 40, -1):
            async with world.callers[0].open_stream(world.peer, PROTOCOL) as stream:
                await stream.send_all(raw_frame(tokens(1, 3))[:cut])
                await stream.send_eof()
                assert (await failure_of(stream)).code is FailureCode.MALFORMED


async def test_a_slow_header_and_a_slow_payload_are_ended() -> None:
    options = ServingOptions(header_timeout_s=0.05, send_timeout_s=0.05)
    async with open_world(TestModel(), options=options) as world:
        for cut in (4, 200):
            async with world.callers[0].open_stream(world.peer, PROTOCOL) as stream:
                await stream.send_all(raw_frame(floats(1, 10, 100))[:cut])
                assert (await failure_of(stream)).code is FailureCode.DEADLINE
        await ask_quietly(world, 0)


async def test_bytes_behind_a_request_end_it_while_it_waits() -> None:
    model = GatedModel()
    async with open_world(model) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_quietly, world, 0)
            await until(lambda: model.entered == 1)
            async with world.callers[0].open_stream(world.peer, PROTOCOL) as stream:
                await stream.send_all(raw_frame(tokens(1, 1)))
                await until(lambda: world.server.waiting == 1)
                await stream.send_all(b"more")
                assert (await failure_of(stream)).code is FailureCode.MALFORMED
            assert world.server.waiting == 0
            model.gate.set()


async def test_a_half_close_behind_a_request_is_fine() -> None:
    model = GatedModel()
    async with open_world(model) as world:
        async with world.callers[0].open_stream(world.peer, PROTOCOL) as stream:
            exchange = ClientExchange(request_id=ID)
            for segment in exchange.send(Forward(parts=tokens(1, 1))):
                await stream.send_all(segment)
            await stream.send_eof()
            await wait_all_tasks_blocked(0.05)
            model.gate.set()
            events: list[Any] = []
            while not events:
                events = exchange.receive_data(await stream.receive_some())


async def test_one_who_never_reads_its_answer_is_ended() -> None:
    options = ServingOptions(send_timeout_s=0.05, rate_bytes_per_s_min=1 << 30)
    big = Limits()
    async with open_world(WideModel(), options=options) as world:
        async with world.callers[0].open_stream(world.peer, PROTOCOL) as stream:
            frame = ClientExchange(request_id=ID, limits=big).send(Forward(parts=tokens(64, 64)))
            for segment in frame:
                await stream.send_all(segment)
            await until(lambda: world.server.counters["slow_reader"] == 1)
        await ask_quietly(world, 0)


class WideModel:
    """Answers are large: 64 × 64 × 1024 float32 are 16 MiB."""

    modalities = frozenset({Modality.TEXT})
    dim = 1_024
    vocabulary = 256

    def forward(self, parts: Sequence[Part]) -> Array:
        rows, steps = parts[0].tensor.shape
        return np.zeros((rows, steps, self.dim), np.float32)


# The parts.


def test_a_byte_budget_keeps_its_three_bounds() -> None:
    limits = ByteBudgetLimits(total_bytes_max=100, per_peer_bytes_max=60, floor_bytes_max=30)
    budget = ByteBudget(limits)
    peers = [Identity.generate().peer_id for _ in range(3)]
    first = budget.holding(peers[0])
    first.take(60, floor=False)
    for peer, held, floor in ((peers[0], 1, False), (peers[1], 41, False), (peers[2], 31, True)):
        with pytest.raises(BudgetExceeded):
            budget.holding(peer).take(held, floor=floor)
    second = budget.holding(peers[2])
    second.take(30, floor=True)
    assert budget.total_bytes == 90
    for holding in (first, second, first):
        holding.release()
    assert budget.total_bytes == 0
    budget.holding(peers[1]).take(60, floor=False)


def test_deadlines_follow_what_a_peer_usually_takes() -> None:
    deadlines = Deadlines()
    assert deadlines.deadline_s("a") == DEADLINE_UNKNOWN_S
    for duration_s in (1.0, 1.1, 0.9, 1.0, 30.0):
        deadlines.answered("a", duration_s)
    assert 1.0 < deadlines.deadline_s("a") < 2.5
    for _ in range(40):
        deadlines.answered("b", 0.001)
    assert deadlines.deadline_s("b") == DEADLINE_MIN_S
    for _ in range(40):
        deadlines.late("b", 29.0)
    assert deadlines.deadline_s("b") == DEADLINE_MAX_S
    for number in range(PEERS_MAX):
        deadlines.answered(str(number), 1.0)
    assert deadlines.deadline_s("a") == DEADLINE_UNKNOWN_S


def test_a_meter_finds_the_liar_and_forgives_one_slow_call() -> None:
    meter = CostMeter()
    honest, liar = Identity.generate().peer_id, Identity.generate().peer_id
    assert meter.cost_per_s == 0
    for _ in range(50):
        assert meter.observe([(honest, 100)], 0.01) == [100]
    assert meter.cost_per_s == pytest.approx(10_000, rel=0.01)
    assert meter.observe([(honest, 100)], 1.0) == [100]
    charged = 100
    for _ in range(60):
        for _ in range(4):
            meter.observe([(honest, 100)], 0.01)
        (charged,) = meter.observe([(liar, 100)], 0.03)
    assert 200 <= charged <= 400
    assert meter.observe([(honest, 50), (liar, 50)], 0.0)[0] <= 50
    for _ in range(SENDERS_MAX):
        meter.observe([(Identity.generate().peer_id, 1)], 0.01) if len(meter._ratios) < 5 else None
    assert len(meter._ratios) <= SENDERS_MAX


def test_the_fixed_model_follows_its_formula() -> None:
    model = TestModel()
    output = model.forward(tokens(1, 2, value=3))
    assert output[0, 1, 2] == (31 * 3 + 17 + 14) % 256 / 128 - 1
    image = np.full((1, 1, 1, 2, 2), 0.5, np.float32)
    value = model.forward([Part(Modality.IMAGE, WireTensor.from_numpy(image))])
    assert value[0, 0, 1] == 2.0 + 7 / 16
    assert value.dtype == np.float32


def test_requests_are_what_they_were_when_sent() -> None:
    with pytest.raises(RemoteProtocolError):
        ClientExchange(request_id=ID).receive_data(b"x")
    gradient = WireTensor.from_numpy(np.ones((1, 1, 2), np.float32))
    assert Backward(parts=tokens(1, 1), gradient=gradient).parts[0].modality is Modality.TEXT
