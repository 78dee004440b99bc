"""Questions about a scene, and their answers in the words of the embedded model's vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from toprl_export.tasks.scenes.glyphs import DIGITS, KINDS, SHAPES
from toprl_export.tasks.scenes.scene import (
    Scene,
    clutter_with_digits,
    clutter_with_shapes,
    sample_number_scene,
    sample_scene,
)

MAX_COUNT = 4
RELATION_MARGIN = 2


@dataclass(frozen=True)
class Question:
    """A question in plain words and its one right answer."""

    text: str
    answer: str


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
    if count > MAX_COUNT or (count == 0 and rng.random() < 0.6):
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
    """A task's scenes and questions, and the kinds of objects that its answers rest on."""

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
