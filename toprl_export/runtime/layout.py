"""The layout of a batch of prompts: where visual and text tokens stand, and their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def lay_out(rows: Sequence[Sequence[int]], image_id: int, pad_id: int) -> TokenBatch:
    """Token ids of prompts to a batch.

    Args:
        rows: one prompt a row, each with the same number of image tokens.
        image_id: the token that stands at every visual position.
        pad_id: the token that fills up shorter rows; it may be the image token's.
    """
    length = max(map(len, rows))
    input_ids = np.array([[pad_id] * (length - len(row)) + list(row) for row in rows], dtype=np.int64)  # [b, s]
    real = np.arange(length) >= length - np.array([[len(row)] for row in rows])
    visual = (input_ids == image_id) & real
    count = len(rows)
    return TokenBatch(
        input_ids=input_ids,
        attention_mask=real.astype(np.int64),
        position_ids=np.where(real, real.cumsum(axis=1) - 1, 0),
        visual_index=np.nonzero(visual)[1].reshape(count, -1),
        text_index=np.nonzero(~visual)[1].reshape(count, -1),
    )
