"""Verdicts: reached, not reached, or not run and why."""

from __future__ import annotations

import pytest

from ci.gpu.plan import CHECKS, GOALS, Goal, judge_all
from ci.gpu.report import Case, CheckResult

AT_LEAST = Goal("fast", "speed", "race", "speedup", ">=", 2.5)
AT_MOST = Goal("exact", "error", "parity", "error", "<=", 2.0)


def check(name: str, table: str, *cases: Case | tuple[str, dict[str, float]]) -> CheckResult:
    made = tuple(case if isinstance(case, Case) else Case(table, case[0], figures=case[1]) for case in cases)
    return CheckResult(name, "finished", cases=made)


@pytest.mark.parametrize(
    ("over", "values", "outcome"),
    [
        ("worst", (2.4, 3.0), "not reached"),
        ("worst", (2.5, 3.0), "reached"),
        ("best", (2.4, 3.0), "reached"),
        ("best", (2.4, 2.49), "not reached"),
    ],
)
def test_the_worst_or_the_best_case_counts(over, values, outcome):
    goal = Goal("fast", "speed", "race", "speedup", ">=", 2.5, over=over)
    found = check("speed", "race", *((f"case {value}", {"speedup": value}) for value in values))
    verdict = goal.judge([found], "cuda", quick=False)
    assert verdict.outcome == outcome
    chosen = min(values) if over == "worst" else max(values)
    assert f"case {chosen}" in verdict.found


@pytest.mark.parametrize(("values", "outcome"), [((1.0, 2.0), "reached"), ((1.0, 2.1), "not reached")])
def test_a_limit_from_above_is_held_against_the_largest(values, outcome):
    found = check("error", "parity", *((f"{value}", {"error": value}) for value in values))
    assert AT_MOST.judge([found], "cuda", quick=False).outcome == outcome


def test_a_failed_case_misses_the_goal_whatever_the_others_say():
    found = check("error", "parity", ("fine", {"error": 0.5}), Case("parity", "bad", "failed", "holds NaN"))
    verdict = AT_MOST.judge([found], "cuda", quick=False)
    assert (verdict.outcome, verdict.found) == ("not reached", "bad: holds NaN")


def test_only_the_goals_own_table_figure_and_case_count():
    goal = Goal("fast", "speed", "race", "speedup", ">=", 2.5, case="batch 1, ")
    others = (("batch 10, a", {"speedup": 9.0}), ("batch 1, b", {"ms": 9.0}))
    found = check("speed", "race", *others, Case("other", "batch 1, c", figures={"speedup": 9.0}))
    assert goal.judge([found], "cuda", quick=False).outcome == "not run"
    assert goal.judge([check("speed", "race", ("batch 1, d", {"speedup": 3.0}))], "cuda", False).outcome == "reached"


def test_what_could_not_run_is_said_plainly():
    missing = check("error", "parity", Case("parity", "one", "not run", "No module named 'triton'"))
    assert AT_MOST.judge([missing], "cuda", False).found == "No module named 'triton'"
    assert AT_MOST.judge([CheckResult("error", "not run", "no GPU")], "cuda", False).found == "no GPU"
    assert AT_MOST.judge([], "cuda", False).found == "the check error was left out"


def test_some_cases_of_a_process_that_crashed_reach_nothing_unless_the_best_counts():
    cases = (Case("race", "fine", figures={"speedup": 3.0}),)
    crashed = CheckResult("speed", "failed", "its process ended with SIGSEGV", cases=cases)
    verdict = AT_LEAST.judge([crashed], "cuda", quick=False)
    assert verdict.outcome == "not reached"
    assert "SIGSEGV" in verdict.found
    best = Goal("fast", "speed", "race", "speedup", ">=", 2.5, over="best")
    assert best.judge([crashed], "cuda", quick=False).outcome == "reached"


def test_the_reason_is_that_of_the_goals_own_case():
    goal = Goal("TensorRT", "engines", "parity", "error", "<=", 1, case="trt")
    cases = (Case("build", "onnx", "not run", "no CUDA"), Case("build", "trt fp32", "not run", "no TensorRT"))
    assert goal.judge([CheckResult("engines", "finished", cases=cases)], "cuda", False).found == "no TensorRT"


def test_small_shapes_or_a_cpu_reach_nothing():
    found = check("speed", "race", ("case", {"speedup": 99.0}))
    assert AT_LEAST.judge([found], "cuda", quick=False).outcome == "reached"
    assert AT_LEAST.judge([found], "cuda", quick=True).outcome == "not run"
    assert AT_LEAST.judge([found], "cpu", quick=True).found == "not run on a GPU"


def test_every_goal_names_a_check_that_is_run():
    assert {goal.check for goal in GOALS} <= set(CHECKS)
    assert all(verdict.outcome == "not run" for verdict in judge_all([], "cuda", quick=False))
