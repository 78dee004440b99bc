"""Tasks whose correct answers are the unpruned tiny model's own, but for one of ``THINK`` and all of ``NEVER``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tests.support.tiny_llava import IMAGE_PIXELS, QUESTIONS, tiny_adapter
from toprl_export.evaluation.answering import answer_samples
from toprl_export.models.reference import ReferenceRunner
from toprl_export.tasks.task import Sample, Task

COUNT = 6


@dataclass(frozen=True)
class FixedTask(Task):
    """A task of a few given samples."""

    given: tuple[Sample, ...] = ()

    def question_count(self, split):
        return len(self.given)

    def sample(self, split, seed, index):
        return self.given[index]

    def question_group(self, split, seed, index):
        raise NotImplementedError


def _echoed(seed: int) -> tuple[Sample, ...]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, size=(COUNT, IMAGE_PIXELS, IMAGE_PIXELS, 3), dtype=np.uint8)
    samples = [Sample(image, QUESTIONS[at % 3], "", None, f"{seed}/{at}") for at, image in enumerate(images)]
    answers = answer_samples(ReferenceRunner(tiny_adapter()), samples, lambda _: None)
    return tuple(replace(sample, answer=answer) for sample, answer in zip(samples, answers, strict=True))


LOOK = FixedTask("echo-look", "perception", "", "numpy", given=_echoed(1))
_THINK = _echoed(2)
THINK = FixedTask("echo-think", "reasoning", "", "numpy", given=(replace(_THINK[0], answer="no such"), *_THINK[1:]))
NEVER = FixedTask("echo-never", "reasoning", "", "numpy", given=tuple(replace(one, answer="no such") for one in _THINK))
TARGETS = {task.name: f"{__name__}:{name}" for name, task in (("LOOK", LOOK), ("THINK", THINK), ("NEVER", NEVER))}
