"""From pictures and questions to a model's inputs: Hugging Face's own processor and chat template, without torch."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from numpy.typing import NDArray
from PIL import Image

from toprl_export.errors import SAVE_AGAIN, UserError, is_utf8, refusing
from toprl_export.runtime.layout import Pictures, PictureTokens, PromptRow, TokenBatch, lay_out
from toprl_export.runtime.pictures import ImageInput, open_picture

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Frontend(ABC):
    """A checkpoint's processor and chat template, and the layout of prompts with their pictures.

    Pixels and token ids are those of the processor's own ``apply_chat_template``; only the pictures' places are filled
    with their tokens here, so that questions can be tokenised apart from their pictures.

    Attributes:
        processor: Hugging Face's.
        image_token_id: the token that stands at every visual position.
        tokenizer: the fast tokenizer, which neither cuts nor pads.
    """

    fixed: PictureTokens | None = None
    """What every picture puts into a prompt, where they all put the same."""

    vision_axes: Mapping[str, tuple[str, ...]]
    """Of each array that the vision tower takes, the names of its first axes, which vary; the others are fixed."""

    rotary_axes: ClassVar[int] = 1
    """p, how many position ids a token has: 3 for M-RoPE."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.image_token_id = int(processor.image_token_id)
        self.tokenizer: Tokenizer = processor.tokenizer.backend_tokenizer
        # Scripts that fine-tune leave both in tokenizer.json; Hugging Face's own calls ignore them.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    @abstractmethod
    def pictures(self, images: Sequence[ImageInput]) -> Pictures:
        """What the vision tower takes of some images, and what each puts into a prompt.

        Raises:
            UserError: there is none, or one of them is not an image or none that the model takes.
        """

    @property
    def settings(self) -> dict[str, int | None]:
        """What a frontend of this family is made of beside the processor."""
        return {}

    @property
    def axis_multiples(self) -> Mapping[str, int]:
        """What the sizes of some axes of `vision_axes` are multiples of."""
        return {}

    @abstractmethod
    def shown(self, image: ImageInput) -> NDArray[np.uint8]:
        """The picture as the model sees it, resized and cropped but with its own colours, ``uint8 [h, w, 3]``."""

    def tokens(
        self,
        prompts: Sequence[str],
        max_length: int | None = None,
        pictures: Pictures | None = None,
        shown: Sequence[Sequence[int]] | None = None,
    ) -> TokenBatch:
        """Questions to a batch, each a user's message behind its pictures.

        Control tokens in a question, the image token among them, are text.

        Args:
            prompts: one question per batch row.
            max_length: maximum length of a prompt in tokens, the visual ones included.
            pictures: of all prompts; may be left out where all pictures put the same into a prompt and there is one
                for each prompt.
            shown: of each prompt, which of the pictures it shows; by default prompt i shows picture i, or all show the
                one that there is.

        Raises:
            UserError: there is no question, or one is empty or too long, or there are more or fewer pictures.
        """
        if not prompts:
            raise UserError("no prompt was given: give at least one")
        each = self._shown(len(prompts), pictures, shown)
        rows = [self._row(prompt, own) for prompt, own in zip(prompts, each, strict=True)]
        for prompt, row in zip(prompts, rows, strict=True):
            if max_length is not None and len(row.token_ids) > max_length:
                raise UserError(
                    f"the prompt {_shorten(prompt)!r} has {len(row.token_ids)} tokens, {len(row.rows)} of them visual, "
                    f"but at most {max_length} fit: shorten it or ask for fewer new tokens"
                )
        return lay_out(rows, self.image_token_id, self._pad_id, by_rows=self.fixed is None)

    def _shown(
        self, prompts: int, pictures: Pictures | None, shown: Sequence[Sequence[int]] | None
    ) -> list[list[PictureTokens]]:
        """The pictures of each prompt."""
        if self.fixed is not None:
            return [[self.fixed]] * prompts
        found = pictures.each if pictures is not None else ()
        if shown is not None:
            return [[found[number] for number in numbers] for numbers in shown]
        if len(found) not in (1, prompts):
            raise UserError(
                f"{len(found)} pictures were given with {prompts} prompts: give one for each, or one for all"
            )
        return [[found[0]] if len(found) == 1 else [found[row]] for row in range(prompts)]

    def positions(self, token_ids: Sequence[int], pictures: Sequence[PictureTokens]) -> NDArray[np.int64]:
        """Position ids of a prompt without pads, ``int64 [p, s]``: the count of its tokens by default."""
        del pictures
        return np.arange(len(token_ids))[None]

    def example(self, picture: Image.Image) -> Image.Image:
        """A made-up picture in a size that the model takes."""
        return picture

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
        """Hold a picture and a question against the processor's own ``apply_chat_template``.

        Args:
            name: the model, for messages.

        Raises:
            UserError: the template is missing or does not show one picture before the question, or the processor counts
                other visual tokens.
        """
        if not self.processor.chat_template:
            raise UserError(
                f"model {name} has no chat template, so nothing says how a question is put to it: save one beside it "
                "as chat_template.jinja (set processor.chat_template, then processor.save_pretrained)"
            )
        picture, question = self.example(Image.new("RGB", (320, 240), "gray")), "what is this?"
        with refusing(f"the image processor of model {name} fails", SAVE_AGAIN):
            pictures = self.pictures([picture])
        with refusing(f"the chat template of model {name} fails", SAVE_AGAIN):
            ours = list(self._row(question, pictures.each).token_ids)
            theirs = list(self.own_inputs(picture, question, "np")["input_ids"][0])
            other = list(self._row("which one?", pictures.each).token_ids)
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

    def own_inputs(self, picture: Image.Image, question: str, tensors: str) -> Mapping[str, Any]:
        """What the processor itself makes of a prompt with one picture, by its own chat template.

        Args:
            picture: as `open_picture` gives it.
            question: the user's text.
            tensors: "np" or "pt".
        """
        if self.takes_text:  # the processor's own call finds pictures in the parts of a message alone
            text = self._rendered(question)
            begins = bool(self.processor.tokenizer.bos_token) and text.startswith(self.processor.tokenizer.bos_token)
            made = self.processor(images=[picture], text=[text], add_special_tokens=not begins, return_tensors=tensors)
        else:
            content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
            made = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors=tensors,
            )
        found: Mapping[str, Any] = made
        return found

    def _rendered(self, question: str) -> str:
        """A prompt with one picture as text, by a template for text alone."""
        message = {"role": "user", "content": f"{self.processor.image_token}\n{question}"}
        text: str = self.processor.tokenizer.apply_chat_template(
            [message], chat_template=self.processor.chat_template, add_generation_prompt=True, tokenize=False
        )
        return text

    @property
    def _pad_id(self) -> int:
        """Any token would do, as pads are masked; only the embedding must have its row."""
        tokenizer = self.processor.tokenizer
        found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return int(found or 0)

    def _row(self, prompt: str, pictures: Sequence[PictureTokens]) -> PromptRow:
        if not prompt.strip():
            raise UserError("a prompt is empty: ask a question about the image")
        if not is_utf8(prompt):
            raise UserError(f"the prompt {_shorten(prompt)!r} is not UTF-8: correct the text")
        count = len(pictures)
        try:
            ids = self._text_ids(prompt, count) if self.takes_text else self._parts_ids(prompt, count)
        except ValueError as error:  # a control token that is spelled as ordinary text is
            raise UserError(
                f"the prompt {_shorten(prompt)!r} cannot be told from this model's control tokens ({error}): put it "
                "in other words"
            ) from error
        if ids.count(self.image_token_id) != count:
            raise UserError(
                f"the chat template shows {ids.count(self.image_token_id)} pictures of a message with {count}: correct "
                "the model's chat_template.jinja"
            )
        filled: list[int] = []
        waiting = iter(pictures)
        for token in ids:
            filled += next(waiting).token_ids if token == self.image_token_id else (token,)
        rows = np.concatenate([np.empty(0, np.int64), *(picture.rows for picture in pictures)])
        return PromptRow(filled, self.positions(filled, pictures), rows)

    @cached_property
    def takes_text(self) -> bool:
        """Whether the template was written for text alone, so that the image token must stand in the message."""
        for takes_text, ids_of in ((False, self._parts_ids), (True, self._text_ids)):
            try:
                shown = ids_of("what is this?", 1).count(self.image_token_id)
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

    def _parts_ids(self, prompt: str, pictures: int) -> list[int]:
        content = [*[{"type": "image"}] * pictures, {"type": "text", "text": prompt}]
        return self._ids(content, sanitize_control_tokens=True)

    def _text_ids(self, prompt: str, pictures: int) -> list[int]:
        found = next((token for token in self._control_tokens if token in prompt), None)
        if found is not None:
            raise UserError(
                f"the prompt {_shorten(prompt)!r} contains the control token {found}, which this model's chat template "
                "cannot tell from its own, as it takes text alone: remove it"
            )
        return self._ids(f"{self.processor.image_token}\n" * pictures + prompt)

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


