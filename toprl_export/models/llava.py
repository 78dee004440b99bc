"""LLaVA-1.5's architecture (`LlavaForConditionalGeneration`): one tower, a projector and a Llama-like decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.vision import TOWERS, has_class_token, patch_attention, tower_states
from toprl_export.runtime.frontend import FixedFrontend, Frontend


class LlavaAdapter(LVLMAdapter):
    """Fixed image size, so n is fixed: 576 for LLaVA-1.5 and for `mini`."""

    family = "llava"

    @property
    def image_inputs(self) -> tuple[str, ...]:
        """See `LVLMAdapter.image_inputs`."""
        return ("pixel_values",)

    def encode(self, vision: Mapping[str, Tensor]) -> Tensor:
        """Tower (the configured layers, class token dropped by the "default" strategy) and projector."""
        pixel_values = vision["pixel_values"].to(self.dtype)  # [b, 3, h, w]
        states = tower_states(self.model.model.vision_tower, pixel_values, self._feature_layers())
        if self.model.config.vision_feature_select_strategy == "default":
            states = [state[:, 1:] for state in states]  # [b, n, d_vision] each
        features = states[0] if len(states) == 1 else torch.cat(states, dim=-1)
        projected: Tensor = self.model.model.multi_modal_projector(features)
        return projected

    def vision_saliency(self, pixel_values: Tensor) -> Tensor:
        """See `LVLMAdapter.vision_saliency`; a class token among the visual tokens gets 1, so VisionZip keeps it.

        Raises:
            UserError: the projector reads the tower's embeddings, before any attention layer.
        """
        tower, kept = self.model.model.vision_tower, self.model.config.vision_feature_select_strategy
        layer = max(self._feature_layers()) - 1  # state i is the output of layer i - 1
        if layer < 0:
            raise UserError(
                f"model {self.model_id} projects the vision tower's embeddings, which no attention layer made, "
                "so it has no saliency: choose another scorer"
            )
        received = patch_attention(tower, pixel_values.to(self.dtype), layer)  # [b, s]
        if kept == "full" and not has_class_token(tower):
            return received
        patches = received[:, 1:]
        return patches if kept == "default" else torch.cat([torch.ones_like(received[:, :1]), patches], dim=1)

    def _feature_layers(self) -> tuple[int, ...]:
        """The tower's states that are projected, side by side; 0 are its embeddings."""
        given = self.model.config.vision_feature_layer
        count = len(self.model.model.vision_tower.encoder.layers) + 1
        layers = [given] if isinstance(given, int) else list(given)
        if not layers or not all(isinstance(layer, int) and -count <= layer < count for layer in layers):
            raise UserError(
                f"model {self.model_id} projects the states {given} of a vision tower that has {count}: correct "
                "vision_feature_layer in its config.json"
            )
        return tuple(layer % count for layer in layers)

    def _complete(self, processor: Any) -> None:
        """Checkpoints saved before transformers 4.46 do not say how many tokens an image has."""
        if getattr(processor, "patch_size", None) is not None:
            return
        processor.patch_size = self.model.config.vision_config.patch_size
        processor.num_additional_image_tokens = int(has_class_token(self.model.model.vision_tower))
        processor.vision_feature_select_strategy = self.model.config.vision_feature_select_strategy

    def _check_parts(self) -> None:
        tower = self.model.config.vision_config.model_type
        if tower not in TOWERS:
            raise UserError(
                f"model {self.model_id} has a vision tower of the kind {tower}, expected one of {', '.join(TOWERS)}: "
                "its tower needs an adapter"
            )
        self._feature_layers()

    def _frontend(self, processor: Any) -> Frontend:
        side = self.model.config.vision_config.image_size
        return FixedFrontend(processor, self._tokens_of_square(), side, side)

    def _tokens_of_square(self) -> int:
        """Patches of the tower, and its class token where it has one and the model keeps it."""
        vision = self.model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        tokens = patches + has_class_token(self.model.model.vision_tower)
        return int(tokens - (self.model.config.vision_feature_select_strategy == "default"))
