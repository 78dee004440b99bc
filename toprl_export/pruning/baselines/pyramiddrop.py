"""PyramidDrop (Xing et al. 2025): the last instruction token's attention in the layer that a stage precedes."""

from __future__ import annotations

from torch import Tensor

from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs


class PyramidDropScorer(Scorer):
    """Scores a token by the attention of the last instruction token, through the projections of the coming layer.

    The layer just run plays no part in it, which is what sets it apart from FastV besides its stages: quarters of the
    depth, each keeping half (see :func:`~toprl_export.pruning.baselines.plans.baseline_plan`).
    """

    needs = ScorerNeeds(attention="last", attention_layer="next")

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``.

        Raises:
            ValueError: the attention row was not computed.
        """
        if inputs.attention is None:
            raise ValueError("PyramidDrop scores by attention, but the walk gave it no attention row")
        return inputs.attention[:, -1]
