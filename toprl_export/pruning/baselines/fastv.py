"""FastV (Chen et al. 2024): tokens that the last text token attends to."""

from __future__ import annotations

from torch import Tensor

from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs


class FastVScorer(Scorer):
    """Scores a token by the attention that the last text token pays to it.

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
        return inputs.attention[:, -1]
