"""Tiny LLaVA models with random weights: 25 visual tokens, 4 decoder layers, 2 heads of 64."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.mini.architecture import BEGIN, END, IMAGE, PAD, build_tokenizer
from toprl_export.models.mini.processor import mini_processor
from toprl_export.runtime.layout import TokenBatch

IMAGE_PIXELS = 40
VISUAL_TOKENS = 25
QUESTIONS = ("what colour is the 7?", "is there a star in the image?", "how many circles are there?")


def llava_network(vision: CLIPVisionConfig, feature_layer: int = -1, **decoder: int) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights, which speaks `mini`'s words; ``decoder`` are sizes of its `LlamaConfig`."""
    tokenizer = build_tokenizer()
    text = LlamaConfig(
        **decoder,
        vocab_size=tokenizer.get_vocab_size(),
        pad_token_id=tokenizer.token_to_id(PAD),
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.token_to_id(IMAGE),
        vision_feature_layer=feature_layer,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )
    return LlavaForConditionalGeneration(config)


def llava_adapter(model_id: str, network: torch.nn.Module) -> LlavaAdapter:
    """``network`` behind the adapter that real LLaVA checkpoints get, with `mini`'s way of asking."""
    vision = network.config.vision_config
    return LlavaAdapter(model_id, None, network, mini_processor(vision.image_size, vision.patch_size))


def tiny_network(kv_heads: int = 2, weight_scale: float = 8.0, layers: int = 4, seed: int = 0) -> torch.nn.Module:
    """A LLaVA whose matrices are scaled, because default weights hide wrong positions and masks in rounding noise."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_PIXELS,
        patch_size=8,
        projection_dim=32,
    )
    network = llava_network(
        vision,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(weight_scale)
    return network


def tiny_adapter(kv_heads: int = 2, weight_scale: float = 8.0, layers: int = 4, seed: int = 0) -> LlavaAdapter:
    """`tiny_network` behind its adapter."""
    return llava_adapter("tiny", tiny_network(kv_heads, weight_scale, layers, seed))


def tiny_tokens(adapter: LlavaAdapter, batch: int = 2, repeat: int = 1) -> TokenBatch:
    """Questions of different lengths, so that rows are left-padded; ``repeat`` lengthens them."""
    questions = [" ".join([QUESTIONS[i % len(QUESTIONS)]] * repeat) for i in range(batch)]
    return adapter.frontend.tokens(questions)


def tiny_pixels(batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Random ``float32 [b, 3, 40, 40]``."""
    return torch.randn(batch, 3, IMAGE_PIXELS, IMAGE_PIXELS, generator=torch.Generator().manual_seed(seed))
