"""``toprl-export analyze``: information cliff, sensitivity by layer, transfer between tasks, ablation of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toprl_export.cli import options
from toprl_export.cli.command import (
    BUDGETS,
    INPUTS,
    MEASUREMENT,
    OUTPUT,
    TRAINING,
    Command,
    Decorated,
    LazyGroup,
    option,
)
from toprl_export.cli.output import command_line, hint_to_continue, print_json, say
from toprl_export.fields import to_json
from toprl_export.trainer import DEFAULT_BUDGETS_KEPT, DEFAULT_METHOD

if TYPE_CHECKING:
    from toprl_export.analysis.ablate import AblationPlan
    from toprl_export.analysis.results import AnalysisResult
    from toprl_export.analysis.study import Study

ANALYSES = {
    "cliff": "accuracy when all visual tokens are removed before each decoder layer",
    "sensitivity": "accuracy after one cut, by layer and share of tokens kept",
    "transfer": "every agent on every task, at one budget",
    "ablate": "train variants of a recipe and compare them with it",
}
"""Every analysis and its help line."""


@click.group(
    "analyze",
    cls=LazyGroup,
    kind="analysis",
    table=ANALYSES,
    targets={name: f"{__name__}:{name}" for name in ANALYSES},
    invoke_without_command=True,
    epilog="toprl-export analyze ANALYSIS --help explains an analysis.",
    subcommand_metavar="ANALYSIS [ARGS]...",
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Measure where pruning hurts: cliff, sensitivity, transfer, ablation."""
    if ctx.invoked_subcommand is None:
        raise click.UsageError(f"the analysis is missing, expected one of {', '.join(ANALYSES)}", ctx)


def _analysis(
    name: str, examples: list[str], default_tasks: str = "all"
) -> Callable[[Callable[..., None]], click.Command]:
    """A decorator that makes a command, with the options that all analyses share before its own."""
    shared = (
        options.model,
        options.tasks(default_tasks),
        option(
            MEASUREMENT,
            "--limit",
            type=options.POSITIVE,
            default="200",
            metavar="N",
            help="held-out questions per task",
        ),
        options.jobs,
        options.device,
        options.seed,
        options.output_dir(Path("analysis")),
        options.as_json,
    )

    def decorate(function: Callable[..., None]) -> click.Command:
        for one in reversed(shared):
            function = one(function)
        return click.command(name, cls=Command, help=f"{ANALYSES[name].capitalize()}.", examples=examples)(function)

    return decorate


def _budget_kept(**default: Any) -> Callable[[Decorated], Decorated]:
    return option(
        BUDGETS,
        "--budget-kept",
        type=options.POSITIVE,
        metavar="N",
        help="visual tokens kept, averaged over all decoder layers",
        **default,
    )


@_analysis("cliff", ["analyze cliff --tasks mini-read,mini-count --limit 1000 --jobs 2"])
def cliff(as_json: bool, **scope: Any) -> None:
    """Measure the information cliff."""
    from toprl_export.analysis.cliff import measure_cliff

    _report(lambda: measure_cliff(_open(**scope)), scope["output_dir"], as_json)


@_analysis("sensitivity", ["analyze sensitivity --layers 0,2,4"])
@option(
    MEASUREMENT,
    "--layers",
    type=options.LAYERS,
    metavar="N[,N]",
    show_default="all of a shallow decoder, else 4",
    help="decoder layers to cut before",
)
def sensitivity(layers: tuple[int, ...] | None, as_json: bool, **scope: Any) -> None:
    """Measure the sensitivity by layer."""
    from toprl_export.analysis.sensitivity import measure_sensitivity

    _report(lambda: measure_sensitivity(_open(**scope), layers), scope["output_dir"], as_json)


@_analysis("transfer", ["analyze transfer --agents 'agents/*' --budget-kept 64"], "those of the agents")
@option(
    INPUTS,
    "--agents",
    several_words=True,
    required=True,
    metavar="DIR...",
    help="agents of one method, one or several seeds per task: directories or quoted patterns such as 'agents/*'",
)
@_budget_kept(show_default="the smallest that all agents have")
def transfer(agents: tuple[str, ...], budget_kept: int | None, as_json: bool, **scope: Any) -> None:
    """Measure every agent on every task."""
    from toprl_export.analysis.transfer import measure_transfer
    from toprl_export.evaluation.compared_agents import find_agents

    def measure() -> AnalysisResult:
        found = find_agents(agents)
        trained = tuple(dict.fromkeys(agent.task for agent in found))
        return measure_transfer(_open(**scope, default_tasks=trained), found, budget_kept)

    _report(measure, scope["output_dir"], as_json)


