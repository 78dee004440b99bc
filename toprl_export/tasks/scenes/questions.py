"""Questions about a scene, and their answers in the words of the embedded model's vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toprl_export.tasks.scenes.glyphs import DIGITS, SHAPES
from toprl_export.tasks.scenes.scene import Scene, sample_number_scene, sample_scene

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


Ask = Callable[[Scene, np.random.Generator], "Question | None"]
SampleScene = Callable[[np.random.Generator], Scene]

ASKERS: dict[str, tuple[SampleScene, Ask]] = {
    "mini-exist": (sample_scene, ask_exist),
    "mini-read": (sample_number_scene, ask_read),
    "mini-colour": (sample_scene, ask_colour),
    "mini-count": (sample_scene, ask_count),
    "mini-relation": (sample_scene, ask_relation),
    "mini-compare": (sample_scene, ask_compare),
}
