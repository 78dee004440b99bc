"""The models that checks run: LLaVA with the sizes of published ones and random weights, and the embedded model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from toprl_export.models.decoder import Decoder
from toprl_export.models.walk import TokenTensors
from toprl_export.seeding import torch_generator

FEATURE_LAYER = -2


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of one prompt.

    Attributes:
        crops: pictures that the tower sees per image; their patches are the visual tokens. (LLaVA-NeXT also puts one
            learned vector at the end of each row of patches, which is left out here.)
        image_size: pixels of an edge of one crop.
        patch_size: pixels of an edge of one patch.
        text: tokens beside the image's.
    """

    crops: int
    layers: int = 32
    hidden: int = 4096
    intermediate: int = 11008
    heads: int = 32
    vocabulary: int = 32064
    vision_layers: int = 24
    vision_hidden: int = 1024
    vision_intermediate: int = 4096
    vision_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    text: int = 60

    @property
    def visual_tokens(self) -> int:
        """n of one image."""
        return self.crops * (self.image_size // self.patch_size) ** 2


LLAVA = Shape(crops=1)
LLAVA_NEXT = Shape(crops=5)


def small(shape: Shape) -> Shape:
    """A model of the same kind that any machine runs: 16 patches a crop."""
    return replace(
        shape, layers=4, hidden=128, intermediate=192, heads=2, vocabulary=128, vision_layers=2, vision_hidden=32,
        vision_intermediate=48, vision_heads=2, image_size=56, text=9,
    )  # fmt: skip


@dataclass(frozen=True)
class BenchModel:
    """A frozen Hugging Face LLaVA and random prompts for it.

    Attributes:
        shape: its sizes.
        network: the model.
        decoder: its decoder for the walk.
        encode: crops ``[b·crops, 3, h, w]`` to projected visual embeddings ``[b, n, d]``.
        device: where it is.
        dtype: of its weights.
    """

    shape: Shape
    network: Any
    decoder: Decoder
    encode: Callable[[Tensor], Tensor]
    device: str
    dtype: torch.dtype

    @property
    def text_config(self) -> Any:
        """The decoder's configuration, which also names its attention implementation."""
        return self.network.model.language_model.config

    def pixels(self, batch: int) -> Tensor:
        """Random crops, ``[b·crops, 3, h, w]``."""
        size = self.shape.image_size
        generator = torch_generator(0, "pixels", device=self.device)
        drawn = torch.randn(batch * self.shape.crops, 3, size, size, generator=generator, device=self.device)
        return drawn.to(self.dtype)

    def tokens(self, batch: int, first: int = 0) -> TokenTensors:
        """Random prompts of one length, nothing padded, ``first`` tokens before the image."""
        shape, device, n = self.shape, self.device, self.shape.visual_tokens
        length = n + shape.text
        generator = torch_generator(0, "text", device=device)
        ids = torch.randint(3, shape.vocabulary - 1, (batch, length), generator=generator, device=device)
        position = torch.arange(length, device=device).expand(batch, -1)  # [b, s]
        visual = (position >= first) & (position < first + n)
        return TokenTensors(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=position,
            visual_index=position[visual].reshape(batch, n),
            text_index=position[~visual].reshape(batch, length - n),
        )

    def embed(self, tokens: TokenTensors, visual: Tensor) -> Tensor:
        """The input of Hugging Face's decoder: text embeddings with the image's in their positions, ``[b, s, d]``."""
        embedded: Tensor = self.network.get_input_embeddings()(tokens.input_ids)
        return embedded.scatter(1, tokens.visual_index[..., None].expand_as(visual), visual.to(embedded.dtype))

    def in_fp32(self) -> BenchModel:
        """The same weights, exactly, in fp32."""
        network = deepcopy(self.network).float()
        decoder = Decoder(network.model.language_model, network.lm_head)
        return replace(self, network=network, decoder=decoder, dtype=torch.float32)


def random_model(shape: Shape, device: str, dtype: torch.dtype) -> BenchModel:
    """A model of ``shape`` with random weights."""
    # Made on the device: drawing 7 billion numbers takes seconds on a GPU and minutes on a CPU.
    with torch.device(device):
        network = _network(shape, dtype).eval().requires_grad_(False)

    def encode(pixels: Tensor) -> Tensor:
        states = network.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features = network.model.multi_modal_projector(states[FEATURE_LAYER][:, 1:])  # [b·crops, patches, d]
        embedded: Tensor = features.reshape(-1, shape.visual_tokens, features.shape[-1])
        return embedded

    decoder = Decoder(network.model.language_model, network.lm_head)
    return BenchModel(shape, network, decoder, encode, device, dtype)


def mini_model(device: str) -> BenchModel:
    """The embedded model, with its own weights in fp32."""
    from toprl_export.models.load import load_model

    adapter = load_model("mini", device)
    sizes, vision = adapter.shape, adapter.model.config.vision_config
    shape = Shape(
        crops=1, layers=sizes.layers, hidden=sizes.hidden, intermediate=sizes.intermediate,
        heads=sizes.heads, vocabulary=sizes.vocabulary, image_size=vision.image_size, patch_size=vision.patch_size,
        text=11,
    )  # fmt: skip
    return BenchModel(shape, adapter.model, adapter.decoder, adapter.encode_image, device, torch.float32)


def _network(shape: Shape, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden, intermediate_size=shape.vision_intermediate, patch_size=shape.patch_size,
        num_hidden_layers=shape.vision_layers, num_attention_heads=shape.vision_heads, image_size=shape.image_size,
    )  # fmt: skip
    # 0.02 at 7B, and more in smaller models, where attention would change the logits too little to be seen.
    text = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, vocab_size=shape.vocabulary,
        max_position_embeddings=4096, initializer_range=1.28 * shape.hidden**-0.5,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=shape.vocabulary - 1)
    auto: Any = AutoModelForImageTextToText
    return auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
