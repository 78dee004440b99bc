"""SparseVLM (Zhang et al. 2024): text tokens that have to do with the image rate the visual tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs


class SparseVLMScorer(Scorer):
    """Scores a token by the mean attention that the question's raters pay to it.

    Every visual token shares itself out over the question's tokens by the softmax of its products with them
    (``softmax(H_v H_qᵀ)`` over the question). Raters are the question's tokens whose share, averaged over the visual
    tokens, is at least the mean of all shares. The paper picks them once, by the embeddings; here each stage picks by
    the states that enter it, which at layer 0 are the embeddings.

    Keep counts and stages come from the plan; the paper's code prunes after layers 2, 6 and 15 of 32. Token recycling,
    which merges what was dropped, is left out: what is compared is which tokens are kept, at an exact budget.
    """

    needs = ScorerNeeds(attention="text", text=True)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``; all 0 in a row that asks nothing.

        Raises:
            ValueError: the attention rows or the text were not computed.
        """
        if inputs.attention is None:
            raise ValueError("SparseVLM scores by the text's attention, but the walk gave it no attention rows")
        raters = text_raters(inputs).unsqueeze(-1)  # [b, t, 1]
        return (inputs.attention * raters).sum(1) / raters.sum(1).clamp(min=1)


def text_raters(inputs: StageInputs) -> Tensor:
    """Which text tokens rate the visual ones, bool ``[b, t]``.

    Raises:
        ValueError: the text was not computed.
    """
    if inputs.text is None or inputs.question_mask is None:
        raise ValueError("SparseVLM picks raters among the text tokens, but the walk gave it no text")
    products = inputs.visual.float() @ inputs.text.float().transpose(1, 2)  # [b, n_t, t]
    # Finite, so that a row without a question yields numbers, which the question mask discards.
    lowest = torch.finfo(products.dtype).min
    shares = products.masked_fill(~inputs.question_mask.unsqueeze(1), lowest).softmax(-1)
    if inputs.alive is not None:
        shares = shares * inputs.alive.unsqueeze(-1)
    share = shares.sum(1) * inputs.question_mask  # [b, t]: as many times the average as tokens are alive
    mean = share.sum(1, keepdim=True) / inputs.question_mask.sum(1, keepdim=True).clamp(min=1)
    # Rounding must not lift the mean above the largest share.
    threshold = torch.minimum(mean, share.amax(1, keepdim=True))
    return inputs.question_mask & (share >= threshold)
