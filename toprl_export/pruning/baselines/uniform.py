"""Uniform stride."""

from __future__ import annotations

import torch
from torch import Tensor

from toprl_export.pruning.scorer import Scorer, StageInputs

_BITS = 20
"""Ranks below 2^20 are told apart; their reversals are exact in float32, whose mantissa has 24 bits."""


class UniformScorer(Scorer):
    """Keeps evenly spread tokens for any keep count, which it needs not know.

    Tokens are taken in van der Corput order (the rank's bits reversed behind the point). The first k of
    that order leave gaps of only two sizes, a power of two and its half. Ranks are counted over the
    tokens still there, so a later stage spreads its choice over what the earlier left.
    """

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``, in (0, 1]."""
        batch, tokens = inputs.visual.shape[:2]
        if inputs.alive is None:
            rank = torch.arange(tokens, device=inputs.visual.device).expand(batch, tokens)
        else:
            rank = (inputs.alive.cumsum(1) - 1).clamp(min=0)  # [b, n_t]
        powers = 2 ** torch.arange(_BITS, device=inputs.visual.device)
        bits = rank.unsqueeze(-1) // powers % 2  # [b, n_t, 20]
        return 1.0 - (bits / (2 * powers)).sum(-1)
