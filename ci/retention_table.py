"""Join the reports that ci/retention.sh made into one table (Markdown and JSON)."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from toprl_export.files import write_json_atomic, write_text_atomic
from toprl_export.tasks.metrics import wilson_interval
from toprl_export.validate.report import Accuracy, Report, read_report

HEAD = (
    "| task | kept | questions | unpruned | engine, pruned | PyTorch, pruned | random | retention (seeds) "
    "| engine − random (seeds) |\n|---|---|---|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True)
class Row:
    """One task at one budget: accuracies over all seeds' questions, retention and gain over random seed by seed."""

    task: str
    budget_kept: int
    unpruned: Accuracy
    engine: Accuracy
    pytorch: Accuracy
    random: Accuracy
    retention: tuple[float, ...]
    engine_minus_random: tuple[float, ...]

    @property
    def pooled_retention(self) -> float:
        """Accuracy of the engine over that of the unpruned reference, all seeds together."""
        return self.engine.value / self.unpruned.value

    def markdown(self) -> str:
        """The row of the table."""
        ways = (self.unpruned, self.engine, self.pytorch, self.random)
        shown = [f"{way.value:.1%} [{way.ci95[0]:.1%}, {way.ci95[1]:.1%}]" for way in ways]
        kept = ", ".join(f"{value:.1%}" for value in self.retention)
        gain = ", ".join(f"{value * 100:+.1f}" for value in self.engine_minus_random)
        cells = [self.task, str(self.budget_kept), str(self.engine.n), *shown]
        return "| " + " | ".join([*cells, f"**{self.pooled_retention:.1%}** ({kept})", gain]) + " |\n"


def make_row(task: str, budget: int, seeds: list[Report]) -> Row:
    """Join the reports of one task."""
    found = [next(one for one in report.budgets if one.budget_kept == budget) for report in seeds]
    return Row(
        task=task,
        budget_kept=budget,
        unpruned=_pool([one.accuracy.reference for one in found]),
        engine=_pool([one.accuracy.engine for one in found]),
        pytorch=_pool([one.accuracy.pruned_reference for one in found]),
        random=_pool([one.accuracy.random for one in found]),
        retention=tuple(one.accuracy.engine.value / one.accuracy.reference.value for one in found),
        engine_minus_random=tuple(one.accuracy.engine.value - one.accuracy.random.value for one in found),
    )


def _pool(parts: list[Accuracy]) -> Accuracy:
    n = sum(part.n for part in parts)
    right = round(sum(part.value * part.n for part in parts))
    return Accuracy(right / n, n, wilson_interval(right, n))


def main() -> None:
    """Read DIR/seed-*/reports/TASK/report.json, write DIR/mini-retention.{md,json}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    reports: dict[str, list[Report]] = {}
    for path in sorted(directory.glob("seed-*/reports/*/report.json")):
        reports.setdefault(path.parent.name, []).append(read_report(path))
    budgets = sorted({one.budget_kept for seeds in reports.values() for one in seeds[0].budgets}, reverse=True)
    rows = [make_row(task, budget, seeds) for budget in budgets for task, seeds in reports.items()]
    table = {"format": "toprl-export/retention", "version": 1, "rows": [asdict(row) for row in rows]}
    write_json_atomic(directory / "mini-retention.json", table)
    text = HEAD + "".join(row.markdown() for row in rows) + "\n" + "".join(_average(rows, one) for one in budgets)
    write_text_atomic(directory / "mini-retention.md", text)
    print(text)


def _average(rows: list[Row], budget: int) -> str:
    values = [row.pooled_retention for row in rows if row.budget_kept == budget]
    return f"Average retention at {budget} kept over {len(values)} tasks: {fmean(values):.1%}.\n"


if __name__ == "__main__":
    main()
