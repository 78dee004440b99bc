"""A comparison as text: ``compare.md``, laid out as TOP-RL's Table 1, and ``compare.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from toprl_export.comparison.method_cell import RIVALS
from toprl_export.comparison.result import Average, Comparison, Entry, Margin, MethodRow, TaskColumn, Without
from toprl_export.evaluation.estimates import Estimate, is_significant
from toprl_export.evaluation.tables import estimate_fields, markdown_table, percent, points

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_GAP = "–"


def render_markdown(comparison: Comparison, picture: str) -> str:
    """The whole page; ``picture`` is the plot's file name."""
    sections = [
        "# Comparison of pruning methods\n",
        _introduction(comparison),
        main_table(comparison),
        f"![Retention against tokens kept and against prefill latency]({picture})\n",
        "## Intervals\n",
        _detail_text(comparison),
        detail_table(comparison),
    ]
    if comparison.margins:
        sections += ["## Agents against baselines\n", _MARGIN_TEXT, margin_table(comparison)]
    if comparison.latency:
        sections += ["## Prefill latency\n", _latency_text(comparison), latency_table(comparison)]
    sections += ["## Where each method prunes\n", schedule_table(comparison)]
    sections += ["## How it was made\n", comparison.provenance.markdown(), _agents(comparison)]
    return "\n".join(section for section in sections if section)


def _introduction(comparison: Comparison) -> str:
    counts = {column.questions for column in comparison.tasks}
    questions = (
        f"{counts.pop():,} held-out questions a task"
        if len(counts) == 1
        else "held-out questions: " + ", ".join(f"{column.name} {column.questions:,}" for column in comparison.tasks)
    )
    return (
        f"Accuracy in % (exact match of the greedy answer) and retention, accuracy over that of the unpruned model; "
        f"{questions}, the same for every method. A budget is the number of visual tokens kept on average over all "
        "decoder layers. Methods of several seeds are pooled. **Bold**: the best of its column in a block (the oracle, "
        "which knows where the objects are, does not compete). The average counts every task the same.\n\n"
        + _schedules_text(comparison)
    )


def _schedules_text(comparison: Comparison) -> str:
    if comparison.tuning_questions is None:
        return (
            "**Rivals were not tuned**: they prune where their papers do, moved towards the input where a budget "
            "demands it. Agents' schedules were chosen on training questions, so a lead over these rivals shows "
            "nothing; `compare --tune 240` chooses theirs likewise.\n"
        )
    return (
        "Where rivals prune and how steeply was chosen for every budget by "
        f"{comparison.tuning_questions} questions of each task's train split, as agents' schedules were: once for all "
        "tasks, and in rows of their own *per task*. Random and uniform pruning and the oracle prune where the agents "
        "do. `tuning.json` has everything that was tried.\n"
    )


def main_table(comparison: Comparison) -> str:
    """One block a budget; columns grouped by level, the average last; footnotes for what could not be measured."""
    notes: dict[str, str] = {}
    columns = [column.name for column in comparison.tasks]
    blank = [""] * (len(columns) + 1)
    n = comparison.visual_tokens
    rows = [["**method**", *columns, "**average**"], [f"**unpruned: {n} tokens (100%)**", *blank]]
    rows.append(_main_row(comparison, comparison.reference, n, notes))
    for budget in comparison.budgets_kept:
        rows.append([f"**{budget} tokens kept on average ({budget / n:.1%})**", *blank])
        rows += [_main_row(comparison, method, budget, notes) for method in comparison.pruned]
    # In the order in which the table mentions them.
    footnotes = "".join(f"{mark} {reason}\n\n" for reason, mark in notes.items())
    return markdown_table(["", *_levels(comparison), ""], rows) + ("\n" + footnotes if footnotes else "")


def _levels(comparison: Comparison) -> list[str]:
    """Over the first task of each level its name, over the others nothing."""
    found: list[str] = []
    for level, group in groupby(comparison.tasks, key=lambda column: column.level):
        found += [level.capitalize(), *[""] * (len(list(group)) - 1)]
    return found


def _main_row(comparison: Comparison, method: MethodRow, budget: int, notes: dict[str, str]) -> list[str]:
    competes = method.kind in (*RIVALS, "agent")
    cells = []
    for column in comparison.tasks:
        entry = comparison.entry(method.name, column.name, budget)
        if entry is None:
            cells.append(_GAP + _mark(comparison, method.name, column.name, budget, notes))
            continue
        # Equal figures are bold together; they are compared unrounded.
        best = _best_accuracy(comparison, column.name, budget)
        cells.append(_figure(entry.accuracy.value, entry.retention.value, competes and entry.accuracy.value == best))
    average = comparison.average(method.name, budget)
    if average is None:
        return [_name(method), *cells, _GAP]
    winner = competes and average.retention.value == _best_average(comparison, budget)
    return [_name(method), *cells, _figure(average.accuracy, average.retention.value, winner)]


