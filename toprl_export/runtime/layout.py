"""What pictures put into prompts, and the layout of a batch: where its tokens stand, and their positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class PictureTokens:
    """What one picture puts into a prompt.

    Attributes:
        token_ids: what stands at its place: an image token for each visual token, and those that the processor puts
            between and around them.
        rows: for each image token, in order, the row of the encoded pictures that it shows, ``int64 [n]``.
        grid: rows and columns of visual tokens, where positions depend on them (M-RoPE).
    """

    token_ids: tuple[int, ...]
    rows: NDArray[np.int64]
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures as Hugging Face's processor made them.

    Attributes:
        arrays: what the vision tower takes, by name, all pictures together.
        each: what each puts into a prompt.
    """

    arrays: Mapping[str, NDArray[Any]]
    each: tuple[PictureTokens, ...]


@dataclass(frozen=True, eq=False)
class PromptRow:
    """One prompt, its pictures' tokens included.

    Attributes:
        token_ids: of all s_i tokens.
        positions: ``int64 [p, s_i]``, p = 1, or 3 for M-RoPE.
        rows: see `PictureTokens`, of all its pictures, ``int64 [n_i]``.
    """

    token_ids: Sequence[int]
    positions: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, token_ids: Sequence[int], image_id: int) -> PromptRow:
        """A prompt with one picture whose encoded rows stand in order, and positions that count its tokens."""
        n = list(token_ids).count(image_id)
        return cls(token_ids, np.arange(len(token_ids))[None], np.arange(n))


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """A tokenised batch; all ``int64``, every batch row left-padded to the same length s.

    Left, so that the last token of every row stands at the same place, where prefill reads the logits. Rows hold the
    same number n of visual slots, the largest of the batch: a row with fewer visual tokens has pads in its first ones.

    Attributes:
        input_ids: ``[b, s]``; image tokens stand where visual tokens are.
        attention_mask: ``[b, s]``: 0 at pads.
        position_ids: ``[b, s]``, counted from each row's first real token, or ``[3, b, s]`` for M-RoPE; 0 at pads.
        visual_index: ``[b, n]``: the prompt slots (columns of ``input_ids``) of the visual tokens, ascending.
        text_index: ``[b, s-n]``: the prompt slots of the others, the other pads included, ascending.
        visual_rows: ``[b, n]``: which row of the encoded pictures stands in each visual slot (0 in a pad's); None where
            row i of the batch shows picture i, and all have n visual tokens.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    visual_index: NDArray[np.int64]
    text_index: NDArray[np.int64]
    visual_rows: NDArray[np.int64] | None = None

    @property
    def batch(self) -> int:
        """b, the number of prompts."""
        return int(self.input_ids.shape[0])

    @property
    def visual_counts(self) -> NDArray[np.int64]:
        """``[b]``: how many visual tokens each prompt has."""
        counts: NDArray[np.int64] = np.take_along_axis(self.attention_mask, self.visual_index, axis=1).sum(axis=1)
        return counts

    @property
    def next_position(self) -> NDArray[np.int64]:
        """``[b]``: the position id of the first token to be generated, counted before any pruning."""
        last = self.position_ids[..., -1]  # [b] or [3, b]
        following: NDArray[np.int64] = (last if last.ndim == 1 else last.max(axis=0)) + 1
        return following


def lay_out(prompts: Sequence[PromptRow], image_id: int, pad_id: int, by_rows: bool = True) -> TokenBatch:
    """Prompts to a batch.

    Args:
        prompts: at least one.
        image_id: the token that stands at every visual position.
        pad_id: the token that fills up shorter rows; it may be the image token's.
        by_rows: whether the batch says which row of the encoded pictures each visual slot shows.
    """
    lengths = [len(prompt.token_ids) for prompt in prompts]
    counts = [len(prompt.rows) for prompt in prompts]
    n = max(1, *counts)  # a slot at least, so that a graph has something to gather for prompts without a picture
    text = max(length - count for length, count in zip(lengths, counts, strict=True))
    shape = len(prompts), n + text
    input_ids = np.full(shape, pad_id, np.int64)
    positions = np.zeros((len(prompts[0].positions), *shape), np.int64)  # [p, b, s]
    visual_index, text_index = np.zeros((shape[0], n), np.int64), np.zeros((shape[0], text), np.int64)
    rows = np.zeros((shape[0], n), np.int64)
    for row, (prompt, length, count) in enumerate(zip(prompts, lengths, counts, strict=True)):
        start = shape[1] - length
        input_ids[row, start:] = prompt.token_ids
        positions[:, row, start:] = prompt.positions
        is_visual = input_ids[row] == image_id
        # The first pads take the visual slots that this row has no token for, the other pads stand before its text.
        is_visual[:start] = np.arange(start) < n - count
        visual_index[row], text_index[row] = np.nonzero(is_visual)[0], np.nonzero(~is_visual)[0]
        rows[row, n - count :] = prompt.rows
    return TokenBatch(
        input_ids=input_ids,
        attention_mask=(np.arange(shape[1]) >= shape[1] - np.array(lengths)[:, None]).astype(np.int64),
        position_ids=positions[0] if len(positions) == 1 else positions,
        visual_index=visual_index,
        text_index=text_index,
        visual_rows=rows if by_rows else None,
    )
