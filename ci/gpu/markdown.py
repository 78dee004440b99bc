"""The report as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ci.gpu.record import Case, CheckResult, GpuReport

LOG_LINES = 25
NAMED = 4
"""Of so many cases that did not run for one reason, each is named."""


def render(report: GpuReport) -> str:
    """Verdicts first, then what was measured, then what was not."""
    title = "# GPU report" if report.device == "cuda" else "# GPU report: not run on a GPU"
    parts = [title, _facts(report), "## Goals", verdict_table(report), "## Checks", check_table(report)]
    for check in report.checks:
        parts += [f"## {check.name}", *_tables(check)]
        parts += [_log(check)] if check.status not in ("finished", "not run") or _failed(check) else []
    return "\n\n".join([*parts, _not_run(report.checks)]) + "\n"


def _facts(report: GpuReport) -> str:
    size = "; small shapes (--quick): times mean nothing" if report.quick else ""
    facts = [
        f"{report.created}, device {report.device}, {report.seconds:.0f} s{size}",
        f"`{report.command}`",
        ", ".join(f"{name} {value}" for name, value in report.machine.items()),
    ]
    return "  \n".join(facts)


def verdict_table(report: GpuReport) -> str:
    """One row per goal."""
    rows = [(one.goal, one.needed, one.found, _mark(one.outcome)) for one in report.verdicts]
    return _table(("goal", "needed", "found", "verdict"), rows)


def check_table(report: GpuReport) -> str:
    """One row per check."""
    rows = []
    for check in report.checks:
        counts = [sum(case.status == status for case in check.cases) for status in ("ok", "failed", "not run")]
        rows.append((check.name, _mark(check.status), *map(str, counts), f"{check.seconds:.0f}", check.why))
    return _table(("check", "how it ended", "ok", "failed", "not run", "seconds", ""), rows)


def _tables(check: CheckResult) -> list[str]:
    """One table per name, in the order of appearance; cases that did not run are listed at the end of the page."""
    tables = []
    for name in dict.fromkeys(case.table for case in check.cases):
        cases = [case for case in check.cases if case.table == name and case.status != "not run"]
        if cases:
            tables.append(f"### {check.name}: {name}\n\n{_figures(cases)}")
    return tables or ["Nothing was measured."]


def _figures(cases: Sequence[Case]) -> str:
    names = list(dict.fromkeys(name for case in cases for name in case.figures))
    failed = any(case.status == "failed" for case in cases)
    rows = []
    for case in cases:
        figures = (f"{case.figures[name]:.4g}" if name in case.figures else "" for name in names)
        rows.append((case.name, *figures, *((case.why and f"**failed**: {case.why}",) if failed else ())))
    return _table(("case", *(name.replace("_", " ") for name in names), *(("",) if failed else ())), rows)


def _not_run(checks: Sequence[CheckResult]) -> str:
    lines = [f"- {check.name}: the whole check: {check.why}" for check in checks if check.status == "not run"]
    for check in checks:
        alike: dict[tuple[str, str], list[str]] = {}
        for case in check.cases:
            if case.status == "not run":
                alike.setdefault((case.table, case.why), []).append(case.name)
        lines += [f"- {check.name}, {table}, {_some(names)}: {why}" for (table, why), names in alike.items()]
    return "\n".join(["## Not run", "", *(lines or ["Everything ran."])])


def _some(names: Sequence[str]) -> str:
    """All names of a few, of many the first and how many more."""
    return "; ".join(names) if len(names) <= NAMED else f"{names[0]}; and {len(names) - 1} more"


def _failed(check: CheckResult) -> bool:
    return any(case.status == "failed" for case in check.cases)


def _log(check: CheckResult) -> str:
    lines = check.log.strip().splitlines()[-LOG_LINES:]
    return "\n".join([f"### {check.name}: the end of its log", "", *(f"    {line}" for line in lines)])


def _mark(outcome: str) -> str:
    return outcome if outcome in ("reached", "finished", "not run") else f"**{outcome}**"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
