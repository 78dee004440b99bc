"""Inputs of a given size, for questions about a graph whose answer does not depend on their values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_engines.feeds import token_feeds
from toprl_export.bundle import Bundle
from toprl_export.errors import UserError
from toprl_export.runtime.prompt import TokenBatch


def prefill_feeds(
    bundle: Bundle, batch: int, prompt_length: int, keep_counts: tuple[int, ...] | None
) -> dict[str, NDArray[Any]]:
    """All inputs that a prefill graph may have, the image first in the prompt; ``keep_counts`` None: of the unpruned.

    Raises:
        UserError: the prompt has no room for text beside the visual tokens.
    """
    model = bundle.manifest.model
    n = model.visual_tokens
    if prompt_length <= n:
        raise UserError(f"a prompt of {prompt_length} tokens has no text beside its {n} visual tokens: make it longer")
    places = np.tile(np.arange(prompt_length, dtype=np.int64), (batch, 1))  # [b, s]
    tokens = TokenBatch(
        input_ids=np.zeros_like(places),
        attention_mask=np.ones_like(places),
        position_ids=places,
        visual_index=places[:, :n],
        text_index=places[:, n:],
    )
    feeds = {**token_feeds(tokens), "visual": np.zeros((batch, n, model.shape.hidden), dtype=np.float32)}
    if keep_counts is not None:
        feeds["saliency"] = np.zeros((batch, n), dtype=np.float32)
        feeds["agent_index"] = np.asarray(0, dtype=np.int64)
        feeds["keep_counts"] = np.asarray(keep_counts, dtype=np.int64)
    return feeds
