"""A model of LLaVA-1.5's depth, image size and number of visual tokens, narrow, with random weights."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.mini.vocabulary import BEGIN, END, IMAGE, PAD, build_tokenizer
from toprl_export.runtime.preprocess import ImageProcessor
from toprl_export.runtime.prompt import PromptFormat


def llava_shape(layers: int = 32) -> LlavaAdapter:
    """576 visual tokens of a 24-layer tower, and ``layers`` decoder layers with 4 heads of 128."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=24,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
        projection_dim=64,
    )
    text = LlamaConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=4096,
        pad_token_id=tokenizer.token_to_id(PAD),
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.token_to_id(IMAGE),
        vision_feature_layer=-2,
        image_seq_length=576,
    )
    return LlavaAdapter(
        model_id="llava-1.5-shape",
        revision=None,
        model=LlavaForConditionalGeneration(config),
        tokenizer=tokenizer,
        image_processor=ImageProcessor((336, 336)),
        prompt_format=PromptFormat(f"{BEGIN}user:", "{question} assistant:", image_token=IMAGE, pad_token=PAD),
    )
