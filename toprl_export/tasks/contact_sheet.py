"""A contact sheet of a task: several samples with question and answer, the evidence outlined."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from toprl_export.tasks.task import Sample

_COLUMNS = 4
_IMAGE_PIXELS = 384
_GAP = 12
_FONT_PIXELS = 16
_LINE_PIXELS = 20
_LINE_CHARACTERS = 44
_OUTLINE = (0, 255, 255)


def contact_sheet(samples: Sequence[Sample]) -> bytes:
    """The samples, four in a row, each 384 pixels wide, as a PNG file's content."""
    captions = [[*textwrap.wrap(one.question, _LINE_CHARACTERS), f"answer: {one.answer}"] for one in samples]
    cell = _IMAGE_PIXELS + _GAP
    cell_height = cell + max(map(len, captions)) * _LINE_PIXELS + _GAP
    columns, rows = min(_COLUMNS, len(samples)), -(-len(samples) // _COLUMNS)
    sheet = Image.new("RGB", (columns * cell + _GAP, rows * cell_height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PIXELS)
    for position, (sample, lines) in enumerate(zip(samples, captions, strict=True)):
        left = _GAP + position % _COLUMNS * cell
        top = _GAP + position // _COLUMNS * cell_height
        sheet.paste(_outlined(sample), (left, top))
        for number, line in enumerate(lines):
            draw.text((left, top + cell - _GAP // 2 + number * _LINE_PIXELS), line, "black", font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _outlined(sample: Sample) -> Image.Image:
    picture = Image.fromarray(sample.image).resize((_IMAGE_PIXELS, _IMAGE_PIXELS), Image.Resampling.NEAREST)
    if sample.evidence is not None:
        draw = ImageDraw.Draw(picture)
        for line in _outline(sample.evidence):
            draw.line(line, _OUTLINE, width=2)
    return picture


def _outline(evidence: NDArray[np.bool_]) -> list[tuple[float, float, float, float]]:
    """The lines between marked patches and others, as (x0, y0, x1, y1) in pixels of the sheet's images."""
    patch_height, patch_width = (_IMAGE_PIXELS / size for size in evidence.shape)
    padded = np.pad(evidence, 1)
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    return [
        *((column * patch_width, row * patch_height, (column + 1) * patch_width, row * patch_height)
          for row, column in level.tolist()),
        *((column * patch_width, row * patch_height, column * patch_width, (row + 1) * patch_height)
          for row, column in upright.tolist()),
    ]  # fmt: skip
