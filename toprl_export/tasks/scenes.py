"""Synthetic scenes: handwritten digits (scikit-learn) and four shapes on the patch grid of a 192×192 image.

First the glyphs, 16×16 alpha masks; then where they stand in a scene; then how a scene is rendered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from toprl_export.errors import require
from toprl_export.seeding import numpy_rng
from toprl_export.tasks.task import Split

GLYPH_PIXELS = 16
DIGITS = tuple("0123456789")
SHAPES = ("circle", "square", "triangle", "star")
KINDS = (*DIGITS, *SHAPES)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 40, 40),
    "green": (40, 210, 60),
    "blue": (50, 80, 245),
    "yellow": (245, 225, 40),
    "purple": (200, 50, 220),
    "white": (250, 250, 250),
}

IMAGE_PIXELS = 192
PATCH_PIXELS = 8
GRID = IMAGE_PIXELS // PATCH_PIXELS
OBJECT_PATCHES = GLYPH_PIXELS // PATCH_PIXELS
CLUTTER = (14, 18)

_SPLIT_SEED = 0
_HELD_OUT_SHARE = 0.2
_AUGMENTED_COPIES = 8

Alpha = NDArray[np.float32]


@dataclass(frozen=True)
class GlyphBank:
    """Alpha masks by kind, each ``float32 [variants, 16, 16]`` in [0, 1]; train and held-out digits are disjoint."""

    masks: dict[str, Alpha]

    def sample(self, kind: str, rng: np.random.Generator) -> Alpha:
        """One random variant of ``kind``, ``float32 [16, 16]``."""
        variants = self.masks[kind]
        chosen: Alpha = variants[int(rng.integers(len(variants)))]
        return chosen


@lru_cache(maxsize=2)
def load_glyphs(split: Split) -> GlyphBank:
    """The digits of ``split`` (train ones also slightly rotated, scaled and shifted) and the shapes.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    datasets = require("sklearn.datasets", "train")
    data = datasets.load_digits()
    order = numpy_rng(_SPLIT_SEED, "digit-split").permutation(len(data.target))
    held_out = int(len(order) * _HELD_OUT_SHARE)
    chosen = order[:held_out] if split == "held-out" else order[held_out:]
    rng = numpy_rng(_SPLIT_SEED, "glyph-variants", split)
    masks: dict[str, list[Alpha]] = {digit: [] for digit in DIGITS}
    for index in chosen:
        picture = Image.fromarray((data.images[index] * (255 / 16)).astype(np.uint8))
        variants = masks[str(data.target[index])]
        variants.append(_to_alpha(picture.resize((GLYPH_PIXELS, GLYPH_PIXELS), Image.Resampling.BICUBIC)))
        if split == "train":
            variants.extend(_augmented(picture, rng) for _ in range(_AUGMENTED_COPIES))
    stacked = {kind: np.stack(variants) for kind, variants in masks.items()}
    stacked.update({shape: np.stack([_draw_shape(shape, size) for size in range(12, 17)]) for shape in SHAPES})
    return GlyphBank(stacked)


def _to_alpha(picture: Image.Image) -> Alpha:
    return np.asarray(picture, dtype=np.float32) / np.float32(255.0)


def _augmented(picture: Image.Image, rng: np.random.Generator) -> Alpha:
    """Rotate by up to 12°, scale by 0.85–1.1, shift by up to one pixel: how another hand might have written it."""
    large = picture.resize((GLYPH_PIXELS * 2, GLYPH_PIXELS * 2), Image.Resampling.BICUBIC)
    angle, scale = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(0.85, 1.1)
    shift_x, shift_y = rng.uniform(-2, 2, size=2)
    cos, sin, centre = np.cos(angle) / scale, np.sin(angle) / scale, GLYPH_PIXELS - 0.5
    matrix = (
        cos, sin, centre - cos * (centre + shift_x) - sin * (centre + shift_y),
        -sin, cos, centre + sin * (centre + shift_x) - cos * (centre + shift_y),
    )  # fmt: skip
    turned = large.transform(large.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return _to_alpha(turned.resize((GLYPH_PIXELS, GLYPH_PIXELS), Image.Resampling.BOX))


def _draw_shape(shape: str, size: int) -> Alpha:
    """A filled shape of ``size`` pixels, drawn at 8× and reduced, so that its edges are smooth."""
    factor = 8
    canvas = Image.new("L", (GLYPH_PIXELS * factor,) * 2)
    draw = ImageDraw.Draw(canvas)
    low = (GLYPH_PIXELS - size) * factor / 2
    high = low + size * factor - 1
    middle, radius = (low + high) / 2, (high - low) / 2
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=255)
    elif shape == "square":
        inset = 0.1 * size * factor
        draw.rectangle((low + inset, low + inset, high - inset, high - inset), fill=255)
    elif shape == "triangle":
        draw.polygon([(middle, low), (high, high), (low, high)], fill=255)
    else:
        angles = np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, radius, radius * 0.42)
        draw.polygon(
            [(middle + r * np.cos(a), middle - r * np.sin(a)) for r, a in zip(radii, angles, strict=True)], fill=255
        )
    return _to_alpha(canvas.resize((GLYPH_PIXELS, GLYPH_PIXELS), Image.Resampling.BOX))


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
