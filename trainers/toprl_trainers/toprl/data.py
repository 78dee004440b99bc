"""Training images in fixed blocks: embeddings, questions, and what the unpruned model answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.walk import Decision, TokenTensors, walk_prefill
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.tasks.task import Question, QuestionGroup, Task
from toprl_trainers.toprl.processes import ALONE, Processes, Share
from toprl_trainers.toprl.questions import GoldAnswers, pack_questions


@dataclass(frozen=True)
class ImageBlock:
    """g images with their questions.

    ``visual`` embeddings ``[g, n, d]``; ``tokens`` one packed row an image; ``gold`` where the answers stand;
    ``full_log_probability`` of each gold answer ``float32 [Q]`` and whether the unpruned model is right ``bool [Q]``;
    ``questions`` of each image.
    """

    visual: Tensor
    tokens: TokenTensors
    gold: GoldAnswers
    full_log_probability: Tensor
    full_right: Tensor
    questions: tuple[tuple[Question, ...], ...] = ()

    def one_question_each(self, adapter: LVLMAdapter, chosen: Sequence[int]) -> ImageBlock:
        """Rows of one question each, so that what is kept may depend on it; images are repeated where they must be.

        Args:
            adapter: supplies tokenizer and prompt format.
            chosen: which of the block's Q questions, at least one.
        """
        flat = [question for asked in self.questions for question in asked]
        rows = tuple((flat[number],) for number in chosen)
        tokens, gold = pack_questions(adapter, rows)
        index = torch.tensor(chosen, device=self.full_right.device)
        return ImageBlock(
            visual=self.visual[self.gold.image_of_question[index]],
            tokens=tokens,
            gold=gold,
            full_log_probability=self.full_log_probability[index],
            full_right=self.full_right[index],
            questions=rows,
        )

    def every_question(self, adapter: LVLMAdapter) -> ImageBlock:
        """Rows of one question each for all Q questions, in their order."""
        return self.one_question_each(adapter, range(len(self.full_right)))

    def one_question_an_image(self, adapter: LVLMAdapter, turn: int) -> ImageBlock:
        """One row an image with one question, those that the unpruned model answers in turn; any, if it answers none.

        Args:
            adapter: as above.
            turn: how often the block came round before.
        """
        right = self.full_right.tolist()
        chosen, first = [], 0
        for asked in self.questions:
            numbers = range(first, first + len(asked))
            able = [number for number in numbers if right[number]] or list(numbers)
            chosen.append(able[turn % len(able)])
            first += len(asked)
        return self.one_question_each(adapter, chosen)


def looks_at_question(needs: ScorerNeeds) -> bool:
    """Whether what a scorer keeps depends on the question, so that rows must hold one question each."""
    return needs.text or needs.attention != "none"


class BlockSource:
    """Blocks of the train split; each is computed when it is first asked for and then kept.

    A block's content depends on its number alone, never on which blocks were made before it, so that a resumed run
    sees the same bits.

    Args:
        adapter: the frozen model.
        task: supplies the question groups.
        seed: of the draw.
        first_image: where in the draw the first block starts.
        images: how many images there are in all.
        images_per_block: how many a block holds; the last may hold fewer.
        precision: "float32" or "bfloat16", in which the frozen model runs.
        processes: among which each block's images are divided; a block holds this process's part.
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
        processes: Processes = ALONE,
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
        self._made: dict[int, ImageBlock] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[ImageBlock]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> ImageBlock:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if number not in self._made:
            self._made[number] = self._make(self._mine(number))
        return self._made[number]

    def share(self, number: int) -> Share:
        """Which of a block's images this process has."""
        images = len(self._spans[number])
        return Share(self._processes, self._processes.part(images), images)

    def _mine(self, number: int) -> range:
        part = self.share(number).part
        return self._spans[number][part.start : part.stop]

    def for_update(self, update: int, one_question: bool) -> ImageBlock:
        """What an update learns from; blocks follow one another and come round again.

        Args:
            update: its number.
            one_question: one question of each image (another one each time round) instead of all in one row.
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
        pixels = torch.from_numpy(self._adapter.image_processor([group.image for group in groups]))
        return pixels.to(self._adapter.device)

    @torch.no_grad()
    def _make(self, span: range) -> ImageBlock:
        groups = self._groups(span)
        questions = tuple(group.questions for group in groups)
        tokens, gold = pack_questions(self._adapter, questions)
        with model_precision(self._adapter, self._precision):
            visual = self._adapter.encode_image(self._pixels(groups)).float()
            full = walk_prefill(self._adapter.decoder, tokens, visual, (), _unpruned)
            log_probability, right = gold.score(self._adapter.decoder, full.hidden)
        if not bool(torch.isfinite(log_probability).all()):
            raise UserError(
                f"model {self._adapter.model_id} answers with probabilities that are not numbers: check its weights"
            )
        return ImageBlock(visual, tokens, gold, log_probability[:, 0], right[:, 0], questions)


def model_precision(adapter: LVLMAdapter, precision: str) -> AbstractContextManager[object]:
    """The context in which the frozen model runs."""
    return torch.autocast(adapter.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def _unpruned(inputs: StageInputs) -> Decision:
    raise AssertionError(f"no stage was planned, yet stage {inputs.stage} was reached")
