"""The embedded tasks: questions about synthetic scenes, made on demand, with answers in `mini`'s vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from toprl_export.seeding import numpy_rng
from toprl_export.tasks.scenes import (
    DIGITS,
    KINDS,
    SHAPES,
    Scene,
    clutter_with_digits,
    clutter_with_shapes,
    load_glyphs,
    render,
    sample_number_scene,
    sample_scene,
)
from toprl_export.tasks.task import MAX_GROUP_QUESTIONS, Question, QuestionGroup, Sample, Split, Task

MAX_COUNT = 4
RELATION_MARGIN = 2
_GROUP_ATTEMPTS = 2 * MAX_GROUP_QUESTIONS


def ask_exist(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Yes or no, balanced: is a digit (or, one time in four, a shape) in the image?"""
    names = SHAPES if rng.random() < 0.25 else DIGITS
    present = {item.kind for item in scene.objects}
    wanted = rng.random() < 0.5
    candidates = [name for name in names if (name in present) == wanted]
    if not candidates:
        return None
    return Question(f"is there a {rng.choice(candidates)} in the image?", "yes" if wanted else "no")


def ask_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of one digit."""
    item = scene.digits[int(rng.integers(len(scene.digits)))]
    return Question(f"what colour is the {item.kind}?", item.colour)


def ask_read(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The written number, digit by digit from top to bottom."""
    del rng
    return None if scene.number is None else Question("what number is written in the image?", " ".join(scene.number))


def ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many of one shape, zero to four."""
    shape = str(rng.choice(SHAPES))
    count = sum(item.kind == shape for item in scene.objects)
    if count > MAX_COUNT or (count == 0 and rng.random() < 0.6):  # a scene shows at most two of the four shapes
        return None
    return Question(f"how many {shape}s are there?", str(count))


def ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The highest or the lowest digit in the image, by a clear margin."""
    side = str(rng.choice(("topmost", "lowest")))
    keys = [item.row if side == "topmost" else -item.row for item in scene.digits]
    order = np.argsort(keys)
    if keys[order[1]] - keys[order[0]] < RELATION_MARGIN:
        return None
    return Question(f"which digit is {side}?", scene.digits[int(order[0])].kind)


def ask_compare(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The digit of the largest or of the smallest value."""
    values = sorted(item.kind for item in scene.digits)
    largest = rng.random() < 0.5
    return Question(f"which digit is the {'largest' if largest else 'smallest'}?", values[-1] if largest else values[0])


SampleScene = Callable[[np.random.Generator], Scene]
Ask = Callable[[Scene, np.random.Generator], "Question | None"]


class Asker(NamedTuple):
    """How a task makes scenes and questions, and the kinds of objects that its answers depend on."""

    sample_scene: SampleScene
    ask: Ask
    about: tuple[str, ...]


def _among_shapes(rng: np.random.Generator) -> Scene:
    return clutter_with_shapes(sample_scene(rng), rng)


def _among_digits(rng: np.random.Generator) -> Scene:
    return clutter_with_digits(sample_scene(rng), rng)


def _number_among_shapes(rng: np.random.Generator) -> Scene:
    return clutter_with_shapes(sample_number_scene(rng), rng)


ASKERS: dict[str, Asker] = {
    "mini-exist": Asker(_among_shapes, ask_exist, KINDS),
    "mini-read": Asker(_number_among_shapes, ask_read, DIGITS),
    "mini-colour": Asker(_among_shapes, ask_colour, DIGITS),
    "mini-count": Asker(_among_digits, ask_count, SHAPES),
    "mini-relation": Asker(_among_shapes, ask_relation, DIGITS),
    "mini-compare": Asker(_among_shapes, ask_compare, DIGITS),
}


@dataclass(frozen=True)
class MiniTask(Task):
    """A task whose scenes and questions come from ``ASKERS[name]``, each sample from a random stream of its own.

    Args:
        balanced_answers: answers made equally likely: one is drawn first, then scenes until a question has it.
            Empty: the answers are as likely as scenes and questions make them.
    """

    balanced_answers: tuple[str, ...] = ()

    def question_count(self, split: Split) -> None:
        """None: questions are made on demand."""

    def sample(self, split: Split, seed: int, index: int) -> Sample:
        """See :meth:`Task.sample`."""
        rng = numpy_rng(seed, self.name, split, index)
        scene, question = self._draw(rng)
        image = render(scene, load_glyphs(split), rng)
        key = f"{self.name}/{split}/{seed}/{index}"
        return Sample(image, question.text, question.answer, scene.evidence(ASKERS[self.name].about), key)

    def question_group(self, split: Split, seed: int, index: int) -> QuestionGroup:
        """See :meth:`Task.question_group`; the first question is drawn like a sample's, the others fit its scene."""
        rng = numpy_rng(seed, self.name, split, "group", index)
        scene, first = self._draw(rng)
        chosen = {first.text: first}
        for _ in range(_GROUP_ATTEMPTS):
            question = ASKERS[self.name].ask(scene, rng)
            if question is not None and self._has_room(chosen.values(), question):
                chosen[question.text] = question
        image = render(scene, load_glyphs(split), rng)
        key = f"{self.name}/{split}/{seed}/group/{index}"
        return QuestionGroup(image, tuple(chosen.values()), scene.evidence(ASKERS[self.name].about), key)

    def scene(self, split: Split, seed: int, index: int) -> tuple[Scene, Question]:
        """What sample ``index`` shows and asks, without rendering it."""
        return self._draw(numpy_rng(seed, self.name, split, index))

    def _has_room(self, chosen: Collection[Question], question: Question) -> bool:
        """Whether a group has room for ``question``: a balanced answer takes no more than its share of the group."""
        share = math.ceil(MAX_GROUP_QUESTIONS / max(len(self.balanced_answers), 1))
        return len(chosen) < MAX_GROUP_QUESTIONS and sum(one.answer == question.answer for one in chosen) < share

    def _draw(self, rng: np.random.Generator) -> tuple[Scene, Question]:
        # Rejection sampling: the answer is drawn first, so that scenes that seldom allow it do not make it rare.
        asker = ASKERS[self.name]
        wanted = str(rng.choice(self.balanced_answers)) if self.balanced_answers else None
        while True:
            scene = asker.sample_scene(rng)
            question = asker.ask(scene, rng)
            if question is not None and wanted in (None, question.answer):
                return scene, question


EXIST = MiniTask(
    "mini-exist",
    "perception",
    "is a digit or a shape in the image? yes or no",
    "sklearn",
    metric="accuracy+f1",
    balanced_answers=("yes", "no"),
)
READ = MiniTask("mini-read", "perception", "read a number of two digits, written downwards", "sklearn")
COLOUR = MiniTask("mini-colour", "perception", "the colour of a digit", "sklearn")
COUNT = MiniTask(
    "mini-count",
    "reasoning",
    f"how many of a shape there are, 0 to {MAX_COUNT}",
    "sklearn",
    balanced_answers=tuple(str(number) for number in range(MAX_COUNT + 1)),
)
RELATION = MiniTask("mini-relation", "reasoning", "the topmost or the lowest digit", "sklearn")
COMPARE = MiniTask("mini-compare", "reasoning", "the largest or the smallest digit", "sklearn")
