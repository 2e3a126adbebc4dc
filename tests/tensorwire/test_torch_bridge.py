"""Tensors between torch and the wire, and autograd over peers that are functions."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tensorwire import (
    ClientExchange,
    DType,
    Forward,
    LocalProtocolError,
    Modality,
    Part,
    ServerExchange,
    WireTensor,
)

torch = pytest.importorskip("torch")

from tensorwire.torch_bridge import ask_all, from_wire, to_wire  # noqa: E402

ID = bytes(range(16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_a_tensor_crosses_without_a_copy_and_comes_back_equal(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    wire = to_wire(tensor)
    address = np.frombuffer(wire.data, np.uint8).__array_interface__["data"][0]
    assert address == tensor.data_ptr()
    back = from_wire(wire)
    assert back.dtype is dtype
    assert torch.equal(back, tensor)


def test_a_received_tensor_is_read_in_place() -> None:
    tensor = torch.randn(2, 3, 5)
    client, server = ClientExchange(request_id=ID), ServerExchange()
    odd = Part(
        Modality.TENSOR, WireTensor.from_numpy(np.ones((2, 1, 3), np.float32), DType.FLOAT16)
    )
    request = Forward(parts=[odd, Part(Modality.TENSOR, to_wire(tensor))])
    head, *payloads = client.send(request)
    server.receive_data(head)
    server.admit()
    (received,) = server.receive_data(b"".join(map(bytes, payloads)))
    assert isinstance(received, Forward)
    view = received.parts[1].tensor
    back = from_wire(view)
    assert torch.equal(back, tensor)
    assert back.data_ptr() == np.frombuffer(view.data, np.uint8).__array_interface__["data"][0]


def test_conversions_on_the_way() -> None:
    tensor = torch.randn(1, 2, 64)
    for dtype, bound in ((DType.FLOAT16, 2e-3), (DType.BFLOAT16, 2e-2), (DType.INT8_BLOCK, 3e-2)):
        wire = to_wire(tensor, dtype)
        assert wire.dtype is dtype
        assert (from_wire(wire).float() - tensor).abs().max() <= bound
    half = tensor.bfloat16()
    assert torch.equal(from_wire(to_wire(half, DType.FLOAT32)), half.float())
    with pytest.raises(LocalProtocolError):
        to_wire(tensor.double())


def test_bytes_that_torch_cannot_share_are_copied() -> None:
    wire = WireTensor(DType.FLOAT32, (1, 1, 2), memoryview(np.float32([1, 2]).tobytes()))
    assert from_wire(wire).tolist() == [[[1.0, 2.0]]]
    owner = np.zeros(13, np.uint8)
    odd = WireTensor(DType.FLOAT32, (1, 1, 2), owner.data[1:9].toreadonly())
    assert from_wire(odd).tolist() == [[[0.0, 0.0]]]


class LocalPeers:
    """Peers that are modules in this process; `dead` ones fail."""

    def __init__(self, modules: Mapping[str, torch.nn.Module], dead: set[str]) -> None:
        self.modules = modules
        self.dead = dead
        self.rounds = [0, 0]

    def forward(self, names: Sequence[str], parts: Sequence[Part]) -> Mapping[str, WireTensor]:
        self.rounds[0] += 1
        with torch.no_grad():
            return {
                name: to_wire(self.modules[name](from_wire(parts[-1].tensor)))
                for name in names
                if name not in self.dead
            }

    def backward(
        self, parts: Sequence[Part], gradients: Mapping[str, WireTensor]
    ) -> Mapping[str, Sequence[Part]]:
        self.rounds[1] += 1
        returned = {}
        for name, gradient in gradients.items():
            if name == "forgets":
                continue
            x = from_wire(parts[-1].tensor).clone().requires_grad_()
            with torch.enable_grad():  # a remote peer has a thread and a graph of its own
                self.modules[name](x).backward(from_wire(gradient))
            if x.grad is not None:
                returned[name] = [Part(Modality.TENSOR, to_wire(x.grad))]
        return returned


def modules() -> dict[str, torch.nn.Module]:
    torch.manual_seed(1)
    return {name: torch.nn.Linear(4, 6) for name in ("a", "b", "dead", "forgets")}


def test_gradients_through_peers_equal_those_through_the_modules() -> None:
    remote, local = modules(), modules()
    peers = LocalPeers(remote, {"dead"})
    x = torch.randn(2, 3, 4, requires_grad=True)
    outputs = ask_all(peers, list(remote), [(Modality.TENSOR, x)])
    assert list(outputs) == ["a", "b", "forgets"]
    sum((each * weight).sum() for weight, each in enumerate(outputs.values(), 1)).backward()
    y = x.detach().clone().requires_grad_()
    total = (local["a"](y)).sum() + (local["b"](y) * 2).sum()
    total.backward()
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(remote["a"].weight.grad, local["a"].weight.grad)
    assert torch.equal(remote["b"].weight.grad, local["b"].weight.grad)
    assert peers.rounds == [1, 1]


def test_text_has_no_gradient_and_peers_are_taught_all_the_same() -> None:
    class Embeds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.taught = 0

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens[..., None].float()

    class TextPeers(LocalPeers):
        def backward(
            self, parts: Sequence[Part], gradients: Mapping[str, WireTensor]
        ) -> Mapping[str, Sequence[Part]]:
            self.rounds[1] += 1
            return dict.fromkeys(gradients, ())

    peers = TextPeers({"a": Embeds()}, set())
    outputs = ask_all(peers, ["a"], [(Modality.TEXT, torch.tensor([[1, 2]]))])
    outputs["a"].sum().backward()
    assert peers.rounds == [1, 1]
