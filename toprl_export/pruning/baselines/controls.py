"""What every method is held against: random and uniform pruning below it, and the oracle, which knows the answer."""

from __future__ import annotations

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.pruning.scorer import Scorer, StageInputs
from toprl_export.seeding import torch_generator

_STEP = 40503
_TURN = 2**16
"""``_STEP / _TURN`` is 1/φ, the golden section, in 16 bits; odd, so that 2^16 tokens get as many places."""


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
        # Drawn on the CPU and moved: a GPU's generator gives other numbers for the same seed.
        return torch.rand(batch, tokens, generator=self._generator).to(inputs.visual.device)


class UniformScorer(Scorer):
    """Keeps tokens spread evenly over the image, for any keep count, which it need not know.

    Token i (in raster order) comes at the place that i steps of the golden section reach on a circle. Those below
    k/n, which the best k are, follow each other at no more than three distances, neighbouring Fibonacci numbers around
    n/k (three-gap theorem): evenly along rows, and, as these share no factor for long with the width of an image, along
    columns too. The best k are among the best k + 1, so later stages thin out what the earlier left.
    """

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``, in (0, 1]."""
        return even_spread(inputs.origin)


def even_spread(origin: Tensor) -> Tensor:
    """The score of `UniformScorer`, exact in float32: int64 ``[b, n_t]`` to float32 in (0, 1]."""
    return 1.0 - (origin * _STEP % _TURN).float() / _TURN


class OracleScorer(Scorer):
    """Keeps the evidence first; what is left of the keep count is spread evenly over the rest of the image.

    Where the evidence alone exceeds the keep count, it is thinned out evenly. The oracle knows where the evidence is,
    not how much of it an answer needs at which layer, nor what else the model reads: a mark to measure by, no upper
    bound. It serves the one batch whose evidence it holds, and runs in PyTorch only.

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
        if len(self._evidence) != len(inputs.origin):
            raise ValueError(f"evidence of {len(self._evidence)} images was given for {len(inputs.origin)}")
        marked = self._evidence.to(inputs.origin.device).gather(1, inputs.origin)  # [b, n] -> [b, n_t]
        return marked.float() + even_spread(inputs.origin)
