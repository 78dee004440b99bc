"""Tiny checkpoints of every model family, with random weights and `mini`'s words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer

from toprl_export.models.mini.architecture import BEGIN, END, PAD, UNKNOWN, build_tokenizer
from toprl_export.runtime.processor import without_videos

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 40,
    "patch_size": 8,
}
CHAT = (
    "{{ '<s>' }}{% for message in messages %}{{ message.role }}:"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
    " {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat(image: str) -> str:
    """A chat template that shows ``image`` where a picture stands."""
    return CHAT.replace("IMAGE", image)


def tokenizer(*control: str, **named: str) -> Any:
    """`mini`'s words with further control tokens; ``named`` are those that the tokenizer itself knows by a name."""
    from transformers import PreTrainedTokenizerFast

    words: Tokenizer = build_tokenizer()
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        extra_special_tokens=named,
    )


def save(directory: Path, network: torch.nn.Module, processor: Any) -> Path:
    """Write both, matrices scaled by 8, because default weights hide wrong positions and masks in rounding noise."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    network.eval().save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def llava_next(directory: Path) -> Path:
    """Tiles of 25 visual tokens, at most two by two of them."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    torch.manual_seed(0)
    words = tokenizer(image_token="<image>")
    pinpoints = [[40, 80], [80, 40], [80, 80], [120, 40], [40, 120]]
    config = LlavaNextConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        image_token_index=words.image_token_id,
        image_grid_pinpoints=pinpoints,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat("<image>"),
    )
    return save(directory, LlavaNextForConditionalGeneration(config), processor)


QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
QWEN_CHAT = chat("<|vision_start|><|image_pad|><|vision_end|>")


def _qwen(directory: Path, name: str, vision: dict[str, Any]) -> Path:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    torch.manual_seed(0)
    words = tokenizer(*QWEN_TOKENS)
    image, video, start, end = words.convert_tokens_to_ids(list(QWEN_TOKENS))
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        text_config={
            "vocab_size": len(words),
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    kind = without_videos(getattr(transformers, f"{name}Processor"))
    processor = kind(images, words, chat_template=QWEN_CHAT)
    return save(directory, getattr(transformers, f"{name}ForConditionalGeneration")(config), processor)


def qwen2_vl(directory: Path) -> Path:
    """8 x 8 pixels a visual token."""
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "patch_size": 4, "mlp_ratio": 2}
    return _qwen(directory, "Qwen2VL", vision)


def qwen2_5_vl(directory: Path) -> Path:
    """8 x 8 pixels a visual token, windows of 3 x 3 of them in the first two of three blocks."""
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 4,
        "window_size": 24,
        "fullatt_block_indexes": [2],
    }
    return _qwen(directory, "Qwen2_5_VL", vision)


def internvl(directory: Path) -> Path:
    """Tiles of 40 pixels, 4 visual tokens each."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    torch.manual_seed(0)
    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [40, 40],
        "patch_size": [10, 10],
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", "vocab_size": len(words), **TEXT},
        image_token_id=words.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = GotOcr2ImageProcessorPil(size={"height": 40, "width": 40}, min_patches=1, max_patches=6)
    processor = without_videos(InternVLProcessor)(
        images, words, image_seq_length=4, chat_template=chat("<IMG_CONTEXT>")
    )
    return save(directory, InternVLForConditionalGeneration(config), processor)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava_next": llava_next,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "internvl": internvl,
}
