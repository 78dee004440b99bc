"""How InternVL's pictures are cut into tiles, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from toprl_export.runtime.frontend import VaryingFrontend
from toprl_export.runtime.layout import Pictures, PictureTokens


class InternVLFrontend(VaryingFrontend):
    """Tiles of one size and, where there is more than one, the whole picture behind them; their tokens in a row."""

    vision_axes = MappingProxyType({"pixel_values": ("tiles",)})

    def _laid_out(self, processed: Sequence[Mapping[str, Any]]) -> Pictures:
        each: list[PictureTokens] = []
        first = 0
        for made in processed:
            ids = tuple(made["input_ids"][0].tolist())
            count = ids.count(self.image_token_id)
            each.append(PictureTokens(ids, np.arange(first, first + count)))
            first += count
        tiles = np.concatenate([made["pixel_values"] for made in processed])  # [tiles, 3, h, w]
        return Pictures({"pixel_values": tiles}, tuple(each))