class FixedFrontend(Frontend):
    """Every picture comes in one size and has the same number of visual tokens.

    >>> from toprl_export.runtime.processor import read_processor
    >>> frontend = FixedFrontend(read_processor(f"{directory}/processor"), 16, image_height=8, image_width=8)
    >>> frontend.pixels([Image.new("RGB", (640, 480), "white")]).shape
    (1, 3, 8, 8)
    >>> frontend.tokens(["what colour is the 7?"]).visual_index.shape
    (1, 16)

    Attributes:
        visual_tokens: n, the image tokens of every prompt.
        image_size: height and width of ``pixel_values``.
    """

    fixed: PictureTokens
    vision_axes = MappingProxyType({"pixel_values": ("batch",)})

    def __init__(self, processor: Any, visual_tokens: int, image_height: int, image_width: int) -> None:
        super().__init__(processor)
        self.visual_tokens = visual_tokens
        self.image_size = image_height, image_width
        self.fixed = PictureTokens((self.image_token_id,) * visual_tokens, np.arange(visual_tokens))

    @property
    def settings(self) -> dict[str, int | None]:
        """See `Frontend.settings`."""
        height, width = self.image_size
        return {"visual_tokens": self.visual_tokens, "image_height": height, "image_width": width}

    def pictures(self, images: Sequence[ImageInput]) -> Pictures:
        """See `Frontend.pictures`; the only array is ``pixel_values``, ``float32 [b, 3, h, w]``."""
        return Pictures({"pixel_values": self.pixels(images)}, (self.fixed,) * len(images))

    def pixels(self, images: Sequence[ImageInput]) -> NDArray[np.float32]:
        """Images to ``float32 [b, 3, h, w]``.

        Raises:
            UserError: there is none, or one of them is not an image or not of the size that the model takes.
        """
        if not images:
            raise UserError("no image was given: give at least one")
        return np.stack([self._one(open_picture(image)) for image in images])

    def shown(self, image: ImageInput) -> NDArray[np.uint8]:
        """See `Frontend.shown`."""
        seen = self._processed(open_picture(image), do_rescale=False, do_normalize=False)  # [3, h, w]
        return np.ascontiguousarray(np.rint(seen).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))

    def example(self, picture: Image.Image) -> Image.Image:
        """See `Frontend.example`: a processor that does not resize takes one size."""
        resizes = getattr(self.processor.image_processor, "do_resize", True)
        return picture if resizes else picture.resize(self.image_size[::-1])

    def check(self, name: str) -> None:
        """See `Frontend.check`.

        Raises:
            UserError: also where pictures come out in another size than the tower takes.
        """
        height, width = self.image_size
        with refusing(f"the image processor of model {name} fails", SAVE_AGAIN):
            shape = self._processed(Image.new("RGB", (width, height), "gray")).shape
        if shape != (3, height, width):
            raise UserError(
                f"the image processor of model {name} makes {list(shape)} of a picture, but its vision tower takes "
                f"{[3, height, width]}: correct size and crop_size in its preprocessor_config.json"
            )
        super().check(name)

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


