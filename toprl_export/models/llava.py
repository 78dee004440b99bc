"""LLaVA-1.5's architecture (`LlavaForConditionalGeneration`): one tower, a projector and a Llama-like decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.decoder import Decoder
from toprl_export.models.shape import DecoderShape
from toprl_export.models.vision import has_class_token, patch_attention
from toprl_export.pruning.plan import default_stage_layers
from toprl_export.runtime.prompt import PromptFormat


class LlavaAdapter(LVLMAdapter):
    """Fixed image size, so n is fixed: 576 for LLaVA-1.5 and for `mini`."""

    family = "llava"
    default_prompt = PromptFormat("<s>USER: ", "\n{question} ASSISTANT:", image_token="<image>", pad_token="<pad>")

    @property
    def visual_tokens(self) -> int:
        """Patches of the tower, and its class token where it has one and the model keeps it."""
        vision = self.model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        tokens = patches + has_class_token(self.model.model.vision_tower)
        return int(tokens - (self.model.config.vision_feature_select_strategy == "default"))

    @property
    def default_stage_layers(self) -> tuple[int, ...]:
        """Before layer 0, a quarter and five eighths of the depth."""
        return default_stage_layers(self.shape.layers)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The text model's end-of-sequence ids."""
        end = self.model.config.text_config.eos_token_id
        if end is None:
            raise UserError(f"model {self.model_id} has no eos_token_id: add it to its text config")
        return tuple(end) if isinstance(end, list) else (int(end),)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Tower (the configured layer, class token dropped by the "default" strategy) and projector."""
        model = self.model.model
        layer = self._feature_layer
        if layer == -1:
            # Without output_hidden_states, which would keep every layer's states alive in an exported graph.
            features = model.vision_tower(pixel_values.to(self.dtype)).last_hidden_state
        else:
            states = model.vision_tower(pixel_values.to(self.dtype), output_hidden_states=True).hidden_states
            features = states[layer]
        if self.model.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]  # [b, n, d_vision]
        projected: Tensor = model.multi_modal_projector(features)
        return projected

    def vision_saliency(self, pixel_values: Tensor) -> Tensor:
        """See `LVLMAdapter.vision_saliency`; a class token among the visual tokens gets 1, so VisionZip keeps it.

        Raises:
            UserError: the projector reads the tower's embeddings, before any attention layer.
        """
        tower, kept = self.model.model.vision_tower, self.model.config.vision_feature_select_strategy
        layer = self._feature_layer
        # Hidden state 0 is the embeddings, so state i is the output of layer i - 1; negative ones count from the end.
        layer = layer + len(tower.encoder.layers) if layer < 0 else layer - 1
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

    @property
    def _feature_layer(self) -> int:
        layer = self.model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise UserError(
                f"model {self.model_id} concatenates the vision layers {layer}, expected one feature layer: choose "
                "another checkpoint"
            )
        return layer

    def _decoder(self) -> Decoder:
        return Decoder(self.model.model.language_model, self.model.lm_head)

    def _shape(self) -> DecoderShape:
        text = self.model.config.text_config
        return DecoderShape(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
        )
