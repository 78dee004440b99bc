"""What scenes are made of: real handwritten digits (scikit-learn) and four shapes, as 16×16 alpha masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from toprl_export.errors import require
from toprl_export.seeding import numpy_rng

Split = Literal["train", "held-out"]

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
