"""The reward of a pruning episode: answer quality, cost of the tokens kept, and distance from the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from toprl_export.errors import UserError


@dataclass(frozen=True)
class RewardConfig:
    """Which parts the reward has (each can be switched off by a weight of 0) and how they are weighted.

    Attributes:
        quality: Q_p/Q by the gold answers' probabilities ("dense") or by whether answers are correct ("binary").
        quality_weight: of Q_p/Q.
        cost_weight: of α_t·L_t/L.
        cost_decay: η in α_t = η^(T−t); 1 switches α_t off.
        budget_weight: of the distance from the budget, a term that the paper does not have.
        assignment: pay every stage its own reward ("every-stage"), or their mean at the last ("terminal").

    Raises:
        UserError: a value that no reward can have, or no part is left.
    """

    quality: Literal["dense", "binary"] = "dense"
    quality_weight: float = 1.0
    cost_weight: float = 1.0
    cost_decay: float = 0.95
    budget_weight: float = 0.25
    assignment: Literal["every-stage", "terminal"] = "every-stage"

    def __post_init__(self) -> None:
        """Refuse values that no reward can have."""
        if self.quality not in ("dense", "binary"):
            raise UserError(f"reward quality is {self.quality!r}, expected 'dense' or 'binary'")
        if self.assignment not in ("every-stage", "terminal"):
            raise UserError(f"reward assignment is {self.assignment!r}, expected 'every-stage' or 'terminal'")
        weights = {name: getattr(self, name) for name in ("quality_weight", "cost_weight", "budget_weight")}
        for name, weight in weights.items():
            if not _is_number(weight) or not 0 <= weight < math.inf:
                raise UserError(f"reward {name} is {weight!r}, expected 0 (off) or more")
        if not any(weights.values()):
            raise UserError(f"the reward is empty: {', '.join(weights)} are all 0: set one above 0")
        if not _is_number(self.cost_decay) or not 0 < self.cost_decay <= 1:
            raise UserError(f"reward cost_decay (η) is {self.cost_decay!r}, expected more than 0 and at most 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def dense_quality(pruned_log_probability: Tensor, full_log_probability: Tensor) -> Tensor:
    """``min(p_pruned(gold) / p_full(gold), 1)`` from log-probabilities of whole gold answers, ``float32 [q]``.

    Capped, because pruning is to retain the unpruned model's answer, not to be paid for a more confident one.
    """
    return (pruned_log_probability - full_log_probability).clamp(max=0).exp()


def stage_rewards(quality: Tensor, kept_fractions: Tensor, target_fractions: Tensor, config: RewardConfig) -> Tensor:
    """Eq. 5, ``r_t = Q_p/Q − α_t·L_t/L`` with ``α_t = η^(T−t)``, and the budget term ``−w·|L_t/L − ρ_t|/ρ_t``.

    Args:
        quality: Q_p/Q of each episode, ``float32 [b]``.
        kept_fractions: L_t/L after each stage, ``float32 [b, T]``.
        target_fractions: ρ_t of the plan's schedule, ``float32 [T]``.
        config: the parts' weights; w is ``budget_weight``.

    Returns:
        ``float32 [b, T]``; with terminal assignment the mean over the stages is paid at the last.

    Raises:
        UserError: a reward is NaN or infinite, which a diverged model or a half-precision overflow causes.
    """
    stages = kept_fractions.shape[1]
    exponents = torch.arange(stages - 1, -1, -1, dtype=torch.float32, device=quality.device)
    # α_t is smallest at the first stage, though the paper speaks of a greater incentive there: its formula is kept.
    cost = config.cost_decay**exponents * kept_fractions  # [b, T]
    # Relative to ρ_t: the late stages' targets are small, and missing them by as much costs as much.
    distance = (kept_fractions - target_fractions).abs() / target_fractions  # [b, T]
    rewards = (
        config.quality_weight * quality[:, None] - config.cost_weight * cost - config.budget_weight * distance
    )  # [b, T]
    if not bool(torch.isfinite(rewards).all()):
        raise UserError("NaN or infinite reward: the model's logits overflow: train in float32 or check its weights")
    if config.assignment == "terminal":
        terminal = torch.zeros_like(rewards)
        terminal[:, -1] = rewards.mean(1)
        return terminal
    return rewards
