"""The published easy-vqa questions as a task, in an order drawn by the seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from toprl_export.seeding import numpy_rng
from toprl_export.tasks.easy_vqa import load_easy_vqa
from toprl_export.tasks.scenes.glyphs import Split
from toprl_export.tasks.task import MAX_GROUP_QUESTIONS, QuestionGroup, Sample, Task


@dataclass(frozen=True)
class EasyVQATask(Task):
    """easy-vqa: ``seed`` shuffles the published questions; groups go over all images, in a new order every time."""

    def question_count(self, split: Split) -> int:
        """See :meth:`Task.question_count`."""
        return len(load_easy_vqa(split).questions)

    def image_count(self, split: Split) -> int:
        """See :meth:`Task.image_count`."""
        return load_easy_vqa(split).image_count

    def sample(self, split: Split, seed: int, index: int) -> Sample:
        """See :meth:`Task.sample`."""
        data = load_easy_vqa(split)
        question, image_index = data.questions[_order(seed, split, "questions", len(data.questions))[index]]
        image, evidence = data.canvas(image_index)
        return Sample(image, question.text, question.answer, evidence, self._image_key(split, image_index))

    def question_group(self, split: Split, seed: int, index: int) -> QuestionGroup:
        """See :meth:`Task.question_group`."""
        data = load_easy_vqa(split)
        round_number, position = divmod(index, data.image_count)
        image_index = int(_order(seed, split, f"images/{round_number}", data.image_count)[position])
        questions = data.questions_of(image_index)
        chosen = numpy_rng(seed, self.name, split, "group", index).permutation(len(questions))[:MAX_GROUP_QUESTIONS]
        image, evidence = data.canvas(image_index)
        group = tuple(questions[number] for number in chosen)
        return QuestionGroup(image, group, evidence, self._image_key(split, image_index))

    def _image_key(self, split: Split, image_index: int) -> str:
        return f"{self.name}/{split}/{image_index}"


@lru_cache(maxsize=8)
def _order(seed: int, split: Split, what: str, length: int) -> NDArray[np.int64]:
    return numpy_rng(seed, "easy-vqa", split, what).permutation(length)


EASY_VQA = EasyVQATask(
    "easy-vqa", "perception", "the published easy-vqa: shape, colour and yes/no questions", "easy_vqa"
)
