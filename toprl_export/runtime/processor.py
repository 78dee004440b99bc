"""Hugging Face's processor of a checkpoint, read without torch and without torchvision."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toprl_export.errors import SAVE_AGAIN, UserError, refusing

MOST_TOKENS = 2**24
"""Vocabularies of today have 2**18 tokens at most."""


def read_processor(source: str, revision: str | None = None, name: str | None = None, kind: str | None = None) -> Any:
    """Hugging Face's processor of a checkpoint, or of the directory that `Frontend.save` wrote.

    Args:
        source: a directory or hub id.
        revision: the hub revision.
        name: what messages call the model; ``source`` by default.
        kind: the name of its class in transformers; by default what the files say.

    Raises:
        UserError: a file is missing or cannot be read, or the processor is of another kind.
    """
    what = f"the processor of model {name or source}"
    _check_token_ids(Path(source) / "tokenizer.json")
    with _without_advice(), refusing(f"{what} cannot be read", SAVE_AGAIN):
        # With torchvision installed the default would be its resizing, which gives other pixels than Pillow's.
        load: Any = _processor_class(kind).from_pretrained  # which has no types
        processor = load(source, revision=revision, trust_remote_code=False, backend="pil")
    parts = [getattr(processor, part, None) for part in ("image_processor", "tokenizer", "image_token_id")]
    if None in parts or not processor.tokenizer.is_fast:
        raise UserError(
            f"{what} is a {type(processor).__name__}, expected one with an image processor, a fast tokenizer and an "
            "image token: save it again with processor.save_pretrained"
        )
    return processor


def _processor_class(kind: str | None) -> Any:
    """The class to load, without its part for videos, which needs torchvision."""
    import transformers

    if kind is None:
        return transformers.AutoProcessor
    whole: Any = getattr(transformers, kind)
    if "video_processor" not in whole.get_attributes():
        return transformers.AutoProcessor
    return without_videos(whole)


def without_videos(whole: Any) -> Any:
    """A processor's class for pictures alone, saved under the name of the whole."""

    def attributes(cls: Any) -> list[str]:
        return [name for name in whole.get_attributes.__func__(cls) if name != "video_processor"]

    return type(whole.__name__, (whole,), {"get_attributes": classmethod(attributes), "__init__": whole.__init__})


def _check_token_ids(file: Path) -> None:
    """Refuse a vocabulary with ids that no model has: tokenizers would make room for all below the largest.

    Raises:
        UserError: names the file and the id.
    """
    try:
        content = json.loads(file.read_bytes())
        vocabulary = content["model"]["vocab"]
        ids = [*vocabulary.values(), *(token["id"] for token in content["added_tokens"])]
        largest = max(token for token in ids if isinstance(token, int))
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return  # not there, of a kind that numbers its tokens itself, or damaged, which its own reader tells
    if largest >= MOST_TOKENS:
        raise UserError(
            f"{file} has the token id {largest}, expected ids below {MOST_TOKENS:,}: give a whole tokenizer"
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hide transformers' advice to install PyTorch, which its processors do not need."""
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_no_advice)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage()
