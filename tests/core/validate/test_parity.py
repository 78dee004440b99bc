"""Parity: an engine that is right agrees, one that is wrong in any one way is found out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_llava import tiny_adapter
from tests.support.torch_engine import Fault, TorchSession
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.runtime.generation import GenerationRequest, generate
from toprl_export.validate.answers import Contender, QuestionBatch
from toprl_export.validate.parity import kept_overlap, measure_parity, token_agreement
from toprl_export.validate.report import Parity

STAGE_LAYERS = (0, 2)
KEEP_COUNTS = (12, 6)
QUESTIONS = ["what colour is the 7?", "is there a star in the image?", "how many circles are there?", "is there a 3?"]


def question_batches(adapter) -> list[QuestionBatch]:
    pixels = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(5)).numpy()
    tokenize = adapter.prompt_format.tokenize
    return [
        QuestionBatch(pixels[a:b], tokenize(adapter.tokenizer, QUESTIONS[a:b], adapter.visual_tokens), ("",) * (b - a))
        for a, b in ((0, 3), (3, 4))
    ]


def parity_of(fault: Fault) -> Parity:
    adapter = tiny_adapter()
    torch.manual_seed(2)
    actor = Actor(ActorConfig(adapter.shape.hidden, 16, len(STAGE_LAYERS))).eval()
    session = TorchSession(adapter, actor, STAGE_LAYERS, fault)
    runner, pruning = ReferenceRunner(adapter), Pruning(STAGE_LAYERS, KEEP_COUNTS, actor)
    batches = question_batches(adapter)
    engine, reference = [], []
    for batch in batches:
        request = GenerationRequest(batch.pixels, batch.tokens, KEEP_COUNTS, 0, 12, adapter.end_tokens)
        engine += [list(row) for row in generate(session, adapter.tokenizer, request).token_ids]
        reference += runner.generate(batch.tokens, runner.encode_image(batch.pixels), 12, pruning).tokens
    return measure_parity(Contender(session, KEEP_COUNTS, 0), runner, pruning, batches, engine, reference)


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
    adapter = tiny_adapter()
    actor = Actor(ActorConfig(adapter.shape.hidden, 16, len(STAGE_LAYERS))).eval()

    class Broken(TorchSession):
        def prefill(self, request):
            result = super().prefill(request)
            result.logits[-1, 0] = np.nan
            return result

    contender = Contender(Broken(adapter, actor, STAGE_LAYERS), KEEP_COUNTS, 0)
    pruning = Pruning(STAGE_LAYERS, KEEP_COUNTS, actor)
    parity = measure_parity(contender, ReferenceRunner(adapter), pruning, question_batches(adapter), [[1]], [[1]])
    assert parity.logit_error_free is None
    assert parity.logit_error_forced is None
