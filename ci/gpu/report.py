"""What the checks found: the types behind ``report.json``, and ``report.md``, the same as a page.

Writing them needs the standard library and the core's `fields` alone, so that a report can be written where nothing
else works.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from toprl_export.errors import UserError
from toprl_export.fields import read_file

CaseStatus = Literal["ok", "failed", "not run"]
CheckStatus = Literal["finished", "failed", "out of time", "not run"]
Outcome = Literal["reached", "not reached", "not run"]

LOG_LINES = 25
MAX_NAMED = 4
"""Of cases that did not run for one reason, as many are named; of more, the first and their number."""


@dataclass(frozen=True)
class Case:
    """One measurement or trial.

    Attributes:
        table: cases of one table have the same figures.
        name: what distinguishes it within its table.
        status: "failed" where it raised or a figure is beyond its limit.
        why: one line; empty when it is ok.
        figures: by name, which ends in its unit; finite numbers.

    Raises:
        UserError: a reason is missing, or a figure is not finite.
    """

    table: str
    name: str
    status: CaseStatus = "ok"
    why: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status != "ok" and not self.why:
            raise UserError(f"case {self.name!r} is {self.status}, but gives no reason")
        wrong = [name for name, value in self.figures.items() if not math.isfinite(value)]
        if wrong:
            raise UserError(f"case {self.name!r} has no finite {wrong[0]}: {self.figures[wrong[0]]}")


@dataclass(frozen=True)
class CheckResult:
    """One check's process: how it ended and what it had recorded by then.

    Attributes:
        name: of the check.
        status: "failed" when the process crashed, "out of time" when it was stopped.
        why: one line; empty when it finished.
        seconds: it took.
        cases: recorded before it ended.
        log: the end of what it printed.
    """

    name: str
    status: CheckStatus
    why: str = ""
    seconds: float = 0.0
    cases: tuple[Case, ...] = ()
    log: str = ""


@dataclass(frozen=True)
class Verdict:
    """One goal, its limit (``needed``), what was found, and whether that meets it."""

    goal: str
    needed: str
    found: str
    outcome: Outcome


@dataclass(frozen=True)
class GpuReport:
    """All of one run.

    Attributes:
        created: UTC, ISO 8601.
        command: the command line.
        device: "cuda" or "cpu".
        quick: small shapes, whose times mean nothing.
        seconds: the whole took.
        machine: what is known of the machine and its packages, by name.
        checks: in the order in which they ran.
        verdicts: one per goal.
    """

    format: Literal["toprl-export/gpu-report"] = field(default="toprl-export/gpu-report", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    created: str
    command: str
    device: str
    quick: bool
    seconds: float
    machine: Mapping[str, str]
    checks: tuple[CheckResult, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def broken(self) -> bool:
        """Whether something ran and went wrong: a check or a case failed, or a goal was missed."""
        return (
            any(check.status in ("failed", "out of time") for check in self.checks)
            or any(case.status == "failed" for check in self.checks for case in check.cases)
            or any(verdict.outcome == "not reached" for verdict in self.verdicts)
        )


def load_report(path: Path) -> GpuReport:
    """Read ``report.json``.

    Raises:
        UserError: it is missing, no JSON, or no report of this format and version.
    """
    return read_file(GpuReport, path, "give the report.json that ci/gpu.sh wrote")


def write_text(path: Path, text: str) -> None:
    """Write to a temporary sibling and rename it; the core's own writer needs packages that may be missing."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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
        same_reason: dict[tuple[str, str], list[str]] = {}
        for case in check.cases:
            if case.status == "not run":
                same_reason.setdefault((case.table, case.why), []).append(case.name)
        lines += [f"- {check.name}, {table}, {_some(names)}: {why}" for (table, why), names in same_reason.items()]
    return "\n".join(["## Not run", "", *(lines or ["Everything ran."])])


def _some(names: Sequence[str]) -> str:
    """A few names, or the first of many and how many more."""
    return "; ".join(names) if len(names) <= MAX_NAMED else f"{names[0]}; and {len(names) - 1} more"


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
