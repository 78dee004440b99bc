"""InternVL 2.5 and 3 in Hugging Face's form (`InternVLForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.internvl.frontend import InternVLFrontend
from toprl_export.runtime.frontend import Frontend


class InternVLAdapter(LVLMAdapter):
    """A picture has 256 visual tokens for each tile of 448 pixels."""

    family = "internvl"

    @property
    def image_inputs(self) -> tuple[str, ...]:
        """See `LVLMAdapter.image_inputs`."""
        return ("pixel_values",)

    def encode(self, vision: Mapping[str, Tensor]) -> Tensor:
        """Tower, pixel shuffle and projector, tile by tile; ``[r, d]``."""
        model, config = self.model.model, self.model.config
        layer = config.vision_feature_layer
        tower = model.vision_tower(vision["pixel_values"].to(self.dtype), output_hidden_states=layer != -1)
        states = tower.last_hidden_state if layer == -1 else tower.hidden_states[layer]  # [tiles, s, d_vision]
        if config.vision_feature_select_strategy == "default":
            states = states[:, 1:]
        side = int(states.shape[1] ** 0.5)
        shuffled = model.pixel_shuffle(
            states.reshape(states.shape[0], side, side, -1), scale_factor=config.downsample_ratio
        )
        projected: Tensor = model.multi_modal_projector(shuffled.reshape(states.shape[0], -1, shuffled.shape[-1]))
        return projected.flatten(0, 1)

    def _frontend(self, processor: Any) -> Frontend:
        return InternVLFrontend(processor)
