"""A comparison as flat records for ``compare.csv``."""

from __future__ import annotations

from toprl_export.analyze.results import figure_fields
from toprl_export.compare.result import Comparison, Entry, MethodRow, TaskColumn


def csv_rows(comparison: Comparison) -> list[dict[str, object]]:
    """One record for each method, budget and task, the gaps included, whose ``reason`` says why they are empty."""
    tasks, budgets = comparison.tasks, comparison.budgets_kept
    places = [(comparison.reference, comparison.visual_tokens, task) for task in tasks]
    places += [(method, budget, task) for budget in budgets for method in comparison.pruned for task in tasks]
    return [_row(comparison, *place) for place in places]


def _row(comparison: Comparison, method: MethodRow, budget: int, task: TaskColumn) -> dict[str, object]:
    entry = comparison.entry(method.name, task.name, budget)
    timed = comparison.latency.find(method.name, budget) if comparison.latency else None
    return {
        "method": method.name,
        "kind": method.kind,
        "task": task.name,
        "level": task.level,
        "budget_kept": budget,
        "visual_tokens": comparison.visual_tokens,
        "questions": task.questions,
        **_measured(entry),
        "prefill_ms": f"{timed.prefill_ms:.6g}" if timed else "",
        "prefill_speedup": f"{timed.speedup:.6g}" if timed else "",
        "reason": comparison.reason(method.name, task.name, budget) or "",
    }


def _measured(entry: Entry | None) -> dict[str, object]:
    figures = {
        **figure_fields("accuracy", entry.accuracy if entry else None),
        **figure_fields("retention", entry.retention if entry else None),
    }
    if entry is None:
        return {"average_kept": "", "stage_layers": "", "keep_counts": "", "seeds": "", "by_seed": "", **figures}
    return {
        "average_kept": f"{entry.average_kept:.6g}",
        "stage_layers": _listed(entry.stage_layers),
        "keep_counts": _listed(entry.keep_counts),
        "seeds": _listed(entry.seeds),
        "by_seed": " ".join(f"{value:.6g}" for value in entry.accuracy_by_seed),
        **figures,
    }


def _listed(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))
