"""A picture of the visual tokens that each stage keeps, as the paper's Figure 4."""

from __future__ import annotations

import math
import textwrap
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from toprl_export.errors import UserError
from toprl_export.evaluation.kept_tokens import KeptTokens

PANEL = 320
"""Longer side of each panel, in pixels."""
MARGIN = 24
GAP = 16
TITLE_HEIGHT = 52
LINE_HEIGHT = 26
TEXT, MUTED, BACKGROUND = (28, 36, 48), (91, 100, 114), (255, 255, 255)
DIM = 0.78
"""How far the grey of a dropped patch is faded to white, 0 to 1."""
OUTLINE, OUTLINE_WIDTH = (214, 39, 140), 2
"""Colour and width of the line around kept patches, without which a white one looks dropped and a dropped one kept."""


def patch_grid(height: int, width: int, visual_tokens: int) -> tuple[int, int]:
    """Rows and columns of the patches of an image.

    Raises:
        UserError: the tokens do not lie on a grid of square patches.
    """
    # n patches of side² pixels cover the image.
    side = math.sqrt(height * width / visual_tokens)
    rows, columns = round(height / side), round(width / side)
    if rows * columns != visual_tokens or rows * width != columns * height:
        raise UserError(
            f"{visual_tokens} visual tokens form no grid of square patches on an image of {width}x{height} pixels, "
            "so they cannot be drawn: choose a model with one token per patch"
        )
    return rows, columns


def dim_dropped(image: NDArray[np.uint8], kept: NDArray[np.int64], visual_tokens: int) -> NDArray[np.uint8]:
    """The image with every patch that is not kept in pale grey, ``uint8 [h, w, 3]``.

    Raises:
        UserError: see :func:`patch_grid`.
    """
    height, width = image.shape[:2]
    rows, columns = patch_grid(height, width, visual_tokens)
    alive = np.zeros(visual_tokens, dtype=bool)
    alive[kept] = True
    row = np.arange(height) * rows // height
    column = np.arange(width) * columns // width
    shown = alive.reshape(rows, columns)[row[:, None], column[None, :], None]  # [h, w, 1]
    # Luma by ITU-R BT.601.
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    pale = (grey * (1 - DIM) + 255 * DIM)[..., None]  # [h, w, 1]
    return np.where(shown, image, np.rint(pale).astype(np.uint8))


def outline_kept(panel: Image.Image, kept: NDArray[np.int64], grid: tuple[int, int]) -> None:
    """Draw a line around every region of kept patches, inside it, on a panel of any size.

    Args:
        panel: changed in place.
        kept: the tokens that are kept, in raster order of the patches.
        grid: rows and columns of the patches.
    """
    rows, columns = grid
    alive = np.zeros((rows + 2, columns + 2), dtype=bool)  # with a border of dropped ones
    alive[1 + kept // columns, 1 + kept % columns] = True
    pen, (width, height) = ImageDraw.Draw(panel), panel.size
    thick = OUTLINE_WIDTH - 1
    for row, column in zip(kept // columns, kept % columns, strict=True):
        left, right = column * width // columns, (column + 1) * width // columns - 1
        top, bottom = row * height // rows, (row + 1) * height // rows - 1
        sides = (
            (alive[row, column + 1], (left, top, right, top + thick)),
            (alive[row + 2, column + 1], (left, bottom - thick, right, bottom)),
            (alive[row + 1, column], (left, top, left + thick, bottom)),
            (alive[row + 1, column + 2], (right - thick, top, right, bottom)),
        )
        for neighbour, side in sides:
            if not neighbour:
                pen.rectangle(tuple(map(int, side)), fill=OUTLINE)


def draw(tokens: KeptTokens) -> Image.Image:
    """The image, then one panel per stage: kept patches outlined, dropped ones in pale grey; question and answer below.

    Raises:
        UserError: see :func:`patch_grid`.
    """
    grid = patch_grid(tokens.image.shape[0], tokens.image.shape[1], tokens.visual_tokens)
    titles = [("image", f"{tokens.visual_tokens} visual tokens")]
    for stage, (site, kept) in enumerate(zip(tokens.sites, tokens.kept, strict=True), start=1):
        share = f"{len(kept) / tokens.visual_tokens:.0%}"
        titles.append((f"stage {stage} · {site}", f"{len(kept)} of {tokens.visual_tokens} kept ({share})"))
    scale = PANEL / max(tokens.image.shape[:2])
    size = (round(tokens.image.shape[1] * scale), round(tokens.image.shape[0] * scale))
    # Patches stay sharp squares: the scene is enlarged without blurring their edges.
    panels = [Image.fromarray(tokens.image).resize(size, Image.Resampling.NEAREST)]
    for kept in tokens.kept:
        dimmed = Image.fromarray(dim_dropped(tokens.image, kept, tokens.visual_tokens))
        panels.append(dimmed.resize(size, Image.Resampling.NEAREST))
        outline_kept(panels[-1], kept, grid)
    width = 2 * MARGIN + len(panels) * size[0] + (len(panels) - 1) * GAP
    lines = _caption(tokens, width - 2 * MARGIN)
    height = MARGIN + TITLE_HEIGHT + size[1] + GAP + len(lines) * LINE_HEIGHT + MARGIN
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for place, (panel, (title, detail)) in enumerate(zip(panels, titles, strict=True)):
        x = MARGIN + place * (size[0] + GAP)
        pen.text((x, MARGIN), title, TEXT, font=_font(19))
        pen.text((x, MARGIN + 24), detail, MUTED, font=_font(16))
        canvas.paste(panel, (x, MARGIN + TITLE_HEIGHT))
    for number, (line, colour) in enumerate(lines):
        pen.text((MARGIN, MARGIN + TITLE_HEIGHT + size[1] + GAP + number * LINE_HEIGHT), line, colour, font=_font(18))
    return canvas


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG file's content."""
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _caption(tokens: KeptTokens, width: int) -> list[tuple[str, tuple[int, int, int]]]:
    """The lines below the panels with their colours."""
    columns = max(20, int(width / (_font(18).getlength("abcdefghij") / 10)))
    texts = [(f"Question: {tokens.question}", TEXT), (f"Answer: {tokens.answer or '(none)'}", TEXT)]
    if tokens.expected is not None:
        texts.append((f"Expected: {tokens.expected}", MUTED))
    return [(line, colour) for text, colour in texts for line in textwrap.wrap(text, columns)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
