"""Turn the last phase's tensors into the checkpoint directory that the package ships."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from toprl_export.models.mini.architecture import PATCH_SIZE, mini_config
from toprl_export.models.mini.pretrain.objective import IMAGE_MEAN, IMAGE_STD
from toprl_export.models.mini.processor import mini_processor
from toprl_export.places import staged_directory
from toprl_export.tasks.scenes import IMAGE_PIXELS


def write_checkpoint(tensors: Path, directory: Path) -> None:
    """Write config, weights, tokenizer and processor files in Hugging Face's layout."""
    model = LlavaForConditionalGeneration(mini_config())
    weights = {name: tensor for name, tensor in load_file(tensors).items() if not name.startswith("heads.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{tensors} does not hold a mini: missing {missing}, unexpected {unexpected}")
    processor = mini_processor(IMAGE_PIXELS, PATCH_SIZE, IMAGE_MEAN, IMAGE_STD)
    with staged_directory(directory, overwrite=True, marker="config.json") as staged:
        model.save_pretrained(staged)
        write_processor(processor, staged)


def write_processor(processor: LlavaProcessor, directory: Path) -> None:
    """Write a processor as LLaVA-1.5's checkpoints have it: picture settings in ``preprocessor_config.json``."""
    processor.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)
    file = directory / "processor_config.json"
    rest = {name: value for name, value in json.loads(file.read_text()).items() if name != "image_processor"}
    file.write_text(json.dumps(rest, indent=2) + "\n")
