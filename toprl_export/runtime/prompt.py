"""From questions to token ids: the prompt around the image, left-padded into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from toprl_export.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QUESTION = "{question}"


@dataclass(frozen=True)
class TokenBatch:
    """A tokenised batch; all ``int64``, every batch row left-padded to the same length s.

    Left, so that the last token of every row stands at the same place, where prefill reads the logits.

    Attributes:
        input_ids: ``[b, s]``; n image tokens stand where the image is.
        attention_mask: ``[b, s]``: 0 at pads.
        position_ids: ``[b, s]``, counted from each row's first real token; 0 at pads.
        visual_index: ``[b, n]``: the prompt slots (columns of ``input_ids``) of the visual tokens, ascending.
        text_index: ``[b, s-n]``: the prompt slots of the others, pads included, ascending.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    visual_index: NDArray[np.int64]
    text_index: NDArray[np.int64]

    @property
    def batch(self) -> int:
        """b, the number of prompts."""
        return int(self.input_ids.shape[0])

    @property
    def next_position(self) -> NDArray[np.int64]:
        """``[b]``: the position id of the first token to be generated, counted before any pruning."""
        return self.position_ids[:, -1] + 1


@dataclass(frozen=True)
class PromptFormat:
    """The text around image and question.

    Attributes:
        before_image: text before the image, with the token that begins a sequence if the model wants one.
        after_image: text after the image; ``{question}`` stands in it exactly once.
        image_token: the token that marks one visual position.
        pad_token: the token that fills up shorter rows.
    """

    format: Literal["toprl-export/prompt-format"] = field(default="toprl-export/prompt-format", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    before_image: str
    after_image: str
    image_token: str
    pad_token: str

    def __post_init__(self) -> None:
        if self.after_image.count(QUESTION) != 1 or QUESTION in self.before_image:
            raise UserError(f"prompt format: {QUESTION} must stand exactly once, after the image")
        if not self.image_token or self.image_token in self.before_image + self.after_image:
            raise UserError("prompt format: the image token must not be empty or stand in the text around the image")

    def tokenize(
        self, tokenizer: Tokenizer, prompts: Sequence[str], visual_tokens: int, max_length: int | None = None
    ) -> TokenBatch:
        """Questions to a batch.

        Args:
            tokenizer: the model's.
            prompts: one question per batch row.
            visual_tokens: n, the image tokens of every prompt.
            max_length: maximum length of a prompt in tokens, the visual ones included.

        Raises:
            UserError: there is no question, one is empty, too long or contains the image token, or the
                tokenizer lacks the image or pad token.
        """
        if not prompts:
            raise UserError("no prompt was given: give at least one")
        image_id = token_id(tokenizer, self.image_token)
        rows = [self._row(tokenizer, prompt, image_id, visual_tokens) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if max_length is not None and len(row) > max_length:
                raise UserError(
                    f"the prompt {_shorten(prompt)!r} has {len(row)} tokens, {visual_tokens} of them visual, "
                    f"but at most {max_length} fit: shorten it or ask for fewer new tokens"
                )
        return _pad(rows, image_id, token_id(tokenizer, self.pad_token))

    def _row(self, tokenizer: Tokenizer, prompt: str, image_id: int, visual_tokens: int) -> list[int]:
        if not prompt.strip():
            raise UserError("a prompt is empty: ask a question about the image")
        # One encoding of the whole text: a tokenizer may join or mark tokens differently at the start of a text.
        text = self.before_image + self.image_token + self.after_image.replace(QUESTION, prompt)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        if ids.count(image_id) != 1:
            raise UserError(f"the prompt {_shorten(prompt)!r} contains the image token {self.image_token}: remove it")
        place = ids.index(image_id)
        return [*ids[:place], *[image_id] * visual_tokens, *ids[place + 1 :]]


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token.

    Raises:
        UserError: the tokenizer does not know it.
    """
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise UserError(f"the tokenizer has no token {token!r}, which the prompt format names: correct one of the two")
    return found


def _pad(rows: Sequence[Sequence[int]], image_id: int, pad_id: int) -> TokenBatch:
    length = max(map(len, rows))
    input_ids = np.array([[pad_id] * (length - len(row)) + list(row) for row in rows], dtype=np.int64)  # [b, s]
    real = np.arange(length) >= length - np.array([[len(row)] for row in rows])
    visual = (input_ids == image_id) & real  # a pad may have the image token's id
    count = len(rows)
    return TokenBatch(
        input_ids=input_ids,
        attention_mask=real.astype(np.int64),
        position_ids=np.where(real, real.cumsum(axis=1) - 1, 0),
        visual_index=np.nonzero(visual)[1].reshape(count, -1),
        text_index=np.nonzero(~visual)[1].reshape(count, -1),
    )


def _shorten(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."