@_analysis("ablate", ["analyze ablate --tasks mini-count --variants terminal,one-shot --seeds 0,1,2"], "the first")
@option(
    TRAINING,
    "--recipe",
    default=DEFAULT_METHOD,
    metavar="RECIPE",
    help="a recipe's name or YAML file",
)
@option(
    TRAINING,
    "--variants",
    type=options.NAMES,
    metavar="NAME[,NAME]",
    show_default="all",
    help="only these, besides the recipe itself",
)
@option(
    TRAINING,
    "--variants-file",
    type=options.PATH,
    metavar="FILE",
    show_default="the package's own",
    help="YAML file that lists other variants",
)
@option(TRAINING, "--list-variants", is_flag=True, help="print the variants and do nothing else")
@option(TRAINING, "--seeds", type=options.SEEDS, default="0,1,2", metavar="N[,N]", help="seeds of training")
@_budget_kept(default=str(min(DEFAULT_BUDGETS_KEPT)))
@option(
    TRAINING,
    "--updates",
    type=options.POSITIVE,
    metavar="N",
    show_default="the recipe's",
    help="policy updates",
)
@option(OUTPUT, "--overwrite", is_flag=True, help="train again where agents of other settings are in the way")
@option(OUTPUT, "--dry-run", is_flag=True, help="check, and say how many agents would be trained")
def ablate(list_variants: bool, dry_run: bool, as_json: bool, **settings: Any) -> None:
    """Train variants of a recipe and compare them with it."""
    from toprl_export.analysis.ablate import preview_ablation, run_ablation

    if list_variants:
        _print_variants(settings["variants_file"], as_json)
    elif dry_run:
        summary = preview_ablation(*_ablation(**settings))
        described = {"format": "toprl-export/ablation-preview", "version": 1, "summary": summary}
        print_json(described) if as_json else say(summary)
    else:
        _report(lambda: run_ablation(*_ablation(**settings)), settings["output_dir"], as_json)


def _ablation(
    *,
    recipe: str,
    variants: tuple[str, ...] | None,
    variants_file: Path | None,
    seeds: tuple[int, ...],
    budget_kept: int,
    updates: int | None,
    overwrite: bool,
    **scope: Any,
) -> tuple[Study, AblationPlan]:
    from toprl_export.analysis.ablate import AblationPlan
    from toprl_export.analysis.variants import choose_variants, load_variants

    plan = AblationPlan(
        variants=choose_variants(load_variants(variants_file), variants),
        recipe=recipe,
        seeds=seeds,
        budget_kept=budget_kept,
        updates=updates,
        overwrite=overwrite,
    )
    return _open(**scope, default_tasks=tuple(options.task_names()[:1])), plan


def _print_variants(file: Path | None, as_json: bool) -> None:
    from toprl_export.analysis.variants import load_variants

    variants = load_variants(file)
    if as_json:
        described = [{"name": one.name, "group": one.group, "text": one.text} for one in variants]
        print_json({"format": "toprl-export/ablation-variants", "version": 1, "variants": described})
    else:
        say("\n".join(f"{one.name:<20}{one.group}: {one.text}" for one in variants))


def _open(tasks: tuple[str, ...] | None, default_tasks: tuple[str, ...] = ("all",), **scope: Any) -> Study:
    from toprl_export.analysis.study import Scope, Study
    from toprl_export.errors import require

    require("matplotlib", "train")  # draws the picture at the end: better to fail now than after hours
    return Study.open(Scope(**scope, tasks=tasks or default_tasks, command=command_line()))


def _report(measure: Callable[[], AnalysisResult], directory: Path, as_json: bool) -> None:
    """Measure, write the four files, and say what was found."""
    from toprl_export.places import taken

    with taken(directory):
        with hint_to_continue():
            result = measure()
        from toprl_export.analysis.pictures import draw

        result.write(directory, draw(result))
    if as_json:
        print_json(to_json(result))
    else:
        say(f"{result.summary()}\npicture: {directory / result.name}.png, table: {result.name}.md")
