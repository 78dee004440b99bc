"""LLaVA-NeXT (`LlavaNextForConditionalGeneration`), also called LLaVA-1.6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.llava_next.frontend import LlavaNextFrontend
from toprl_export.runtime.frontend import Frontend


class LlavaNextAdapter(LlavaAdapter):
    """LLaVA's tower and projector over tiles, whose patches are packed into one grid with newlines."""

    family = "llava_next"

    @property
    def image_inputs(self) -> tuple[str, ...]:
        """See `LVLMAdapter.image_inputs`."""
        return ("pixel_values", "image_sizes")

    def encode(self, vision: Mapping[str, Tensor]) -> Tensor:
        """The newline's row, then the patches of all tiles, ``[1 + tiles * patches, d]``."""
        patches = super().encode(vision)  # [tiles, patches, d]
        return torch.cat([self.model.model.image_newline[None].to(patches), patches.flatten(0, 1)])

    def _frontend(self, processor: Any) -> Frontend:
        config, side = self.model.config, self.model.config.vision_config.image_size
        pinpoints = [list(pair) for pair in processor.image_processor.image_grid_pinpoints]
        if pinpoints != [list(pair) for pair in config.image_grid_pinpoints]:
            raise UserError(
                f"model {self.model_id} packs tiles of other resolutions than its processor cuts: make "
                "image_grid_pinpoints in config.json and preprocessor_config.json the same"
            )
        tokens = side // config.vision_config.patch_size
        if self._tokens_of_square() != tokens**2:
            raise UserError(
                f"model {self.model_id} has {self._tokens_of_square()} visual tokens a tile, expected its {tokens**2} "
                "patches: correct vision_feature_select_strategy in its config.json"
            )
        return LlavaNextFrontend(processor, side, tokens)
