"""LLaVA checkpoints of every kind: computed as Hugging Face computes them, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from toprl_export.errors import UserError
from toprl_export.models import agreement
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model
from toprl_export.models.mini.processor import mini_processor
from toprl_export.models.reference import ReferenceRunner, until_end
from toprl_export.pruning.scorer import ScorerNeeds

QUESTIONS = ("what colour is the 7?", "is there a star in the image? how many circles are there?")
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 40,
    "patch_size": 8,
}
ROPE = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 2.0,
        "short_factor": [1.0] * 16,
        "long_factor": [2.0] * 16,
        "original_max_position_embeddings": 128,
    },
}

AGREE = {
    # Text models as they come.
    **{name: {"text": name} for name in ("llama", "qwen2", "qwen3", "mistral", "phi3", "granite", "gemma", "stablelm")},
    **{name: {"text": name} for name in ("olmo", "olmo2", "cohere", "cohere2", "exaone4", "starcoder2", "glm")},
    **{name: {"text": name} for name in ("glm4", "smollm3", "nemotron", "seed_oss", "arcee", "ernie4_5", "apertus")},
    **{name: {"text": name} for name in ("granitemoe", "olmoe", "diffllama", "bitnet", "doge", "flex_olmo", "jetmoe")},
    **{name: {"text": name} for name in ("hyperclovax", "mixtral", "qwen2_moe", "deepseek_v3", "afmoe")},
    # Positions.
    **{f"rope {kind}": {"settings": {"rope_parameters": {"rope_theta": 1e4, **rope}}} for kind, rope in ROPE.items()},
    "rope theta 1e6": {"settings": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}},
    "qwen2 yarn": {"text": "qwen2", "settings": {"rope_parameters": {"rope_theta": 1e4, **ROPE["yarn"]}}},
    # Heads.
    "MQA": {"settings": {"num_key_value_heads": 1}},
    "GQA": {"settings": {"num_attention_heads": 4, "num_key_value_heads": 2}},
    "GQA of qwen2": {"text": "qwen2", "settings": {"num_attention_heads": 4, "num_key_value_heads": 2}},
    "wide heads": {"settings": {"head_dim": 64}},
    "narrow heads": {"settings": {"head_dim": 16}},
    "wide heads of qwen3": {"text": "qwen3", "settings": {"head_dim": 48}},
    "wide heads of mistral": {"text": "mistral", "settings": {"head_dim": 64, "num_key_value_heads": 1}},
    # Other settings of the text model.
    "attention bias": {"settings": {"attention_bias": True}},
    "MLP bias": {"settings": {"mlp_bias": True}},
    "GELU": {"settings": {"hidden_act": "gelu"}},
    "epsilon": {"settings": {"rms_norm_eps": 1e-2}},
    "tied head": {"llava": {"tie_word_embeddings": True}, "settings": {"tie_word_embeddings": True}},
    "no window": {"text": "mistral", "settings": {"sliding_window": None}},
    "a window longer than any prompt": {"text": "mistral", "settings": {"sliding_window": 128}},
    "qwen2's window switched off": {"text": "qwen2", "settings": {"sliding_window": 8, "use_sliding_window": False}},
    "partial rotary": {"text": "glm", "settings": {"partial_rotary_factor": 0.25}},
    "granite's residual multiplier": {"text": "granite", "settings": {"residual_multiplier": 0.5}},
    "granite's attention multiplier": {"text": "granite", "settings": {"attention_multiplier": 0.5}},
    # Towers, feature layers and strategies.
    **{f"CLIP, state {layer}": {"llava": {"vision_feature_layer": layer}} for layer in (-3, -1, 1, 3)},
    **{
        f"SigLIP, state {layer}": {
            "tower": "siglip_vision_model",
            "llava": {"vision_feature_layer": layer, "vision_feature_select_strategy": "full"},
        }
        for layer in (-4, -2, -1, 2, 3)
    },
    "CLIP, full": {"llava": {"vision_feature_select_strategy": "full"}},
    "CLIP, two states": {"llava": {"vision_feature_layer": [-2, -1]}},
    "CLIP, three states": {"llava": {"vision_feature_layer": [0, 2, 3]}},
    "SigLIP, two states": {
        "tower": "siglip_vision_model",
        "llava": {"vision_feature_layer": [1, -1], "vision_feature_select_strategy": "full"},
    },
    "SigLIP, default": {"tower": "siglip_vision_model"},
    "projector without bias": {"llava": {"multimodal_projector_bias": False}},
    "projector with ReLU": {"llava": {"projector_hidden_act": "relu"}},
    "end tokens of generation_config": {"generation": {"eos_token_id": [2, 35, 44]}},
    "sampling in generation_config": {"generation": {"do_sample": True, "temperature": 0.2, "top_p": 0.5}},
}
REFUSED = {
    **{name: ({"text": name}, "expected a stack like Llama's") for name in ("gpt_neox", "phi", "persimmon", "jamba")},
    **{name: ({"text": name}, "cannot be walked") for name in ("gemma3_text", "olmo3", "llama4_text", "minimax")},
    **{
        name: ({"text": name}, "the states entering decoder layer 1 differ")
        for name in ("gemma2", "vaultgemma", "gpt_oss")
    },
    "nanochat": ({"text": "nanochat"}, "does not run each of its layers once"),
    "helium": ({"text": "helium"}, "the own forward of model .* fails"),
    "granite's embedding multiplier": (
        {"text": "granite", "settings": {"embedding_multiplier": 3.0}},
        "the states entering decoder layer 0 differ",
    ),
    "mistral's window": ({"text": "mistral", "settings": {"sliding_window": 8}}, "takes sequences of 8 tokens"),
    "qwen2's window": (
        {
            "text": "qwen2",
            "settings": {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3},
        },
        "takes sequences of 8 tokens",
    ),
    "eager attention": ({"attention": "eager"}, "the states entering decoder layer 1 differ"),
    "DINOv2": (
        {"tower": "dinov2", "llava": {"vision_feature_select_strategy": "full"}},
        "a vision tower of the kind dinov2",
    ),
    "Pixtral": ({"tower": "pixtral", "llava": {"vision_feature_layer": -1}}, "a vision tower of the kind pixtral"),
    "a state that the tower has not": ({"llava": {"vision_feature_layer": 9}}, "states 9 of a vision tower that has 4"),
    "state 0, which Hugging Face itself cannot take": (
        {"llava": {"vision_feature_layer": 0}},
        "the own forward of model",
    ),
    "no state": ({"llava": {"vision_feature_layer": []}}, "vision_feature_layer in its config.json"),
    "no end token": ({"settings": {"eos_token_id": None}}, "has no end token"),
    "an end token beyond the vocabulary": ({"generation": {"eos_token_id": [2, 9000]}}, "has the token id 9000"),
    "fewer embeddings than tokens": ({"settings": {"vocab_size": 64}}, "embeddings for 64 tokens alone"),
    "an image token beyond the vocabulary": ({"llava": {"image_token_id": 9000}}, "the own forward of model .* fails"),
    "another image token": ({"llava": {"image_token_id": 5}}, "the own forward of model .* fails"),
    "repetition penalty": ({"generation": {"repetition_penalty": 1.2}}, "asks for repetition_penalty = 1.2"),
    "n-grams": ({"generation": {"no_repeat_ngram_size": 3}}, "asks for no_repeat_ngram_size = 3"),
    "suppressed tokens": ({"generation": {"suppress_tokens": [7]}}, "asks for suppress_tokens"),
    "a smaller picture": ({"pixels": 32}, r"makes \[3, 32, 32\] of a picture"),
    "quantised": ({"llava": {"quantization_config": {"quant_method": "awq", "bits": 4}}}, r"is quantised \(awq\)"),
    "positions for no answer": ({"settings": {"max_position_embeddings": 20}}, "takes sequences of 20 tokens"),
}


def save_variant(
    directory: Path,
    text: str = "llama",
    tower: str = "clip_vision_model",
    settings: dict[str, Any] | None = None,
    llava: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    attention: str | None = None,
    pixels: int = 40,
) -> None:
    """Write a checkpoint with random weights, matrices scaled by 8."""
    torch.manual_seed(0)
    quantised = (llava or {}).get("quantization_config")
    options = {"image_token_id": 4, "image_seq_length": 25} | (llava or {})
    options.pop("quantization_config", None)
    config = LlavaConfig(
        text_config=AutoConfig.for_model(text, **(TEXT | (settings or {}))),
        vision_config=AutoConfig.for_model(tower, **TOWER),
        **options,
    )
    network = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    for name, value in (generation or {}).items():
        setattr(network.generation_config, name, value)
    network.save_pretrained(directory)
    processor = mini_processor(pixels, 8)
    if options.get("vision_feature_select_strategy") == "full":
        processor.vision_feature_select_strategy = "full"
    processor.num_additional_image_tokens = int(tower == "clip_vision_model")
    processor.save_pretrained(directory)
    changes = {"attn_implementation": attention} if attention else {}
    edit(directory / "config.json", **({"quantization_config": quantised} if quantised else {}), **changes)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def own_answers(adapter: LVLMAdapter) -> tuple[torch.Tensor, list[list[int]]]:
    """Hugging Face's logits of the last position and greedy tokens, from its own processor's inputs."""
    processor, network = adapter.frontend.processor, adapter.model
    processor.tokenizer.padding_side = "left"
    content = [
        [{"role": "user", "content": [{"type": "image", "image": picture(row)}, {"type": "text", "text": question}]}]
        for row, question in enumerate(QUESTIONS)
    ]
    inputs = processor.apply_chat_template(
        content,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    with torch.inference_mode():
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        logits = network(**inputs, position_ids=positions).logits[:, -1]
        made = network.generate(**inputs, do_sample=False, max_new_tokens=8, pad_token_id=0)
    rows = made[:, inputs["input_ids"].shape[1] :].tolist()
    return logits, [until_end(row, adapter.end_tokens) for row in rows]


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def our_answers(adapter: LVLMAdapter) -> tuple[torch.Tensor, list[list[int]]]:
    runner = ReferenceRunner(adapter)
    visual = runner.encode_image(adapter.frontend.pixels([picture(row) for row in range(len(QUESTIONS))]))
    answers = runner.generate(adapter.frontend.tokens(QUESTIONS), visual, 8)
    return answers.prefill.logits, answers.tokens


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agreement, "_cache", lambda: None)


@pytest.mark.parametrize("name", AGREE)
def test_agrees_with_hugging_face(name: str, tmp_path: Path):
    save_variant(tmp_path, **AGREE[name])
    adapter = load_model(str(tmp_path))
    (theirs, their_tokens), (ours, our_tokens) = own_answers(adapter), our_answers(adapter)
    assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())
    assert our_tokens == their_tokens


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path):
    settings, expected = REFUSED[name]
    save_variant(tmp_path, **settings)
    with pytest.raises(UserError, match=expected) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gemma2", "granite's embedding multiplier", "eager attention"])
def test_without_the_check_they_would_be_wrong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The negative control: what is refused for its numbers has other logits than Hugging Face's own."""
    save_variant(tmp_path, **REFUSED[name][0])
    monkeypatch.setattr(agreement.Agreement, "require", lambda *_: None)
    adapter = load_model(str(tmp_path))
    theirs, ours = own_answers(adapter)[0], our_answers(adapter)[0]
    assert float((ours - theirs).abs().max()) > 1e-2 * float(theirs.abs().max())


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "GQA", "narrow heads", "granite's attention multiplier"])
def test_attention_that_scorers_read(name: str, tmp_path: Path):
    save_variant(tmp_path, **AGREE[name])
    agreement.require_attention(load_model(str(tmp_path)), ScorerNeeds(attention="last"))


@pytest.mark.parametrize("name", ["phi3", "glm", "cohere", "stablelm"])
def test_attention_of_other_kinds_is_refused(name: str, tmp_path: Path):
    """Fused projections, partial rotary, interleaved rotary."""
    save_variant(tmp_path, **AGREE[name])
    adapter = load_model(str(tmp_path))
    with pytest.raises(UserError, match=r"the attention of model .* which this method scores by, cannot be computed"):
        agreement.require_attention(adapter, ScorerNeeds(attention="last"))
    agreement.require_attention(adapter, ScorerNeeds())
