"""Accuracy of answers: F1 is there for tasks that have one, and only for them."""

from __future__ import annotations

import pytest

from toprl_export.models.mini.architecture import build_tokenizer
from toprl_export.tasks.registry import TASKS
from toprl_export.validate.retention import Answers, judge_answers

EXPECTED = ["yes", "yes", "no", "no"]
ENGINE = ["yes", "no", "yes", "no"]  # one hit, one miss, one false alarm


@pytest.mark.parametrize(("task", "f1"), [("mini-exist", (1.0, 0.5)), ("mini-count", (None, None))])
def test_f1_of_the_answers(task: str, f1: tuple[float | None, float | None]):
    tokenizer = build_tokenizer()
    ids = {word: [tokenizer.token_to_id(word)] for word in ("yes", "no")}
    right, engine = ([ids[word] for word in words] for words in (EXPECTED, ENGINE))
    answers = Answers(EXPECTED, right, {8: engine}, {8: right}, {8: engine})
    accuracy = judge_answers(TASKS.get(task), tokenizer, answers, 8, seed=0).accuracy
    assert (accuracy.reference.value, accuracy.engine.value) == (1.0, 0.5)
    assert (accuracy.reference.f1, accuracy.engine.f1) == f1
