"""The phases of an exchange share a deadline: that of one is never taken for another's."""

import pytest
import trio
import trio.testing

from node.exchange import ServingOptions
from p2p.identity import PeerId
from tensorwire import FailureCode
from tensorwire.exchange import PROTOCOL
from tests.node.test_exchange import (
    GatedModel,
    ask_quietly,
    failure_of,
    open_world,
    raw_frame,
    tokens,
    until,
)


async def test_an_answer_at_the_very_end_of_its_time_is_late_and_its_reader_is_not_slow(
    mock_clock: trio.testing.MockClock,
) -> None:
    """A waiting request is displaced in the step in which its time runs out as well."""
    mock_clock.rate = 1
    model = GatedModel()
    heavy: list[PeerId] = []

    def weight_of(peer: PeerId) -> int:
        if peer not in heavy:
            return 1
        mock_clock.jump(5)  # before this newcomer is queued, and others give way to it
        return 1_000

    options = ServingOptions(items_max=2)
    async with (
        open_world(model, callers=2, weight=weight_of, options=options) as world,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(ask_quietly, world, 0)
        await until(lambda: model.entered == 1)
        async with (
            world.callers[0].open_stream(world.peer, PROTOCOL) as one,
            world.callers[0].open_stream(world.peer, PROTOCOL) as other,
        ):
            for waiting, stream in enumerate((one, other)):
                await stream.send_all(raw_frame(tokens(1, 1), remaining_ms=2_000))
                await until(lambda waiting=waiting: world.server.waiting == waiting + 1)  # type: ignore[misc]
            heavy.append(world.callers[1].peer_id)
            nursery.start_soon(ask_quietly, world, 1)
            for stream in (one, other):
                assert (await failure_of(stream)).code is FailureCode.DEADLINE
        model.gate.set()
    assert world.server.counters["slow_reader"] == 0
    assert world.server.counters["deadline"] == 2
    assert world.server.waiting == 0


@pytest.mark.parametrize("is_behind_its_head", [False, True])
async def test_the_time_of_a_header_does_not_end_what_follows(
    mock_clock: trio.testing.MockClock, is_behind_its_head: bool
) -> None:
    """Whether the payload came with the head or after it, the request has its own time to wait."""
    mock_clock.rate = 1
    model = GatedModel()
    options = ServingOptions(header_timeout_s=1, send_timeout_s=2)
    async with open_world(model, options=options) as world, trio.open_nursery() as nursery:
        nursery.start_soon(ask_quietly, world, 0)
        await until(lambda: model.entered == 1)
        frame = raw_frame(tokens(1, 1), remaining_ms=15_000)
        async with world.callers[0].open_stream(world.peer, PROTOCOL) as stream:
            await stream.send_all(frame if is_behind_its_head else frame[:-1])
            await trio.testing.wait_all_tasks_blocked(0.01)
            if not is_behind_its_head:
                mock_clock.jump(1.5)  # more than a header has, less than a payload
                await trio.testing.wait_all_tasks_blocked(0.01)
                await stream.send_all(frame[-1:])
            await until(lambda: world.server.waiting == 1)
            mock_clock.jump(8)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert world.server.waiting == 1
            model.gate.set()
            assert await stream.receive_some()
        await until(lambda: world.server.counters["result"] == 2)
    assert not world.server.counters["deadline"]
