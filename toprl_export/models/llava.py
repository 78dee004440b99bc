"""LLaVA-1.5's architecture (`LlavaForConditionalGeneration`): one tower, a projector and a Llama-like decoder."""

from __future__ import annotations

from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.decoder import Decoder
from toprl_export.models.shape import DecoderShape
from toprl_export.pruning.plan import default_stage_layers
from toprl_export.runtime.prompt import PromptFormat


class LlavaAdapter(LVLMAdapter):
    """Fixed image size, so n is fixed: 576 for LLaVA-1.5 and for `mini`."""

    family = "llava"
    default_prompt = PromptFormat("<s>USER: ", "\n{question} ASSISTANT:", image_token="<image>", pad_token="<pad>")

    @property
    def visual_tokens(self) -> int:
        """Patches of the tower (and its class token where the model keeps it)."""
        vision = self.model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return int(patches + (self.model.config.vision_feature_select_strategy == "full"))

    @property
    def default_stage_layers(self) -> tuple[int, ...]:
        """Before layer 0, a quarter and five eighths of the depth."""
        return default_stage_layers(self.shape.layers)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The text model's end-of-sequence ids."""
        end = self.model.config.text_config.eos_token_id
        if end is None:
            raise UserError(f"model {self.model_id} names no eos_token_id: add it to the text config")
        return tuple(end) if isinstance(end, list) else (int(end),)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Tower (the configured layer, class token dropped by the "default" strategy) and projector."""
        config = self.model.config
        model = self.model.model
        layer = config.vision_feature_layer
        if layer == -1:
            features = model.vision_tower(pixel_values.to(self.dtype)).last_hidden_state
        elif isinstance(layer, int):
            states = model.vision_tower(pixel_values.to(self.dtype), output_hidden_states=True).hidden_states
            features = states[layer]
        else:
            raise UserError(f"model {self.model_id} joins vision layers {layer}: only one feature layer is supported")
        if config.vision_feature_select_strategy == "default":
            features = features[:, 1:]  # [b, n, d_vision]
        projected: Tensor = model.multi_modal_projector(features)
        return projected

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
