"""The embedded tasks on synthetic scenes, made on demand: handwritten digits and shapes on a busy background."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from toprl_export.seeding import numpy_rng
from toprl_export.tasks.scenes.glyphs import Split, load_glyphs
from toprl_export.tasks.scenes.questions import ASKERS, MAX_COUNT, Question
from toprl_export.tasks.scenes.scene import Scene, render
from toprl_export.tasks.task import MAX_GROUP_QUESTIONS, QuestionGroup, Sample, Task

_GROUP_ATTEMPTS = 2 * MAX_GROUP_QUESTIONS


@dataclass(frozen=True)
class MiniTask(Task):
    """A task whose scenes and questions come from ``ASKERS[name]``, each sample from a random stream of its own.

    Args:
        balanced_answers: answers made equally likely: one is drawn first, then scenes until a question has it.
            Empty: the answers are as likely as scenes and questions make them.
    """

    balanced_answers: tuple[str, ...] = ()

    def question_count(self, split: Split) -> None:
        """Without end."""

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
        asked = {first.text: first}
        for _ in range(_GROUP_ATTEMPTS):
            question = ASKERS[self.name].ask(scene, rng)
            if question is not None and self._has_room(asked.values(), question):
                asked[question.text] = question
        image = render(scene, load_glyphs(split), rng)
        key = f"{self.name}/{split}/{seed}/group/{index}"
        return QuestionGroup(image, tuple(asked.values()), scene.evidence(ASKERS[self.name].about), key)

    def scene(self, split: Split, seed: int, index: int) -> tuple[Scene, Question]:
        """What sample ``index`` shows and asks, without rendering it."""
        return self._draw(numpy_rng(seed, self.name, split, index))

    def _has_room(self, asked: Collection[Question], question: Question) -> bool:
        """Whether a group has room for ``question``: a balanced answer takes no more than its share of the group."""
        share = math.ceil(MAX_GROUP_QUESTIONS / max(len(self.balanced_answers), 1))
        return len(asked) < MAX_GROUP_QUESTIONS and sum(one.answer == question.answer for one in asked) < share

    def _draw(self, rng: np.random.Generator) -> tuple[Scene, Question]:
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
