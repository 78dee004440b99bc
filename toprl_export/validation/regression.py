"""``--against``: what is worse than in an earlier report, beyond noise."""

from __future__ import annotations

import math
from collections.abc import Collection

from toprl_export.errors import UserError
from toprl_export.tasks.metrics import difference_interval
from toprl_export.validation.report import BudgetReport, Comparison, Gate, Latency, LatencyComparison, Report

LEAST_TIME_NOISE = 0.05
"""Two runs of the same bundle on a quiet machine differ by this share, whatever the spread within each."""
MOST_TIME_NOISE = 0.5
"""However unsteady the machine: a speedup that has halved is worse."""
MEMORY_NOISE = 0.05
SIZE_NOISE = 0.01
NORMAL_95 = 1.96


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
        gates.append(_limit("speedup total_vs_reference", kept, faster, ">=", 1 - _time_noise(budget, was)))
        if budget.peak_memory_bytes and was.peak_memory_bytes:
            grown = budget.peak_memory_bytes.engine / was.peak_memory_bytes.engine
            gates.append(_limit("peak memory", kept, grown, "<=", 1 + MEMORY_NOISE))
    return tuple(gates)


def regression_note(report: Report, earlier: Report) -> str:
    """What was compared, in words."""
    paired = "the same questions" if _same_questions(report, earlier) else "other questions, so not in pairs"
    times = (
        "times and memory too, on the same kind of machine"
        if _machine(report) == _machine(earlier)
        else f"not times and memory, which are of another machine or engine ({earlier.device.name})"
    )
    return f"compared with the report of {earlier.date} (commit {earlier.commit or 'unknown'}): {paired}; {times}"


def _limit(name: str, kept: int | None, measured: float, comparison: Comparison, limit: float) -> Gate:
    met = measured >= limit if comparison == ">=" else measured <= limit
    sign = "difference, upper end" if name == "accuracy" else "ratio"
    what = f"{name} against the earlier report ({sign})"
    return Gate(what, kept, measured, comparison, limit, passed=met)


def _machine(report: Report) -> tuple[object, ...]:
    device = report.device
    return device.kind, device.name, device.cores, device.threads, report.subject.engine, report.subject.precision


def _same_questions(report: Report, earlier: Report) -> bool:
    mine, theirs = report.settings, earlier.settings
    return (report.seed, mine.split, mine.questions) == (earlier.seed, theirs.split, theirs.questions)


def _best_difference(budget: BudgetReport, was: BudgetReport, paired: bool) -> float:
    """The upper end of the 95% interval of the engine's accuracy minus the earlier one's."""
    now, then = budget.scores.engine_list, was.scores.engine_list
    if paired:
        return difference_interval(now, then, seed=0).ci95[1]
    shares = [sum(scores) / len(scores) for scores in (now, then)]
    variance = sum(share * (1 - share) / len(scores) for share, scores in zip(shares, (now, then), strict=True))
    return shares[0] - shares[1] + NORMAL_95 * math.sqrt(variance)


def _time_noise(budget: BudgetReport, was: BudgetReport) -> float:
    """Twice the four medians' relative spreads together, within what two quiet runs differ by and `MOST_TIME_NOISE`."""
    spreads = [spread for one in (budget, was) for spread in _spreads(one.latency_ms, one.latency_iqr_ms)]
    noise = 2 * math.sqrt(sum(spread**2 for spread in spreads))
    return min(max(LEAST_TIME_NOISE, noise), MOST_TIME_NOISE)


def _spreads(medians: LatencyComparison, ranges: LatencyComparison) -> tuple[float, float]:
    def share(median: Latency, spread: Latency) -> float:
        return spread.total / 2 / median.total

    return share(medians.reference, ranges.reference), share(medians.engine, ranges.engine)
