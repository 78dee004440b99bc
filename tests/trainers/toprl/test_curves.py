"""The budget that a policy settled on, from its training curves."""

from __future__ import annotations

from toprl_export.pruning.plan import make_plan
from toprl_trainers.toprl.curves import curve_columns, with_learned_budget

PLAN = make_plan(100, 8, (0, 2), "actor", (60, 20))


def curves(*kept: tuple[float, float]) -> list[list[float]]:
    names = curve_columns(2)
    found = {"kept_stage_1": 0, "kept_stage_2": 1}
    return [[pair[found[name]] if name in found else -1.0 for name in names] for pair in kept]


def test_the_mean_of_the_last_tenth_becomes_a_schedule():
    plan = with_learned_budget(PLAN, curves(*[(90.0, 80.0)] * 18, (50.2, 30.0), (52.0, 31.4)))
    assert [schedule.budget_kept for schedule in plan.schedules] == [20, 36, 60]
    found = plan.schedule(36)
    assert found.keep_counts == (51, 31)  # means 51.1 and 30.7
    assert found.average_kept == (2 * 51 + 6 * 31) / 8 == 36.0


def test_a_stage_that_keeps_nothing_keeps_one_and_a_budget_is_rounded_up():
    plan = with_learned_budget(PLAN, curves((3.0, 0.2)))
    assert plan.schedules[0].keep_counts == (3, 1)
    assert (plan.schedules[0].budget_kept, plan.schedules[0].average_kept) == (2, 1.5)


def test_a_budget_that_was_asked_for_stays():
    assert with_learned_budget(PLAN, curves((20.0, 20.0))) is PLAN
