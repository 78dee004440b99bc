"""Load a reference model by short name, local directory or hub id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from toprl_export.errors import UserError, require
from toprl_export.fields import Fields
from toprl_export.models.registry import FAMILIES, NAMED_MODELS
from toprl_export.registry import unknown_name

if TYPE_CHECKING:
    import torch

    from toprl_export.models.adapter import LVLMAdapter
    from toprl_export.runtime.preprocess import ImageProcessor
    from toprl_export.runtime.prompt import PromptFormat

PROMPT_FILE = "prompt_format.json"


def load_model(
    model: str = "mini", device: str = "cpu", dtype: torch.dtype | None = None, revision: str | None = None
) -> LVLMAdapter:
    """The adapter of ``model``, frozen and in evaluation mode.

    Args:
        model: a name from `NAMED_MODELS`, a local directory, or a hub id ("org/name").
        device: a torch device.
        dtype: type of the weights; float32 unless told. The rotary table always stays in float32.
        revision: the hub revision.

    Raises:
        UserError: the model is unknown, is no image-text-to-text checkpoint or is of a family without an adapter.
        MissingExtraError: torch or transformers is not installed.
    """
    torch = require("torch", "train")
    transformers = require("transformers", "train")
    with resources.as_file(_location(model)) as path:
        source = str(path)
        config = _read_config(transformers, source, model, revision)
        if config.model_type not in FAMILIES:
            raise UserError(
                f"model {model!r} is of the family {config.model_type!r}, which has no adapter; "
                f"supported: {', '.join(FAMILIES.names())} (CONTRIBUTING.md says how to add one)"
            )
        with _quiet(transformers.utils.logging):
            network = transformers.AutoModelForImageTextToText.from_pretrained(
                source, revision=revision, dtype=dtype or torch.float32, trust_remote_code=False
            )
        _restore_rotary(network)
        adapter = FAMILIES.get(config.model_type)
        return adapter(
            model_id=model,
            revision=revision,
            model=network.to(device),
            tokenizer=_tokenizer(transformers, source, revision),
            image_processor=_image_processor(transformers, source, revision),
            prompt_format=_prompt_format(Path(source), adapter.default_prompt),
        )


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Hide transformers' bar over the weights, which loads in a moment or has its own download bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _location(model: str) -> Any:
    """The packaged directory of a named model, else the path or id as it is."""
    if model in NAMED_MODELS:
        named = NAMED_MODELS[model]
        return resources.files(named.package).joinpath(named.folder)
    looks_local = Path(model).is_dir() or "/" in model
    if not looks_local:
        raise unknown_name("model", model, NAMED_MODELS)
    return Path(model)


def _read_config(transformers: Any, source: str, model: str, revision: str | None) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model {model!r} cannot be read ({reason}): give {', '.join(NAMED_MODELS)}, "
            "a directory saved by save_pretrained, or a hub id that is reachable"
        ) from error


def _tokenizer(transformers: Any, source: str, revision: str | None) -> Any:
    from tokenizers import Tokenizer

    file = Path(source) / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    return transformers.AutoTokenizer.from_pretrained(source, revision=revision).backend_tokenizer


def _image_processor(transformers: Any, source: str, revision: str | None) -> ImageProcessor:
    from transformers.image_processing_base import ImageProcessingMixin

    from toprl_export.runtime.preprocess import ImageProcessor

    settings: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(source, revision=revision)[0]
    if settings.get("do_pad") or abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise UserError(
            f"model {source} pads its images or scales them by other than 1/255: its family needs an adapter"
        )
    size: dict[str, int] = settings["size"]
    edge = size.get("shortest_edge")
    crop = settings.get("crop_size") if settings.get("do_center_crop", edge is not None) else None
    if isinstance(crop, dict):
        crop = (crop["height"], crop["width"])
    elif crop is not None:
        crop = (crop, crop)
    return ImageProcessor(
        size=(edge, edge) if edge else (size["height"], size["width"]),
        resize="shortest-edge" if edge else "exact",
        crop=crop,
        mean=tuple(settings["image_mean"]),
        std=tuple(settings["image_std"]),
        resample=Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC)).name.lower(),
    )


def _prompt_format(source: Path, default: PromptFormat) -> PromptFormat:
    """The model's own where its directory has one, else its family's."""
    from toprl_export.runtime.prompt import PromptFormat

    file = source / PROMPT_FILE
    return PromptFormat.from_json(Fields(file, json.loads(file.read_text()))) if file.is_file() else default


def _restore_rotary(network: Any) -> None:
    """Loading in half precision also rounds the rotary frequencies: make the table again in float32."""
    rotary = network.model.language_model.rotary_emb
    network.model.language_model.rotary_emb = type(rotary)(config=rotary.config)
