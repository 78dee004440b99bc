"""The oracle: keeps what the answer depends on."""

from __future__ import annotations

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.pruning.baselines.uniform import even_spread
from toprl_export.pruning.scorer import Scorer, StageInputs


class OracleScorer(Scorer):
    """Keeps the evidence, and spreads what else may be kept, or what cannot be kept of it, evenly over the image.

    It knows where the evidence is, not how much of it an answer needs at which layer, nor what else the model reads: a
    mark to measure by, no upper bound. It serves the one batch whose evidence it holds, and runs in PyTorch only.

    Args:
        evidence: bool ``[b, n]``, True for the visual tokens that the answer depends on.
    """

    def __init__(self, evidence: Tensor) -> None:
        super().__init__()
        self._evidence = evidence

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``: in (1, 2] for evidence, in (0, 1] elsewhere.

        Raises:
            UserError: it is being exported; a graph would hold the evidence of one batch.
            ValueError: the batch is of another size than the evidence.
        """
        if torch.compiler.is_exporting():
            raise UserError("the oracle cannot be exported, it knows the answers of one batch: build with an agent")
        if len(self._evidence) != len(inputs.positions):
            raise ValueError(f"evidence of {len(self._evidence)} images was given for {len(inputs.positions)}")
        marked = self._evidence.to(inputs.positions.device).gather(1, inputs.positions)
        return marked.float() + even_spread(inputs.positions)
