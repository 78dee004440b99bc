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
    from toprl_export.validation.gates import BudgetLimits
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
    show_default="0.9",
    help="lower end of the 95% interval of the engine's accuracy over that of the unpruned reference; 0.9 also holds "
    "at budgets that are not named",
)
@option(
    GATES,
    "--min-questions",
    type=options.POSITIVE,
    default="100",
    metavar="N",
    help="evidence: fewer held-out questions than this fail, whatever they show",
)
@option(
    GATES,
    "--min-speedup",
    metavar="[FIGURE:]LIMIT",
    multiple=True,
    help="total_vs_engine_unpruned (whole requests, the default FIGURE), prefill_vs_engine_unpruned, "
    "total_vs_reference, prefill_vs_reference or realised_share; may be repeated",
)
@option(
    GATES,
    "--max-latency",
    metavar="[FIGURE:]LIMIT",
    multiple=True,
    help="median milliseconds of the engine: total (the default FIGURE), vision, prefill or decode_per_token; may be "
    "repeated",
)
@option(GATES, "--max-memory", metavar="LIMIT", help="peak MiB of a process that serves the bundle")
@option(GATES, "--max-size", type=options.LIMIT, metavar="MIB", help="MiB of all files of the bundle")
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
    "--min-stock-agreement",
    type=options.LIMIT,
    default="0.99",
    metavar="X",
    help="share of greedy tokens that the unpruned engine has in common with the stock Hugging Face model",
)
@option(
    GATES,
    "--must-beat-random",
    is_flag=True,
    help="require an accuracy gain over random pruning whose 95% interval is above 0",
)
@option(
    GATES,
    "--against",
    type=options.PATH,
    metavar="REPORT",
    help="an earlier report.json: what is worse now, beyond noise, fails",
)
@option(
    INPUTS,
    "--model",
    metavar="PATH",
    show_default="the bundle's",
    help="where the reference model is now; its weights must be those the bundle was built from",
)
@option(MACHINE, "--device", type=click.Choice(("cpu", "cuda")), default="cpu", help="where engine and reference run")
@options.provider(default="the device's name")
@options.engine_options
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
    min_retention: str | None,
    min_questions: int,
    min_speedup: tuple[str, ...],
    max_latency: tuple[str, ...],
    max_memory: str | None,
    max_size: float | None,
    max_logit_error: float,
    min_overlap: float,
    min_stock_agreement: float,
    must_beat_random: bool,
    against: Path | None,
    report_dir: Path | None,
    as_json: bool,
    **measured: Any,
) -> int:
    """Validate, print the table; 0 when every gate was met, else 1."""
    from toprl_export.validation.bench import ValidationOptions
    from toprl_export.validation.gates import (
        DEFAULT_RETENTION,
        LATENCIES,
        SPEEDUPS,
        GateLimits,
        parse_figures,
    )
    from toprl_export.validation.runner import default_report_dir, validate

    limits = GateLimits(
        min_retention=_parsed(min_retention, "--min-retention", DEFAULT_RETENTION),
        min_questions=min_questions,
        min_speedup=parse_figures(min_speedup, "--min-speedup", SPEEDUPS),
        max_latency=parse_figures(max_latency, "--max-latency", LATENCIES),
        max_memory=_parsed(max_memory, "--max-memory", None),
        max_size=max_size,
        max_logit_error=max_logit_error,
        min_overlap=min_overlap,
        min_stock_agreement=min_stock_agreement,
        must_beat_random=must_beat_random,
    )
    directory = report_dir or default_report_dir(bundle)
    report = validate(
        bundle,
        task,
        options=ValidationOptions(**measured),
        limits=limits,
        against=against,
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


def _parsed(text: str | None, flag: str, default: float | None) -> BudgetLimits:
    from toprl_export.validation.gates import BudgetLimits

    return BudgetLimits(default=default) if text is None else BudgetLimits.parse(text, flag, default)


def describe(report: Report) -> str:
    """The report as a table for the terminal, one row a budget, and the gates that were not met."""
    head = ("kept", "reference", "pruned torch", "engine", "random", "retention", "overlap", "error")
    rows: list[tuple[str, ...]] = [(*head, "total×eng", "prefill×eng", "total×torch", "verdict")]
    rows += [_row(report, budget) for budget in report.budgets]
    facts = f"{report.task}: {report.metric} in %, {report.settings.questions} held-out questions, ± 95% interval"
    facts += _f1(report)
    failed = [gate.sentence for gate in report.failed_gates]
    stock = report.stock_parity
    parity = "not finite" if stock.logit_error is None else f"{stock.logit_error:.0e}"
    facts_below = [
        f"unpruned engine against the stock model: logit error {parity}, {stock.agreement:.1%} equal tokens "
        f"({stock.n} questions)",
        *report.notes,
    ]
    return "\n".join([facts, *table_lines(rows, "right"), *facts_below, *failed, f"verdict: {report.verdict}"])


def _row(report: Report, budget: BudgetReport) -> tuple[str, ...]:
    accuracy, speedup, parity = budget.accuracy, budget.speedup, budget.parity
    shown = map(_percent, (accuracy.reference, accuracy.pruned_reference, accuracy.engine, accuracy.random))
    return (
        f"{budget.budget_kept}/{budget.visual_tokens}",
        *shown,
        "-" if budget.retention is None else f"{budget.retention:.1%}",
        f"{min(parity.kept_overlap_per_stage):.2%}",
        "-" if parity.logit_error_forced is None else f"{parity.logit_error_forced:.0e}",
        f"{speedup.total_vs_engine_unpruned:.2f}",
        f"{speedup.prefill_vs_engine_unpruned:.2f}",
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