class VaryingFrontend(Frontend):
    """The number of visual tokens depends on the picture: on its size, its shape or the tiles that it is cut into."""

    def pictures(self, images: Sequence[ImageInput]) -> Pictures:
        """See `Frontend.pictures`."""
        if not images:
            raise UserError("no image was given: give at least one")
        return self._laid_out([self._processed(open_picture(image)) for image in images])

    def shown(self, image: ImageInput) -> NDArray[np.uint8]:
        """See `Frontend.shown`; all of the picture is seen."""
        return np.asarray(open_picture(image))

    @abstractmethod
    def _laid_out(self, processed: Sequence[Mapping[str, Any]]) -> Pictures:
        """Of each picture what `_processed` made of it, to what the tower takes and the prompt holds."""

    def _processed(self, picture: Image.Image) -> Mapping[str, Any]:
        """One picture by Hugging Face's processor, with ``input_ids``, what it puts in the picture's place."""
        text = [self.processor.image_token]
        try:
            made: Mapping[str, Any] = self.processor(
                images=[picture], text=text, add_special_tokens=False, return_tensors="np"
            )
        except ValueError as error:
            raise UserError(
                f"the model's processor does not take a picture of {picture.width} x {picture.height} ({error}): "
                "crop or resize it"
            ) from error
        return made


def _shorten(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."
