"""Training batches for `mini`: images, what each patch shows, and many questions an image packed into one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from toprl_export.models.mini.architecture import END
from toprl_export.tasks.easy_vqa import EasyVQA
from toprl_export.tasks.mini_tasks import ASKERS
from toprl_export.tasks.scenes import (
    COLOURS,
    DIGITS,
    GRID,
    OBJECT_PATCHES,
    SHAPES,
    GlyphBank,
    Scene,
    SceneObject,
    busy_background,
    clutter_with_digits,
    clutter_with_shapes,
    paint,
    render,
    sample_number_scene,
    sample_scene,
)
from toprl_export.tasks.task import Question

KINDS = (*DIGITS, *SHAPES, "rectangle")
PALETTE = (*COLOURS, "black", "gray", "teal", "brown")
BACKGROUND_CLASS = len(KINDS)
IGNORED = -100
HINTED_TOKENS = 6
"""The word that decides a question is at most this many tokens before the end of "assistant:"."""
QUESTIONS_PER_NUMBER_SCENE = {"mini-read": 1, "mini-count": 2}
QUESTIONS_AMONG_DIGITS = {"mini-exist": 3, "mini-count": 4}
AMONG_DIGITS = 0.3


@dataclass(frozen=True)
class QuestionMix:
    """How many questions of each task one scene gets (equal questions count once)."""

    exist: int = 6
    colour: int = 4
    count: int = 2
    relation: int = 3
    compare: int = 2

    def wanted(self) -> dict[str, int]:
        """The same by the tasks' names."""
        return {f"mini-{name}": count for name, count in vars(self).items()}


@dataclass(frozen=True)
class PatchBatch:
    """Images ``uint8 [b, 192, 192, 3]``; kind and colour of each patch ``int64 [b, 576]`` (-100 where unknown)."""

    images: Tensor
    kinds: Tensor
    colours: Tensor


@dataclass(frozen=True)
class PackedBatch:
    """``PatchBatch`` and, per image, questions in one row ``int64 [b, q]``.

    ``offsets`` count from each question's first token, ``segments`` number the questions from 1 (0: padding),
    ``labels`` hold the next token where it belongs to an answer and -100 elsewhere, ``tasks`` index each token's task,
    ``hints`` hold the answer's first token at the last few tokens of its question and -100 elsewhere. ``evidence``
    marks the patches that the answers rest on, ``bool [b, 576]``.
    """

    patches: PatchBatch
    evidence: Tensor
    tokens: Tensor
    offsets: Tensor
    segments: Tensor
    labels: Tensor
    tasks: Tensor
    hints: Tensor


@dataclass(frozen=True)
class Example:
    """One image, its labelled patches and its questions with their task's index.

    What easy-vqa's patches show is not ``known``, but the answers may give the kind and colour of the evidence.
    """

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    evidence: NDArray[np.bool_]
    known: bool
    questions: tuple[tuple[int, Question], ...]

    def answer_among(self, words: Sequence[str]) -> str | None:
        """The first answer that is one of ``words``, or None."""
        return next((question.answer for _, question in self.questions if question.answer in words), None)


def mosaic_example(glyphs: GlyphBank, rng: np.random.Generator) -> Example:
    """A dense mosaic: two cells in three show an object, on a grid shifted by zero or one patch."""
    shift_row, shift_column = rng.integers(0, OBJECT_PATCHES, size=2).tolist()
    image = busy_background(rng)
    objects = [
        SceneObject(str(rng.choice((*DIGITS, *SHAPES))), str(rng.choice(list(COLOURS))), row, column)
        for row in range(shift_row, GRID - 1, OBJECT_PATCHES)
        for column in range(shift_column, GRID - 1, OBJECT_PATCHES)
        if rng.random() < 2 / 3
    ]
    for item in objects:
        paint(image, item, glyphs, rng)
    return Example(image, tuple(objects), np.ones((GRID, GRID), dtype=np.bool_), True, ())


def scene_example(
    tasks: Sequence[str], glyphs: GlyphBank, rng: np.random.Generator, mix: QuestionMix | None
) -> Example:
    """A scene with the questions of ``mix``, or one that shows a number where ``mix`` is None."""
    scene = sample_scene(rng) if mix else sample_number_scene(rng)
    return _example(scene, mix.wanted() if mix else QUESTIONS_PER_NUMBER_SCENE, tasks, glyphs, rng)


