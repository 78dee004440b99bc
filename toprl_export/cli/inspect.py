"""``toprl-export inspect``: show what a bundle, an agent, a plan or a report holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toprl_export.cli import options
from toprl_export.cli.command import INPUTS, Command, argument
from toprl_export.cli.engine_command_line import Reader, load_command_lines
from toprl_export.cli.output import print_json, say, table_lines
from toprl_export.errors import UserError
from toprl_export.fields import to_json

if TYPE_CHECKING:
    from toprl_export.manifest import EngineEntry
    from toprl_export.pruning.plan import PruningPlan

KNOWN_FILES = ("manifest.json", "agent.json", "report.json")
MB = 1e6


@click.command(
    "inspect",
    cls=Command,
    help="Show what a bundle, an agent, a plan or a report holds.",
    examples=["inspect engines/mini-colour", "inspect engines/mini-colour-report/report.json --json"],
)
@argument(
    INPUTS,
    "path",
    type=options.PATH,
    metavar="PATH",
    help="a bundle, an agent directory, a plan, a report.json, or another report that an engine leaves in a bundle",
)
@options.as_json
def command(path: Path, as_json: bool) -> None:
    """Print a summary, or the checked content."""
    file = _locate(path)
    content, summary = _reader_of(file)(file)
    print_json(content) if as_json else say(summary)


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


def _reader_of(path: Path) -> Reader:
    """What reads the format that a file says it has."""
    readers: dict[str, Reader] = {
        "toprl-export/bundle": _bundle,
        "toprl-export/agent": _agent,
        "toprl-export/plan": _plan,
        "toprl-export/report": _report,
    }
    for engine in load_command_lines().loaded.values():
        readers.update(engine.readers)
    try:
        payload = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}): give a bundle, an agent, a plan or a report"
        ) from error
    found = payload.get("format") if isinstance(payload, dict) else None
    if not isinstance(found, str) or found not in readers:
        raise UserError(f"{path} has the format {found!r}, expected one of {', '.join(readers)}: give another file")
    return readers[found]


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
        *_engine_details(engine),
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


def _engine_details(engine: EngineEntry) -> list[tuple[str, str]]:
    """What only the engine knows about the bundle, in its own words; nothing where the engine is not installed."""
    command_line = load_command_lines().loaded.get(engine.name)
    return command_line.describe_details(engine.details) if command_line and engine.details else []


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
    from toprl_export.validation.report import read_report

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
            plan.shown(schedule.budget_kept),
            f"{100 * schedule.budget_kept / plan.visual_tokens:.1f}%",
            " → ".join(map(plan.shown, schedule.keep_counts)),
            plan.shown(round(schedule.average_kept)) if plan.shares else f"{schedule.average_kept:.2f}",
        )
        for schedule in plan.schedules
    ]
    tokens = "as many visual tokens as the picture gives" if plan.shares else f"{plan.visual_tokens} visual tokens"
    return f"{tokens}, {plan.decoder_layers} decoder layers, stages before {stages}\n" + _table(
        ("budget kept", "of all", "kept at stages", "average"), rows
    )


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<12}{value}" for name, value in facts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(table_lines([header, *rows], "left"))
