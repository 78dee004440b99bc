"""What ``--against`` calls worse: by hand, on made-up reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest

from tests.core.validation.conftest import made_up_scores
from toprl_export.errors import UserError
from toprl_export.fields import read_fields, to_json
from toprl_export.validation.regression import MOST_TIME_NOISE, check_comparable, regression_gates, regression_note
from toprl_export.validation.report import BudgetReport, Report, Scores

Change: TypeAlias = Callable[[BudgetReport], BudgetReport]


def with_budget(report: Report, change: Change) -> Report:
    """The report whose budgets are changed."""
    return replace(report, budgets=tuple(change(budget) for budget in report.budgets))


def failed(report: Report, earlier: Report) -> set[str]:
    return {gate.name.split(" against")[0] for gate in regression_gates(report, earlier) if not gate.passed}


def note(report: Report, earlier: Report) -> str:
    return regression_note(report, earlier, regression_gates(report, earlier))


def accuracy_of(share: float) -> Change:
    return lambda budget: replace(budget, scores=made_up_scores(share, 0.7))


def slower(factor: float) -> Change:
    def change(budget: BudgetReport) -> BudgetReport:
        speedup = replace(budget.speedup, total_vs_reference=budget.speedup.total_vs_reference / factor)
        return replace(budget, speedup=speedup)

    return change


def grown(factor: float) -> Change:
    def change(budget: BudgetReport) -> BudgetReport:
        assert budget.peak_memory_bytes is not None
        peak = replace(budget.peak_memory_bytes, engine=int(budget.peak_memory_bytes.engine * factor))
        return replace(budget, peak_memory_bytes=peak)

    return change


def test_the_same_is_no_worse(report: Report) -> None:
    assert failed(report, report) == set()


@pytest.mark.parametrize(("drop", "worse"), [(0.002, set()), (0.004, set()), (0.02, {"accuracy"})])
def test_accuracy_in_pairs(report: Report, drop: float, worse: set[str]) -> None:
    before, after = (with_budget(report, accuracy_of(share)) for share in (0.9, 0.9 - drop))
    assert failed(after, before) == worse
    assert "the same questions" in note(after, before)


@pytest.mark.parametrize(("drop", "worse"), [(0.02, set()), (0.1, {"accuracy"})])
def test_accuracy_on_other_questions_has_wider_intervals(report: Report, drop: float, worse: set[str]) -> None:
    before, after = (with_budget(report, accuracy_of(share)) for share in (0.9, 0.9 - drop))
    before = replace(before, settings=replace(before.settings, questions_sha256="e" * 64))
    assert failed(after, before) == worse
    assert "not in pairs" in note(after, before)


def test_one_earlier_question_rules_out_nothing(report: Report) -> None:
    """All right of one question, and then 98% of 500, is no regression."""
    one = Scores("1", "1", "1", "0")
    settings = replace(report.settings, questions=1, questions_sha256="e" * 64)
    before = replace(report, budgets=tuple(replace(each, scores=one) for each in report.budgets), settings=settings)
    assert "accuracy" not in failed(with_budget(report, accuracy_of(0.982)), before)


def test_what_could_not_be_compared_is_said(report: Report) -> None:
    fewer = replace(report, budgets=report.budgets[:1])
    assert "budgets in the earlier report alone: 64" in note(fewer, report)
    assert "budgets in the new report alone: 64" in note(report, fewer)
    assert "memory too" in note(report, report)
    unmeasured = with_budget(report, lambda budget: replace(budget, peak_memory_bytes=None))
    assert "memory was not measured" in note(unmeasured, report)
    other = replace(report, subject=replace(report.subject, model="another", model_fingerprint="f" * 64))
    assert "another model or method" in note(report, other) and "another model" not in note(report, report)


@pytest.mark.parametrize(
    ("change", "worse"),
    [
        (slower(1.01), set()),
        (slower(1.3), {"speedup total_vs_reference"}),
        (grown(1.03), set()),
        (grown(1.2), {"peak memory"}),
    ],
)
def test_times_and_memory_beyond_noise(report: Report, change: Change, worse: set[str]) -> None:
    assert failed(with_budget(report, change), report) == worse


def test_half_the_speed_is_worse_on_the_most_unsteady_machine(report: Report) -> None:
    def unsteady(budget: BudgetReport) -> BudgetReport:
        spread = replace(budget.latency_iqr_ms.engine, total=budget.latency_ms.engine.total * 10)
        return replace(budget, latency_iqr_ms=replace(budget.latency_iqr_ms, engine=spread))

    before = with_budget(report, unsteady)
    assert failed(with_budget(before, slower(1.4)), before) == set()
    halved = with_budget(before, slower(1.05 / (1 - MOST_TIME_NOISE)))
    assert failed(halved, before) == {"speedup total_vs_reference"}


def test_another_machines_times_are_not_compared_and_that_is_said(report: Report) -> None:
    elsewhere = replace(report, device=replace(report.device, name="Another CPU"))
    worse = with_budget(with_budget(report, slower(3)), grown(3))
    assert failed(worse, elsewhere) == set()
    assert "not times and memory" in note(worse, elsewhere)
    assert "accuracy" in failed(with_budget(worse, accuracy_of(0.5)), elsewhere)


def test_a_larger_bundle(report: Report) -> None:
    assert failed(replace(report, bundle_bytes=int(report.bundle_bytes * 1.1)), report) == {"size"}


def test_reports_that_cannot_be_compared_are_refused(report: Report) -> None:
    with pytest.raises(UserError, match="is of mini-colour, this one of mini-count"):
        check_comparable(report, "mini-count", [192])
    with pytest.raises(UserError, match="has budgets 192, 64, but the bundle has 32"):
        check_comparable(report, "mini-colour", [32])


@pytest.mark.parametrize(
    "scores", ["", "1,0", "1,x", "0.5," * 499 + "1", "nan," * 499 + "1"], ids=["none", "few", "text", "half", "nan"]
)
def test_a_report_with_damaged_scores_is_refused(report: Report, scores: str) -> None:
    payload = to_json(report)
    payload["budgets"][0]["scores"]["engine"] = scores
    with pytest.raises(UserError, match="scores of a report"):
        read_fields(Report, payload, "report.json")


@pytest.mark.parametrize("part", ["bundle_bytes", "speedup", "latency_ms", "questions"])
def test_a_report_with_impossible_figures_is_refused(report: Report, part: str) -> None:
    payload = to_json(report)
    budget = payload["budgets"][0]
    if part == "bundle_bytes":
        payload["bundle_bytes"] = 0
    elif part == "speedup":
        budget["speedup"]["total_vs_reference"] = 0.0
    elif part == "latency_ms":
        budget["latency_ms"]["engine"]["total"] = 0.0
    else:
        payload["settings"]["questions"] = 3
    with pytest.raises(UserError, match="validate again"):
        read_fields(Report, payload, "report.json")