def _name(method: MethodRow) -> str:
    return f"*{method.name}*" if method.kind == "oracle" else method.name


def _figure(accuracy: float, retention: float, best: bool) -> str:
    text = f"{accuracy * 100:.1f} · {retention:.1%}"
    return f"**{text}**" if best else text


def _mark(comparison: Comparison, method: str, task: str, budget: int, notes: dict[str, str]) -> str:
    """The footnote of a gap; gaps of one reason share it."""
    reason = f"{method}, {budget} kept: {comparison.reason(method, task, budget)}"
    return notes.setdefault(reason, str(len(notes) + 1).translate(_SUPERSCRIPTS))


def _competitors(comparison: Comparison) -> set[str]:
    return {method.name for method in comparison.methods if method.kind in (*RIVALS, "agent")}


def _best_accuracy(comparison: Comparison, task: str, budget: int) -> float:
    found = [comparison.entry(method, task, budget) for method in _competitors(comparison)]
    return max((entry.accuracy.value for entry in found if entry), default=0.0)


def _best_average(comparison: Comparison, budget: int) -> float:
    found = [comparison.average(method, budget) for method in _competitors(comparison)]
    return max((average.retention.value for average in found if average), default=0.0)


def _detail_text(comparison: Comparison) -> str:
    return (
        "95% intervals: for accuracy Wilson's, in which a question counts once however many seeds answered it, widened "
        "to the bootstrap's where there are seeds; for retention a paired bootstrap of two levels "
        f"(seed {comparison.provenance.seed}), which draws questions anew and, of a method that has several, seeds. "
        "*Spread* is the highest minus the lowest seed, in points. Averages follow without the task that moves them "
        "most.\n"
    )


def detail_table(comparison: Comparison) -> str:
    """A row for each budget, task and method that was measured, and each method's average over tasks."""
    head = ["kept", "task", "method", "tokens met", "accuracy", "by seed", "spread", "retention"]
    rows: list[list[str]] = []
    blocks = [(comparison.visual_tokens, [comparison.reference])]
    blocks += [(budget, list(comparison.pruned)) for budget in comparison.budgets_kept]
    for budget, methods in blocks:
        for column in comparison.tasks:
            entries = [comparison.entry(method.name, column.name, budget) for method in methods]
            rows += [_detail_row(entry) for entry in entries if entry]
        for average in (comparison.average(method.name, budget) for method in methods):
            if average:
                rows += _average_rows(average)
    return markdown_table(head, rows)


def _average_rows(average: Average) -> list[list[str]]:
    kept, met, accuracy = str(average.budget_kept), f"{average.average_kept:.1f}", f"{average.accuracy:.1%}"
    rows = [[kept, "average", average.method, met, accuracy, "", "", percent(average.retention)]]
    if average.without:
        without = f"average without {average.without.task}"
        rows.append([kept, without, average.method, "", "", "", "", percent(average.without.estimate)])
    return rows


def _detail_row(entry: Entry) -> list[str]:
    several = len(entry.seeds) > 1
    return [
        str(entry.budget_kept),
        entry.task,
        entry.method,
        f"{entry.average_kept:.1f}",
        percent(entry.accuracy),
        ", ".join(f"{value * 100:.1f}" for value in entry.accuracy_by_seed) if several else "",
        f"{(max(entry.accuracy_by_seed) - min(entry.accuracy_by_seed)) * 100:.1f}" if several else "",
        percent(entry.retention),
    ]


_MARGIN_TEXT = (
    "Accuracy of the agents minus that of the best baseline on the task, and minus that of random pruning, in points "
    "with paired 95% intervals over questions and seeds. The best baseline is picked by the same answers, which "
    "favours it. The averages are over tasks: against each task's best baseline, which is no single method, and "
    "against the one that is best on average; each again without the task that moves it most.\n"
)


def margin_table(comparison: Comparison) -> str:
    """A row for each agent method, budget and task, then the averages."""
    head = ["kept", "method", "task", "rival", "difference", "significant", "difference from random", "significant"]
    rows: list[list[str]] = []
    against_random = {
        (one.method, one.budget_kept, one.task): one for one in comparison.margins if one.role == "random"
    }
    for one in sorted(comparison.margins, key=lambda margin: (-margin.budget_kept, margin.method)):
        if one.role != "random":
            other = against_random.get((one.method, one.budget_kept, one.task))
            rival = f"{one.rival} (best on average)" if one.role == "best baseline on average" else one.rival
            shown = [str(one.budget_kept), one.method, one.task or "average", rival, *_difference(one)]
            rows.append([*shown, *(_difference(other) if other else (_GAP, ""))])
            if one.without:
                rows.append(_row_without(one, one.without, rival, other))
    return markdown_table(head, rows)