def cluttered_example(
    tasks: Sequence[str], glyphs: GlyphBank, rng: np.random.Generator, mix: QuestionMix | None
) -> Example:
    """As `scene_example`, among clutter; shapes are counted among digits only, as they are in the task."""
    if mix is None:
        return _example(clutter_with_shapes(sample_number_scene(rng), rng), {"mini-read": 1}, tasks, glyphs, rng)
    if rng.random() < AMONG_DIGITS:
        return _example(clutter_with_digits(sample_scene(rng), rng), QUESTIONS_AMONG_DIGITS, tasks, glyphs, rng)
    wanted = {task: count for task, count in mix.wanted().items() if task != "mini-count"}
    return _example(clutter_with_shapes(sample_scene(rng), rng), wanted, tasks, glyphs, rng)


def _example(
    scene: Scene, wanted: dict[str, int], tasks: Sequence[str], glyphs: GlyphBank, rng: np.random.Generator
) -> Example:
    image = render(scene, glyphs, rng)
    questions = tuple(_ask(scene, tasks, wanted, rng))
    return Example(image, (*scene.objects, *scene.clutter), scene.evidence(), True, questions)


def _ask(
    scene: Scene, tasks: Sequence[str], wanted: dict[str, int], rng: np.random.Generator
) -> list[tuple[int, Question]]:
    drawn: dict[tuple[str, str], tuple[int, Question]] = {}
    for task, count in wanted.items():
        for _ in range(count):
            question = ASKERS[task].ask(scene, rng)
            if question is not None:
                drawn[task, question.text] = (tasks.index(task), question)
    return list(drawn.values())


def easy_vqa_example(data: EasyVQA, index: int, tasks: Sequence[str], rng: np.random.Generator, pixels: int) -> Example:
    """One easy-vqa image, ``pixels`` wide and anywhere on the canvas, with all its questions."""
    image, evidence = data.canvas(index, rng, pixels)
    questions = tuple((tasks.index("easy-vqa"), question) for question in data.questions_of(index))
    return Example(image, (), evidence, False, questions)


def patch_batch(examples: Sequence[Example]) -> PatchBatch:
    """Stack images and patch labels."""
    kinds = np.full((len(examples), GRID, GRID), IGNORED, dtype=np.int64)
    colours = np.full((len(examples), GRID, GRID), IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        kind, colour = (None, None) if example.known else (example.answer_among(KINDS), example.answer_among(PALETTE))
        if example.known or (kind and colour):
            kinds[row] = BACKGROUND_CLASS
        if kind and colour:
            kinds[row][example.evidence] = KINDS.index(kind)
            colours[row][example.evidence] = PALETTE.index(colour)
        for item in example.objects:
            area = (row, slice(item.row, item.row + OBJECT_PATCHES), slice(item.column, item.column + OBJECT_PATCHES))
            kinds[area] = KINDS.index(item.kind)
            colours[area] = PALETTE.index(item.colour)
    images = torch.from_numpy(np.stack([example.image for example in examples]))
    return PatchBatch(images, torch.from_numpy(kinds).flatten(1), torch.from_numpy(colours).flatten(1))


def packed_batch(examples: Sequence[Example], tokenizer: Tokenizer) -> PackedBatch:
    """Tokenize and pack every example's questions; rows are padded to the longest."""
    rows = [_pack(example.questions, tokenizer) for example in examples]
    width = max(row.shape[1] for row in rows)
    packed = np.stack([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows])  # [b, 6, q]
    packed[:, [3, 5]] = np.where(packed[:, 2:3] == 0, IGNORED, packed[:, [3, 5]])
    tokens, offsets, segments, labels, tasks, hints = torch.from_numpy(packed).unbind(1)
    evidence = torch.from_numpy(np.stack([example.evidence for example in examples])).flatten(1)
    return PackedBatch(patch_batch(examples), evidence, tokens, offsets, segments, labels, tasks, hints)


def _pack(questions: Sequence[tuple[int, Question]], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Tokens, offsets, segments, labels, tasks and hints of one image's questions, ``int64 [6, q]``."""
    columns: list[NDArray[np.int64]] = []
    for segment, (task, question) in enumerate(questions, start=1):
        prompt = tokenizer.encode(f"{question.text} assistant:", add_special_tokens=False).ids
        answer = tokenizer.encode(f"{question.answer}{END}", add_special_tokens=False).ids
        tokens = prompt + answer[:-1]
        labels = [IGNORED] * (len(prompt) - 1) + answer
        block = np.empty((6, len(tokens)), dtype=np.int64)
        block[:5] = tokens, np.arange(len(tokens)), np.full(len(tokens), segment), labels, np.full(len(tokens), task)
        block[5] = IGNORED
        block[5, max(len(prompt) - 1 - HINTED_TOKENS, 0) : len(prompt) - 1] = answer[0]
        columns.append(block)
    return np.concatenate(columns, axis=1)
