"""``toprl-export inspect``: say what a bundle, an agent, a plan or a report holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toprl_export.cli.arguments import Subparsers, add_json
from toprl_export.errors import UserError
from toprl_export.fields import to_json

if TYPE_CHECKING:
    from toprl_export.pruning.plan import PruningPlan

KNOWN_FILES = ("manifest.json", "agent.json", "report.json")
MB = 1e6


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``inspect`` command."""
    parser = subparsers.add_parser("inspect")
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="a bundle, an agent directory, a plan, a report.json or a build_report.json",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a summary, or with --json the checked content; 0 when it could be read."""
    path = _locate(args.path)
    content, summary = _readers()[_format_of(path)](path)
    print(json.dumps(content, indent=2, ensure_ascii=False) if args.json else summary)
    return 0


def _locate(path: Path) -> Path:
    """The JSON file that says what ``path`` is."""
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a bundle, an agent, a plan or a report: check the path")
    if not path.is_dir():
        return path
    for name in KNOWN_FILES:
        if (path / name).exists():
            return path / name
    raise UserError(f"{path} holds none of {', '.join(KNOWN_FILES)}: give a bundle, an agent or a report")


def _format_of(path: Path) -> str:
    try:
        payload = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}): give a bundle, an agent, a plan or a report"
        ) from error
    found = payload.get("format") if isinstance(payload, dict) else None
    if not isinstance(found, str) or found not in _readers():
        raise UserError(f"{path} has the format {found!r}, expected one of {', '.join(_readers())}: give another file")
    return found


def _readers() -> dict[str, Callable[[Path], tuple[dict[str, Any], str]]]:
    return {
        "toprl-export/bundle": _bundle,
        "toprl-export/agent": _agent,
        "toprl-export/plan": _plan,
        "toprl-export/report": _report,
        "toprl-export/trt-build": _build_report,
    }


def _bundle(path: Path) -> tuple[dict[str, Any], str]:
    from toprl_export.bundle import load_bundle

    manifest = load_bundle(path.parent).manifest
    model, engine = manifest.model, manifest.engine
    validated = [f"{one.task} {one.verdict}, report {one.report_sha256[:12]}…" for one in manifest.validations]
    facts = [
        ("bundle", str(path.parent)),
        ("model", f"{model.id}{f'@{model.revision}' if model.revision else ''}, fingerprint {model.fingerprint[:12]}…"),
        *([("baseline", f"{manifest.baseline}, for every task")] if manifest.baseline else []),
        ("engine", f"{engine.name}, {engine.precision}, opset {engine.opset}"),
        ("built with", ", ".join(f"{name} {version}" for name, version in engine.toolchain.items())),
        ("built by", f"toprl-export {manifest.toprl_export}: {manifest.build_command}"),
        *(("validated", one) for one in validated or ["not yet"]),
    ]
    agents = [(str(a.index), a.task, a.method, f"{a.fingerprint[:12]}…") for a in manifest.agents]
    files = [(f.path, f.role, f"{f.size / MB:.2f} MB", f"{f.sha256[:12]}…") for f in manifest.files]
    parts = [
        _facts(facts),
        *([_table(("agent", "task", "method", "fingerprint"), agents)] if agents else []),
        _describe_plan(manifest.plan),
        _table(("file", "role", "size", "sha256"), files),
        f"all {len(files)} files are as the manifest lists them",
    ]
    return manifest.to_json(), "\n\n".join(parts)


def _build_report(path: Path) -> tuple[dict[str, Any], str]:
    from toprl_export.build_report import KINDS, read_build_report

    report = read_build_report(path)
    workspace = "TensorRT's own limit" if report.workspace_bytes is None else f"{report.workspace_bytes / MB:.0f} MB"
    facts = [
        ("report", str(path)),
        ("built by", report.binding),
        ("precision", f"{report.precision}, attention {report.attention}"),
        ("flags", ", ".join(report.flags)),
        ("workspace", workspace),
        ("timings", "reused from an earlier build" if report.timing_cache else "none reused"),
    ]
    rows = [
        (
            name,
            f"{graph.seconds:.1f} s",
            f"{graph.plan_bytes / MB:.2f} MB",
            "-" if graph.activation_bytes is None else f"{graph.activation_bytes / MB:.2f} MB",
            *(f"{graph.kinds[kind]} → {graph.engine_kinds[kind]}" for kind in KINDS),
        )
        for name, graph in report.graphs.items()
    ]
    warnings = [f"{name}: {line}" for name, graph in report.graphs.items() for line in graph.warnings]
    parts = [_facts(facts), _table(("graph", "took", "plan", "activations", *KINDS), rows)]
    parts.append("layers as parsed → as built")
    return report.to_json(), "\n\n".join([*parts, *(["\n".join(warnings)] if warnings else [])])


def _agent(path: Path) -> tuple[dict[str, Any], str]:
    from toprl_export.agent import load_agent

    agent = load_agent(path.parent)
    record = agent.record
    training = record.training
    facts = [
        ("agent", str(path.parent)),
        ("task", record.task),
        ("method", f"{record.method}, recipe {training.recipe}, seed {record.seed}"),
        ("model", f"{record.model_id}, fingerprint {record.model_fingerprint[:12]}…"),
        ("actor", f"{record.actor.input_size} → {record.actor.hidden_size}, {record.actor.stages} stages"),
        ("trained", f"{training.updates} updates, {training.rollouts} rollouts, {training.seconds:.0f} s"),
        ("command", training.command),
        ("fingerprint", agent.fingerprint),
    ]
    return to_json(record), f"{_facts(facts)}\n\n{_describe_plan(record.plan)}"


def _plan(path: Path) -> tuple[dict[str, Any], str]:
    from toprl_export.fields import read_file
    from toprl_export.pruning.plan import PruningPlan

    plan = read_file(PruningPlan, path)
    return plan.to_json(), _describe_plan(plan)


def _report(path: Path) -> tuple[dict[str, Any], str]:
    from toprl_export.validate.report import read_report

    report = read_report(path)
    facts = [
        ("report", str(path)),
        ("verdict", report.verdict),
        ("task", f"{report.task} ({report.metric}), seed {report.seed}"),
        ("bundle", f"{report.subject.bundle}: {report.subject.engine}, {report.subject.precision}"),
        ("device", f"{report.device.name}, {report.device.threads} threads"),
    ]
    header = ("budget kept", "reference", "engine", "random", "retention", "prefill speed-up", "total speed-up")
    rows = []
    for budget in report.budgets:
        accuracy, speedup = budget.accuracy, budget.speedup
        rows.append(
            (
                f"{budget.budget_kept} of {budget.visual_tokens}",
                *(f"{100 * one.value:.1f}%" for one in (accuracy.reference, accuracy.engine, accuracy.random)),
                "–" if budget.retention is None else f"{100 * budget.retention:.1f}%",
                f"{speedup.prefill_vs_engine_unpruned:.2f}×",
                f"{speedup.total_vs_reference:.2f}×",
            )
        )
    gates = [("passed" if gate.passed else "FAILED", gate.sentence) for gate in report.gates]
    parts = [_facts(facts), _table(header, rows), _table(("gate", ""), gates) if gates else "no gates"]
    return to_json(report), "\n\n".join(parts)


def _describe_plan(plan: PruningPlan) -> str:
    stages = ", ".join(f"{stage.site} ({stage.scorer})" for stage in plan.stages)
    rows = [
        (
            f"{schedule.budget_kept}",
            f"{100 * schedule.budget_kept / plan.visual_tokens:.1f}%",
            " → ".join(map(str, schedule.keep_counts)),
            f"{schedule.average_kept:.2f}",
        )
        for schedule in plan.schedules
    ]
    return (
        f"{plan.visual_tokens} visual tokens, {plan.decoder_layers} decoder layers, stages before {stages}\n"
        + _table(("budget kept", "of all", "kept at stages", "average"), rows)
    )


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<12}{value}" for name, value in facts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)
