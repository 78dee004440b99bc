"""How Qwen2-VL's and Qwen2.5-VL's pictures lie in the tower and in the prompt, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_export.runtime.frontend import VaryingFrontend
from toprl_export.runtime.layout import Pictures, PictureTokens


class QwenVLFrontend(VaryingFrontend):
    """Patches in blocks of ``merge`` by ``merge``, each block one visual token; positions in time, height and width.

    Attributes:
        merge: patches merged into a visual token, per side.
        window: side of an attention window in visual tokens, where the tower has windows (Qwen2.5-VL).
    """

    rotary_axes = 3

    def __init__(self, processor: Any, merge: int, window: int | None) -> None:
        super().__init__(processor)
        self.merge = merge
        self.window = window
        arrays = ("pixel_values", "patch_position", "patch_picture", *(() if window is None else ("patch_window",)))
        self.vision_axes = dict.fromkeys(arrays, ("patches",))

    @property
    def settings(self) -> dict[str, int | None]:
        """See `Frontend.settings`."""
        return {"merge": self.merge, "window": self.window}

    @property
    def axis_multiples(self) -> Mapping[str, int]:
        """See `Frontend.axis_multiples`."""
        return {"patches": self.merge**2}

    def positions(self, token_ids: Sequence[int], pictures: Sequence[PictureTokens]) -> NDArray[np.int64]:
        """M-RoPE: text counts on all three axes; a picture stands still in time and spans its grid."""
        found = np.zeros((3, len(token_ids)), np.int64)
        place = position = 0
        waiting = iter(pictures)
        while place < len(token_ids):
            if token_ids[place] != self.image_token_id:
                found[:, place] = position
                place, position = place + 1, position + 1
                continue
            grid = next(waiting).grid
            assert grid is not None
            height, width = grid
            spans = np.stack([np.zeros(height * width, np.int64), *np.indices(grid).reshape(2, -1)])
            found[:, place : place + height * width] = position + spans
            place, position = place + height * width, position + max(grid)
        return found

    def _laid_out(self, processed: Sequence[Mapping[str, Any]]) -> Pictures:
        each: list[PictureTokens] = []
        positions: list[NDArray[np.int64]] = []
        segments: list[NDArray[np.int64]] = []
        windows: list[NDArray[np.int64]] = []
        first = first_window = 0
        for number, made in enumerate(processed):
            _, height, width = map(int, made["image_grid_thw"][0])
            place = self._places(height, width)  # [N_i, 2]
            grid = height // self.merge, width // self.merge
            count = grid[0] * grid[1]
            each.append(PictureTokens(tuple(made["input_ids"][0].tolist()), np.arange(first, first + count), grid))
            positions.append(place)
            segments.append(np.full(len(place), number))
            if self.window is not None:
                row, column = place.T // (self.merge * self.window)
                windows.append(first_window + row * (column.max() + 1) + column)
                first_window = windows[-1].max() + 1
            first += count
        arrays: dict[str, NDArray[Any]] = {
            "pixel_values": np.concatenate([made["pixel_values"] for made in processed]).astype(np.float32),  # [N, c]
            "patch_position": np.concatenate(positions),  # [N, 2]
            "patch_picture": np.concatenate(segments),  # [N]
        }
        if windows:
            arrays["patch_window"] = np.concatenate(windows)  # [N]
        return Pictures(arrays, tuple(each))

    def _places(self, height: int, width: int) -> NDArray[np.int64]:
        """Row and column of each patch of a grid, block by block, ``int64 [height * width, 2]``."""
        blocks = height // self.merge, self.merge, width // self.merge, self.merge
        places = np.indices((height, width)).reshape(2, *blocks)  # [2, rows of blocks, m, columns of blocks, m]
        return places.swapaxes(2, 3).reshape(2, -1).T.copy()
