"""A tiny LLaVA on disk that answers every question with yes or no: random weights, and half of mini-exist right.

Its answers hang on the image, so that pruning changes some of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from toprl_export.models.load import load_model
from toprl_export.models.mini.architecture import BEGIN, END, IMAGE, PAD, build_tokenizer
from toprl_export.models.mini.processor import mini_processor
from toprl_export.models.reference import ReferenceRunner
from toprl_export.tasks.mini_tasks import EXIST

LAYERS = 4
HIDDEN = 64
VISUAL_TOKENS = 25
LOUD = 1e4
"""Length of the embeddings of "yes" and "no": after one of them nothing else counts, and the answer ends."""


def save_yes_no_model(directory: Path, pixels: int = 40) -> Path:
    """Write the checkpoint; images have ``pixels`` a side and patches 8, so 40 make 25 visual tokens."""
    torch.manual_seed(0)
    network = LlavaForConditionalGeneration(_config(pixels))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)  # default weights hardly react to the image
    _write(network, directory, pixels)
    _teach_two_words(network, _last_states(directory))
    _write(network, directory, pixels)
    return directory


def _config(pixels: int) -> LlavaConfig:
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=pixels,
        patch_size=8,
        projection_dim=32,
    )
    text = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=(pixels // 8) ** 2 + 64,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.token_to_id(PAD),
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.token_to_id(IMAGE),
        vision_feature_layer=-1,
        image_seq_length=(pixels // 8) ** 2,
        tie_word_embeddings=False,
    )


def _last_states(directory: Path) -> Tensor:
    """Normed states at the end of 40 prompts, ``float32 [40, d]``."""
    runner = ReferenceRunner(load_model(str(directory)))
    adapter = runner.adapter
    samples = list(EXIST.samples("train", 0, 40))
    tokens = adapter.frontend.tokens([sample.question for sample in samples])
    visual = runner.encode_image(adapter.frontend.pixels([sample.image for sample in samples]))
    return runner.prefill(tokens, visual).hidden[:, -1].clone()


def _teach_two_words(network: LlavaForConditionalGeneration, states: Tensor) -> None:
    """Let the direction in which prompts differ most choose the word, and let any word be followed by the end."""
    tokenizer = build_tokenizer()
    yes, no, end = (tokenizer.token_to_id(token) for token in ("yes", "no", END))
    mean = states.mean(0)
    direction = torch.linalg.svd(states - mean, full_matrices=False).Vh[0]
    direction = direction - mean * (direction @ mean) / (mean @ mean)
    loud = torch.linalg.qr(torch.stack([direction, mean, torch.randn(HIDDEN)], dim=1)).Q[:, 2]
    with torch.no_grad():
        head, embedding = network.lm_head.weight, network.get_input_embeddings().weight
        head.zero_()
        head[yes], head[no], head[end] = 10 * direction, -10 * direction, 0.01 * loud
        embedding[yes], embedding[no] = LOUD * loud, LOUD * loud


def _write(network: LlavaForConditionalGeneration, directory: Path, pixels: int) -> None:
    network.save_pretrained(directory)
    mini_processor(pixels, patch_size=8).save_pretrained(directory)
