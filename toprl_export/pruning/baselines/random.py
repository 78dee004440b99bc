"""Random pruning."""

from __future__ import annotations

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.pruning.scorer import Scorer, StageInputs
from toprl_export.seeding import torch_generator


class RandomScorer(Scorer):
    """Every token gets a uniform random score, so every subset is equally likely.

    The draws come from a generator of its own: another scorer of the same seed repeats them on every
    device, and each call (stage, image, batch) continues the stream. It runs in PyTorch only.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._generator = torch_generator(seed, "random-scorer")

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``, in [0, 1).

        Raises:
            UserError: it is being exported; a graph would draw other numbers than the reference.
        """
        if torch.compiler.is_exporting():
            raise UserError("random pruning cannot be exported, it draws anew at every call: build with an agent")
        batch, tokens = inputs.visual.shape[:2]
        return torch.rand(batch, tokens, generator=self._generator).to(inputs.visual.device)
