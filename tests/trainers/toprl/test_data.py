"""Blocks of images: which question is asked when, and that a row of one question is scored as it is among others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.trainers.tiny_world import TASK
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.walk import walk_prefill
from toprl_export.pruning.scorer import ScorerNeeds
from toprl_export.tasks.task import QuestionGroup
from toprl_trainers.toprl.data import BlockSource, ImageBlock, looks_at_question


@pytest.fixture
def block(adapter: LlavaAdapter) -> ImageBlock:
    return BlockSource(adapter, TASK, seed=3, first_image=0, images=4, images_per_block=4)[0]


def asked(block: ImageBlock) -> list[tuple[str, ...]]:
    return [tuple(question.text for question in questions) for questions in block.questions]


def test_every_question_gets_a_row_and_keeps_its_score(adapter: LlavaAdapter, block: ImageBlock):
    alone = block.every_question(adapter)
    assert len(alone.visual) == len(alone.tokens.input_ids) == 8
    assert asked(alone) == [(text,) for texts in asked(block) for text in texts]
    assert torch.equal(alone.visual, block.visual.repeat_interleave(2, dim=0))
    assert torch.equal(alone.full_log_probability, block.full_log_probability)
    with torch.no_grad():
        prefill = walk_prefill(adapter.decoder, alone.tokens, alone.visual, (), pytest.fail)
        scores, right = alone.gold.score(adapter.decoder, prefill.hidden)
    torch.testing.assert_close(scores[:, 0], block.full_log_probability, atol=1e-4, rtol=1e-4)
    assert torch.equal(right[:, 0], block.full_right)
    # the control: a row of another image
    assert (scores[:, 0] - block.full_log_probability.roll(2)).abs().max() > 1e-2


def test_the_answerable_questions_of_an_image_take_turns(adapter: LlavaAdapter, block: ImageBlock):
    first, second = TASK.question_group("train", 3, 0).questions
    right = torch.tensor([True, True, False, True, True, False, False, False])
    block = replace(block, full_right=right)
    turns = [block.one_question_an_image(adapter, turn) for turn in range(3)]
    texts = [[questions[0].text for questions in turn.questions] for turn in turns]
    assert texts[0] == [first.text, second.text, first.text, first.text]
    assert texts[1] == [second.text, second.text, first.text, second.text]
    assert texts[2] == texts[0]
    assert turns[1].full_right.tolist() == [True, True, True, False]
    assert torch.equal(turns[1].full_log_probability, block.full_log_probability[torch.tensor([1, 3, 4, 7])])
    assert torch.equal(turns[1].visual, block.visual)


def test_updates_go_round_the_blocks_and_then_round_the_questions(adapter: LlavaAdapter):
    source = BlockSource(adapter, TASK, seed=3, first_image=0, images=4, images_per_block=2)
    assert source.for_update(3, one_question=False) is source[1]
    assert asked(source.for_update(0, one_question=True)) == asked(source[0].one_question_an_image(adapter, 0))
    assert asked(source.for_update(3, one_question=True)) == asked(source[1].one_question_an_image(adapter, 1))
    assert asked(source.for_update(1, one_question=True)) != asked(source.for_update(3, one_question=True))


def test_images_without_a_question_in_common_may_be_mixed(adapter: LlavaAdapter, monkeypatch: pytest.MonkeyPatch):
    """Images with different numbers of questions, as most tasks have them."""
    real = type(TASK).question_group

    def fewer(task, split, seed, index):
        group = real(task, split, seed, index)
        return QuestionGroup(group.image, group.questions[: 1 + index % 2], group.evidence, group.image_key)

    monkeypatch.setattr(type(TASK), "question_group", fewer)
    block = BlockSource(adapter, TASK, seed=3, first_image=0, images=4, images_per_block=4)[0]
    block = replace(block, full_right=torch.ones(6, dtype=torch.bool))
    assert [len(texts) for texts in asked(block)] == [1, 2, 1, 2]
    chosen = block.one_question_an_image(adapter, 1)
    assert torch.equal(chosen.full_log_probability, block.full_log_probability[torch.tensor([0, 2, 3, 5])])


@pytest.mark.parametrize(
    ("needs", "looks"),
    [
        (ScorerNeeds(), False),
        (ScorerNeeds(saliency=True), False),
        (ScorerNeeds(text=True), True),
        (ScorerNeeds(attention="last"), True),
    ],
    ids=str,
)
def test_who_looks_at_the_question(needs: ScorerNeeds, looks: bool):
    assert looks_at_question(needs) is looks
