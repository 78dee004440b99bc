"""What a scorer sees at a pruning stage, what it answers, and the names of the known scorers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from toprl_export.registry import Registry


@dataclass(frozen=True)
class StageInputs:
    """The state at one stage, ``s_t = [t, H_t^v]`` in TOP-RL.

    Attributes:
        stage: 0-based number of the stage in its plan.
        visual: float ``[b, n_t, d]``, hidden states of the visual tokens entering the stage.
        alive: bool ``[b, n_t]``, False for tokens that an earlier stage dropped but a mask keeps in
            the sequence (training); None when all are there (dropped tokens were gathered away).
        positions: int64 ``[b, n_t]``, index of each token among the n visual tokens of its image.
        attention_row: float ``[b, n_t]``, attention of the last text token on each visual token,
            or None unless the scorer asks for it.
    """

    stage: int
    visual: Tensor
    alive: Tensor | None
    positions: Tensor
    attention_row: Tensor | None


class Scorer(nn.Module, ABC):
    """Maps the state at a stage to one score per visual token; the highest are kept."""

    needs_attention_row: ClassVar[bool] = False
    """Whether ``StageInputs.attention_row`` must be computed for this scorer."""

    @abstractmethod
    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``. Those of tokens that are not alive carry no meaning."""


SCORERS: Registry[type[Scorer]] = Registry(
    "scorer",
    {
        "actor": "toprl_export.pruning.actor:Actor",
        "random": "toprl_export.pruning.baselines.random:RandomScorer",
        "uniform": "toprl_export.pruning.baselines.uniform:UniformScorer",
        "fastv": "toprl_export.pruning.baselines.fastv:FastVScorer",
    },
)
