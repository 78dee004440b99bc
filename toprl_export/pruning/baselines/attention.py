"""Baselines that score a visual token by the attention it receives: from the question, or in the vision tower."""

from __future__ import annotations

import torch
from torch import Tensor

from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs


class FastVScorer(Scorer):
    """FastV (Chen et al. 2024): the attention that the last text token pays to a visual token.

    With one stage this is FastV, with several FastV-P (TOP-RL, Figure 2, which has them before layers 8, 16 and 24 of
    32). The paper speaks of the attention that a token receives on average; its code, followed here, takes the last
    token's row in the layer just run. Before layer 0, where none has run, it is layer 0's own.
    """

    needs = ScorerNeeds(attention="last")

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``.

        Raises:
            ValueError: the attention row was not computed.
        """
        if inputs.attention is None:
            raise ValueError("FastV scores by attention, but the walk gave it no attention row")
        return inputs.attention[:, -1]  # [b, 1, n_t] -> [b, n_t]


class PyramidDropScorer(Scorer):
    """PyramidDrop (Xing et al. 2025): the last instruction token's attention in the layer that the stage precedes.

    The attention goes through the projections of the coming layer; the layer just run plays no part in it, which is
    what sets PyramidDrop apart from FastV besides its stages: quarters of the depth, each keeping half.
    """

    needs = ScorerNeeds(attention="last", attention_layer="next")

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``.

        Raises:
            ValueError: the attention row was not computed.
        """
        if inputs.attention is None:
            raise ValueError("PyramidDrop scores by attention, but the walk gave it no attention row")
        return inputs.attention[:, -1]  # [b, 1, n_t] -> [b, n_t]


class SparseVLMScorer(Scorer):
    """SparseVLM (Zhang et al. 2024): the mean attention of the question's raters, its tokens relevant to the image.

    Every visual token shares itself out over the question's tokens by the softmax of its products with them
    (``softmax(H_v H_qᵀ)`` over the question). Raters are the question's tokens whose share, averaged over the visual
    tokens, is at least the mean of all shares. They are picked once, by the embeddings, and serve every stage.

    Keep counts and stages come from the plan; the paper's code prunes after layers 2, 6 and 15 of 32. Token recycling,
    which merges dropped tokens, is left out: the comparison is of which tokens are kept, at an exact budget.
    """

    needs = ScorerNeeds(attention="text", embeddings=True)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``; all 0 in a batch row without a question.

        Raises:
            ValueError: the attention rows or the embeddings were not given.
        """
        if inputs.attention is None:
            raise ValueError("SparseVLM scores by the text's attention, but the walk gave it no attention rows")
        raters = text_raters(inputs).unsqueeze(-1)  # [b, t, 1]
        return (inputs.attention * raters).sum(1) / raters.sum(1).clamp(min=1)  # [b, t, n_t] -> [b, n_t]


def text_raters(inputs: StageInputs) -> Tensor:
    """Which text tokens rate the visual ones, bool ``[b, t]``.

    Raises:
        ValueError: the embeddings were not given.
    """
    if inputs.visual_embeddings is None or inputs.text_embeddings is None or inputs.question_mask is None:
        raise ValueError("SparseVLM picks raters by the embeddings, but the walk gave it none")
    products = inputs.visual_embeddings.float() @ inputs.text_embeddings.float().transpose(1, 2)  # [b, n, t]
    # Finite rather than -inf: the softmax of a row without a question must not be NaN; the question mask discards it.
    lowest = torch.finfo(products.dtype).min
    shares = products.masked_fill(~inputs.question_mask.unsqueeze(1), lowest).softmax(-1)
    if inputs.visual_real is not None:
        shares = shares * inputs.visual_real.unsqueeze(-1)
    # A sum, not the average: the comparison with the mean below does not change when both are scaled alike.
    share = shares.sum(1) * inputs.question_mask  # [b, t]
    mean = share.sum(1, keepdim=True) / inputs.question_mask.sum(1, keepdim=True).clamp(min=1)  # [b, 1]
    # Equal shares make everyone a rater, so rounding must not lift the mean above the largest share.
    threshold = torch.minimum(mean, share.amax(1, keepdim=True))
    return inputs.question_mask & (share >= threshold)


class VisionZipScorer(Scorer):
    """VisionZip (Yang et al. 2025): the attention that the vision tower pays to a patch; blind to the question.

    These are the paper's dominant tokens but for the class token, which LLaVA's decoder is not shown. Its contextual
    tokens, averages of the rest, are left out: the comparison is of which tokens are kept, at an exact budget. Which
    attention it is says :meth:`~toprl_export.models.adapter.LVLMAdapter.vision_saliency`.
    """

    needs = ScorerNeeds(saliency=True)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``.

        Raises:
            ValueError: the saliency was not given.
        """
        if inputs.saliency is None:
            raise ValueError("VisionZip scores by the vision tower's attention, but the walk was given no saliency")
        return inputs.saliency
