"""SparseVLM against its definition written out in loops of NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.stage_inputs import only_row, random_inputs
from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.baselines.attention import SparseVLMScorer, text_raters
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs


def raters_of(visual: np.ndarray, question: np.ndarray) -> np.ndarray:
    """R_j = mean over i of softmax over j of v_i·q_j; raters have at least the mean R."""
    shares = np.zeros(len(question))
    for v in visual:
        weights = np.exp(question @ v - (question @ v).max())
        shares += weights / weights.sum() / len(visual)
    return shares >= shares.mean()


def by_definition(inputs: StageInputs, row: int) -> np.ndarray:
    alone = only_row(inputs, row)
    question_mask = alone.question_mask[0].numpy()
    raters = raters_of(
        alone.visual_embeddings[0].double().numpy(), alone.text_embeddings[0].double().numpy()[question_mask]
    )
    return alone.attention[0].double().numpy()[question_mask][raters].mean(0)


def test_scores_are_the_raters_mean_attention():
    inputs = random_inputs(1, text=9)
    scores = SparseVLMScorer()(inputs)
    for row in range(3):
        expected = by_definition(inputs, row)
        np.testing.assert_allclose(scores[row, inputs.alive[row]], expected, atol=1e-6)
        everyone = inputs.attention[row, inputs.question_mask[row]].mean(0)[inputs.alive[row]]
        assert np.abs(expected - everyone.numpy()).max() > 1e-3, "leaving raters out must matter"


def test_raters_are_of_the_question_and_some_but_not_all():
    inputs = random_inputs(1, text=9)
    raters = text_raters(inputs)
    assert not (raters & ~inputs.question_mask).any()
    assert (raters.sum(1) >= 1).all()
    assert (raters.sum(1) < inputs.question_mask.sum(1)).all()


def test_a_worked_case():
    # Both visual tokens point at the second question token; the first text token is no part of the question.
    visual = torch.tensor([[[4.0, 0.0], [4.0, 1.0]]])
    text = torch.tensor([[[9.0, 9.0], [0.0, 1.0], [1.0, 0.0]]])
    attention = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]])
    question_mask = torch.tensor([[False, True, True]])
    inputs = StageInputs(
        1,
        visual.flip(2),  # states that a later stage sees play no part
        None,
        torch.arange(2)[None],
        attention,
        question_mask=question_mask,
        visual_embeddings=visual,
        text_embeddings=text,
    )
    assert text_raters(inputs).tolist() == [[False, False, True]]
    torch.testing.assert_close(SparseVLMScorer()(inputs), torch.tensor([[0.3, 0.7]]))


def test_equal_shares_make_everyone_a_rater():
    inputs = random_inputs(2, text=7)
    alike = replace(inputs, text_embeddings=inputs.text_embeddings[:, :1].expand(-1, 7, -1))
    assert torch.equal(text_raters(alike), inputs.question_mask)


def test_a_row_that_asks_nothing_has_scores():
    inputs = replace(random_inputs(2), question_mask=torch.zeros(3, 7, dtype=torch.bool))
    assert torch.equal(SparseVLMScorer()(inputs), torch.zeros(3, 16))


def test_raters_are_those_of_the_embeddings_at_every_stage():
    runner = ReferenceRunner(tiny_adapter())
    seen: list[StageInputs] = []

    class Recorded(SparseVLMScorer):
        def forward(self, inputs: StageInputs) -> torch.Tensor:
            seen.append(inputs)
            return super().forward(inputs)

    visual = runner.encode_image(tiny_pixels(2).numpy())
    runner.prefill(tiny_tokens(runner.adapter, 2), visual, Pruning((0, 2), (12, 5), Recorded()))
    first, second = seen
    assert first.visual.shape[1] != second.visual.shape[1]
    assert torch.equal(first.visual_embeddings, visual) and torch.equal(second.visual_embeddings, visual)
    assert torch.equal(text_raters(first), text_raters(second))


def test_it_asks_for_what_it_needs():
    assert SparseVLMScorer.needs == ScorerNeeds(attention="text", embeddings=True)
    inputs = random_inputs(0)
    with pytest.raises(ValueError, match="no attention rows"):
        SparseVLMScorer()(replace(inputs, attention=None))
    with pytest.raises(ValueError, match="gave it none"):
        SparseVLMScorer()(replace(inputs, text_embeddings=None))
