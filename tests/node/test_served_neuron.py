"""The learning peer as others meet it: taught within bounds, in eval mode, row by row."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from node.gradient_allowance import ALL_MAX, INTERVAL_S  # noqa: E402
from node.model_call import Job, ModelCaller, Service  # noqa: E402
from node.neuron.corpus import Corpus, load_corpus  # noqa: E402
from node.neuron.neuron import FOREIGN_NORM_MAX, FOREIGN_RATE, Neuron  # noqa: E402
from node.neuron.serving import TaughtNeuron  # noqa: E402
from node.training import served  # noqa: E402
from p2p.identity import Identity, PeerId  # noqa: E402
from tensorwire import (  # noqa: E402
    Backward,
    ClientExchange,
    Forward,
    Gradient,
    Modality,
    Part,
    RequestHead,
    Result,
    ServerExchange,
    WireTensor,
)
from tensorwire.events import Request  # noqa: E402
from tensorwire.receipt import SHARE_ONE_PPM  # noqa: E402

Array = NDArray[np.float32]
DIM = 16
STEP_MAX = FOREIGN_NORM_MAX * FOREIGN_RATE  # what one gradient in full may move the trunk


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """As a node runs it; small models lose time to more threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(None, key=b"somebody")


@pytest.fixture
def neuron(corpus: Corpus) -> Neuron:
    return Neuron(corpus, dim=DIM, seed=0)


def text(tokens: NDArray[np.int64]) -> Part:
    return Part(Modality.TEXT, WireTensor.from_numpy(np.ascontiguousarray(tokens)))


def job(sender: PeerId, request: Request, *, weight: int = 1) -> Job:
    """A request as the server has it after it has crossed the wire."""
    client, server = ClientExchange(request_id=bytes(16)), ServerExchange()
    head, *payloads = client.send(request)
    (parsed,) = server.receive_data(head)
    assert isinstance(parsed, RequestHead)
    server.admit()
    (received,) = server.receive_data(b"".join(map(bytes, payloads)))
    assert isinstance(received, Backward | Forward)
    return Job(
        peer=sender, head=parsed, request=received, weight=weight, arrived_s=0.0, held_bytes=0
    )


def service(share: float) -> Service:
    return Service(
        number=1, queue_wait_us=0, share_ppm=int(share * SHARE_ONE_PPM), weights_height=0
    )


def trunk_of(neuron: Neuron) -> torch.Tensor:
    parameters = neuron._model.trunk.parameters()
    return torch.cat([parameter.detach().flatten().double() for parameter in parameters])


class Served:
    """A model behind the exchange's caller, with a clock of the test's."""

    def __init__(self, neuron: Neuron) -> None:
        self.now_s = 0.0
        self.caller = ModelCaller(
            TaughtNeuron(neuron), server=b"", sign=None, context=b"", clock=lambda: self.now_s
        )

    def teach(
        self,
        sender: PeerId,
        tokens: Sequence[NDArray[np.int64]],
        gradient: Array,
        *,
        weight: int = 1,
    ) -> None:
        request = Backward(
            parts=[text(each) for each in tokens], gradient=WireTensor.from_numpy(gradient)
        )
        _, (answer,) = self.caller.run([job(sender, request, weight=weight)], [service(share=1.0)])
        assert isinstance(answer, Gradient)


def test_maximal_gradients_without_end_move_the_model_no_more_than_the_interval_allows(
    neuron: Neuron,
) -> None:
    """Three liars with the whole demand, two intervals long, against the bound of each stretch."""
    world = Served(neuron)
    liars = [Identity.generate().peer_id for _ in range(3)]
    tokens = np.arange(8, dtype=np.int64)[None, :]
    huge = np.full((1, 8, DIM), 1e3, np.float32)
    huge[..., ::2] = -1e3
    seen = [trunk_of(neuron)]
    steps = 10  # looks at the model in an interval
    for _ in range(2 * steps):
        for liar in liars:
            for _ in range(30):
                world.teach(liar, [tokens], huge)
        seen.append(trunk_of(neuron))
        world.now_s += INTERVAL_S / steps
    bound = ALL_MAX * STEP_MAX
    moved = [float((now - before).norm()) for before, now in zip(seen, seen[steps:], strict=False)]
    assert max(moved) <= bound * (1 + 1e-3)  # parameters are float32
    assert max(moved) >= bound / 4, "the liars pull one way: the bound is near"


