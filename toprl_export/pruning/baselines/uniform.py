"""Uniform pruning: tokens spread evenly over the image."""

from __future__ import annotations

from torch import Tensor

from toprl_export.pruning.scorer import Scorer, StageInputs

_STEP = 40503
_TURN = 2**16
"""``_STEP / _TURN`` is 1/φ, the golden section, in 16 bits; odd, so that 2^16 positions get as many places."""


class UniformScorer(Scorer):
    """Keeps evenly spread tokens for any keep count, which it needs not know.

    Position i (in raster order) comes at the place that i steps of the golden section reach on a circle. Those below
    k/n, which the best k are, follow each other at no more than three distances, neighbouring Fibonacci numbers around
    n/k (three-gap theorem): evenly along rows, and, as these share no factor for long with the width of an image, along
    columns too. The best k are among the best k + 1, so later stages thin out what the earlier left.
    """

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``, in (0, 1]."""
        return even_spread(inputs.positions)


def even_spread(positions: Tensor) -> Tensor:
    """The score of `UniformScorer`, exact in float32: int64 ``[b, n_t]`` to float32 in (0, 1]."""
    return 1.0 - (positions * _STEP % _TURN).float() / _TURN
