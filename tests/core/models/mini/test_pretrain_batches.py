"""What `mini` learns from: right answers, also among clutter."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.support.scenes import solve
from toprl_export.models.mini.pretrain.batches import Example, QuestionMix, cluttered_example, scene_example
from toprl_export.models.mini.pretrain.recipe import TASKS
from toprl_export.tasks.scenes import load_glyphs


def examples(make: object, mix: QuestionMix | None, count: int = 150) -> list[Example]:
    rng, glyphs = np.random.default_rng(4), load_glyphs("train")
    return [make(TASKS, glyphs, rng, mix) for _ in range(count)]  # type: ignore[operator]  # one of two functions


@pytest.mark.parametrize("make", [scene_example, cluttered_example])
@pytest.mark.parametrize("mix", [QuestionMix(), None])
def test_every_answer_follows_from_all_that_is_shown(make: object, mix: QuestionMix | None):
    drawn: Counter[str] = Counter()
    for example in examples(make, mix):
        for task, question in example.questions:
            drawn[TASKS[task]] += 1
            assert solve(question.text, example.objects) == question.answer
    assert set(drawn) >= ({"mini-read"} if mix is None else set(TASKS) - {"mini-read", "easy-vqa"})


def test_clutter_is_shown_and_labelled_but_may_be_dropped():
    """The evidence, which is never dropped in training, leaves the clutter out."""
    plain, cluttered = (examples(make, QuestionMix()) for make in (scene_example, cluttered_example))
    assert all(example.evidence.sum() == 4 * len(example.objects) for example in plain)
    more = [len(example.objects) - example.evidence.sum() // 4 for example in cluttered]
    assert np.mean(np.array(more) >= 14) > 0.9


def test_shapes_are_counted_among_digits_only():
    for example in examples(cluttered_example, QuestionMix()):
        if any(TASKS[task] == "mini-count" for task, _ in example.questions):
            assert sum(item.kind.isdecimal() for item in example.objects) > 14
