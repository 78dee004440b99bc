"""Answers to many questions: batches against one at a time, and no more work of the vision tower than needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.tiny_llava import IMAGE_PIXELS, QUESTIONS, tiny_adapter
from toprl_export.errors import UserError
from toprl_export.evaluation.answering import EncodedBatch, answer_samples, sample_batches
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.baselines.controls import OracleScorer
from toprl_export.pruning.scorer import make_scorer
from toprl_export.tasks.task import Sample

STAGES, COUNTS = (0, 2), (10, 4)


class CountingRunner(ReferenceRunner):
    """Counts the passes of the vision tower, for embeddings and for its attention."""

    encoded = attended = 0

    def encode_image(self, pixel_values: NDArray[np.float32]) -> Tensor:
        self.encoded += 1
        return super().encode_image(pixel_values)

    def saliency(self, pixel_values: NDArray[np.float32]) -> Tensor:
        self.attended += 1
        return super().saliency(pixel_values)


@pytest.fixture
def runner() -> CountingRunner:
    return CountingRunner(tiny_adapter())


def make_samples(count: int) -> list[Sample]:
    generator = np.random.default_rng(0)
    shape = (count, IMAGE_PIXELS, IMAGE_PIXELS, 3)
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    return [Sample(image, QUESTIONS[at % 3], "", None, str(at)) for at, image in enumerate(images)]


def by_uniform(_: Sequence[Sample]) -> Pruning:
    return Pruning(STAGES, COUNTS, make_scorer("uniform"))


def one_at_a_time(runner: ReferenceRunner, samples: Sequence[Sample], pruning: Pruning | None) -> list[str]:
    adapter, answers = runner.adapter, []
    for sample in samples:
        tokens = adapter.frontend.tokens([sample.question])
        visual = runner.encode_image(adapter.frontend.pixels([sample.image]))
        answers.append(adapter.tokenizer.decode(runner.generate(tokens, visual, 16, pruning).tokens[0]))
    return answers


def test_batches_answer_as_one_question_at_a_time(runner: CountingRunner) -> None:
    samples = make_samples(7)
    pruned = answer_samples(runner, samples, by_uniform, batch=3)
    full = answer_samples(runner, samples, lambda _: None, batch=3)
    assert pruned == one_at_a_time(runner, samples, by_uniform(samples))
    assert full == one_at_a_time(runner, samples, None)
    assert pruned != full  # or the comparison would show nothing


def test_every_batch_is_asked_for_its_pruning_in_order(runner: CountingRunner) -> None:
    samples, seen, done = make_samples(5), [], []

    def pruning_of(batch: Sequence[Sample]) -> None:
        seen.append([sample.image_key for sample in batch])

    answer_samples(runner, samples, pruning_of, batch=2, max_new_tokens=1, progress=done.append)
    assert seen == [["0", "1"], ["2", "3"], ["4"]]
    assert done == [2, 2, 1]
    assert [len(batch) for batch in sample_batches(samples, 2)] == [2, 2, 1]


def test_pruning_may_know_its_batch(runner: CountingRunner) -> None:
    samples = make_samples(4)

    def oracle(batch: Sequence[Sample]) -> Pruning:
        evidence = torch.zeros(len(batch), 25, dtype=torch.bool)
        for row, sample in enumerate(batch):
            evidence[row, int(sample.image_key) :] = True
        return Pruning((0,), (21,), OracleScorer(evidence))

    whole, halves = (answer_samples(runner, samples, oracle, batch=size) for size in (4, 2))
    assert whole == halves


def test_images_are_encoded_once_for_several_answers(runner: CountingRunner) -> None:
    batch = EncodedBatch(runner, make_samples(3))
    answers = [batch.answer(None), batch.answer(by_uniform(batch.samples)), batch.answer(None)]
    assert runner.encoded == 1
    assert answers[0] == answers[2] != answers[1]


def test_the_towers_attention_is_computed_where_it_is_needed_and_once(runner: CountingRunner) -> None:
    batch = EncodedBatch(runner, make_samples(3))
    batch.answer(None)
    batch.answer(by_uniform(batch.samples))
    assert runner.attended == 0
    by_saliency = Pruning((0,), (6,), make_scorer("visionzip"))
    assert by_saliency.scorer.needs.saliency
    first = batch.answer(by_saliency)
    assert batch.answer(by_saliency) == first
    assert runner.attended == 1


def test_a_question_without_room_for_its_answer_is_one_line(runner: CountingRunner) -> None:
    sample = make_samples(1)[0]
    long = Sample(sample.image, "is there a star? " * 60, "", None, "long")
    with pytest.raises(UserError, match="at most 240 fit"):
        answer_samples(runner, [long], lambda _: None)
