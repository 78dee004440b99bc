"""``--against``: what is worse than in an earlier report, beyond noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from toprl_export.errors import UserError
from toprl_export.tasks.metrics import difference_interval, independent_difference_interval
from toprl_export.validation.report import BudgetReport, Comparison, Gate, Latency, LatencyComparison, Report

LEAST_TIME_NOISE = 0.05
"""Two runs of the same bundle on a quiet machine differ by this share, whatever the spread within each; by more where
there were few rounds, from which no spread can be read: `ROUNDS` have none of it left."""
ROUNDS = 25
MOST_TIME_NOISE = 0.4
"""However unsteady the machine: a speedup that has halved is worse."""
MEMORY_NOISE = 0.05
SIZE_NOISE = 0.01
NORMAL_95 = 1.96
MEDIAN_ERROR = 0.93
"""The standard error of the median of N times is this share of their interquartile range over the root of N."""


def check_comparable(earlier: Report, task: str, budgets: Collection[int]) -> None:
    """Refuse an earlier report that nothing can be held against; asked before measuring begins.

    Raises:
        UserError: it is of another task, or has no budget in common.
    """
    if earlier.task != task:
        raise UserError(f"the earlier report is of {earlier.task}, this one of {task}: give one of the same task")
    own = [budget.budget_kept for budget in earlier.budgets]
    if not set(own) & set(budgets):
        raise UserError(
            f"the earlier report has budgets {', '.join(map(str, own)) or 'none'}, but the bundle has "
            f"{', '.join(map(str, budgets))}: give one that shares a budget"
        )


def regression_gates(report: Report, earlier: Report) -> tuple[Gate, ...]:
    """Gates on accuracy, time, memory and size at every budget that both have.

    Accuracy fails where the whole 95% interval of the difference is below 0; it is paired where both answered the same
    questions. Times are compared as the whole request's speedup over PyTorch, measured in the same rounds, so that a
    machine's mood counts little; memory and size as they are.

    Raises:
        UserError: see `check_comparable`.
    """
    check_comparable(earlier, report.task, [budget.budget_kept for budget in report.budgets])
    before = {budget.budget_kept: budget for budget in earlier.budgets}
    common = [budget for budget in report.budgets if budget.budget_kept in before]
    same_machine = _machine(report) == _machine(earlier)
    gates = [_limit("size", None, report.bundle_bytes / earlier.bundle_bytes, "<=", 1 + SIZE_NOISE)]
    for budget in common:
        was, kept = before[budget.budget_kept], budget.budget_kept
        gates.append(
            _limit("accuracy", kept, _best_difference(budget, was, _same_questions(report, earlier)), ">=", 0.0)
        )
        if not same_machine:
            continue
        faster = budget.speedup.total_vs_reference / was.speedup.total_vs_reference
        least = 1 - _time_noise(report, earlier, budget, was)
        gates.append(_limit("speedup total_vs_reference", kept, faster, ">=", least))
        if budget.peak_memory_bytes and was.peak_memory_bytes:
            grown = budget.peak_memory_bytes.engine / was.peak_memory_bytes.engine
            gates.append(_limit("peak memory", kept, grown, "<=", 1 + MEMORY_NOISE))
    return tuple(gates)


def regression_note(report: Report, earlier: Report, gates: Sequence[Gate]) -> str:
    """What was compared, and what could not be, in words."""
    said = ["the same questions" if _same_questions(report, earlier) else "other questions, so not in pairs"]
    if _machine(report) == _machine(earlier):
        said.append("times too, on the same kind of machine")
        said.append("memory too" if any("memory" in gate.name for gate in gates) else "memory was not measured in both")
    else:
        said.append(f"not times and memory, which are of another machine or engine ({earlier.device.name})")
    for name, own, other in (("new", report, earlier), ("earlier", earlier, report)):
        alone = sorted({one.budget_kept for one in own.budgets} - {one.budget_kept for one in other.budgets})
        if alone:
            said.append(f"budgets in the {name} report alone: {', '.join(map(str, alone))}")
    subjects = [(one.subject.model, one.subject.model_fingerprint, one.subject.method) for one in (report, earlier)]
    if subjects[0] != subjects[1]:
        said.append(f"the earlier report is of another model or method ({earlier.subject.method})")
    return f"compared with the report of {earlier.date} (commit {earlier.commit or 'unknown'}): {'; '.join(said)}"


def _limit(name: str, kept: int | None, measured: float, comparison: Comparison, limit: float) -> Gate:
    met = measured >= limit if comparison == ">=" else measured <= limit
    sign = "difference, upper end" if name == "accuracy" else "ratio"
    what = f"{name} against the earlier report ({sign})"
    return Gate(what, kept, measured, comparison, limit, passed=met)


def _machine(report: Report) -> tuple[object, ...]:
    device = report.device
    return device.kind, device.name, device.cores, device.threads, report.subject.engine, report.subject.precision


def _same_questions(report: Report, earlier: Report) -> bool:
    return report.settings.questions_sha256 == earlier.settings.questions_sha256


def _best_difference(budget: BudgetReport, was: BudgetReport, paired: bool) -> float:
    """The upper end of the 95% interval of the engine's accuracy minus the earlier one's."""
    now, then = budget.scores.engine_list, was.scores.engine_list
    if paired:
        return difference_interval(now, then, seed=0).ci95[1]
    return independent_difference_interval(now, then)[1]


def _time_noise(report: Report, earlier: Report, budget: BudgetReport, was: BudgetReport) -> float:
    """By how much the ratio of two speedups may differ by chance: 95% of it, by the four medians' errors, within what
    two quiet runs differ by and `MOST_TIME_NOISE`."""
    errors = [
        error
        for one, rounds in ((budget, report.settings.iterations), (was, earlier.settings.iterations))
        for error in _median_errors(one.latency_ms, one.latency_iqr_ms, rounds)
    ]
    rounds = min(report.settings.iterations, earlier.settings.iterations)
    least = max(LEAST_TIME_NOISE, LEAST_TIME_NOISE * math.sqrt(ROUNDS / rounds))
    return min(max(least, NORMAL_95 * math.hypot(*errors)), MOST_TIME_NOISE)


def _median_errors(medians: LatencyComparison, ranges: LatencyComparison, rounds: int) -> tuple[float, float]:
    """Standard errors of reference and engine, as shares of their medians."""

    def error(median: Latency, spread: Latency) -> float:
        return MEDIAN_ERROR * spread.total / median.total / math.sqrt(rounds)

    return error(medians.reference, ranges.reference), error(medians.engine, ranges.engine)
