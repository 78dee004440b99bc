"""Parity: an engine that is right agrees, one that is wrong in any one way is found out. Accuracy: F1 is there for the
tasks that have one, and only for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_llava import tiny_adapter
from tests.support.torch_engine import Fault, TorchSession
from toprl_export.models.mini.architecture import build_tokenizer
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.runtime.layout import TokenBatch
from toprl_export.tasks.registry import TASKS
from toprl_export.validation.answers import (
    Answers,
    EncodedQuestions,
    PrefillParity,
    PrunedRuns,
    QuestionBatch,
    Tokens,
    judge_answers,
    kept_overlap,
    token_agreement,
)
from toprl_export.validation.costs import MeasuredSession
from toprl_export.validation.report import Parity
from toprl_export.validation.stock import StockSession

STAGE_LAYERS = (0, 2)
KEEP_COUNTS = (12, 6)
EXPECTED = ["yes", "yes", "no", "no"]
ENGINE = ["yes", "no", "yes", "no"]  # one hit, one miss, one false alarm
QUESTIONS = ["what colour is the 7?", "is there a star in the image?", "how many circles are there?", "is there a 3?"]


class Compared:
    """A tiny model, an engine for it and four questions."""

    def __init__(self, session: type[TorchSession] = TorchSession, fault: Fault = "none") -> None:
        self.adapter = tiny_adapter()
        torch.manual_seed(2)
        actor = Actor(ActorConfig(self.adapter.shape.hidden, 16, len(STAGE_LAYERS))).eval()
        self.runner = ReferenceRunner(self.adapter)
        pruning = Pruning(STAGE_LAYERS, KEEP_COUNTS, actor)
        engine = MeasuredSession(session(self.adapter, actor, STAGE_LAYERS, fault), KEEP_COUNTS, 0)
        self.runs = PrunedRuns(engine, pruning, pruning)
        stock = self.stock = StockSession(self.adapter)
        pixels = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(5)).numpy()
        batch = QuestionBatch({"pixel_values": pixels}, self.tokens(QUESTIONS), tuple(QUESTIONS), ("",) * 4)
        self.questions = EncodedQuestions.encode(batch, stock, engine.session, self.runner, saliency=False)

    def tokens(self, questions: list[str]) -> TokenBatch:
        return self.adapter.frontend.tokens(questions)

    def parity(self, engine_tokens: Tokens, reference_tokens: Tokens) -> Parity:
        prefills = PrefillParity()
        for start, stop in ((0, 3), (3, 4)):
            prefills.add(self.questions.part(start, self.tokens(QUESTIONS[start:stop])), self.runs, self.runner)
        return prefills.summarise(engine_tokens, reference_tokens)


def parity_of(fault: Fault) -> Parity:
    compared, answers = Compared(fault=fault), Answers()
    stock = MeasuredSession(compared.stock, (25, 25), 0)
    answers.add(compared.questions, ("",) * 4, stock, {6: compared.runs}, compared.runner, 12)
    assert answers.pruned_reference == answers.random  # the same pruning here
    return compared.parity(answers.engine[6], answers.pruned_reference[6])


def test_a_part_is_what_was_encoded_and_nothing_is_encoded_again():
    compared = Compared()
    part = compared.questions.part(1, compared.tokens(QUESTIONS[1:3]))
    np.testing.assert_array_equal(part.engine.visual, compared.questions.engine.visual[1:3])
    np.testing.assert_array_equal(part.reference.visual, compared.questions.reference.visual[1:3])
    assert part.tokens.batch == 2 and part.saliency is None


def test_a_right_engine_agrees():
    parity = parity_of("none")
    assert parity.kept_overlap_per_stage == (1.0, 1.0)
    assert parity.logit_error_free is not None and parity.logit_error_free < 1e-5
    assert parity.logit_error_forced is not None and parity.logit_error_forced < 1e-5
    assert parity.greedy_agreement == 1.0
    assert parity.n == 4


def test_wrong_selection_shows_in_overlap_and_free_error_only():
    parity = parity_of("selection")
    assert max(parity.kept_overlap_per_stage) < 0.6
    assert parity.logit_error_free is not None and parity.logit_error_free > 0.05
    assert parity.logit_error_forced is not None and parity.logit_error_forced < 1e-5


def test_wrong_numbers_show_in_the_forced_error():
    parity = parity_of("logits")
    assert parity.kept_overlap_per_stage == (1.0, 1.0)
    assert parity.logit_error_forced == pytest.approx(0.01, rel=0.05)


def test_wrong_decoding_shows_in_the_tokens():
    parity = parity_of("decode")
    assert parity.logit_error_free is not None and parity.logit_error_free < 1e-5
    assert parity.greedy_agreement < 0.95


def test_overlap_by_hand():
    one = [np.array([[0, 1, 2, 3], [4, 5, 6, 7]]), np.array([[0], [7]])]
    other = [np.array([[2, 3, 8, 9], [4, 5, 6, 7]]), np.array([[3], [7]])]
    assert kept_overlap(one, other).tolist() == [[0.5, 0.0], [1.0, 1.0]]
    with pytest.raises(ValueError, match="no pair"):
        kept_overlap(one, other[:1])


def test_agreement_by_hand():
    assert token_agreement([[1, 2]], [[1, 2]]) == 1.0
    assert token_agreement([[1, 2]], [[1, 3]]) == pytest.approx(2 / 3)  # the end agrees
    assert token_agreement([[1]], [[1, 2]]) == pytest.approx(1 / 3)
    assert token_agreement([[], [5]], [[], [6]]) == pytest.approx(2 / 3)


def test_a_logit_that_is_no_number_is_no_small_error():
    class Broken(TorchSession):
        def prefill(self, request):
            result = super().prefill(request)
            result.logits[-1, 0] = np.nan
            return result

    parity = Compared(Broken).parity([[1]], [[1]])
    assert parity.logit_error_free is None
    assert parity.logit_error_forced is None


@pytest.mark.parametrize(("task", "f1"), [("mini-exist", (1.0, 0.5)), ("mini-count", (None, None))])
def test_f1_of_the_answers(task: str, f1: tuple[float | None, float | None]):
    tokenizer = build_tokenizer()
    ids = {word: [tokenizer.token_to_id(word)] for word in ("yes", "no")}
    right, engine = ([ids[word] for word in words] for words in (EXPECTED, ENGINE))
    answers = Answers(EXPECTED, right, {8: engine}, {8: right}, {8: engine})
    accuracy = judge_answers(TASKS.get(task), tokenizer, ["?"] * len(answers.expected), answers, 8, seed=0).accuracy
    assert (accuracy.reference.value, accuracy.engine.value) == (1.0, 0.5)
    assert (accuracy.reference.f1, accuracy.engine.f1) == f1
