"""``toprl-export build``: export a model with agents or a baseline as engines, into a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from toprl_export.cli import options
from toprl_export.cli.command import BUDGETS, ENGINE, INPUTS, Command, option
from toprl_export.cli.engine_command_line import EngineCommandLine, load_command_lines
from toprl_export.cli.output import command_line, print_json, say
from toprl_export.engine import GRAPHS, PRECISIONS, ConfigurableEngine
from toprl_export.errors import UserError
from toprl_export.pruning.baselines.specs import BUILDABLE_BASELINES
from toprl_export.registry import unknown_name
from toprl_export.trainer import DEFAULT_BUDGETS_KEPT

if TYPE_CHECKING:
    from toprl_export.building import PreparedBuild
    from toprl_export.bundle import Bundle
    from toprl_export.engine import EngineOptions

_log = logging.getLogger(__name__)
_ENGINES_KEY = f"{__name__}.engines"


class BuildCommand(Command):
    """``build``, with the options that the installed engines bring, in a section for each."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then those of the engines."""
        of_engines = [option for engine in _engine_command_lines(ctx).values() for option in engine.build_options]
        return [*super().get_params(ctx), *of_engines]

    def section_of(self, param: click.Parameter, ctx: click.Context) -> str:
        """The engine's heading for its own options."""
        titles = [engine.title for engine in _engine_command_lines(ctx).values() if param in engine.build_options]
        return titles[0] if titles else super().section_of(param, ctx)


def _engine_command_lines(ctx: click.Context) -> dict[str, EngineCommandLine]:
    """What the installed engines bring by their names; loaded once a run, for click knows options by identity."""
    if _ENGINES_KEY not in ctx.meta:
        ctx.meta[_ENGINES_KEY] = load_command_lines().loaded
    found: dict[str, EngineCommandLine] = ctx.meta[_ENGINES_KEY]
    return found


@click.command(
    "build",
    cls=BuildCommand,
    help="Export model and agents as engines, into a bundle.",
    examples=[
        "build --agent agents/mini-colour --budget-kept 192,128,64 --output-dir engines/mini-colour",
        "build --baseline fastv-p --precision fp16 --dry-run",
    ],
)
@options.model
@option(
    INPUTS,
    "--agent",
    "agents",
    type=options.PATH,
    multiple=True,
    metavar="DIR",
    show_default="agents/TASK of the first task",
    help="an agent that `toprl-export train` wrote; repeat it to serve several tasks",
)
@option(
    INPUTS,
    "--baseline",
    metavar="NAME",
    help=f"an untrained method instead of agents, for every task: {', '.join(BUILDABLE_BASELINES)}",
    shell_complete=options.complete_from(lambda: BUILDABLE_BASELINES),
)
@option(
    BUDGETS,
    "--budget-kept",
    "budgets_kept",
    type=options.BUDGETS_KEPT,
    metavar="N[%][,N[%]]",
    show_default=f"the agents' own budgets; {','.join(map(str, DEFAULT_BUDGETS_KEPT))} for a baseline",
    help="visual tokens kept, averaged over all decoder layers; 33% is a share of them",
)
@option(
    BUDGETS,
    "--stage-layers",
    type=options.LAYERS,
    metavar="L[,L]",
    show_default="its own, or where agents do",
    help="decoder layers before which a baseline prunes",
)
@option(BUDGETS, "--static-k", is_flag=True, help="bake the one budget into the graph")
@option(
    ENGINE,
    "--engine",
    default="onnx",
    metavar="ENGINE",
    help="see `toprl-export doctor`",
    shell_complete=options.complete_from(options.engine_names),
)
@option(
    ENGINE,
    "--precision",
    default="fp32",
    metavar="TYPE",
    help=f"{', '.join(PRECISIONS)}, as far as the engine can build them",
    shell_complete=options.complete_from(lambda: PRECISIONS),
)
@options.output_dir(otherwise="engines/ and the name of the agent's directory or of the baseline")
@options.overwrite
@options.dry_run
@options.as_json
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    agents: tuple[Path, ...],
    baseline: str | None,
    budgets_kept: tuple[int | float, ...] | None,
    stage_layers: tuple[int, ...] | None,
    static_k: bool,
    engine: str,
    precision: str,
    output_dir: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    **of_engines: Any,
) -> None:
    """Build, or say that the bundle is there, or what would be built."""
    from toprl_export.building import check_place, prepare, up_to_date, write_bundle
    from toprl_export.bundle import MANIFEST_NAME
    from toprl_export.places import check_replaceable, check_writable, resolved, taken

    if agents and baseline is not None:
        raise UserError("--agent and --baseline exclude each other: leave one of the two out")
    if not agents and baseline is None:
        agents = (Path("agents") / options.task_names()[0],)
    directory = output_dir or Path("engines") / (baseline or agents[0].resolve().name)
    check_place(directory)
    with nullcontext() if dry_run else taken(directory):
        prepared = prepare(
            model,
            agents,
            budgets_kept,
            engine,
            precision,
            static_k,
            baseline=baseline,
            stage_layers=stage_layers,
            options=_options_of(ctx, engine, of_engines),
        )
        current = up_to_date(prepared, directory)
        if not current:
            check_replaceable(resolved(directory), overwrite, marker=MANIFEST_NAME)
            check_writable(directory, needed_bytes=prepared.weight_bytes)
        if dry_run:
            found = {"status": "up-to-date" if current else "dry-run", **preview(prepared, directory)}
            _say(as_json, found, _preview_text(found, _engine_command_lines(ctx).get(engine)))
            return
        if current:
            _say(as_json, outcome(current, "up-to-date"), f"up to date: {current.dir}")
            return
        _log.info("building %s with %s, %s …", directory, engine, precision)
        bundle = write_bundle(prepared, directory, overwrite, command_line())
        _say(as_json, outcome(bundle, "built"), _describe(bundle))


