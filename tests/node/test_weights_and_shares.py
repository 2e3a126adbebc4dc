"""A weight that becomes final on the ledger moves the shares of service, within one block."""

import dataclasses
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from consensus.types import Modality as PeerModality
from consensus.types import PeerKey
from node.genesis_file import own_announcement
from node.membership import Membership
from node.node import Node, open_node
from node.report import Finalized, Report
from tensorwire import Modality, Part, Receipt, WireTensor

from .network_of_nodes import PARAMETERS, Village, open_village, until

ROWS = 33  # two such requests do not fit into one model call: each is a service of its own
WAITING = 56  # of each caller, at once: below the queue's bound, and more than are served here
SERVICES = 36  # measured before the change, and after it
INITIAL_WEIGHT = 2**15  # every founder trusts the two others alike
SCORES = (1, 15)  # of the server and of the other peer: the weight for the server falls to 15/256
NEAR = 2  # services: a lag of one request on either side of what is counted

Answers = trio.MemoryReceiveChannel[tuple[int, Receipt]]


@dataclass
class MeteredModel:
    """Serves one call for every permit."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    modalities: frozenset[Modality] = frozenset({Modality.TEXT})
    dim: int = 4
    vocabulary: int = 256

    def forward(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        self.permits.acquire()
        return np.zeros((*parts[0].tensor.shape, self.dim), np.float32)


@dataclass
class Change:
    """The first final block, as the server sees it, after which `caller`'s row is a new one."""

    caller: PeerKey
    model: MeteredModel
    server: Node | None = None
    height: int | None = None

    def take(self, report: Report) -> None:
        """Let `SERVICES` be served at the very moment when the new row is final."""
        if self.height is None and isinstance(report, Finalized) and self.server is not None:
            state = self.server.state
            own, caller = state.uid_of_owner[self.server.owner], state.uid_of_peer(self.caller)
            assert caller is not None
            if state.rows[caller].weight_to(own) != INITIAL_WEIGHT:
                self.height = state.height
                self.model.permits.release(SERVICES)


async def wait_with_requests(
    caller: Node, index: int, server: Node, answers: trio.MemorySendChannel[tuple[int, Receipt]]
) -> None:
    """Keep `WAITING` requests of equal cost waiting, none of them later than the others."""
    part = Part(Modality.TEXT, WireTensor.from_numpy(np.zeros((ROWS, 1), np.int64)))

    async def ask() -> None:
        answer = await caller.market.dendrite.forward(server.peer_id, [part], deadline_s=100)
        assert answer.receipt is not None
        answers.send_nowait((index, answer.receipt))

    async with trio.open_nursery() as nursery:
        for _ in range(WAITING):
            nursery.start_soon(ask)


async def served(answers: Answers) -> tuple[list[Receipt], Counter[int]]:
    """Receipts and number of services per caller, but for the one that was chosen before."""
    await answers.receive()
    arrived = [await answers.receive() for _ in range(SERVICES - 1)]
    return [receipt for _, receipt in arrived], Counter(index for index, _ in arrived)


def expected_share(server: Node, caller: Node) -> float:
    """s_i·w_ij of one caller in the whole, from the server's ledger; two of three nodes call."""
    state = server.state
    own = state.uid_of_owner[server.owner]
    bought = {
        uid: state.stake[uid] * state.rows[uid].weight_to(own)
        for uid in state.accounts
        if uid != own
    }
    return bought[state.uid_of_owner[caller.owner]] / sum(bought.values())


async def publish(caller: Node, server: Node, other: Node, nursery: trio.Nursery) -> None:
    """Change `caller`'s weights by signed transactions; on return shares are still the old ones."""
    scores = {server.peer_id: SCORES[0], other.peer_id: SCORES[1]}
    if not caller.chain.parameters.commit_reveal:
        await caller.set_weights(scores)
        return
    membership = Membership(
        caller,
        caller.chain.parameters,
        owner=caller.owner,
        peer_key=PeerKey(caller.peer_id.public_key),
        announcement=own_announcement(PeerModality.TEXT),
        scores=lambda: scores,
    )
    epoch = caller.state.epoch
    await until(caller, lambda node: node.state.epoch > epoch)  # an epoch to commit in
    nursery.start_soon(membership.run)
    uid = caller.state.uid_of_owner[caller.owner]
    await until(server, lambda node: node.state.commitments[uid] is not None)


@pytest.mark.parametrize("commit_reveal", [False, True])
async def test_a_new_weight_moves_the_shares_within_a_block_of_its_finality(
    tmp_path: Path, commit_reveal: bool
) -> None:
    """All requests wait before the change and none comes after: only the queue can move shares."""
    parameters = dataclasses.replace(
        PARAMETERS, commit_reveal=commit_reveal, block_interval_ms=400, view_timeout_ms=2_000
    )
    model = MeteredModel()
    async with open_village(tmp_path, 3, parameters=parameters) as village:
        change = Change(PeerKey(village.genesis.accounts[1].peer_key), model)
        server = await enter_server(village, model, change)
        join = {"bootstrap": (server.network.addresses[0],)}
        callers = [await village.enter(index, **join) for index in (1, 2)]
        change.server = server
        village.stack.callback(model.permits.release, 2 * WAITING)  # closing waits for its call
        send, answers = trio.open_memory_channel[tuple[int, Receipt]](2 * WAITING)
        async with trio.open_nursery() as nursery:
            for index, caller in enumerate(callers):
                await until(caller, lambda node: server.peer_id in node.network.peers)
                nursery.start_soon(wait_with_requests, caller, index, server, send)
            await until(server, lambda node: waiting(node) == 2 * WAITING - 1)
            if commit_reveal:
                await publish(callers[0], server, callers[1], nursery)
            before = expected_share(server, callers[0])
            model.permits.release(SERVICES)
            _, shares = await served(answers)
            assert change.height is None
            assert shares[0] == pytest.approx(before * (SERVICES - 1), abs=NEAR)

            if not commit_reveal:
                await publish(callers[0], server, callers[1], nursery)
            receipts, shares = await served(answers)
            after = expected_share(server, callers[0])
            assert after < before / 4
            assert shares[0] == pytest.approx(after * (SERVICES - 1), abs=NEAR)
            assert change.height is not None
            heights = {receipt.weights_height for receipt in receipts}
            assert heights <= {change.height, change.height + 1}
            least = min(receipt.share_ppm for receipt in receipts)
            assert least == pytest.approx(after * 1_000_000, rel=0.01)
            nursery.cancel_scope.cancel()


async def enter_server(village: Village, model: MeteredModel, change: Change) -> Node:
    """Founder 0 with `model`, in a node that is closed with the village."""
    return await village.stack.enter_async_context(
        open_node(
            village.config(0), model=model, report=change.take, opener=village.hub.open_network
        )
    )


def waiting(node: Node) -> int:
    return 0 if node.market.server is None else node.market.server.waiting
