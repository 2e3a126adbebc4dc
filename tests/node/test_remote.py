"""Gradients over the wire equal local ones, to the bit where nothing is batched."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import trio

from node.dendrite import Dendrite
from node.exchange import Server
from node.remote import RemotePeers
from p2p.identity import Identity
from p2p.memory import open_hub
from tensorwire import DType, Modality, Part, WireTensor

torch = pytest.importorskip("torch")

from tensorwire.torch_bridge import ask_all, from_wire, to_wire  # noqa: E402

Array = np.ndarray
PEERS = 3
DIM = 8


class ServedModule:
    """Any torch module as a `Model`."""

    modalities = frozenset({Modality.TENSOR})
    dim = DIM
    vocabulary = 1

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.batches: list[int] = []

    def forward(self, parts: Sequence[Part]) -> Array:
        self.batches.append(parts[0].tensor.shape[0])
        with torch.no_grad():
            return self.module(from_wire(parts[0].tensor).float()).numpy()

    def backward(self, parts: Sequence[Part], gradient: Array, *, share: float) -> list[Array]:
        x = from_wire(parts[0].tensor).float().clone().requires_grad_()
        self.module(x).backward(torch.from_numpy(np.array(gradient)))
        assert x.grad is not None
        return [x.grad.numpy()]


def module(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 32), torch.nn.Tanh(), torch.nn.Linear(32, DIM))


def loss_of(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    joined = torch.stack(list(outputs)).tanh().sum(dim=0)
    return (joined * joined).mean()


async def test_one_autograd_function_for_all_peers_over_the_network() -> None:
    served = [ServedModule(module(seed)) for seed in range(PEERS)]
    local = [module(seed) for seed in range(PEERS)]
    x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(7))
    async with open_hub(seed=3) as hub, hub.open_network(Identity.generate()) as caller:
        async with trio.open_nursery() as nursery:
            names = []
            for each in served:
                names.append(str(await nursery.start(partial(serve_module, hub, each))))
                await caller.connect(ADDRESSES[names[-1]])
            peers = RemotePeers(Dendrite(caller), deadline_s=30)
            stranger = str(Identity.generate().peer_id)

            def learn() -> tuple[torch.Tensor, torch.Tensor]:
                remote_x = x.clone().requires_grad_()
                outputs = ask_all(peers, [*names, stranger], [(Modality.TENSOR, remote_x)])
                assert list(outputs) == names
                loss = loss_of(list(outputs.values()))
                loss.backward()
                assert remote_x.grad is not None
                return loss.detach(), remote_x.grad

            loss, gradient = await trio.to_thread.run_sync(learn)
            nursery.cancel_scope.cancel()
    # Autograd adds gradients up in the order in which they came; so does the function.
    local_x = x.clone().requires_grad_()
    local_loss = loss_of([each(local_x) for each in local])
    local_loss.backward()
    assert torch.equal(loss, local_loss.detach())
    assert torch.allclose(gradient, local_x.grad, rtol=1e-6, atol=1e-9)
    for remote_module, local_module in zip(served, local, strict=True):
        pairs = zip(remote_module.module.parameters(), local_module.parameters(), strict=True)
        for remote_parameter, local_parameter in pairs:
            assert torch.equal(remote_parameter.grad, local_parameter.grad)


ADDRESSES: dict[str, str] = {}


async def serve_module(
    hub: object, model: ServedModule, *, task_status: object = trio.TASK_STATUS_IGNORED
) -> None:
    async with hub.open_network(  # type: ignore[attr-defined]
        Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"]
    ) as network:
        async with trio.open_nursery() as nursery:
            await nursery.start(Server(network, model, weight_of=lambda _: 1).run)
            ADDRESSES[str(network.peer_id)] = network.addresses[0]
            task_status.started(network.peer_id)  # type: ignore[attr-defined]
            await trio.sleep_forever()


async def test_unbatched_is_bit_equal_batched_is_close_and_bfloat16_within_its_error() -> None:
    served = ServedModule(module(1))
    rows = [np.random.default_rng(seed).normal(size=(1, 6, 5)).astype("f4") for seed in range(6)]

    def expect() -> list[Any]:
        return [served.module(torch.from_numpy(row)).detach().numpy() for row in rows]

    expected = await trio.to_thread.run_sync(expect)  # with a worker's thread count, as served
    async with open_hub(seed=4) as hub, hub.open_network(Identity.generate()) as caller:
        async with trio.open_nursery() as nursery:
            peer = await nursery.start(partial(serve_module, hub, served))
            await caller.connect(ADDRESSES[str(peer)])
            dendrite = Dendrite(caller)
            part = Part(Modality.TENSOR, WireTensor.from_numpy(rows[0]))
            alone = await dendrite.forward(peer, [part])
            assert np.array_equal(alone.output.to_numpy(), expected[0])
            short = await dendrite.forward(peer, [part], reply_dtype=DType.BFLOAT16)
            assert np.abs(short.output.to_numpy() - expected[0]).max() <= 2**-8

            async def ask(index: int) -> None:
                sent = Part(Modality.TENSOR, to_wire(torch.from_numpy(rows[index])))
                answer = await dendrite.forward(peer, [sent], deadline_s=30)
                scale = np.abs(expected[index]).max()
                error = np.abs(answer.output.to_numpy() - expected[index]).max()
                assert error <= 1e-5 * scale

            async with trio.open_nursery() as askers:
                for index in range(6):
                    askers.start_soon(ask, index)
            nursery.cancel_scope.cancel()
    assert sum(served.batches) == 2 + 6
