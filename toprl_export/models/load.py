"""Load a reference model by short name, local directory or hub id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from safetensors import SafetensorError

from toprl_export.errors import UserError, require
from toprl_export.fields import read_fields, read_file
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
        dtype: type of the weights; float32 by default. The rotary table always stays in float32.
        revision: the hub revision.

    Only safetensors weights are read and no code of the checkpoint is run.

    Raises:
        UserError: the model is unknown, is no image-text-to-text checkpoint, is of a family without an adapter or
            lacks a readable file; or torch has no such device.
        MissingExtraError: torch or transformers is not installed.
    """
    torch = require("torch", "train")
    transformers = require("transformers", "train")
    _check_device(torch, device)
    with resources.as_file(_location(model)) as path:
        source = str(path)
        config = _read_config(transformers, source, model, revision)
        if config.model_type not in FAMILIES:
            raise UserError(
                f"model {model!r} is of the family {config.model_type!r}, which has no adapter; "
                f"supported: {', '.join(FAMILIES.names())} (CONTRIBUTING.md says how to add one)"
            )
        with _quiet(transformers.utils.logging), _readable("weights", source):
            network = transformers.AutoModelForImageTextToText.from_pretrained(
                source,
                revision=revision,
                dtype=dtype or torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
            )
        _restore_rotary(network)
        adapter = FAMILIES.get(config.model_type)
        return adapter(
            model_id=model,
            revision=revision,
            model=network.to(device),
            tokenizer=_tokenizer(transformers, source, revision),
            image_processor=_image_processor(source, revision),
            prompt_format=_prompt_format(Path(source), adapter.default_prompt),
        )


def load_unchanged_model(name: str, device: str, answering_fingerprint: str) -> LVLMAdapter:
    """The model of the parent process, loaded again in a worker.

    Raises:
        UserError: it cannot be loaded, or its files have changed, so that it would answer differently.
    """
    adapter = load_model(name, device=device)
    if adapter.answering_fingerprint != answering_fingerprint:
        raise UserError(f"the files of model {name} changed while the command ran: repeat it")
    return adapter


def _check_device(torch: Any, device: str) -> None:
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r} is unknown to torch, expected cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count() if wanted.type == "cuda" else 0
    if wanted.type == "cuda" and (wanted.index or 0) >= count:
        raise UserError(f"device {device} was requested, but torch finds {count} CUDA GPUs: use --device cpu")


@contextmanager
def _readable(what: str, source: str) -> Iterator[None]:
    """Turn what missing and broken files of a checkpoint raise into one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"the {what} of model {source} cannot be read ({reason}): "
            "save it again with save_pretrained, as safetensors, or give another model"
        ) from error


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Hide transformers' progress bar over the weights: it is over in a moment, and downloads have their own."""
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
    with _readable("tokenizer", source):
        if not file.is_file():
            loaded = transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
            return loaded.backend_tokenizer
        text = file.read_text(encoding="utf-8")
        # The tokenizers library raises bare exceptions, so what commonly breaks is found before it reads the file.
        if not isinstance(json.loads(text).get("model"), dict):
            raise UserError(f"{file} has no object model: give a checkpoint with a complete tokenizer.json")
    return Tokenizer.from_str(text)


def _image_processor(source: str, revision: str | None) -> ImageProcessor:
    from transformers.image_processing_base import ImageProcessingMixin

    from toprl_export.runtime.preprocess import ImageProcessor

    name = f"the image processor of model {source}"
    with _readable("image processor", source):
        found = ImageProcessingMixin.get_image_processor_dict(source, revision=revision)[0]
        resample = Image.Resampling(found.get("resample", Image.Resampling.BICUBIC)).name.lower()
        # Hugging Face's file holds much more, some of it null.
        known = {field.name for field in fields(_ImageSettings)}
        given = {key: value for key, value in found.items() if key in known and value is not None}
    settings = read_fields(_ImageSettings, given, name, "give a checkpoint with a complete preprocessor_config.json")
    if settings.do_pad or abs(settings.rescale_factor * 255 - 1) > 1e-6:
        raise UserError(
            f"model {source} pads its images or scales them by other than 1/255, expected neither: "
            "its family needs an adapter of its own"
        )
    edge = settings.size.get("shortest_edge")
    crops = edge is not None if settings.do_center_crop is None else settings.do_center_crop
    return ImageProcessor(
        size=_pair(settings.size, f"{name}: size") if edge is None else (edge, edge),
        resize="exact" if edge is None else "shortest-edge",
        crop=_pair(settings.crop_size, f"{name}: crop_size") if crops and settings.crop_size is not None else None,
        mean=settings.image_mean,
        std=settings.image_std,
        resample=resample,
    )


@dataclass(frozen=True)
class _ImageSettings:
    """What this reads of Hugging Face's ``preprocessor_config.json``."""

    size: dict[str, int | None]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    crop_size: int | dict[str, int] | None = None
    do_center_crop: bool | None = None
    do_pad: bool = False
    rescale_factor: float = 1 / 255


def _pair(sizes: int | Mapping[str, int | None], what: str) -> tuple[int, int]:
    """Height and width, which older checkpoints write as one number."""
    if isinstance(sizes, int):
        return sizes, sizes
    height, width = sizes.get("height"), sizes.get("width")
    if height is None or width is None:
        raise UserError(f"{what} is {dict(sizes)}, expected a height and a width: its family needs an adapter")
    return height, width


def _prompt_format(source: Path, default: PromptFormat) -> PromptFormat:
    """The model's own where its directory has one, else its family's."""
    from toprl_export.runtime.prompt import PromptFormat

    file = source / PROMPT_FILE
    return read_file(PromptFormat, file) if file.is_file() else default


def _restore_rotary(network: Any) -> None:
    """Loading in half precision also rounds the rotary frequencies: rebuild the table in float32."""
    rotary = network.model.language_model.rotary_emb
    network.model.language_model.rotary_emb = type(rotary)(config=rotary.config)
