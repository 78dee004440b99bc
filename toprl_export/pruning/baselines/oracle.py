"""The oracle: keeps what the answer depends on."""

from __future__ import annotations

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.pruning.scorer import Scorer, StageInputs


class OracleScorer(Scorer):
    """Scores 1 where the evidence is and 0 elsewhere; of equal scores the lower index stays, so rows fill up in order.

    It serves the one batch whose evidence it holds, and runs in PyTorch only.

    Args:
        evidence: bool ``[b, n]``, True for the visual tokens that the answer depends on.
    """

    def __init__(self, evidence: Tensor) -> None:
        super().__init__()
        self._evidence = evidence

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``.

        Raises:
            UserError: it is being exported; a graph would hold the evidence of one batch.
            ValueError: the batch is of another size than the evidence.
        """
        if torch.compiler.is_exporting():
            raise UserError("the oracle cannot be exported, it knows the answers of one batch: build with an agent")
        if len(self._evidence) != len(inputs.positions):
            raise ValueError(f"evidence of {len(self._evidence)} images was given for {len(inputs.positions)}")
        return self._evidence.to(inputs.positions.device).gather(1, inputs.positions).float()
