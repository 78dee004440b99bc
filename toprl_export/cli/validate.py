"""``toprl-export validate``: measure a bundle against its reference model; the exit code says whether it may ship."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from toprl_export.cli.arguments import (
    Subparsers,
    add_config,
    add_json,
    add_provider,
    add_seed,
    add_threads,
    command_line,
    positive_int,
)
from toprl_export.errors import UserError
from toprl_export.fields import to_json

if TYPE_CHECKING:
    from toprl_export.validate.gates import GateLimits
    from toprl_export.validate.report import Accuracy, BudgetReport, Report

EXIT_FAILED = 1


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``validate`` command."""
    parser = subparsers.add_parser("validate")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what `toprl-export build` wrote")
    parser.add_argument(
        "--task", metavar="TASK", help="one of the bundle's, or any for a baseline (default: the first)"
    )
    parser.add_argument(
        "--limit", type=positive_int, default=500, metavar="N", help="held-out questions to answer (default: 500)"
    )
    parser.add_argument(
        "--report-dir", type=Path, metavar="DIR", help="where the report goes (default: BUNDLE-report, beside it)"
    )
    _add_gates(parser)
    parser.add_argument("--warmup", type=_not_negative, default=3, metavar="N", help="rounds not timed (default: 3)")
    parser.add_argument("--iterations", type=positive_int, default=20, metavar="N", help="rounds timed (default: 20)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both run (default: cpu)")
    add_provider(parser, default="the device's name")
    add_threads(parser)
    add_seed(parser)
    add_json(parser)
    add_config(parser)


def _add_gates(parser: argparse.ArgumentParser) -> None:
    gates = parser.add_argument_group("gates", "LIMIT is one number, or one per budget: 192=0.97,64=0.9")
    gates.add_argument(
        "--min-retention",
        metavar="LIMIT",
        default="0.9",
        help="accuracy of the engine over that of the unpruned reference (default: 0.9)",
    )
    gates.add_argument(
        "--min-speedup",
        metavar="[FIGURE:]LIMIT",
        action="append",
        default=[],
        help="total_vs_reference (meant when no FIGURE is named), prefill_vs_reference, prefill_vs_engine_unpruned or "
        "realised_share; may be repeated",
    )
    gates.add_argument(
        "--max-logit-error",
        type=_limit,
        default=1e-3,
        metavar="X",
        help="prefill logits against PyTorch replaying the engine's kept tokens (default: 0.001)",
    )
    gates.add_argument(
        "--min-overlap",
        type=_limit,
        default=0.99,
        metavar="X",
        help="share of kept tokens that engine and PyTorch agree on, at every stage (default: 0.99)",
    )
    gates.add_argument(
        "--must-beat-random",
        action="store_true",
        help="demand that the 95%% interval of engine minus random pruning is above 0",
    )


def run(args: argparse.Namespace) -> int:
    """Validate, print the table; 0 when every gate was met, else 1."""
    from toprl_export.validate.gates import BudgetLimits, GateLimits, parse_speedups

    limits = GateLimits(
        min_retention=BudgetLimits.parse(args.min_retention, "--min-retention"),
        min_speedup=parse_speedups(args.min_speedup),
        max_logit_error=args.max_logit_error,
        min_overlap=args.min_overlap,
        must_beat_random=args.must_beat_random,
    )
    report, directory = _validate(args, limits)
    if args.json:
        print(json.dumps(to_json(report), indent=2))
    else:
        print(describe(report))
        print(f"report: {directory / 'report.html'}")
    return 0 if report.verdict == "passed" else EXIT_FAILED


def _validate(args: argparse.Namespace, limits: GateLimits) -> tuple[Report, Path]:
    from toprl_export.validate.bench import ValidationOptions
    from toprl_export.validate.runner import default_report_dir, validate

    options = ValidationOptions(
        limit=args.limit,
        warmup=args.warmup,
        iterations=args.iterations,
        threads=args.threads,
        device=args.device,
        provider=args.provider,
        seed=args.seed,
    )
    directory: Path = args.report_dir or default_report_dir(args.bundle)
    return validate(
        args.bundle, args.task, options=options, limits=limits, report_dir=directory, command=command_line()
    ), directory


def describe(report: Report) -> str:
    """The report as a table for the terminal, one row a budget, and the gates that were not met."""
    head = ("kept", "reference", "pruned torch", "engine", "random", "retention", "overlap", "error")
    rows: list[tuple[str, ...]] = [(*head, "prefill×eng", "prefill×torch", "total×torch", "verdict")]
    rows += [_row(report, budget) for budget in report.budgets]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    facts = f"{report.task}: {report.metric} in %, {report.settings.questions} held-out questions, ± 95% interval"
    facts += _f1(report)
    failed = [gate.sentence for gate in report.gates if not gate.passed]
    return "\n".join([facts, *table, *failed, f"verdict: {report.verdict}"])


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


def _limit(text: str) -> float:
    from toprl_export.validate.gates import positive_number

    try:
        return positive_number(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
