"""The learning peer: it learns, from others too, and gives no worth to an empty answer."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import trio
from numpy.typing import NDArray

from node.errors import CallTimeout, DataError
from node.neuron.corpus import TEXT_BYTES_MIN, Corpus, load_corpus
from node.neuron.loop import TrainingReport, train
from node.neuron.model import PEERS_MAX
from node.neuron.neuron import Neuron

Array = NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """As a node runs it; small models lose time to more threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(None, key=b"somebody")


def neuron(corpus: Corpus, seed: int = 0) -> Neuron:
    return Neuron(corpus, dim=16, seed=seed)


def test_the_parts_of_a_text_do_not_meet_what_is_held_out(tmp_path: Path) -> None:
    text = bytes(range(256)) * 64
    path = tmp_path / "text"
    path.write_bytes(text)
    shards = [load_corpus(path, key=b"", shard=(index, 4)) for index in range(4)]
    assert b"".join(bytes(shard.train) for shard in shards) + bytes(shards[0].held_out) == text


@pytest.mark.parametrize("content", [None, b"", b"short" * (TEXT_BYTES_MIN // 5)])
def test_a_missing_empty_or_short_text_is_one_clear_error(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"data file .*text"):
        load_corpus(path, key=b"")


def test_representations_do_not_see_later_bytes(corpus: Corpus) -> None:
    learner = neuron(corpus)
    tokens = learner.batch()[:, :-1]
    changed = tokens.copy()
    changed[:, 40:] = 0
    np.testing.assert_allclose(
        learner.represent(tokens)[:, :40], learner.represent(changed)[:, :40], atol=1e-5
    )


def test_learning_lowers_the_held_out_loss_and_scores_tell_a_zero_from_an_answer(
    corpus: Corpus,
) -> None:
    learner, other = neuron(corpus), neuron(corpus, seed=1)
    before = learner.held_out_loss()
    for _ in range(30):
        batch = learner.batch()
        asked = learner.choose(["good", "zero", "silent"])
        good = other.represent(np.ascontiguousarray(batch[:, :-1]))
        lesson = learner.learn(batch, asked, {"good": good, "zero": np.zeros_like(good)})
        assert lesson.gradients["good"].shape == good.shape
    assert learner.held_out_loss() < before - 0.5
    assert learner.scores.shares() == {"good": 1.0}


def test_a_callers_gradient_moves_the_served_model_a_bounded_step(corpus: Corpus) -> None:
    learner = neuron(corpus)
    tokens = learner.batch()[:, :-1]
    before = learner.represent(tokens)
    huge = np.full_like(before, 1e30)
    learner.absorb([(tokens, huge)], share=1.0)
    learner.absorb([(tokens, np.full_like(before, np.nan))], share=1.0)
    learner.learn(learner.batch(), [], {})
    after = learner.represent(tokens)
    assert np.isfinite(after).all()
    assert 0 < np.abs(after - before).max() < 1.0


def test_more_peers_than_seats_leave_the_choice_bounded(corpus: Corpus) -> None:
    learner = neuron(corpus)
    learner.choose([f"early {index}" for index in range(PEERS_MAX)])
    late = [f"late {index}" for index in range(2 * PEERS_MAX)]
    assert 0 < len(learner.choose(late)) < 8
    assert set(learner.choose(late)) <= set(late)


def test_answers_of_another_width_are_fitted(corpus: Corpus) -> None:
    learner = neuron(corpus)
    batch = learner.batch()
    asked = learner.choose(["narrow", "wide"])
    rows, length = batch[:, :-1].shape
    answers = {
        "narrow": np.ones((rows, length, 3), np.float32),
        "wide": np.ones((rows, length, 40), np.float32),
    }
    lesson = learner.learn(batch, asked, answers)
    assert {peer: g.shape for peer, g in lesson.gradients.items()} == {
        peer: answer.shape for peer, answer in answers.items()
    }


class TwoPartners:
    """One peer answers, one never does in time."""

    def __init__(self, corpus: Corpus) -> None:
        self.model = neuron(corpus, seed=2)
        self.gradients: Mapping[str, int] = {}
        self.returned = trio.Event()

    def names(self) -> list[str]:
        return ["alive", "late"]

    async def forward(self, name: str, tokens: NDArray[np.int64], *, deadline_s: float) -> Array:
        await trio.lowlevel.checkpoint()
        if name == "late":
            raise CallTimeout("late")
        return self.model.represent(tokens)

    async def backward(
        self, name: str, tokens: NDArray[np.int64], gradient: Array, *, deadline_s: float
    ) -> None:
        await trio.lowlevel.checkpoint()
        assert name == "alive"
        assert gradient.shape[:2] == tokens.shape
        self.returned.set()


async def test_the_loop_trains_with_whoever_answers_and_ends_when_cancelled(
    corpus: Corpus,
) -> None:
    partners, reports = TwoPartners(corpus), list[TrainingReport]()
    async with trio.open_nursery() as nursery:

        def observe(report: TrainingReport) -> None:
            reports.append(report)
            if report.exchanges:
                nursery.cancel_scope.cancel()

        with trio.fail_after(60):
            nursery.start_soon(train, neuron(corpus), partners, observe)
            await partners.returned.wait()
    assert reports[0].steps == 0
    assert reports[0].loss == reports[0].loss_start
    assert set(reports[-1].exchanges) == {"alive"}
