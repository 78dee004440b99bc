"""``toprl-export validate``: measure a bundle against its reference model; the exit code says whether it may ship."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toprl_export.cli import options
from toprl_export.cli.command import INPUTS, MACHINE, MEASUREMENT, OUTPUT, Command, argument, option
from toprl_export.cli.output import command_line, print_json, say, table_lines
from toprl_export.fields import to_json

if TYPE_CHECKING:
    from toprl_export.validation.report import Accuracy, BudgetReport, Report

EXIT_FAILED = 1
GATES = "Gates (LIMIT is one number, or one per budget: 192=0.97,64=0.9)"


@click.command(
    "validate",
    cls=Command,
    help="Measure a bundle against its reference model, and gate it: exit code 0 passed, 1 a gate failed.",
    examples=[
        "validate engines/mini-colour --min-retention 192=0.97,64=0.9 --must-beat-random",
        "validate engines/mini-colour --device cuda --min-speedup prefill_vs_reference:1.5 --json",
    ],
)
@argument(INPUTS, "bundle", type=options.PATH, metavar="BUNDLE", help="what `toprl-export build` wrote")
@options.task("one of the bundle's, or any for a baseline", default="the first")
@option(
    MEASUREMENT,
    "--limit",
    type=options.POSITIVE,
    default="500",
    metavar="N",
    help="held-out questions to answer",
)
@option(MEASUREMENT, "--warmup", type=options.NOT_NEGATIVE, default="3", metavar="N", help="untimed rounds first")
@option(MEASUREMENT, "--iterations", type=options.POSITIVE, default="20", metavar="N", help="timed rounds")
@option(
    GATES,
    "--min-retention",
    metavar="LIMIT",
    default="0.9",
    help="accuracy of the engine over that of the unpruned reference",
)
@option(
    GATES,
    "--min-speedup",
    metavar="[FIGURE:]LIMIT",
    multiple=True,
    help="total_vs_reference (the default FIGURE), prefill_vs_reference, prefill_vs_engine_unpruned or "
    "realised_share; may be repeated",
)
@option(
    GATES,
    "--max-logit-error",
    type=options.LIMIT,
    default="0.001",
    metavar="X",
    help="prefill logits against PyTorch replaying the engine's kept tokens",
)
@option(
    GATES,
    "--min-overlap",
    type=options.LIMIT,
    default="0.99",
    metavar="X",
    help="share of kept tokens that engine and PyTorch agree on, at every stage",
)
@option(
    GATES,
    "--must-beat-random",
    is_flag=True,
    help="require an accuracy gain over random pruning whose 95% interval is above 0",
)
@option(MACHINE, "--device", type=click.Choice(("cpu", "cuda")), default="cpu", help="where engine and reference run")
@options.provider(default="the device's name")
@options.threads
@options.seed
@option(
    OUTPUT,
    "--report-dir",
    type=options.PATH,
    metavar="DIR",
    show_default="BUNDLE-report, beside it",
    help="where the report goes",
)
@options.as_json
def command(
    bundle: Path,
    task: str | None,
    min_retention: str,
    min_speedup: tuple[str, ...],
    max_logit_error: float,
    min_overlap: float,
    must_beat_random: bool,
    report_dir: Path | None,
    as_json: bool,
    **measured: Any,
) -> int:
    """Validate, print the table; 0 when every gate was met, else 1."""
    from toprl_export.validation.bench import ValidationOptions
    from toprl_export.validation.gates import BudgetLimits, GateLimits, parse_speedups
    from toprl_export.validation.runner import default_report_dir, validate

    limits = GateLimits(
        min_retention=BudgetLimits.parse(min_retention, "--min-retention"),
        min_speedup=parse_speedups(min_speedup),
        max_logit_error=max_logit_error,
        min_overlap=min_overlap,
        must_beat_random=must_beat_random,
    )
    directory = report_dir or default_report_dir(bundle)
    report = validate(
        bundle,
        task,
        options=ValidationOptions(**measured),
        limits=limits,
        report_dir=directory,
        command=command_line(),
    )
    passed = report.verdict == "passed"
    if as_json:
        print_json(to_json(report))
    else:
        table, _, verdict = describe(report).rpartition("\n")
        say(table)
        say(verdict, fg="green" if passed else "red", bold=True)
        say(f"report: {directory / 'report.html'}")
    return 0 if passed else EXIT_FAILED


def describe(report: Report) -> str:
    """The report as a table for the terminal, one row a budget, and the gates that were not met."""
    head = ("kept", "reference", "pruned torch", "engine", "random", "retention", "overlap", "error")
    rows: list[tuple[str, ...]] = [(*head, "prefill×eng", "prefill×torch", "total×torch", "verdict")]
    rows += [_row(report, budget) for budget in report.budgets]
    facts = f"{report.task}: {report.metric} in %, {report.settings.questions} held-out questions, ± 95% interval"
    facts += _f1(report)
    failed = [gate.sentence for gate in report.gates if not gate.passed]
    return "\n".join([facts, *table_lines(rows, "right"), *failed, f"verdict: {report.verdict}"])


def _row(report: Report, budget: BudgetReport) -> tuple[str, ...]:
    accuracy, speedup, parity = budget.accuracy, budget.speedup, budget.parity
    shown = map(_percent, (accuracy.reference, accuracy.pruned_reference, accuracy.engine, accuracy.random))
    return (
        f"{budget.budget_kept}/{budget.visual_tokens}",
        *shown,
        "-" if budget.retention is None else f"{budget.retention:.1%}",
        f"{min(parity.kept_overlap_per_stage):.2%}",
        "-" if parity.logit_error_forced is None else f"{parity.logit_error_forced:.0e}",
        f"{speedup.prefill_vs_engine_unpruned:.2f}",
        f"{speedup.prefill_vs_reference:.2f}",
        f"{speedup.total_vs_reference:.2f}",
        "passed" if report.passed_at(budget.budget_kept) else "FAILED",
    )


def _f1(report: Report) -> str:
    """The F1 of reference and engine at every budget; empty for a task that has none."""
    scores = [(one.budget_kept, one.accuracy.engine.f1, one.accuracy.reference.f1) for one in report.budgets]
    shown = [
        f"{engine * 100:.1f} at {budget} kept (reference {reference * 100:.1f})"
        for budget, engine, reference in scores
        if engine is not None and reference is not None
    ]
    return f"; F1 of the engine {', '.join(shown)}" if shown else ""


def _percent(accuracy: Accuracy) -> str:
    low, high = accuracy.ci95
    return f"{accuracy.value * 100:.1f} ± {(high - low) * 50:.1f}"
