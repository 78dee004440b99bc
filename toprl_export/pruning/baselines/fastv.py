"""FastV (Chen et al. 2024): tokens that the last text token attends to."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from toprl_export.pruning.scorer import Scorer, StageInputs


class FastVScorer(Scorer):
    """Scores a token by the attention that the last text token pays to it.

    With one stage this is FastV, with several FastV-P (TOP-RL, Figure 2).
    """

    needs_attention_row: ClassVar[bool] = True

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``.

        Raises:
            ValueError: the attention row was not computed.
        """
        if inputs.attention_row is None:
            raise ValueError("FastV scores by attention, but the walk gave it no attention row")
        return inputs.attention_row.float()
