"""Lay out and render a scene: objects on the patch grid of a 192×192 image, and which patches show which object."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from toprl_export.tasks.scenes.glyphs import COLOURS, DIGITS, GLYPH_PIXELS, KINDS, SHAPES, GlyphBank

IMAGE_PIXELS = 192
PATCH_PIXELS = 8
GRID = IMAGE_PIXELS // PATCH_PIXELS
OBJECT_PATCHES = GLYPH_PIXELS // PATCH_PIXELS
CLUTTER = (14, 18)


@dataclass(frozen=True)
class SceneObject:
    """A digit ("0"–"9") or a shape, of one colour, whose top left patch is (row, column) of the 24×24 grid."""

    kind: str
    colour: str
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """What is in an image. ``number`` holds the written number's digits where the scene shows one.

    ``clutter`` is there to distract: digits where the questions are about shapes, and the other way round. It repeats
    kinds that ``objects`` show, so that it changes no answer.
    """

    objects: tuple[SceneObject, ...]
    number: str | None = None
    clutter: tuple[SceneObject, ...] = ()

    @property
    def digits(self) -> tuple[SceneObject, ...]:
        """The objects that are digits."""
        return tuple(item for item in self.objects if item.kind in DIGITS)

    def evidence(self, kinds: Collection[str] = KINDS) -> NDArray[np.bool_]:
        """Which patches show an object of ``kinds`` that is no clutter, ``bool [24, 24]``."""
        return _covered(item for item in self.objects if item.kind in kinds)


def sample_scene(rng: np.random.Generator) -> Scene:
    """Three to five different digits and up to six shapes, none of them touching."""
    kinds = [str(kind) for kind in rng.permutation(DIGITS)[: rng.integers(3, 6)]]
    repeated, others = rng.permutation(SHAPES)[:2]
    kinds += [str(repeated)] * int(rng.integers(0, 5)) + [str(others)] * int(rng.integers(0, 3))
    occupied = np.zeros((GRID, GRID), dtype=np.bool_)
    return Scene(tuple(_place(kind, 1, occupied, rng)[0] for kind in kinds))


def sample_number_scene(rng: np.random.Generator) -> Scene:
    """A number of two digits, written downwards in one colour, and two to six shapes."""
    number = "".join(str(digit) for digit in rng.integers(0, 10, size=2))
    occupied = np.zeros((GRID, GRID), dtype=np.bool_)
    written = _place(number, len(number), occupied, rng)
    shapes = [str(kind) for kind in rng.choice(SHAPES, size=rng.integers(2, 7))]
    return Scene((*written, *(_place(kind, 1, occupied, rng)[0] for kind in shapes)), number)


def clutter_with_shapes(scene: Scene, rng: np.random.Generator) -> Scene:
    """Add 14 to 18 shapes of the kinds that are there already."""
    return _cluttered(scene, [item.kind for item in scene.objects if item.kind in SHAPES], rng)


def clutter_with_digits(scene: Scene, rng: np.random.Generator) -> Scene:
    """Add 14 to 18 digits of the kinds that are there already."""
    return _cluttered(scene, [item.kind for item in scene.digits], rng)


def _cluttered(scene: Scene, kinds: Sequence[str], rng: np.random.Generator) -> Scene:
    if not kinds:
        return scene
    occupied = _covered(scene.objects)
    chosen = rng.choice(list(kinds), size=rng.integers(CLUTTER[0], CLUTTER[1] + 1))
    return replace(scene, clutter=tuple(_place(str(kind), 1, occupied, rng)[0] for kind in chosen))


def _covered(objects: Iterable[SceneObject]) -> NDArray[np.bool_]:
    mask = np.zeros((GRID, GRID), dtype=np.bool_)
    for item in objects:
        mask[item.row : item.row + OBJECT_PATCHES, item.column : item.column + OBJECT_PATCHES] = True
    return mask


def _place(text: str, height: int, occupied: NDArray[np.bool_], rng: np.random.Generator) -> list[SceneObject]:
    """Stack ``height`` glyphs of one colour on a free place with a margin of one patch; mark it occupied."""
    colour = str(rng.choice(list(COLOURS)))
    while True:
        row = int(rng.integers(0, GRID - OBJECT_PATCHES * height + 1))
        column = int(rng.integers(0, GRID - OBJECT_PATCHES + 1))
        area = (
            slice(max(row - 1, 0), row + OBJECT_PATCHES * height + 1),
            slice(max(column - 1, 0), column + OBJECT_PATCHES + 1),
        )
        if not occupied[area].any():
            break
    occupied[row : row + OBJECT_PATCHES * height, column : column + OBJECT_PATCHES] = True
    kinds = [text] if height == 1 else list(text)
    return [SceneObject(kind, colour, row + OBJECT_PATCHES * i, column) for i, kind in enumerate(kinds)]


def busy_background(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Muted colour clouds, strokes and pixel noise, ``uint8 [192, 192, 3]``."""
    clouds = rng.integers(50, 150, size=(7, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(clouds).resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(6, 14))):
        ends = rng.integers(0, IMAGE_PIXELS, size=4).tolist()
        draw.line(ends, fill=tuple(rng.integers(40, 170, size=3).tolist()), width=int(rng.integers(1, 4)))
    noise = rng.integers(-16, 17, size=(IMAGE_PIXELS, IMAGE_PIXELS, 1), dtype=np.int16)
    image: NDArray[np.uint8] = np.clip(np.asarray(picture, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    return image


def render(scene: Scene, glyphs: GlyphBank, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw ``scene`` over a busy background, ``uint8 [192, 192, 3]``."""
    image = busy_background(rng)
    for item in (*scene.objects, *scene.clutter):
        paint(image, item, glyphs, rng)
    return image


def paint(image: NDArray[np.uint8], item: SceneObject, glyphs: GlyphBank, rng: np.random.Generator) -> None:
    """Blend one object into ``image`` in place."""
    top, left = item.row * PATCH_PIXELS, item.column * PATCH_PIXELS
    area = image[top : top + GLYPH_PIXELS, left : left + GLYPH_PIXELS]
    alpha = glyphs.sample(item.kind, rng)[..., None]
    area[:] = np.rint(area * (1 - alpha) + np.array(COLOURS[item.colour], dtype=np.float32) * alpha).astype(np.uint8)
