"""Turn the last phase's tensors into the checkpoint directory that the package ships."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from toprl_export.fields import to_json
from toprl_export.files import staged_directory
from toprl_export.models.load import PROMPT_FILE
from toprl_export.models.mini.architecture import BEGIN, END, IMAGE, PAD, UNKNOWN, build_tokenizer, mini_config
from toprl_export.models.mini.pretrain.objective import IMAGE_MEAN, IMAGE_STD
from toprl_export.runtime.prompt import PromptFormat
from toprl_export.tasks.scenes import IMAGE_PIXELS

PROMPT = PromptFormat(f"{BEGIN}user:", "{question} assistant:", image_token=IMAGE, pad_token=PAD)


def write_checkpoint(tensors: Path, directory: Path) -> None:
    """Write config, weights, tokenizer and processor files in Hugging Face's layout, and the prompt format."""
    model = LlavaForConditionalGeneration(mini_config())
    weights = {name: tensor for name, tensor in load_file(tensors).items() if not name.startswith("heads.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{tensors} does not hold a mini: missing {missing}, unexpected {unexpected}")
    size = {"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [IMAGE_MEAN] * 3,
        "image_std": [IMAGE_STD] * 3,
        "do_convert_rgb": True,
    }
    special = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "padding_side": "left",
        "extra_special_tokens": {"image_token": IMAGE},
    }
    with staged_directory(directory, overwrite=True, marker="config.json") as staged:
        model.save_pretrained(staged)
        build_tokenizer().save(str(staged / "tokenizer.json"))
        _write(staged / "preprocessor_config.json", processor)
        _write(staged / "tokenizer_config.json", special)
        _write(staged / PROMPT_FILE, to_json(PROMPT))


def _write(path: Path, payload: object) -> None:
    path.write_text(json.dumps(payload, indent=2) + "\n")
