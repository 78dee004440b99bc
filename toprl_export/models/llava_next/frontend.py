"""How LLaVA-NeXT's pictures are cut into tiles and packed, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_export.runtime.frontend import VaryingFrontend
from toprl_export.runtime.layout import Pictures, PictureTokens


class LlavaNextFrontend(VaryingFrontend):
    """The whole picture as one tile, then the tiles of its best resolution without their padding, row by row.

    The encoded rows are the newline token (row 0), then the patches of all tiles.

    Attributes:
        tile_pixels: side of a tile.
        tile_tokens: rows, and columns, of a tile's visual tokens.
    """

    vision_axes = MappingProxyType({"pixel_values": ("tiles",)})

    def __init__(self, processor: Any, tile_pixels: int, tile_tokens: int) -> None:
        super().__init__(processor)
        self.tile_pixels = tile_pixels
        self.tile_tokens = tile_tokens

    @property
    def settings(self) -> dict[str, int | None]:
        """See `Frontend.settings`."""
        return {"tile_pixels": self.tile_pixels, "tile_tokens": self.tile_tokens}

    def _laid_out(self, processed: Sequence[Mapping[str, Any]]) -> Pictures:
        tiles: list[NDArray[Any]] = []
        each: list[PictureTokens] = []
        first = 1  # behind the newline's row
        for made in processed:
            own = made["pixel_values"][0]  # [tiles, 3, h, w]
            rows = first + self._rows(tuple(map(int, made["image_sizes"][0])))
            rows[rows < first] = 0
            each.append(PictureTokens(tuple(made["input_ids"][0].tolist()), rows))
            tiles.append(own)
            first += len(own) * self.tile_tokens**2
        return Pictures({"pixel_values": np.concatenate(tiles)}, tuple(each))

    def _rows(self, size: tuple[int, ...]) -> NDArray[np.int64]:
        """For each visual token of a picture of ``size`` (height, width) its patch, counted over the picture's own
        tiles, or -1 for a newline."""
        from transformers.image_processing_utils import select_best_resolution

        side = self.tile_tokens
        best: Any = select_best_resolution
        height, width = best(size, self.processor.image_processor.image_grid_pinpoints)
        down, across = height // self.tile_pixels, width // self.tile_pixels
        patches = np.arange(side**2, (1 + down * across) * side**2)
        grid = patches.reshape(down, across, side, side).swapaxes(1, 2).reshape(down * side, across * side)
        grid = _without_padding(grid, size)
        lines = np.concatenate([grid, np.full((len(grid), 1), -1)], axis=1)
        return np.concatenate([np.arange(side**2), lines.ravel()])


def _without_padding(grid: NDArray[np.int64], size: tuple[int, ...]) -> NDArray[np.int64]:
    """The part of a grid that a picture of ``size`` (height, width) covers, as its aspect ratio has it."""
    height, width = size
    rows, columns = grid.shape
    # Rounded at the seventh decimal as the model does, so that neither loses a row to a rounding error.
    if width / height > columns / rows:
        pad = (rows - int(round(height * (columns / width), 7))) // 2
        return grid[pad : rows - pad]
    pad = (columns - int(round(width * (rows / height), 7))) // 2
    return grid[:, pad : columns - pad]
