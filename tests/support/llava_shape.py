"""A model of LLaVA-1.5's depth, image size and number of visual tokens, narrow, with random weights."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig

from tests.support.tiny_llava import llava_adapter, llava_network
from toprl_export.models.llava import LlavaAdapter


def llava_shape(layers: int = 32) -> LlavaAdapter:
    """576 visual tokens of a 24-layer tower, and ``layers`` decoder layers with 4 heads of 128."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=24,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
        projection_dim=64,
    )
    network = llava_network(
        vision,
        feature_layer=-2,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    return llava_adapter("llava-1.5-shape", network)
