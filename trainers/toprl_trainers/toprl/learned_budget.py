"""The budget that a policy found by itself, where the reward and not a schedule decided how many tokens it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from toprl_export.pruning.plan import PruningPlan
from toprl_export.pruning.schedule import Schedule, average_kept
from toprl_trainers.toprl.state import column_names

FINAL_SHARE = 0.1
"""The last part of training whose mean keep counts are taken for what the policy settled on."""


def with_learned_budget(plan: PruningPlan, curves: Sequence[Sequence[float]]) -> PruningPlan:
    """``plan`` with one more schedule: the policy's own mean keep counts over the last tenth of its updates.

    The budget's name is their average over all layers, rounded up. A plan that has a budget of that name stays as it
    is.

    Args:
        plan: the budgets asked for.
        curves: rows of figures in the order of `column_names`, at least one.
    """
    stages = len(plan.stages)
    last = curves[-max(1, round(FINAL_SHARE * len(curves))) :]
    first_column = list(column_names(stages)).index("kept_stage_1")
    means = [sum(row[first_column + stage] for row in last) / len(last) for stage in range(stages)]
    counts = tuple(max(1, round(mean)) for mean in means)
    average = average_kept(plan.visual_tokens, plan.decoder_layers, plan.stage_layers, counts)
    found = Schedule(math.ceil(average), counts, average)
    if any(schedule.budget_kept == found.budget_kept for schedule in plan.schedules):
        return plan
    schedules = sorted((*plan.schedules, found), key=lambda schedule: schedule.budget_kept)
    return replace(plan, schedules=tuple(schedules))