def test_one_request_moves_the_model_one_step_however_many_parts_it_has(neuron: Neuron) -> None:
    world = Served(neuron)
    tokens = [np.arange(4, dtype=np.int64)[None, :]] * 8
    before = trunk_of(neuron)
    world.teach(Identity.generate().peer_id, tokens, np.ones((1, 32, DIM), np.float32))
    assert 0 < float((trunk_of(neuron) - before).norm()) <= STEP_MAX * (1 + 1e-3)


def test_a_callers_gradients_lower_its_loss_and_its_share_says_how_fast(corpus: Corpus) -> None:
    lowered = {}
    for share in (0.1, 1.0):
        learner = Neuron(corpus, dim=DIM, seed=0)
        tokens = learner.batch()[:, :-1]
        wanted = Neuron(corpus, dim=DIM, seed=1).represent(tokens)
        before = learner.represent(tokens)
        for _ in range(20):
            gradient = 2 * (learner.represent(tokens) - wanted)
            learner.absorb([(tokens, gradient)], share=share)
        after = learner.represent(tokens)
        lowered[share] = float(((before - wanted) ** 2).sum() - ((after - wanted) ** 2).sum())
    assert lowered[0.1] > 0
    assert lowered[1.0] > 5 * lowered[0.1]


def test_without_a_share_and_with_what_is_not_finite_nothing_moves(neuron: Neuron) -> None:
    tokens = np.arange(8, dtype=np.int64)[None, :]
    gradient = np.ones((1, 8, DIM), np.float32)
    before = trunk_of(neuron)
    neuron.absorb([(tokens, gradient)], share=0.0)
    neuron.absorb([(tokens, gradient * np.float32(np.nan))], share=1.0)
    neuron.absorb([(tokens, gradient * np.float32(1e38))], share=1.0)
    assert torch.equal(trunk_of(neuron), before)


def test_one_that_has_lost_its_weight_while_it_waited_moves_nothing(neuron: Neuron) -> None:
    world, before = Served(neuron), trunk_of(neuron)
    tokens, gradient = np.arange(4, dtype=np.int64)[None, :], np.ones((1, 4, DIM), np.float32)
    sender = Identity.generate().peer_id
    world.teach(sender, [tokens], gradient, weight=0)
    assert torch.equal(trunk_of(neuron), before)
    world.teach(sender, [tokens], gradient)
    assert not torch.equal(trunk_of(neuron), before)


def test_a_neuron_that_does_not_learn_takes_no_gradients(neuron: Neuron) -> None:
    assert hasattr(served(neuron, learns=True), "backward")
    assert not hasattr(served(neuron, learns=False), "backward")


class Noticing(torch.nn.Dropout):
    """Randomises in training, and keeps the mode of every pass."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        return super().forward(x)


def test_others_are_served_and_heard_in_eval_mode_and_steps_are_made_in_training_mode(
    neuron: Neuron,
) -> None:
    noticing = Noticing()
    neuron._model.trunk.blocks.append(noticing)
    batch = neuron.batch()
    tokens = np.ascontiguousarray(batch[:, :-1])
    first = neuron.represent(tokens)
    neuron.learn(batch, [], {})
    neuron.absorb([(tokens, np.ones_like(first))], share=1.0)
    neuron.held_out_loss()
    neuron.represent(tokens)
    assert noticing.modes == [False, True, False, False, False]


def test_rows_of_one_call_are_what_they_are_alone(neuron: Neuron) -> None:
    """Whatever the neighbours are, and however many."""
    served_neuron = TaughtNeuron(neuron)
    caller = ModelCaller(served_neuron, server=b"", sign=None, context=b"")
    random = np.random.default_rng(5)
    peers = [Identity.generate().peer_id for _ in range(4)]
    asked = [random.integers(0, 256, (1 + index, 12)) for index in range(4)]
    jobs = [
        job(peer, Forward(parts=[text(tokens)])) for peer, tokens in zip(peers, asked, strict=True)
    ]
    _, answers = caller.run(jobs, [service(share=0.25)] * 4)
    for tokens, answer in zip(asked, answers, strict=True):
        assert isinstance(answer, Result)
        alone = served_neuron.forward([text(tokens)])
        np.testing.assert_allclose(answer.output.to_numpy(), alone, rtol=1e-5, atol=1e-6)
