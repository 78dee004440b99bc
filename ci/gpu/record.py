"""What the checks found, as it stands in ``report.json``.

Writing it needs the standard library and the core's `fields` alone, so that a report can be written where nothing else
works.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from toprl_export.errors import UserError
from toprl_export.fields import read_file

CaseStatus = Literal["ok", "failed", "not run"]
CheckStatus = Literal["finished", "failed", "out of time", "not run"]
Outcome = Literal["reached", "not reached", "not run"]


@dataclass(frozen=True)
class Case:
    """One thing measured or tried.

    Attributes:
        table: cases of one table have the same figures.
        name: what distinguishes it within its table.
        status: "failed" where it raised or a figure is beyond what is right.
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
            raise UserError(f"case {self.name!r} is {self.status}, but does not say why")
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
    """One goal, what it asks for, what was found, and whether that is enough."""

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
        """Whether something ran and was wrong: a check or a case failed, or a goal was missed."""
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
