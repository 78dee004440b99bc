"""The published easy-vqa set, unchanged questions and split, its 64×64 images scaled down and pasted on a busy canvas.

At 40×40 a picture's one shape covers about six of the canvas's 576 patches; a digit of our own scenes covers four.
"""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toprl_export.errors import MissingExtraError
from toprl_export.seeding import numpy_rng
from toprl_export.tasks.scenes.glyphs import Split
from toprl_export.tasks.scenes.questions import Question
from toprl_export.tasks.scenes.scene import GRID, PATCH_PIXELS, busy_background

PICTURE_PIXELS = 40
_FOLDERS: dict[Split, str] = {"train": "train", "held-out": "test"}
_LIGHTEST_SHAPE = 200


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
            pixels: height and width of the picture on the canvas, a multiple of the patch's.
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
