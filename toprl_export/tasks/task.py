"""What a task is: samples for evaluation, question groups for training, and the score of its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from toprl_export.errors import EXTRA_OF_MODULE, MissingExtraError
from toprl_export.registry import unknown_name
from toprl_export.tasks.metrics import MetricSummary, score, summarise

Split = Literal["train", "held-out"]
Level = Literal["perception", "reasoning"]
Metric = Literal["accuracy", "accuracy+f1"]

MAX_GROUP_QUESTIONS = 4
"""Maximum number of questions about one image in training; the image is encoded once for all of them."""


@dataclass(frozen=True)
class Question:
    """A question in plain words and its one right answer."""

    text: str
    answer: str


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one image.

    ``image`` is ``uint8 [h, w, 3]``; ``evidence`` marks the patches that show an object, ``bool [24, 24]``, or is None
    where that is not known. Samples of one ``image_key`` show the same image.
    """

    image: NDArray[np.uint8]
    question: str
    answer: str
    evidence: NDArray[np.bool_] | None
    image_key: str


@dataclass(frozen=True, eq=False)
class QuestionGroup:
    """An image with one to four different questions, so that it is encoded once for all of them."""

    image: NDArray[np.uint8]
    questions: tuple[Question, ...]
    evidence: NDArray[np.bool_] | None
    image_key: str


@dataclass(frozen=True)
class Task(ABC):
    """A kind of question, its data and its metric.

    Every sample and every group depends only on split, seed and its own index: the first N of a longer draw are the
    same, and draws can be made in any order or in parallel.

    Args:
        name: what ``--task`` takes.
        level: perception, where seeing suffices, or reasoning, where what is seen must be combined.
        description: one line.
        module: the optional top-level package that the data comes from.
        metric: ``accuracy``, or ``accuracy+f1`` for yes/no questions, whose F1 is reported too.
    """

    name: str
    level: Level
    description: str
    module: str
    metric: Metric = "accuracy"

    @abstractmethod
    def question_count(self, split: Split) -> int | None:
        """How many questions ``split`` has; None where they are made on demand."""

    def image_count(self, split: Split) -> int | None:
        """How many images ``split`` has before question groups show them again; None where they are made on demand."""
        del split
        return None

    @abstractmethod
    def sample(self, split: Split, seed: int, index: int) -> Sample:
        """Sample ``index`` (0 to :meth:`question_count` - 1) of the draw by ``seed``."""

    @abstractmethod
    def question_group(self, split: Split, seed: int, index: int) -> QuestionGroup:
        """Question group ``index`` of the draw by ``seed``; ``index`` has no upper bound."""

    def samples(self, split: Split, seed: int, limit: int | None = None) -> Iterator[Sample]:
        """The first ``limit`` samples of the draw by ``seed``, made one by one.

        Without a limit, or with one above :meth:`question_count`, all there are: endlessly many for a task that makes
        its questions on demand.

        Raises:
            UserError: the split is unknown.
            MissingExtraError: the data's package is not installed.
        """
        self._check(split)
        available = self.question_count(split)
        ends = [end for end in (limit, available) if end is not None]
        return (self.sample(split, seed, index) for index in (range(min(ends)) if ends else count()))

    def question_groups(self, split: Split, seed: int, images: int | None = None) -> Iterator[QuestionGroup]:
        """The first ``images`` question groups of the draw by ``seed``, made one by one; endlessly many for None.

        Raises:
            UserError: the split is unknown.
            MissingExtraError: the data's package is not installed.
        """
        self._check(split)
        return (self.question_group(split, seed, index) for index in (count() if images is None else range(images)))

    def missing(self) -> MissingExtraError | None:
        """The error to raise if the data's package is not installed, else None."""
        return MissingExtraError(self.module, EXTRA_OF_MODULE[self.module]) if find_spec(self.module) is None else None

    def score(self, prediction: str, answer: str) -> float:
        """1.0 for the right answer, else 0.0."""
        return score(prediction, answer)

    def summarise(self, predictions: Sequence[str], answers: Sequence[str]) -> MetricSummary:
        """The task's metric over many answers.

        Raises:
            ValueError: there are none, or not as many predictions as answers.
        """
        return summarise(predictions, answers, f1_of="yes" if self.metric == "accuracy+f1" else None)

    def _check(self, split: Split) -> None:
        if split not in get_args(Split):
            raise unknown_name("split", split, get_args(Split))
        missing = self.missing()
        if missing:
            raise missing
