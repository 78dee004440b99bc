"""From pictures and questions to a model's inputs: Hugging Face's own processor and chat template, without torch."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from numpy.typing import NDArray
from PIL import Image

from toprl_export.errors import SAVE_AGAIN, UserError, is_utf8, refusing
from toprl_export.runtime.layout import TokenBatch, lay_out
from toprl_export.runtime.pictures import ImageInput, open_picture

if TYPE_CHECKING:
    from tokenizers import Tokenizer


MOST_TOKENS = 2**24
"""Vocabularies of today have 2**18 tokens at most."""


class Frontend:
    """A checkpoint's processor and chat template, and the layout of prompts with one picture each.

    Pixels and token ids are those of the processor's own ``apply_chat_template``; only the picture's place is filled
    with image tokens here, so that questions can be tokenised without their pictures.

    >>> frontend = Frontend(read_processor(f"{directory}/processor"), visual_tokens=16, image_size=(8, 8))
    >>> frontend.pixels([Image.new("RGB", (640, 480), "white")]).shape
    (1, 3, 8, 8)
    >>> frontend.tokens(["what colour is the 7?"]).visual_index.shape
    (1, 16)

    Attributes:
        processor: Hugging Face's.
        visual_tokens: n, the image tokens of every prompt.
        image_size: height and width of ``pixel_values``.
        image_token_id: the token that stands at every visual position.
        tokenizer: the fast tokenizer, which neither cuts nor pads.
    """

    def __init__(self, processor: Any, visual_tokens: int, image_size: tuple[int, int]) -> None:
        self.visual_tokens = visual_tokens
        self.image_size = image_size
        self.processor = processor
        self.image_token_id = int(processor.image_token_id)
        self.tokenizer: Tokenizer = processor.tokenizer.backend_tokenizer
        # Scripts that fine-tune leave both in tokenizer.json; Hugging Face's own calls ignore them.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def pixels(self, images: Sequence[ImageInput]) -> NDArray[np.float32]:
        """Images to ``float32 [b, 3, h, w]``.

        Raises:
            UserError: there is none, or one of them is not an image or not of the size that the model takes.
        """
        if not images:
            raise UserError("no image was given: give at least one")
        return np.stack([self._one(open_picture(image)) for image in images])

    def shown(self, image: ImageInput) -> NDArray[np.uint8]:
        """The picture as the model sees it, resized and cropped but with its own colours, ``uint8 [h, w, 3]``."""
        seen = self._processed(open_picture(image), do_rescale=False, do_normalize=False)  # [3, h, w]
        return np.ascontiguousarray(np.rint(seen).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))

    def tokens(self, prompts: Sequence[str], max_length: int | None = None) -> TokenBatch:
        """Questions to a batch, each a user's message behind its picture.

        Control tokens in a question, the image token among them, are text.

        Args:
            prompts: one question per batch row.
            max_length: maximum length of a prompt in tokens, the visual ones included.

        Raises:
            UserError: there is no question, or one is empty or too long.
        """
        if not prompts:
            raise UserError("no prompt was given: give at least one")
        rows = [self._row(prompt) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if max_length is not None and len(row) > max_length:
                raise UserError(
                    f"the prompt {_shorten(prompt)!r} has {len(row)} tokens, {self.visual_tokens} of them visual, "
                    f"but at most {max_length} fit: shorten it or ask for fewer new tokens"
                )
        return lay_out(rows, self.image_token_id, self._pad_id)

    def save(self, directory: Path) -> tuple[str, ...]:
        """Write the processor's own files, which ``AutoProcessor`` reads; returns their names.

        Raises:
            UserError: the disk is full or the place cannot be written.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.processor.save_pretrained(directory)
        except OSError as error:
            raise UserError(
                f"{directory} cannot be written ({error.strerror or error}): choose another place"
            ) from error
        return tuple(sorted(path.name for path in directory.iterdir()))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that pixels and token ids depend on."""
        parts = [self.processor.to_dict(), self.processor.image_processor.to_dict(), self.processor.chat_template]
        text = json.dumps([*parts, self._pad_id], sort_keys=True, default=str)
        return hashlib.sha256(f"{text}\n{self.tokenizer.to_str()}".encode()).hexdigest()

    def check(self, name: str) -> None:
        """Hold one picture and one question against the processor's own ``apply_chat_template``.

        Args:
            name: the model, for messages.

        Raises:
            UserError: pictures come out in another size than the tower takes, the template is missing or does not
                show one picture before the question, or the processor counts other visual tokens.
        """
        height, width = self.image_size
        picture, question = Image.new("RGB", (width, height), "gray"), "what is this?"
        with refusing(f"the image processor of model {name} fails", SAVE_AGAIN):
            shape = self._processed(picture).shape
        if shape != (3, height, width):
            raise UserError(
                f"the image processor of model {name} makes {list(shape)} of a picture, but its vision tower takes "
                f"{[3, height, width]}: correct size and crop_size in its preprocessor_config.json"
            )
        if not self.processor.chat_template:
            raise UserError(
                f"model {name} has no chat template, so nothing says how a question is put to it: save one beside it "
                "as chat_template.jinja (set processor.chat_template, then processor.save_pretrained)"
            )
        with refusing(f"the chat template of model {name} fails", SAVE_AGAIN):
            ours = self._row(question)
            theirs = ours if self._template_takes_text else self._own_ids(picture, question)
            other = self._row("which one?")
        place = ours.index(self.image_token_id)
        if ours[: place + 1] != other[: place + 1]:
            raise UserError(
                f"the chat template of model {name} puts the question before its picture, expected it behind: a scorer "
                "reads it there; correct its chat_template.jinja"
            )
        if ours != theirs:
            counts = [ids.count(self.image_token_id) for ids in (theirs, ours)]
            raise UserError(
                f"the processor of model {name} puts {counts[0]} image tokens into a prompt of {len(theirs)}, expected "
                f"{counts[1]} in {len(ours)}, as its vision tower makes them: correct patch_size, "
                "num_additional_image_tokens and vision_feature_select_strategy in its processor_config.json"
            )

    def _own_ids(self, picture: Image.Image, question: str) -> list[int]:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        message = {"role": "user", "content": content}
        made = self.processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids: list[int] = made["input_ids"][0]
        return ids

    @property
    def _pad_id(self) -> int:
        """Any token would do, as pads are masked; only the embedding must have its row."""
        tokenizer = self.processor.tokenizer
        found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return int(found or 0)

    def _one(self, picture: Image.Image) -> NDArray[np.float32]:
        pixels = self._processed(picture)
        if pixels.shape[1:] != self.image_size:
            raise UserError(
                f"an image of {picture.width} x {picture.height} gives pixels of {list(pixels.shape[1:])}, expected "
                f"{list(self.image_size)}, as the model's processor does not resize: resize it first"
            )
        return pixels.astype(np.float32, copy=False)

    def _processed(self, picture: Image.Image, **switches: bool) -> NDArray[Any]:
        """One picture by Hugging Face's processor, ``[3, h, w]``."""
        made = self.processor.image_processor(picture, return_tensors="np", **switches)["pixel_values"]
        found: NDArray[Any] = made[0]
        return found

    def _row(self, prompt: str) -> list[int]:
        if not prompt.strip():
            raise UserError("a prompt is empty: ask a question about the image")
        if not is_utf8(prompt):
            raise UserError(f"the prompt {_shorten(prompt)!r} is not UTF-8: correct the text")
        try:
            ids = self._text_ids(prompt) if self._template_takes_text else self._parts_ids(prompt)
        except ValueError as error:  # a control token that is spelled as ordinary text is
            raise UserError(
                f"the prompt {_shorten(prompt)!r} cannot be told from this model's control tokens ({error}): put it "
                "in other words"
            ) from error
        place = ids.index(self.image_token_id)
        return [*ids[:place], *[self.image_token_id] * self.visual_tokens, *ids[place + 1 :]]

    @cached_property
    def _template_takes_text(self) -> bool:
        """Whether the template was written for text alone, so that the image token must stand in the message."""
        for takes_text, ids_of in ((False, self._parts_ids), (True, self._text_ids)):
            try:
                shown = ids_of("what is this?").count(self.image_token_id)
            except TemplateSyntaxError:
                raise
            except (TemplateError, TypeError):  # a template for text joins strings, one for parts walks a list
                continue
            if shown == 1:
                return takes_text
        raise UserError(
            f"the chat template does not show the image token {self.processor.image_token} once for a message with "
            "one picture: correct the model's chat_template.jinja"
        )

    def _parts_ids(self, prompt: str) -> list[int]:
        return self._ids([{"type": "image"}, {"type": "text", "text": prompt}], sanitize_control_tokens=True)

    def _text_ids(self, prompt: str) -> list[int]:
        found = next((token for token in self._control_tokens if token in prompt), None)
        if found is not None:
            raise UserError(
                f"the prompt {_shorten(prompt)!r} contains the control token {found}, which this model's chat template "
                "cannot tell from its own, as it takes text alone: remove it"
            )
        return self._ids(f"{self.processor.image_token}\n{prompt}")

    def _ids(self, content: Any, **options: bool) -> list[int]:
        tokenizer = self.processor.tokenizer
        ids: list[int] = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.processor.chat_template,
            add_generation_prompt=True,
            return_dict=False,
            **options,
        )
        before, after = self._added
        # As the processor's own apply_chat_template: a text that begins with the token needs no second one.
        return ids if ids[:1] == [tokenizer.bos_token_id] else [*before, *ids, *after]

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts before and behind a text."""
        whole = self.tokenizer.encode("a", add_special_tokens=True)
        own = [place for place, special in enumerate(whole.special_tokens_mask) if not special]
        return whole.ids[: own[0]], whole.ids[own[-1] + 1 :]

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        return tuple(token.content for token in self.processor.tokenizer.added_tokens_decoder.values() if token.special)


def read_processor(source: str, revision: str | None = None, name: str | None = None) -> Any:
    """Hugging Face's processor of a checkpoint, or of the directory that `Frontend.save` wrote.

    Args:
        source: a directory or hub id.
        revision: the hub revision.
        name: what messages call the model; ``source`` by default.

    Raises:
        UserError: a file is missing or cannot be read, or the processor is of another kind.
    """
    what = f"the processor of model {name or source}"
    _check_token_ids(Path(source) / "tokenizer.json")
    with _without_advice(), refusing(f"{what} cannot be read", SAVE_AGAIN):
        from transformers import AutoProcessor

        # With torchvision installed the default would be its resizing, which gives other pixels than Pillow's.
        load: Any = AutoProcessor.from_pretrained  # which has no types
        processor = load(source, revision=revision, trust_remote_code=False, backend="pil")
    parts = [getattr(processor, part, None) for part in ("image_processor", "tokenizer", "image_token_id")]
    if None in parts or not processor.tokenizer.is_fast:
        raise UserError(
            f"{what} is a {type(processor).__name__}, expected one with an image processor, a fast tokenizer and an "
            "image token: save it again with processor.save_pretrained"
        )
    return processor


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


def _shorten(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."
