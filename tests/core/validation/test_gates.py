"""Gates: each figure against its limit, the limits' notation, and what cannot be measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from toprl_export.errors import UserError
from toprl_export.validation.gates import (
    LATENCIES,
    SPEEDUPS,
    BudgetLimits,
    GateLimits,
    evaluate_budget,
    evaluate_bundle,
    parse_figures,
    verdict_of,
)
from toprl_export.validation.report import BudgetReport, StockParity

NOTHING = GateLimits(min_retention=BudgetLimits(), max_logit_error=None, min_overlap=None)


def with_figures(budget: BudgetReport, **figures: object) -> BudgetReport:
    """``budget`` with a field of it, or of its parity or speedup, replaced."""
    for name, value in figures.items():
        for part in ("parity", "speedup"):
            if hasattr(getattr(budget, part), name):
                budget = replace(budget, **{part: replace(getattr(budget, part), **{name: value})})
                break
        else:
            budget = replace(budget, **{name: value})
    return budget


@pytest.mark.parametrize(
    ("limits", "figures", "passed"),
    [
        ({"min_retention": BudgetLimits(0.97)}, {"retention": 0.99, "retention_ci95": (0.97, 1.0)}, True),
        ({"min_retention": BudgetLimits(0.97)}, {"retention": 0.99, "retention_ci95": (0.9699999, 1.0)}, False),
        ({"min_retention": BudgetLimits(0.97)}, {"retention": None, "retention_ci95": None}, False),
        ({"min_retention": BudgetLimits(per_budget=((192, 0.97),))}, {"retention_ci95": (0.96, 1.0)}, False),
        ({"min_retention": BudgetLimits(per_budget=((64, 0.5),), default=0.9)}, {"retention_ci95": (0.8, 1.0)}, False),
        ({"min_speedup": (("total_vs_engine_unpruned", BudgetLimits(1.5)),)}, {"total_vs_engine_unpruned": 1.4}, False),
        ({"max_latency": (("total", BudgetLimits(1e6)),)}, {}, True),
        ({"max_latency": (("prefill", BudgetLimits(1e-6)),)}, {}, False),
        ({"max_memory": BudgetLimits(1e6)}, {}, True),
        ({"max_memory": BudgetLimits(1e-3)}, {}, False),
        ({"max_memory": BudgetLimits(1e6)}, {"peak_memory_bytes": None}, False),
        ({"min_speedup": (("total_vs_reference", BudgetLimits(2.5)),)}, {"total_vs_reference": 2.5}, True),
        ({"min_speedup": (("total_vs_reference", BudgetLimits(2.5)),)}, {"total_vs_reference": 2.49}, False),
        ({"min_speedup": (("realised_share", BudgetLimits(0.9)),)}, {"realised_share": 0.89}, False),
        ({"max_logit_error": 1e-3}, {"logit_error_forced": 1e-3}, True),
        ({"max_logit_error": 1e-3}, {"logit_error_forced": 1.1e-3}, False),
        ({"max_logit_error": 1e-3}, {"logit_error_forced": None}, False),
        ({"max_logit_error": 1e-3}, {"logit_error_free": 5.0, "logit_error_forced": 1e-6}, True),
        ({"min_overlap": 0.99}, {"kept_overlap_per_stage": (1.0, 0.99)}, True),
        ({"min_overlap": 0.99}, {"kept_overlap_per_stage": (1.0, 0.98, 1.0)}, False),
        ({"must_beat_random": True}, {"engine_minus_random_ci95": (0.001, 0.2)}, True),
        ({"must_beat_random": True}, {"engine_minus_random_ci95": (0.0, 0.2)}, False),
        ({"must_beat_random": True}, {"engine_minus_random_ci95": (-0.01, 0.2)}, False),
    ],
)
def test_one_gate(budget: BudgetReport, limits: dict[str, object], figures: dict[str, object], passed: bool):
    gates = evaluate_budget(with_figures(budget, **figures), replace(NOTHING, **limits))
    assert [gate.passed for gate in gates] == [passed]
    assert ("failed" in gates[0].sentence) is not passed
    assert verdict_of(gates) == ("passed" if passed else "failed")


def test_no_limits_no_gates(budget: BudgetReport):
    assert evaluate_budget(budget, NOTHING) == ()
    assert evaluate_budget(budget, replace(NOTHING, min_retention=BudgetLimits(per_budget=((64, 0.9),)))) == ()
    assert verdict_of(()) == "passed"


def test_random_need_not_be_beaten_where_nothing_is_pruned(budget: BudgetReport):
    unpruned = replace(budget, budget_kept=budget.visual_tokens, engine_minus_random_ci95=(0.0, 0.0))
    assert evaluate_budget(unpruned, replace(NOTHING, must_beat_random=True)) == ()


def test_few_questions_a_large_bundle_and_another_model_fail():
    good, limits = StockParity(1e-5, 1.0, 16), GateLimits(max_size=2.0)
    assert verdict_of(evaluate_bundle(100, 2 * 2**20, good, limits)) == "passed"
    for questions, size, stock in (
        (99, 2**20, good),
        (100, 2 * 2**20 + 1, good),
        (100, 2**20, replace(good, logit_error=1.0)),
        (100, 2**20, replace(good, logit_error=None)),
        (100, 2**20, replace(good, agreement=0.9)),
    ):
        assert sum(not gate.passed for gate in evaluate_bundle(questions, size, stock, limits)) == 1
    with pytest.raises(UserError, match="min_questions is 0"):
        GateLimits(min_questions=0)


def test_a_budget_without_a_limit_keeps_the_default_and_says_so(budget: BudgetReport):
    limits = replace(NOTHING, min_retention=BudgetLimits.parse("64=0.5", "--min-retention", default=0.9))
    (gate,) = evaluate_budget(budget, limits)
    assert (gate.limit, gate.default) == (0.9, True) and "(default)" in gate.sentence
    (named,) = evaluate_budget(replace(budget, budget_kept=64), limits)
    assert (named.limit, named.default) == (0.5, False) and "(default)" not in named.sentence


def test_latencies_are_read():
    assert parse_figures(["120", "prefill:192=30"], "--max-latency", LATENCIES) == (
        ("total", BudgetLimits(120.0)),
        ("prefill", BudgetLimits(per_budget=((192, 30.0),))),
    )


def test_verdict_needs_every_gate(budget: BudgetReport):
    gates = evaluate_budget(with_figures(budget, logit_error_forced=0.5), GateLimits())
    assert len(gates) == 3
    assert sum(gate.passed for gate in gates) == 2
    assert verdict_of(gates) == "failed"


def test_limits_are_read():
    assert BudgetLimits.parse("0.97", "--x").at(64) == 0.97
    per_budget = BudgetLimits.parse("192=0.97,64=0.9", "--x")
    assert (per_budget.at(192), per_budget.at(64), per_budget.at(128)) == (0.97, 0.9, None)
    speedups = parse_figures(["2.5", "prefill_vs_engine_unpruned:192=1.9"], "--min-speedup", SPEEDUPS)
    assert [name for name, _ in speedups] == ["total_vs_engine_unpruned", "prefill_vs_engine_unpruned"]
    assert speedups[1][1].at(192) == 1.9


@pytest.mark.parametrize(
    "text", ["", "high", "0", "-1", "nan", "inf", "192=", "=0.9", "192=0.9,192=0.8", "192=0.9,0.8"]
)
def test_wrong_limits_are_refused(text: str):
    with pytest.raises(UserError, match="--min-retention"):
        BudgetLimits.parse(text, "--min-retention")


def test_unknown_speedups_and_budgets_are_refused():
    with pytest.raises(UserError, match=r"unknown speedup 'prefil_vs_reference'; did you mean 'prefill_vs_reference'"):
        GateLimits(min_speedup=parse_figures(["prefil_vs_reference:2"], "--min-speedup", SPEEDUPS))
    with pytest.raises(UserError, match=r"names budget 128.*192, 64"):
        GateLimits(min_retention=BudgetLimits.parse("192=0.9,128=0.9", "--x")).check_budgets((192, 64))
    with pytest.raises(UserError, match="names budget 5"):
        GateLimits(min_speedup=parse_figures(["5=2"], "--min-speedup", SPEEDUPS)).check_budgets((192, 64))


@pytest.mark.parametrize(
    "limits",
    [
        {"max_logit_error": math.inf},
        {"min_overlap": -1.0},
        {"max_size": 0.0},
        {"max_logit_error": "0.001"},
        {"min_retention": 0.9},
        {"min_speedup": (("total_vs_reference", 1.2),)},
    ],
)
def test_limits_that_gate_nothing_are_refused_in_python(limits: dict[str, object]):
    with pytest.raises(UserError, match="expected"):
        GateLimits(**limits)


@pytest.mark.parametrize("value", [-1.0, math.inf, 0.0])
def test_so_are_limits_of_budgets(value: float):
    with pytest.raises(UserError, match="expected a"):
        BudgetLimits(per_budget=((64, value),))