def _options_of(ctx: click.Context, engine: str, values: Mapping[str, Any]) -> EngineOptions | None:
    """The engine's own options.

    Raises:
        UserError: the engine is unknown, or an option was given that only another one knows.
    """
    from toprl_export.engine import ENGINES

    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES.names())
    installed = _engine_command_lines(ctx)
    for other, its in installed.items():
        given = [option.opts[0] for option in its.build_options if _is_given(ctx, option)]
        if given and other != engine:
            raise UserError(
                f"the engine {engine!r} does not know {', '.join(given)}: leave that out, or use --engine {other}"
            )
    if engine not in installed:
        return None
    names = [str(option.name) for option in installed[engine].build_options]
    return installed[engine].options({name: values[name] for name in names})


def _is_given(ctx: click.Context, option: click.Option) -> bool:
    return ctx.get_parameter_source(str(option.name)) not in (None, ParameterSource.DEFAULT)


def preview(prepared: PreparedBuild, output_dir: Path) -> dict[str, Any]:
    """What would be built, as a JSON object."""
    request, engine = prepared.request, prepared.engine
    return {
        "bundle": str(output_dir),
        "engine": engine.name,
        "precision": request.precision,
        "graphs": list(GRAPHS),
        "model": request.adapter.model_id,
        "tasks": [agent.record.task for agent in request.agents],
        "baseline": request.baseline,
        "plan": request.plan.to_json(),
        "weight_bytes": prepared.weight_bytes,
        "plans": engine.preview(request) if isinstance(engine, ConfigurableEngine) else None,
    }


def outcome(bundle: Bundle, status: str) -> dict[str, Any]:
    """What is there now, as a JSON object."""
    manifest = bundle.manifest
    return {
        "status": status,
        "bundle": str(bundle.dir),
        "tasks": list(manifest.tasks),
        "baseline": manifest.baseline,
        "budgets_kept": list(manifest.budgets_kept),
        "bytes": sum(file.size for file in manifest.files),
    }


def _say(as_json: bool, payload: Mapping[str, Any], text: str) -> None:
    if as_json:
        print_json({"format": "toprl-export/build", "version": 1, **payload})
    else:
        say(text)


def _preview_text(found: Mapping[str, Any], engine: EngineCommandLine | None) -> str:
    from toprl_export.pruning.plan import shown_count

    plan = found["plan"]
    shares = plan.get("shares", False)

    def shown(count: int) -> str:
        return shown_count(count, shares)

    tokens = "as many visual tokens as the picture gives" if shares else f"{plan['visual_tokens']} visual tokens"
    tasks = ", ".join(found["tasks"]) or f"all, by the baseline {found['baseline']}"
    stages = ", ".join(f"{stage['site']} ({stage['scorer']})" for stage in plan["stages"])
    lines = [
        f"{'up to date' if found['status'] == 'up-to-date' else 'would build'}: {found['bundle']}",
        f"  engine     {found['engine']}, {found['precision']}",
        f"  graphs     {', '.join(found['graphs'])}",
        f"  model      {found['model']}: {tokens}, {plan['decoder_layers']} layers",
        f"  tasks      {tasks}",
        f"  stages     {stages}",
    ]
    for schedule in plan["schedules"]:
        counts = ", ".join(map(shown, schedule["keep_counts"]))
        average = schedule["average_kept"]
        met = shown(round(average)) if shares else f"{average:.1f}"
        lines.append(f"  budget     {shown(schedule['budget_kept'])} kept: {counts} (average {met})")
    lines.append(f"  weights    about {found['weight_bytes'] / 1e6:.1f} MB")
    if found["plans"] is not None and engine is not None:
        lines += engine.describe_preview(found["plans"])
    return "\n".join(lines)


def _describe(bundle: Bundle) -> str:
    manifest = bundle.manifest
    size = sum(file.size for file in manifest.files) / 1e6
    shown = manifest.plan.shown
    budgets_kept = ", ".join(map(shown, manifest.budgets_kept))
    tasks = ", ".join(manifest.tasks) or f"all, by the baseline {manifest.baseline}"
    return (
        f"bundle: {bundle.dir} ({size:.1f} MB; tasks {tasks}; budgets kept {budgets_kept} "
        f"of {shown(manifest.plan.visual_tokens)})\n"
        f"next: toprl-export validate {bundle.dir} --task {bundle.task()}"
    )