def _row_without(one: Margin, without: Without, rival: str, other: Margin | None) -> list[str]:
    """An average's row without a task; the difference from random pruning only if that is without the same task."""
    left_out = [str(one.budget_kept), one.method, f"average without {without.task}", rival]
    same = other.without.estimate if other and other.without and other.without.task == without.task else None
    return [*left_out, *_shown(without.estimate), *(_shown(same) if same else (_GAP, ""))]


def _difference(margin: Margin) -> tuple[str, str]:
    return _shown(margin.difference)


def _shown(difference: Estimate) -> tuple[str, str]:
    if not is_significant(difference):
        return points(difference), "no"
    return points(difference), "above" if difference.value > 0 else "below"


def _latency_text(comparison: Comparison) -> str:
    table = comparison.latency
    if table is None:
        return ""
    device = table.device
    return (
        f"Prefill of one question at a time in PyTorch, questions of {table.task}; median of {table.iterations} rounds "
        f"in which all take turns, after {table.warmup} to warm up. Speed-up: the median of the rounds' ratios of the "
        f"unpruned time to the method's. What the vision tower does is not in it. {device.kind}: {device.name}, "
        f"{device.threads} of {device.cores} cores.\n"
    )


def latency_table(comparison: Comparison) -> str:
    """A row for each method and budget."""
    entries = comparison.latency.entries if comparison.latency else ()
    rows = [
        [str(one.budget_kept), one.method, f"{one.prefill_ms:.1f}", f"{one.iqr_ms:.1f}", f"{one.speedup:.2f}×"]
        for one in sorted(entries, key=lambda entry: -entry.budget_kept)
    ]
    return markdown_table(["kept", "method", "prefill, ms", "interquartile range, ms", "speed-up"], rows)


def schedule_table(comparison: Comparison) -> str:
    """A row for each budget, method and schedule; a method's schedule may differ from task to task."""
    schedules = {
        (-one.budget_kept, one.method, one.stage_layers, one.keep_counts): one
        for one in comparison.entries
        if one.method != comparison.reference.name
    }
    rows = [
        [
            str(one.budget_kept),
            one.method,
            ", ".join(map(str, one.stage_layers)),
            ", ".join(map(str, one.keep_counts)),
            f"{one.average_kept:.1f}",
        ]
        for one in sorted(schedules.values(), key=lambda entry: -entry.budget_kept)
    ]
    return markdown_table(["kept", "method", "before decoder layers", "tokens left", "average met"], rows)


def _agents(comparison: Comparison) -> str:
    rows: Sequence[Sequence[str]] = [
        [method.name, note.task, str(note.seed), f"`{note.fingerprint[:12]}…`", f"`{note.directory}`"]
        for method in comparison.methods
        for note in method.agents
    ]
    return markdown_table(["method", "task", "seed", "agent", "directory"], rows) if rows else ""


def csv_records(comparison: Comparison) -> list[dict[str, object]]:
    """One record for each method, budget and task, the gaps included, whose ``reason`` says why they are empty."""
    tasks, budgets = comparison.tasks, comparison.budgets_kept
    places = [(comparison.reference, comparison.visual_tokens, task) for task in tasks]
    places += [(method, budget, task) for budget in budgets for method in comparison.pruned for task in tasks]
    return [_record(comparison, *place) for place in places]


def _record(comparison: Comparison, method: MethodRow, budget: int, task: TaskColumn) -> dict[str, object]:
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
        **_measured_fields(entry),
        "prefill_ms": f"{timed.prefill_ms:.6g}" if timed else "",
        "prefill_speedup": f"{timed.speedup:.6g}" if timed else "",
        "reason": comparison.reason(method.name, task.name, budget) or "",
    }


def _measured_fields(entry: Entry | None) -> dict[str, object]:
    estimates = {
        **estimate_fields("accuracy", entry.accuracy if entry else None),
        **estimate_fields("retention", entry.retention if entry else None),
    }
    if entry is None:
        return {"average_kept": "", "stage_layers": "", "keep_counts": "", "seeds": "", "by_seed": "", **estimates}
    return {
        "average_kept": f"{entry.average_kept:.6g}",
        "stage_layers": _listed(entry.stage_layers),
        "keep_counts": _listed(entry.keep_counts),
        "seeds": _listed(entry.seeds),
        "by_seed": " ".join(f"{value:.6g}" for value in entry.accuracy_by_seed),
        **estimates,
    }


def _listed(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))
