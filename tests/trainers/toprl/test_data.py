"""Images in blocks: packed questions score as each does alone through Hugging Face's forward, and take turns."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from tests.trainers.tiny_world import TASK, PatchColour, repeated
from toprl_export.errors import UserError
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.reference import ReferenceRunner, to_tensors
from toprl_export.models.walk import Decision, walk_prefill
from toprl_export.pruning.mask import neutralising_mask
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs, question_states
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS
from toprl_export.tasks.task import Question, QuestionGroup
from toprl_trainers.toprl.data import BlockSource, ImageBlock, looks_at_question, pack_questions
from toprl_trainers.toprl.update import compacted

QUESTIONS = (
    (Question("what colour is it?", "red"), Question("is there a star in the image?", "light circle blue")),
    (Question("how many?", "2"),),
)


def images(adapter: LlavaAdapter, count: int) -> torch.Tensor:
    pixels = adapter.frontend.pixels([TASK.question_group("train", 1, index).image for index in range(count)])
    return adapter.encode_image(torch.from_numpy(pixels))


def hugging_face_score(adapter: LlavaAdapter, question: Question, visual: torch.Tensor, alive: torch.Tensor):
    """Log-probability and correctness of one answer, with the tokens that are not ``alive`` masked as in Eq. 6-7."""
    batch = adapter.frontend.tokens([question.text])
    answer = [*adapter.tokenizer.encode(question.answer, add_special_tokens=False).ids, adapter.end_tokens[0]]
    ids = torch.cat([torch.from_numpy(batch.input_ids), torch.tensor([answer[:-1]], dtype=torch.int64)], dim=1)
    language_model = adapter.model.model.language_model
    embeds = language_model.embed_tokens(ids)
    embeds[0, batch.visual_index[0]] = visual
    everyone = torch.ones(1, ids.shape[1], dtype=torch.bool)
    everyone[0, batch.visual_index[0]] = alive
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None]
    mask = torch.zeros(1, 1, *causal.shape[1:]).masked_fill(~neutralising_mask(causal, everyone)[:, None], -1e30)
    hidden = language_model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    logits = adapter.model.lm_head(hidden)[0, -len(answer) :]
    log_probability = logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum()
    return float(log_probability), logits.argmax(-1).tolist() == answer


@torch.no_grad()
@pytest.mark.parametrize("shown", ["all", "some"])
def test_packed_and_compacted_equals_hugging_face_masked(adapter: LlavaAdapter, shown: str):
    visual = images(adapter, 2)
    alive = torch.ones(2, 25, dtype=torch.bool)
    if shown == "some":
        alive = torch.rand(2, 25, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.3], [0.7]])
    tokens, gold = pack_questions(adapter, QUESTIONS)
    prefill = walk_prefill(adapter.decoder, tokens, visual, (0,), lambda _: compacted(alive))
    found, correct = gold.score(adapter.decoder, prefill.hidden)
    assert found.shape == (3, 1)
    flat = [(0, QUESTIONS[0][0]), (0, QUESTIONS[0][1]), (1, QUESTIONS[1][0])]
    for row, (image, question) in enumerate(flat):
        expected, expected_correct = hugging_face_score(adapter, question, visual[image], alive[image])
        assert float(found[row, 0]) == pytest.approx(expected, abs=1e-4)
        assert bool(correct[row, 0]) == expected_correct
    # the control: another mask gives another score
    others = alive.roll(7, dims=1) if shown == "some" else alive & (torch.arange(25) > 4)
    prefill = walk_prefill(adapter.decoder, tokens, visual, (0,), lambda _: compacted(others))
    assert float((gold.score(adapter.decoder, prefill.hidden)[0] - found).abs().max()) > 1e-2


@torch.no_grad()
def test_questions_do_not_see_each_other(adapter: LlavaAdapter):
    visual = images(adapter, 1)
    alone, both = pack_questions(adapter, [QUESTIONS[0][1:]]), pack_questions(adapter, QUESTIONS[:1])
    scores = [
        gold.score(adapter.decoder, walk_prefill(adapter.decoder, tokens, visual, (), pytest.fail).hidden)[0]
        for tokens, gold in (alone, both)
    ]
    assert float(scores[0][0]) == pytest.approx(float(scores[1][1]), rel=1e-5)


@torch.no_grad()
def test_rollouts_of_an_image_are_columns(adapter: LlavaAdapter):
    tokens, gold = pack_questions(adapter, QUESTIONS)
    visual = images(adapter, 2).repeat_interleave(3, dim=0)
    masks = torch.rand(6, 25, generator=torch.Generator().manual_seed(5)) < 0.4
    prefill = walk_prefill(adapter.decoder, repeated(tokens, 3), visual, (0,), lambda _: compacted(masks))
    found, _ = gold.score(adapter.decoder, prefill.hidden)
    assert found.shape == (3, 3)
    expected, _ = hugging_face_score(adapter, QUESTIONS[1][0], visual[4], masks[4])  # second image, its second rollout
    assert float(found[2, 1]) == pytest.approx(expected, abs=1e-4)


def test_an_answer_without_tokens_is_refused(adapter: LlavaAdapter):
    with pytest.raises(UserError, match="no tokens"):
        pack_questions(adapter, [(Question("what?", " "),)])


def test_image_of_question_counts_through_the_batch(adapter: LlavaAdapter):
    _, gold = pack_questions(adapter, QUESTIONS)
    assert gold.image_of_question.tolist() == [0, 0, 1]
    assert np.unique(gold.question.numpy()).tolist() == [0, 1, 2]
    assert len(gold.label) == 2 + 4 + 2  # words of the answers, and the end after each


@torch.no_grad()
def test_a_row_of_one_question_shows_the_policy_what_it_will_see_when_it_serves(adapter: LlavaAdapter):
    """Answer and padding stand behind the question in training, and nothing does at inference."""
    single = [(QUESTIONS[0][1],), (QUESTIONS[1][0],)]  # of different lengths, so that one row is padded
    tokens, _ = pack_questions(adapter, single)
    texts = [question.text for (question,) in single]
    prompts = to_tensors(adapter.frontend.tokens(texts), adapter.device)
    visual = images(adapter, 2)
    seen: list[list[StageInputs]] = [[], []]
    for record, row in zip(seen, (tokens, prompts), strict=True):

        def decide(inputs: StageInputs, record: list[StageInputs] = record) -> Decision:
            record.append(inputs)
            return Decision(torch.arange(0, inputs.origin.shape[1], 2).expand(2, -1))

        walk_prefill(adapter.decoder, row, visual, (0, 2), decide, ScorerNeeds(attention="last", text=True))
    for training, serving in zip(*seen, strict=True):
        assert training.attention is not None and serving.attention is not None
        torch.testing.assert_close(training.attention, serving.attention, atol=1e-5, rtol=1e-4)
        for ours, theirs in zip(question_states(training), question_states(serving), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    # the control: without knowing where the question ends, the answer is read as part of it
    open_ended = replace(tokens, question_end=None)
    seen[1].clear()
    walk_prefill(adapter.decoder, open_ended, visual, (0, 2), lambda x: decide(x, seen[1]), ScorerNeeds(text=True))
    assert (question_states(seen[1][1])[0] - question_states(seen[0][1])[0]).abs().max() > 1e-2


def test_rows_of_several_questions_have_no_single_end(adapter: LlavaAdapter):
    assert pack_questions(adapter, QUESTIONS)[0].question_end is None


@pytest.fixture
def block(adapter: LlavaAdapter) -> ImageBlock:
    return BlockSource(adapter, TASK, seed=3, first_image=0, images=4, images_per_block=4)[0]


def texts_of(block: ImageBlock) -> list[tuple[str, ...]]:
    return [tuple(question.text for question in questions) for questions in block.questions]


def test_every_question_gets_a_row_and_keeps_its_score(adapter: LlavaAdapter, block: ImageBlock):
    alone = block.every_question(adapter)
    assert len(alone.visual) == len(alone.tokens.input_ids) == 8
    assert texts_of(alone) == [(text,) for texts in texts_of(block) for text in texts]
    assert torch.equal(alone.visual, block.visual.repeat_interleave(2, dim=0))
    assert torch.equal(alone.full_log_probability, block.full_log_probability)
    with torch.no_grad():
        prefill = walk_prefill(adapter.decoder, alone.tokens, alone.visual, (), pytest.fail)
        scores, correct = alone.gold.score(adapter.decoder, prefill.hidden)
    torch.testing.assert_close(scores[:, 0], block.full_log_probability, atol=1e-4, rtol=1e-4)
    assert torch.equal(correct[:, 0], block.full_correct)
    # the control: a row of another image
    assert (scores[:, 0] - block.full_log_probability.roll(2)).abs().max() > 1e-2


def test_the_answerable_questions_of_an_image_take_turns(adapter: LlavaAdapter, block: ImageBlock):
    first, second = TASK.question_group("train", 3, 0).questions
    correct = torch.tensor([True, True, False, True, True, False, False, False])
    block = replace(block, full_correct=correct)
    turns = [block.one_question_an_image(adapter, turn) for turn in range(3)]
    texts = [[questions[0].text for questions in turn.questions] for turn in turns]
    assert texts[0] == [first.text, second.text, first.text, first.text]
    assert texts[1] == [second.text, second.text, first.text, second.text]
    assert texts[2] == texts[0]
    assert turns[1].full_correct.tolist() == [True, True, True, False]
    assert torch.equal(turns[1].full_log_probability, block.full_log_probability[torch.tensor([1, 3, 4, 7])])
    assert torch.equal(turns[1].visual, block.visual)


def test_updates_go_round_the_blocks_and_then_round_the_questions(adapter: LlavaAdapter):
    source = BlockSource(adapter, TASK, seed=3, first_image=0, images=4, images_per_block=2)
    assert source.for_update(3, one_question=False) is source[1]
    assert texts_of(source.for_update(0, one_question=True)) == texts_of(source[0].one_question_an_image(adapter, 0))
    assert texts_of(source.for_update(3, one_question=True)) == texts_of(source[1].one_question_an_image(adapter, 1))
    assert texts_of(source.for_update(1, one_question=True)) != texts_of(source.for_update(3, one_question=True))


def test_images_without_a_question_in_common_may_be_mixed(adapter: LlavaAdapter, monkeypatch: pytest.MonkeyPatch):
    """Images with different numbers of questions, as most tasks have them."""
    real = type(TASK).question_group

    def fewer(task, split, seed, index):
        group = real(task, split, seed, index)
        return QuestionGroup(group.image, group.questions[: 1 + index % 2], group.evidence, group.image_key)

    monkeypatch.setattr(type(TASK), "question_group", fewer)
    block = BlockSource(adapter, TASK, seed=3, first_image=0, images=4, images_per_block=4)[0]
    block = replace(block, full_correct=torch.ones(6, dtype=torch.bool))
    assert [len(texts) for texts in texts_of(block)] == [1, 2, 1, 2]
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


class Loud(PatchColour):
    """The answers are the unpruned model's own, in capitals and with a mark: right by the score, other tokens."""

    said: ClassVar[dict[str, str]] = {}

    def question_group(self, split, seed, index):
        group = super().question_group(split, seed, index)
        questions = tuple(Question(one.text, f"{self.said[f'{index} {one.text}'].upper()}!") for one in group.questions)
        return replace(group, questions=questions)


