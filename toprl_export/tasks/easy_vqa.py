"""The published easy-vqa set, unchanged questions and split, its 64×64 images scaled down and pasted on a busy canvas.

At 40×40 a picture's one shape covers about six of the canvas's 576 patches; a digit of our own scenes covers four.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toprl_export.errors import MissingExtraError
from toprl_export.seeding import numpy_rng
from toprl_export.tasks.scenes import GRID, PATCH_PIXELS, busy_background
from toprl_export.tasks.task import MAX_GROUP_QUESTIONS, Question, QuestionGroup, Sample, Split, Task

PICTURE_PIXELS = 40
_FOLDERS: dict[Split, str] = {"train": "train", "held-out": "test"}
_LIGHTEST_SHAPE = 200
"""Upper end of a shape's darkest channel; backdrops are lighter in all three."""


class EasyVQA:
    """One split of easy-vqa, read from the installed package's data files."""

    def __init__(self, split: Split) -> None:
        """Find the package's data without importing it.

        Raises:
            MissingExtraError: the ``easy-vqa`` package is not installed.
        """
        spec = find_spec("easy_vqa")
        if spec is None or spec.origin is None:
            raise MissingExtraError("easy_vqa", "demo")
        self.split = split
        self._folder = Path(spec.origin).parent / "data" / _FOLDERS[split]

    @cached_property
    def questions(self) -> list[tuple[Question, int]]:
        """Every question with its image's index, in the published order."""
        rows = json.loads((self._folder / "questions.json").read_text())
        return [(Question(text, answer), index) for text, answer, index in rows]

    @cached_property
    def _by_image(self) -> dict[int, list[Question]]:
        grouped: dict[int, list[Question]] = {}
        for question, index in self.questions:
            grouped.setdefault(index, []).append(question)
        return grouped

    @property
    def image_count(self) -> int:
        """Number of images."""
        return len(self._by_image)

    def questions_of(self, index: int) -> list[Question]:
        """The questions about image ``index``."""
        return self._by_image[index]

    def canvas(
        self, index: int, rng: np.random.Generator | None = None, pixels: int = PICTURE_PIXELS
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Image ``index`` on the canvas, ``uint8 [192, 192, 3]``; the shape's patches ``[24, 24]``.

        Args:
            index: of the published image.
            rng: draws place and background; None fixes them by the index, as evaluation wants them.
            pixels: height and width of the picture on the canvas, a multiple of the patch size.
        """
        if rng is None:
            rng = numpy_rng(0, "easy-vqa", self.split, index)
        image = busy_background(rng)
        blocks = pixels // PATCH_PIXELS
        row, column = rng.integers(0, GRID - blocks + 1, size=2).tolist()
        with Image.open(self._folder / "images" / f"{index}.png") as file:
            picture = np.asarray(file.convert("RGB").resize((pixels, pixels), Image.Resampling.LANCZOS))
        top, left = row * PATCH_PIXELS, column * PATCH_PIXELS
        image[top : top + pixels, left : left + pixels] = picture
        shape = picture.min(axis=-1) < _LIGHTEST_SHAPE  # backdrops are pale, shapes are saturated or dark
        evidence = np.zeros((GRID, GRID), dtype=np.bool_)
        evidence[row : row + blocks, column : column + blocks] = shape.reshape(blocks, 8, blocks, 8).any(axis=(1, 3))
        return image, evidence


@lru_cache(maxsize=2)
def load_easy_vqa(split: Split) -> EasyVQA:
    """The split, read once a process."""
    return EasyVQA(split)


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


@lru_cache(maxsize=8)  # every sample of a draw looks its number up here
def _order(seed: int, split: Split, what: str, length: int) -> NDArray[np.int64]:
    return numpy_rng(seed, "easy-vqa", split, what).permutation(length)


EASY_VQA = EasyVQATask(
    "easy-vqa", "perception", "the published easy-vqa: shape, colour and yes/no questions", "easy_vqa"
)
