"""How well a scorer's top-k selection retains the answers on images of the train split that were not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import Pruning
from toprl_export.models.walk import walk_prefill
from toprl_export.pruning.baselines.controls import RandomScorer
from toprl_export.pruning.plan import PruningPlan
from toprl_export.pruning.scorer import Scorer
from toprl_trainers.toprl.data import ImageBlock, looks_at_question


@dataclass(frozen=True)
class BudgetFigures:
    """Shares of questions answered exactly at one budget: unpruned, pruned by the agent, pruned at random."""

    budget_kept: int
    keep_counts: tuple[int, ...]
    questions: int
    full: float
    agent: float
    random: float

    @property
    def retention(self) -> float:
        """The agent's share of the unpruned model's right answers; 0 where there are none."""
        return self.agent / self.full if self.full else 0.0


def validate_agent(
    adapter: LVLMAdapter, blocks: Sequence[ImageBlock], plan: PruningPlan, actor: Scorer, seed: int
) -> tuple[BudgetFigures, ...]:
    """The figures of every budget of ``plan``, on the questions of ``blocks``."""
    full = torch.cat([block.full_right for block in blocks])
    found = []
    for schedule in plan.schedules:
        figures = [
            right_answers(adapter, blocks, Pruning(plan.stage_layers, schedule.keep_counts, scorer))
            for scorer in (actor, RandomScorer(seed))
        ]
        found.append(
            BudgetFigures(
                budget_kept=schedule.budget_kept,
                keep_counts=schedule.keep_counts,
                questions=len(full),
                full=float(full.float().mean()),
                agent=sum(figures[0]) / len(full),
                random=sum(figures[1]) / len(full),
            )
        )
    return tuple(found)


@torch.no_grad()
def right_answers(adapter: LVLMAdapter, blocks: Iterable[ImageBlock], pruning: Pruning) -> list[bool]:
    """For each question of ``blocks``, whether greedy decoding under ``pruning`` gives exactly the gold answer."""
    right: list[bool] = []
    needs = pruning.scorer.needs
    for packed in blocks:
        block = packed.every_question(adapter) if looks_at_question(needs) else packed
        prefill = walk_prefill(adapter.decoder, block.tokens, block.visual, pruning.stage_layers, pruning.decide, needs)
        right += block.gold.score(adapter.decoder, prefill.hidden)[1][:, 0].tolist()
    return right
