"""``toprl-export analyze``: information cliff, sensitivity by layer, transfer between tasks, ablation of a recipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from toprl_export.cli.arguments import (
    Subparsers,
    add_device,
    add_json,
    add_model,
    add_output_dir,
    add_seed,
    command_line,
    positive_int,
    seed,
)
from toprl_export.fields import to_json
from toprl_export.trainer import DEFAULT_BUDGETS_KEPT, DEFAULT_METHOD

if TYPE_CHECKING:
    from toprl_export.analyze.ablate import AblationPlan
    from toprl_export.analyze.results import AnalysisResult
    from toprl_export.analyze.study import Scope, Study

DEFAULT_OUTPUT_DIR = Path("analysis")
DEFAULT_LIMIT = 200


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``analyze`` command and its four analyses."""
    parser = subparsers.add_parser("analyze")
    analyses = parser.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)
    cliff = _add(analyses, "cliff", "accuracy when all visual tokens are removed before each decoder layer")
    cliff.set_defaults(measure=_cliff)
    sensitivity = _add(analyses, "sensitivity", "accuracy after one cut, by layer and share of tokens kept")
    sensitivity.set_defaults(measure=_sensitivity)
    sensitivity.add_argument(
        "--layers", type=_wholes, metavar="N[,N]", help="cut before these (default: all of a shallow decoder, else 4)"
    )
    _add_transfer(analyses)
    _add_ablate(analyses)


def _add(analyses: Subparsers, name: str, text: str) -> argparse.ArgumentParser:
    parser = analyses.add_parser(name, help=text, description=f"{text.capitalize()}.", allow_abbrev=False)
    add_model(parser)
    tasks = {"transfer": "those of the agents", "ablate": "the first"}.get(name, "all")
    parser.add_argument(
        "--tasks", type=_names, metavar="TASK[,TASK]", help=f"all (whose data is installed), or some (default: {tasks})"
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help="held-out questions a task (default: %(default)s)",
    )
    add_seed(parser)
    parser.add_argument(
        "--jobs", type=positive_int, default=1, metavar="N", help="processes, of one CPU thread each (default: 1)"
    )
    add_device(parser)
    add_output_dir(parser, DEFAULT_OUTPUT_DIR)
    add_json(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_transfer(analyses: Subparsers) -> None:
    parser = _add(analyses, "transfer", "every agent on every task, at one budget")
    parser.set_defaults(measure=_transfer)
    parser.add_argument(
        "--agents",
        nargs="+",
        action="extend",
        required=True,
        metavar="DIR",
        help="agents of one method, one or several seeds a task: directories or quoted patterns such as 'agents/*'",
    )
    parser.add_argument(
        "--budget-kept",
        type=positive_int,
        metavar="N",
        help="visual tokens kept, averaged over all decoder layers (default: the smallest that all agents have)",
    )


def _add_ablate(analyses: Subparsers) -> None:
    parser = _add(analyses, "ablate", "train variants of a recipe and compare them with it")
    parser.set_defaults(measure=_ablate)
    parser.add_argument(
        "--recipe", default=DEFAULT_METHOD, metavar="RECIPE", help="a recipe's name or YAML file (default: %(default)s)"
    )
    parser.add_argument(
        "--variants", type=_names, metavar="NAME[,NAME]", help="only these, besides the recipe itself (default: all)"
    )
    parser.add_argument("--variants-file", type=Path, metavar="FILE", help="YAML file that lists other variants")
    parser.add_argument("--list-variants", action="store_true", help="print the variants and do nothing else")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), metavar="N[,N]", help="of training (default: 0,1,2)")
    parser.add_argument(
        "--budget-kept",
        type=positive_int,
        default=min(DEFAULT_BUDGETS_KEPT),
        metavar="N",
        help="visual tokens kept, averaged over all decoder layers (default: %(default)s)",
    )
    parser.add_argument("--updates", type=positive_int, metavar="N", help="policy updates (default: the recipe's)")
    parser.add_argument("--overwrite", action="store_true", help="train anew agents of other settings in the way")
    parser.add_argument("--dry-run", action="store_true", help="check, and say how many agents would be trained")


def run(args: argparse.Namespace) -> int:
    """Measure, write the four files, and say what was found."""
    if args.analysis == "ablate" and args.list_variants:
        print(_variants(args))
        return 0
    if args.analysis == "ablate" and args.dry_run:
        print(_preview(args))
        return 0
    try:
        result: AnalysisResult = args.measure(args)
    except KeyboardInterrupt:
        print("what is done is kept: the same command goes on from here", file=sys.stderr)
        raise
    result.write(args.output_dir)
    if args.json:
        print(json.dumps(to_json(result), indent=2))
    else:
        print(f"{result.summary()}\npicture: {args.output_dir / result.name}.png, table: {result.name}.md")
    return 0


def _cliff(args: argparse.Namespace) -> AnalysisResult:
    from toprl_export.analyze.cliff import measure_cliff
    from toprl_export.analyze.study import Study

    return measure_cliff(Study.open(_scope(args)))


def _sensitivity(args: argparse.Namespace) -> AnalysisResult:
    from toprl_export.analyze.sensitivity import measure_sensitivity
    from toprl_export.analyze.study import Study

    return measure_sensitivity(Study.open(_scope(args)), args.layers)


def _transfer(args: argparse.Namespace) -> AnalysisResult:
    from toprl_export.analyze.study import Study
    from toprl_export.analyze.transfer import measure_transfer
    from toprl_export.evaluation.compared_agents import find_agents

    agents = find_agents(args.agents)
    trained = tuple(dict.fromkeys(one.task for one in agents))
    return measure_transfer(Study.open(_scope(args, trained)), agents, args.budget_kept)


def _ablate(args: argparse.Namespace) -> AnalysisResult:
    from toprl_export.analyze.ablate import run_ablation

    return run_ablation(*_ablation(args))


def _preview(args: argparse.Namespace) -> str:
    from toprl_export.analyze.ablate import preview_ablation

    return preview_ablation(*_ablation(args))


def _ablation(args: argparse.Namespace) -> tuple[Study, AblationPlan]:
    from toprl_export.analyze.ablate import AblationPlan
    from toprl_export.analyze.study import Study
    from toprl_export.analyze.variants import choose_variants, load_variants
    from toprl_export.tasks.registry import TASKS

    plan = AblationPlan(
        variants=choose_variants(load_variants(args.variants_file), args.variants),
        recipe=args.recipe,
        seeds=args.seeds,
        budget_kept=args.budget_kept,
        updates=args.updates,
        overwrite=args.overwrite,
    )
    return Study.open(_scope(args, (TASKS.names()[0],))), plan


def _variants(args: argparse.Namespace) -> str:
    from toprl_export.analyze.variants import load_variants

    variants = load_variants(args.variants_file)
    return "\n".join(f"{variant.name:<20}{variant.group}: {variant.text}" for variant in variants)


def _scope(args: argparse.Namespace, tasks: tuple[str, ...] = ("all",)) -> Scope:
    from toprl_export.analyze.study import Scope
    from toprl_export.errors import require

    require("matplotlib", "train")  # draws the picture in the end: better missed now than after hours
    return Scope(
        output_dir=args.output_dir,
        model=args.model,
        tasks=args.tasks or tasks,
        limit=args.limit,
        seed=args.seed,
        jobs=args.jobs,
        device=args.device,
        command=command_line(),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(seed(part.strip()) for part in text.split(","))


def _wholes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal():
            raise argparse.ArgumentTypeError(f"{part!r} is no decoder layer, expected 0, 1, …")
    return tuple(map(int, parts))
