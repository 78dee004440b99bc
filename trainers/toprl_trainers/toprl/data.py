"""What rollouts are played on: the train split's images in fixed blocks, their questions and gold answers in one row.

Questions stand in a row behind their image, each followed by its gold answer. Visual tokens come before the questions
and attention is causal, so what a policy that is blind to the question does to the image does not depend on the
questions: one pass over image and kept tokens serves them all. A policy that looks at the question needs rows of one
question each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.decoder import Decoder
from toprl_export.models.reference import ReferenceRunner
from toprl_export.models.walk import Decision, TokenTensors, walk_prefill
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS
from toprl_export.tasks.task import Question, QuestionGroup, Task
from toprl_trainers.rl.processes import SINGLE_PROCESS, Processes, Shard


@dataclass(frozen=True)
class WordedQuestion(Question):
    """A question whose right answer is taken in the model's own words; ``answer_ids`` without the end."""

    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class GoldAnswers:
    """Where the gold answers stand among the packed question tokens of a batch of images.

    For each answer token: ``image`` (batch row), ``offset`` (of the token that predicts it, among the q question
    tokens), ``label`` (its id) and ``question`` (numbered through the batch), all ``int64 [a]``. ``image_of_question``
    is ``int64 [Q]``. ``end_tokens`` are the model's: an answer may end by any of them, the label of every end being the
    first.
    """

    image: Tensor
    offset: Tensor
    label: Tensor
    question: Tensor
    image_of_question: Tensor
    question_tokens: int
    end_tokens: tuple[int, ...]

    def score(self, decoder: Decoder, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each gold answer, and whether greedy decoding would give exactly it.

        Args:
            decoder: supplies the head.
            hidden: normed states of the last layer, ``[g·m, s, d]``: m rollouts for each of the g images; the question
                tokens are the last of the sequence.

        Returns:
            ``float32 [Q, m]`` and ``bool [Q, m]``.
        """
        images = int(self.image_of_question.max()) + 1
        questions = hidden[:, -self.question_tokens :]  # [g·m, q, d]
        questions = questions.reshape(images, -1, *questions.shape[1:])  # [g, m, q, d]
        # The head, whose output is as wide as the vocabulary, is run only where answers are predicted.
        states = questions[self.image, :, self.offset]  # [a, m, d]
        logits = decoder.head(states).float()  # [a, m, V]
        label = self.label[:, None, None].expand(-1, logits.shape[1], 1)
        log_probabilities = logits.log_softmax(-1)
        chosen = log_probabilities.gather(-1, label).squeeze(-1)  # [a, m]
        wrong = (logits.argmax(-1) != self.label[:, None]).float()
        if len(self.end_tokens) > 1:
            ends = torch.tensor(self.end_tokens, device=logits.device)
            is_end = (self.label == self.end_tokens[0])[:, None]
            chosen = torch.where(is_end, log_probabilities[..., ends].logsumexp(-1), chosen)
            wrong = torch.where(is_end, (~torch.isin(logits.argmax(-1), ends)).float(), wrong)
        empty = torch.zeros(len(self.image_of_question), logits.shape[1], device=logits.device)
        total = empty.index_add(0, self.question, chosen)  # [Q, m]
        return total, empty.index_add(0, self.question, wrong) == 0


@dataclass(frozen=True)
class _PackedRow:
    """One image's row of token ids: prompt up to the image's end, then questions and answers with their positions.

    ``segments`` number the row's questions from 1, so that none attends to another; ``answers`` has for every answer
    token the offset of the token that predicts it, its id, and its question's number in the row.
    """

    prefix: list[int]
    tokens: list[int]
    positions: list[int]
    segments: list[int]
    answers: list[tuple[int, int, int]]


def pack_questions(adapter: LVLMAdapter, questions: Sequence[Sequence[Question]]) -> tuple[TokenTensors, GoldAnswers]:
    """Tokenise every image's questions with their answers into one row per image, padded at the right.

    Where every row holds a single question, ``question_end`` says where it ends and the answer begins: a scorer that
    looks at the question must not see the answer.

    Args:
        adapter: supplies the prompts.
        questions: per image at least one question.

    Raises:
        UserError: the text up to the image depends on the question, or an answer has no tokens.
    """
    rows = [_pack(adapter, of_image) for of_image in questions]
    prefix = rows[0].prefix
    if any(row.prefix != prefix for row in rows):
        raise UserError(f"model {adapter.model_id} puts the question before the image: such prompts cannot be packed")
    width = max(len(row.tokens) for row in rows)

    def padded(parts: Sequence[Sequence[int]]) -> Tensor:
        array = np.zeros((len(parts), width), dtype=np.int64)
        for row, part in enumerate(parts):
            array[row, : len(part)] = part
        return torch.from_numpy(array).to(adapter.device)

    return (
        _with_prefix(
            adapter,
            prefix,
            padded([row.tokens for row in rows]),
            padded([row.positions for row in rows]),
            padded([row.segments for row in rows]),
            _question_end(adapter, rows),
        ),
        _gold(rows, width, adapter),
    )


def _question_end(adapter: LVLMAdapter, rows: Sequence[_PackedRow]) -> Tensor | None:
    """Where in the sequence each row's only question ends, ``int64 [b]``; None where a row holds several."""
    if any(row.segments[-1] > 1 for row in rows):
        return None
    ends = [len(row.prefix) + row.answers[0][0] for row in rows]  # the token that predicts the answer's first token
    return torch.tensor(ends, device=adapter.device)


def _answer_ids(adapter: LVLMAdapter, question: Question) -> list[int]:
    if isinstance(question, WordedQuestion):
        return list(question.answer_ids)
    ids: list[int] = adapter.tokenizer.encode(question.answer, add_special_tokens=False).ids
    if not ids:
        raise UserError(f"the answer {question.answer!r} to {question.text!r} has no tokens: correct the task")
    return ids


def _pack(adapter: LVLMAdapter, questions: Sequence[Question]) -> _PackedRow:
    """The row of one image's questions."""
    packed = _PackedRow([], [], [], [], [])
    for number, question in enumerate(questions):
        batch = adapter.frontend.tokens([question.text])
        start = int(batch.visual_index[0, -1]) + 1
        prompt = batch.input_ids[0, start:].tolist()
        answer = _answer_ids(adapter, question)
        labels = [*answer, adapter.end_tokens[0]]
        first = len(packed.tokens) + len(prompt) - 1
        packed.prefix[:] = batch.input_ids[0, :start].tolist()
        packed.answers.extend((first + offset, label, number) for offset, label in enumerate(labels))
        # Every question goes on from the image, as if it were the only one.
        packed.positions.extend(range(start, start + len(prompt) + len(answer)))
        packed.segments.extend([number + 1] * (len(prompt) + len(answer)))
        packed.tokens.extend([*prompt, *answer])
    return packed


def _with_prefix(
    adapter: LVLMAdapter,
    prefix: Sequence[int],
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor,
    question_end: Tensor | None,
) -> TokenTensors:
    """The packed question tokens ``int64 [g, q]`` behind the prefix that all rows share."""
    rows, device = len(tokens), adapter.device
    lead = torch.tensor(prefix, device=device).expand(rows, -1)
    lead_positions = torch.arange(len(prefix), device=device).expand(rows, -1)
    length = len(prefix) + tokens.shape[1]
    first_visual = len(prefix) - adapter.visual_tokens
    index = torch.arange(length, device=device)
    visual = (index >= first_visual) & (index < len(prefix))
    return TokenTensors(
        input_ids=torch.cat([lead, tokens], dim=1),
        attention_mask=torch.cat([torch.ones_like(lead), (segments > 0).long()], dim=1),
        position_ids=torch.cat([lead_positions, positions], dim=1),
        visual_index=index[visual].expand(rows, -1),
        text_index=index[~visual].expand(rows, -1),
        segments=torch.cat([torch.zeros_like(lead), segments], dim=1),
        question_end=question_end,
    )


def _gold(rows: Sequence[_PackedRow], width: int, adapter: LVLMAdapter) -> GoldAnswers:
    """The rows' answers, their questions numbered through the batch."""
    found: list[tuple[int, int, int, int]] = []
    image_of_question: list[int] = []
    for image, row in enumerate(rows):
        first = len(image_of_question)
        found += [(image, offset, label, first + question) for offset, label, question in row.answers]
        image_of_question += [image] * row.segments[-1]
    images, offsets, labels, questions = torch.tensor(found, device=adapter.device).unbind(1)
    of_question = torch.tensor(image_of_question, device=adapter.device)
    return GoldAnswers(images, offsets, labels, questions, of_question, width, adapter.end_tokens)


@dataclass(frozen=True)
class ImageBlock:
    """g images with their Q questions, and what the unpruned ("full") model answers.

    ``visual`` embeddings ``[g, n, d]``; ``tokens`` one packed row per image; ``gold`` where the answers stand;
    ``full_log_probability`` of each gold answer ``float32 [Q]``, and whether the unpruned model answers correctly,
    ``full_correct`` ``bool [Q]``; ``questions`` of each image.
    """

    visual: Tensor
    tokens: TokenTensors
    gold: GoldAnswers
    full_log_probability: Tensor
    full_correct: Tensor
    questions: tuple[tuple[Question, ...], ...] = ()

    def one_question_each(self, adapter: LVLMAdapter, chosen: Sequence[int]) -> ImageBlock:
        """Rows of one question each, so that what is kept may depend on it; an image stands in as many rows as needed.

        Args:
            adapter: supplies the prompts.
            chosen: which of the block's Q questions, at least one.
        """
        flat = [question for of_image in self.questions for question in of_image]
        rows = tuple((flat[number],) for number in chosen)
        tokens, gold = pack_questions(adapter, rows)
        index = torch.tensor(chosen, device=self.full_correct.device)
        return ImageBlock(
            visual=self.visual[self.gold.image_of_question[index]],
            tokens=tokens,
            gold=gold,
            full_log_probability=self.full_log_probability[index],
            full_correct=self.full_correct[index],
            questions=rows,
        )

    def every_question(self, adapter: LVLMAdapter) -> ImageBlock:
        """Rows of one question each for all Q questions, in their order."""
        return self.one_question_each(adapter, range(len(self.full_correct)))

    def one_question_an_image(self, adapter: LVLMAdapter, turn: int) -> ImageBlock:
        """One row per image with one question: those that the unpruned model gets right take turns, or else all.

        Args:
            adapter: as above.
            turn: how often the block has been used before.
        """
        correct = self.full_correct.tolist()
        chosen, first = [], 0
        for of_image in self.questions:
            numbers = range(first, first + len(of_image))
            # A question that the unpruned model gets wrong weighs nothing, so its rollouts would be wasted.
            answered = [number for number in numbers if correct[number]] or list(numbers)
            chosen.append(answered[turn % len(answered)])
            first += len(of_image)
        return self.one_question_each(adapter, chosen)


def looks_at_question(needs: ScorerNeeds) -> bool:
    """Whether what a scorer keeps depends on the question, so that rows must hold one question each."""
    return needs.text or needs.attention != "none"


class BlockSource:
    """Blocks of the train split; each is computed when it is first requested and then kept.

    A block's content depends on its number alone, never on which blocks were computed before it, so that a resumed run
    sees the same bits.

    Args:
        adapter: the frozen model.
        task: supplies the question groups.
        seed: of the draw.
        first_image: where in the draw the first block starts.
        images: how many images there are in all.
        images_per_block: how many a block holds, over all processes; the last may hold fewer.
        precision: "float32" or "bfloat16", in which the frozen model runs.
        processes: among which each block's images are divided; this process's blocks hold its shard alone.
    """

    def __init__(
        self,
        adapter: LVLMAdapter,
        task: Task,
        seed: int,
        first_image: int,
        images: int,
        images_per_block: int,
        precision: str = "float32",
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self._adapter = adapter
        self._task = task
        self._seed = seed
        self._precision = precision
        self._processes = processes
        stop = first_image + images
        self._spans = [
            range(start, min(start + images_per_block, stop)) for start in range(first_image, stop, images_per_block)
        ]
        self._computed: dict[int, ImageBlock] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[ImageBlock]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> ImageBlock:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if number not in self._computed:
            self._computed[number] = self._compute(self._mine(number))
        return self._computed[number]

    def shard(self, number: int) -> Shard:
        """Which of a block's images this process has."""
        images = len(self._spans[number])
        return Shard(self._processes, self._processes.shard(images), images)

    def _mine(self, number: int) -> range:
        part = self.shard(number).part
        return self._spans[number][part.start : part.stop]

    def for_update(self, update: int, one_question: bool) -> ImageBlock:
        """What an update learns from; updates go through the blocks in order, again and again.

        Args:
            update: its number.
            one_question: one question of each image (another one each time) instead of all in one row.
        """
        turn, number = divmod(update, len(self))
        return self[number].one_question_an_image(self._adapter, turn) if one_question else self[number]

    @torch.no_grad()
    def saliency(self, number: int) -> Tensor:
        """The vision tower's attention on each patch of a block's images, ``float32 [g, n]``."""
        groups = self._groups(self._mine(number))
        return self._adapter.vision_saliency(self._pixels(groups))

    def _groups(self, span: range) -> list[QuestionGroup]:
        return [self._task.question_group("train", self._seed, index) for index in span]

    def _pixels(self, groups: Sequence[QuestionGroup]) -> Tensor:
        pixels = torch.from_numpy(self._adapter.fixed_frontend.pixels([group.image for group in groups]))
        return pixels.to(self._adapter.device)

    @torch.no_grad()
    def _compute(self, span: range) -> ImageBlock:
        groups = self._groups(span)
        asked = tuple(group.questions for group in groups)
        with model_precision(self._adapter, self._precision):
            visual = self._adapter.encode_image(self._pixels(groups)).float()
            block = self._answered(visual, asked)
            worded = self._in_own_words(block)
            return block if worded == asked else self._answered(visual, worded)

    def _answered(self, visual: Tensor, questions: tuple[tuple[Question, ...], ...]) -> ImageBlock:
        tokens, gold = pack_questions(self._adapter, questions)
        full = walk_prefill(self._adapter.decoder, tokens, visual, (), _unpruned)
        log_probability, correct = gold.score(self._adapter.decoder, full.hidden)
        if not bool(torch.isfinite(log_probability).all()):
            raise UserError(
                f"model {self._adapter.model_id} gives its answers NaN or infinite log-probabilities: check its weights"
            )
        return ImageBlock(visual, tokens, gold, log_probability[:, 0], correct[:, 0], questions)

    def _in_own_words(self, block: ImageBlock) -> tuple[tuple[Question, ...], ...]:
        """The questions with the unpruned model's own answer for the right one, where the task's score accepts it.

        A model that says "Yes." where the task's answer is "yes" is right, and what it is rewarded for under pruning
        is to go on saying so. Only questions whose literal answer the model would not give are asked.
        """
        flat = [question for of_image in block.questions for question in of_image]
        others = [number for number, right in enumerate(block.full_correct.tolist()) if not right]
        if others:
            tokens = self._adapter.frontend.tokens([flat[number].text for number in others])
            visual = block.visual[block.gold.image_of_question[others]]
            said = ReferenceRunner(self._adapter).generate(tokens, visual, DEFAULT_NEW_TOKENS).tokens
            for number, ids in zip(others, said, strict=True):
                question = flat[number]
                answer = self._adapter.tokenizer.decode(ids)
                if 0 < len(ids) < DEFAULT_NEW_TOKENS and self._task.score(answer, question.answer) > 0:
                    flat[number] = WordedQuestion(question.text, question.answer, tuple(ids))
        rest = iter(flat)
        return tuple(tuple(next(rest) for _ in of_image) for of_image in block.questions)


def model_precision(adapter: LVLMAdapter, precision: str) -> AbstractContextManager[object]:
    """The context in which the frozen model runs."""
    return torch.autocast(adapter.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def _unpruned(inputs: StageInputs) -> Decision:
    raise AssertionError(f"no stage was planned, yet stage {inputs.stage} was reached")
