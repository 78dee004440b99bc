"""Load a reference model by short name, local directory or hub id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from toprl_export.errors import SAVE_AGAIN, UserError, refusing, require
from toprl_export.models.registry import FAMILIES, NAMED_MODELS
from toprl_export.registry import unknown_name
from toprl_export.runtime.processor import read_processor

if TYPE_CHECKING:
    import torch

    from toprl_export.models.adapter import LVLMAdapter


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
        UserError: the model is unknown, is no image-text-to-text checkpoint, is of a family without an adapter, lacks
            weights or a readable file, is quantised, asks for another way to answer than the most likely token, or is
            not computed here as its own code computes it; or torch has no such device.
        MissingExtraError: torch or transformers is not installed.
    """
    torch = require("torch", "train")
    import transformers

    from toprl_export.models.agreement import known_agreement

    _check_device(torch, device)
    with resources.as_file(_location(model)) as path:
        source = str(path)
        config = _read_config(transformers, source, model, revision)
        if config.model_type not in FAMILIES:
            raise UserError(
                f"model {model!r} is of the family {config.model_type!r}, which has no adapter; "
                f"supported: {', '.join(FAMILIES.names())} (CONTRIBUTING.md says how to add one)"
            )
        _check_config(config, model, path)
        with _quiet(transformers.utils.logging), refusing(f"the weights of model {source} cannot be read", SAVE_AGAIN):
            loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                source,
                revision=revision,
                dtype=dtype or torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        network, loading = loaded
        _check_loading(loading, model)
        _check_generation(network.generation_config, model)
        _restore_rotary(network)
        adapter: LVLMAdapter = FAMILIES.get(config.model_type)(
            model_id=_recorded(model),
            revision=revision,
            model=network.to(device),
            processor=read_processor(source, revision, model, _processor_kind(config)),
        )
        adapter.check()
        known_agreement(adapter).require(model)
        return adapter


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
def _quiet(logging: Any) -> Iterator[None]:
    """Hide transformers' progress bar over the weights and its table of missing ones, which are an error here."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _location(model: str) -> Any:
    """The packaged directory of a named model, else the path or id as it is."""
    if model in NAMED_MODELS:
        named = NAMED_MODELS[model]
        return resources.files(named.package).joinpath(named.folder)
    if Path(model).is_dir():
        return Path(model)
    # Never looked up on a hub: a directory that has moved is not somebody's repository of that name.
    if Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise UserError(f"the model directory {model} is not there: give the place where it is now (--model)")
    if "/" not in model:
        raise unknown_name("model", model, NAMED_MODELS)
    return Path(model)


def _processor_kind(config: Any) -> str | None:
    """The class of processor that transformers pairs with a model."""
    from transformers.models.auto import processing_auto

    names: Any = processing_auto
    found = names.PROCESSOR_MAPPING_NAMES.get(config.model_type)
    return found if isinstance(found, str) else None


def _recorded(model: str) -> str:
    """What agents, bundles and reports call the model: a directory by its absolute path, so that it is found again."""
    is_directory = model not in NAMED_MODELS and Path(model).is_dir()
    return str(Path(model).resolve()) if is_directory else model


def _read_config(transformers: Any, source: str, model: str, revision: str | None) -> Any:
    remedy = f"give {', '.join(NAMED_MODELS)}, a directory saved by save_pretrained, or a hub id that is reachable"
    with refusing(f"model {model!r} cannot be read", remedy):
        return transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def _check_config(config: Any, model: str, path: Path) -> None:
    for part in (config, config.get_text_config()):
        quantised = getattr(part, "quantization_config", None)
        if quantised is not None:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else None
            raise UserError(
                f"model {model} is quantised ({method or type(quantised).__name__}), expected weights in fp32, fp16 or "
                "bf16: give the checkpoint that it was made from"
            )
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"model {model} has LoRA files beside its weights (adapter_config.json): merge them into the weights "
            "(merge_and_unload, save_pretrained) or take them away"
        )


HARMLESS_WEIGHTS = ("rotary_emb.inv_freq", "position_ids", "lm_head.weight")
"""Ends of the names of weights that older releases saved and that are made again from the configuration or, the head's,
tied to the embeddings."""


def _check_loading(loading: Any, model: str) -> None:
    """Refuse a checkpoint without some of the model's weights: they would be random, and others at each load."""
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UserError(
            f"model {model} lacks {len(missing)} of its weights, the first being {missing[0]}: give a complete one"
        )
    adapters = sorted(name for name in loading["unexpected_keys"] if "lora_" in name)
    if adapters:
        raise UserError(f"model {model} holds LoRA weights ({adapters[0]}): merge them into the weights they adapt")
    unused = sorted(name for name in loading["unexpected_keys"] if not name.endswith(HARMLESS_WEIGHTS))
    if unused:
        raise UserError(
            f"model {model} holds {len(unused)} weights that its config.json has no place for, the first being "
            f"{unused[0]}: correct config.json, or save the model again without them"
        )


CHANGES_GREEDY = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "min_length",
    "min_new_tokens",
    "guidance_scale",
    "stop_strings",
    "watermarking_config",
)
"""What generation_config.json may ask for that changes greedy answers; sampling and beams do not concern them."""

NEUTRAL: Mapping[str, float] = MappingProxyType(
    {
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "guidance_scale": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "min_length": 0,
        "min_new_tokens": 0,
    }
)
"""Values of some of these that change nothing."""


def _check_generation(generation: Any, model: str) -> None:
    """Refuse what the model's own greedy ``generate`` would do and this project does not."""
    for name in CHANGES_GREEDY:
        value = getattr(generation, name, None)
        if value is not None and value != [] and value != {} and value != NEUTRAL.get(name):
            raise UserError(
                f"model {model} asks for {name} = {value} in its generation_config.json, which engines do not do: "
                "remove it, and judge its answers without"
            )


def _restore_rotary(network: Any) -> None:
    """Loading in half precision also rounds the rotary frequencies: rebuild the table in float32."""
    stack = network.model.language_model
    rotary = getattr(stack, "rotary_emb", None)  # a stack without one is refused by its adapter
    if rotary is not None:
        stack.rotary_emb = type(rotary)(config=rotary.config)