class Literal(Loud):
    """The same with a score that wants the very letters."""

    def score(self, prediction: str, answer: str) -> float:
        return float(prediction == answer)


def test_an_answer_is_right_by_the_tasks_score_not_by_its_tokens(adapter: LlavaAdapter):
    runner, texts = ReferenceRunner(adapter), [one.text for one in TASK.question_group("train", 1, 0).questions]
    said, ended = {}, {}
    for index in range(4):
        visual = runner.encode_image(adapter.frontend.pixels([TASK.question_group("train", 1, index).image]))
        for text in texts:
            (ids,) = runner.generate(adapter.frontend.tokens([text]), visual, DEFAULT_NEW_TOKENS).tokens
            said[f"{index} {text}"] = adapter.tokenizer.decode(ids) or "nothing"
            ended[f"{index} {text}"] = 0 < len(ids) < DEFAULT_NEW_TOKENS and bool(adapter.tokenizer.decode(ids).strip())
    Loud.said = said
    facts = {name: getattr(TASK, name) for name in TASK.__dataclass_fields__}
    loud, literal = (BlockSource(adapter, kind(**facts), 1, 0, 4, 4)[0] for kind in (Loud, Literal))
    expected = [ended[f"{index} {text}"] for index in range(4) for text in texts]
    assert any(expected)  # or nothing is tested
    assert all(right or not wanted for right, wanted in zip(loud.full_correct.tolist(), expected, strict=True))
    assert not literal.full_correct.any()


@torch.no_grad()
def test_any_end_token_ends_an_answer(adapter: LlavaAdapter):
    tokens, gold = pack_questions(adapter, QUESTIONS)
    hidden = walk_prefill(adapter.decoder, tokens, images(adapter, 2), (), pytest.fail).hidden
    logits = adapter.decoder.head(hidden[:, -gold.question_tokens :][gold.image, gold.offset]).log_softmax(-1)
    one, _ = gold.score(adapter.decoder, hidden)
    both, _ = replace(gold, end_tokens=(gold.end_tokens[0], 7)).score(adapter.decoder, hidden)
    ends = gold.label == gold.end_tokens[0]
    gained = logits[ends][:, [gold.end_tokens[0], 7]].exp().sum(1).log() - logits[ends][:, gold.end_tokens[0]]
    assert torch.allclose(both[:, 0] - one[:, 0], gained, atol=1e-5)
