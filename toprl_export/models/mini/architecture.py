"""What `mini` is: its words, its sizes and how a fresh one is initialised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlavaConfig, LlavaForConditionalGeneration

VISION_HIDDEN = 128
PATCH_SIZE = 8
DECODER_HIDDEN = 192

PAD, BEGIN, END, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
SPECIAL = (PAD, BEGIN, END, UNKNOWN, IMAGE)
_TEXT = """
user assistant : ? . , 0 1 2 3 4 5 6 7 8 9 yes no red green blue yellow purple white black gray teal brown
circle square triangle star rectangle circles squares triangles stars is are there a an the in of what which
how many does do contain not no present image shape shapes object objects color colour digit digits number
written leftmost rightmost topmost lowest largest smallest more than between above below left right first last
second same different it this picture one two three four five
"""
WORDS = tuple(_TEXT.split())
"""Every word of the embedded tasks and of easy-vqa."""


def build_tokenizer() -> Tokenizer:
    """The word-level tokenizer: lower-cases, splits at blanks and punctuation and between digits.

    A word's id is its place in the order above.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((*SPECIAL, *WORDS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def mini_config() -> LlavaConfig:
    """LLaVA: a 3-layer CLIP tower over 24×24 patches of 8 pixels and an 8-layer Llama of width 192 (3 heads of 64)."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=VISION_HIDDEN,
        intermediate_size=4 * VISION_HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=192,
        patch_size=PATCH_SIZE,
        projection_dim=VISION_HIDDEN,
    )
    # Only patches are projected, and nothing else reads the tower: its class token's attention means nothing.
    vision.class_token_trained = False
    text = LlamaConfig(
        hidden_size=DECODER_HIDDEN,
        intermediate_size=416,
        num_hidden_layers=8,
        num_attention_heads=3,
        num_key_value_heads=3,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.token_to_id(PAD),
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=576,
        tie_word_embeddings=True,
    )


def fresh_mini() -> LlavaForConditionalGeneration:
    """A `mini` with random weights from the global generator; patch positions start as a 2-D sin-cos table."""
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration(mini_config())
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight[1:].copy_(sincos_positions(24, VISION_HIDDEN))
    return model


def sincos_positions(grid: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, ``float32 [grid*grid, width]`` in raster order."""
    import torch

    frequencies = torch.exp(torch.arange(width // 4) * (-math.log(100.0) / (width // 4 - 1)))
    angles = torch.arange(grid)[:, None] * frequencies  # [grid, width/4]
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)  # [grid, width/2]
    rows = axis[:, None].expand(grid, grid, -1)
    columns = axis[None, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width) * 0.5
