"""Acting in training: draw a keep mask at every stage, and record what PPO needs to learn from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from toprl_export.models.walk import Decision
from toprl_export.pruning.actor import Actor, Critic
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import select
from toprl_trainers.rl.gumbel import log_probability, sample_keep, threshold_for_count
from toprl_trainers.toprl.draws import ImageDraws


@dataclass(frozen=True)
class StageRecord:
    """One stage of a batch of b rollouts.

    Rollouts of one image share their state at the first stage; it is stored once, and ``repeats`` says for how many
    successive rollouts each of its rows stands.

    ``inputs`` holds ``[b / repeats, …]``; ``alive`` and ``kept`` are ``bool [b, n_t]``, ``threshold`` is
    ``float32 [b / repeats, 1]`` and ``log_probability`` of the draws ``float32 [b, n_t]``.
    """

    inputs: StageInputs
    repeats: int
    alive: Tensor
    kept: Tensor
    threshold: Tensor
    log_probability: Tensor

    def logits(self, actor: Actor) -> Tensor:
        """The actor's logits of keeping, less the threshold they were drawn with, ``float32 [b, n_t]``."""
        scores: Tensor = actor(self.inputs)
        return (scores - self.threshold).repeat_interleave(self.repeats, dim=0)

    def values(self, critic: Critic) -> Tensor:
        """The critic's value of each rollout's state, ``float32 [b]``."""
        values: Tensor = critic(self.inputs)
        return values.repeat_interleave(self.repeats, dim=0)

    def rows(self, images: Tensor, rollouts: int) -> StageRecord:
        """The part that belongs to ``images``, each with its ``rollouts`` rollouts."""
        rows = (images[:, None] * rollouts + torch.arange(rollouts, device=images.device)).flatten()
        shared = images if self.repeats == rollouts else rows
        return StageRecord(
            inputs=_take(self.inputs, shared),
            repeats=self.repeats,
            alive=self.alive[rows],
            kept=self.kept[rows],
            threshold=self.threshold[shared],
            log_probability=self.log_probability[rows],
        )


class SamplingPolicy:
    """A ``decide`` for the walk that draws from the actor; ``records`` holds what it did, one entry a stage.

    Args:
        actor: the policy.
        counts: tokens that each stage is to keep on average.
        temperature: τ.
        thresholds: fixed threshold of each stage; None moves them per image so that ``counts`` are met on average.
        rollouts: successive rows that are rollouts of the same image.
        draws: the noise of the images' rollouts.
    """

    def __init__(
        self,
        actor: Actor,
        counts: Sequence[int],
        temperature: float,
        thresholds: Sequence[float] | None,
        rollouts: int,
        draws: ImageDraws,
    ) -> None:
        self._actor = actor
        self._counts = counts
        self._temperature = temperature
        self._thresholds = thresholds
        self._rollouts = rollouts
        self._draws = draws
        self.records: list[StageRecord] = []

    @property
    def needs(self) -> ScorerNeeds:
        """What the walk must compute for the actor."""
        return self._actor.needs

    def __call__(self, inputs: StageInputs) -> Decision:
        """Draw the stage's mask and keep the drawn tokens, rows filled up to the longest."""
        # The frozen model may run under autocast; the policy stays in float32, as the update recomputes it.
        with torch.autocast(inputs.visual.device.type, enabled=False):
            return self._decide(inputs)

    def _decide(self, inputs: StageInputs) -> Decision:
        repeats = self._rollouts if inputs.stage == 0 else 1
        alive = inputs.alive if inputs.alive is not None else torch.ones_like(inputs.origin, dtype=torch.bool)
        text = None if inputs.text is None else inputs.text.float()
        whole = replace(inputs, visual=inputs.visual.float(), alive=alive, text=text)
        state = _take(whole, slice(None, None, repeats))
        scores = self._actor(state)
        threshold = self._threshold(inputs.stage, scores, state)
        logits = (scores - threshold).repeat_interleave(repeats, dim=0)  # [b, n_t]
        kept = sample_keep(logits, self._temperature, self._draws.noise(inputs.origin)) & alive
        drawn = log_probability(logits, kept, self._temperature)
        self.records.append(StageRecord(state, repeats, alive, kept, threshold, drawn))
        return compacted(kept)

    def _threshold(self, stage: int, scores: Tensor, state: StageInputs) -> Tensor:
        if self._thresholds is not None:
            return torch.full_like(scores[:, :1], self._thresholds[stage])
        assert state.alive is not None  # filled in by the caller
        return threshold_for_count(scores, state.alive, self._counts[stage], self._temperature)


def compacted(kept: Tensor) -> Decision:
    """Keep the marked tokens of every row and enough others, marked dead, to make rows as long as the longest.

    Dead tokens are seen by themselves alone (Eq. 6-7), so this equals masking all dropped tokens, at the cost of those
    kept. ``kept`` is ``bool [b, n]``.
    """
    longest = max(1, int(kept.sum(1).max()))
    index = select(kept.float(), longest)  # [b, longest]
    return Decision(index, kept.gather(1, index))


def _take(inputs: StageInputs, rows: Tensor | slice) -> StageInputs:
    """The same of some rows."""
    taken: dict[str, Any] = {
        name: value[rows] if isinstance(value, Tensor) else value for name, value in vars(inputs).items()
    }
    return StageInputs(**taken)
