"""Training images in fixed blocks: embeddings, packed questions, and what the unpruned model answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.walk import Decision, TokenTensors, walk_prefill
from toprl_export.pruning.scorer import StageInputs
from toprl_export.tasks.task import Task
from toprl_trainers.toprl.questions import GoldAnswers, pack_questions


@dataclass(frozen=True)
class ImageBlock:
    """g images with their questions.

    ``visual`` embeddings ``[g, n, d]``; ``tokens`` one packed row an image; ``gold`` where the answers stand;
    ``full_log_probability`` of each gold answer ``float32 [Q]`` and whether the unpruned model is right ``bool [Q]``.
    """

    visual: Tensor
    tokens: TokenTensors
    gold: GoldAnswers
    full_log_probability: Tensor
    full_right: Tensor


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
    ) -> None:
        self._adapter = adapter
        self._task = task
        self._seed = seed
        self._precision = precision
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
            self._made[number] = self._make(self._spans[number])
        return self._made[number]

    @torch.no_grad()
    def _make(self, span: range) -> ImageBlock:
        groups = [self._task.question_group("train", self._seed, index) for index in span]
        pixels = torch.from_numpy(self._adapter.image_processor([group.image for group in groups]))
        tokens, gold = pack_questions(self._adapter, [group.questions for group in groups])
        with model_precision(self._adapter, self._precision):
            visual = self._adapter.encode_image(pixels.to(self._adapter.device)).float()
            full = walk_prefill(self._adapter.decoder, tokens, visual, (), _unpruned)
            log_probability, right = gold.score(self._adapter.decoder, full.hidden)
        if not bool(torch.isfinite(log_probability).all()):
            raise UserError(
                f"model {self._adapter.model_id} answers with probabilities that are not numbers: check its weights"
            )
        return ImageBlock(visual, tokens, gold, log_probability[:, 0], right[:, 0])


def model_precision(adapter: LVLMAdapter, precision: str) -> AbstractContextManager[object]:
    """The context in which the frozen model runs."""
    return torch.autocast(adapter.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def _unpruned(inputs: StageInputs) -> Decision:
    raise AssertionError(f"no stage was planned, yet stage {inputs.stage} was reached")
