"""``toprl-export train``: train a pruning agent for one task."""

from __future__ import annotations

import argparse

from toprl_export.cli.arguments import (
    Subparsers,
    add_config,
    add_device,
    add_dry_run,
    add_model,
    add_output_dir,
    add_overwrite,
    add_seed,
    add_task,
    add_threads,
    budgets,
    command_line,
    positive_int,
)
from toprl_export.trainer import DEFAULT_BUDGETS_KEPT, DEFAULT_METHOD


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``train`` command."""
    parser = subparsers.add_parser("train")
    add_model(parser)
    add_task(parser)
    parser.add_argument("--method", default=DEFAULT_METHOD, metavar="METHOD", help="the learner (default: %(default)s)")
    parser.add_argument("--recipe", metavar="RECIPE", help="a recipe's name or YAML file (default: the method's own)")
    parser.add_argument(
        "--budget-kept",
        type=budgets,
        default=DEFAULT_BUDGETS_KEPT,
        metavar="N[,N]",
        help="visual tokens kept, averaged over all decoder layers (default: "
        f"{','.join(map(str, DEFAULT_BUDGETS_KEPT))}); build can add others to the agent's plan",
    )
    add_output_dir(parser)
    add_seed(parser)
    parser.add_argument("--updates", type=positive_int, metavar="N", help="policy updates (default: the recipe's)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="training images (default: the recipe's)")
    parser.add_argument(
        "--condition",
        choices=("none", "text"),
        help="what the policy sees of the question: nothing, or its states at every stage (default: the recipe's)",
    )
    add_threads(parser)
    add_device(parser)
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="require, or ignore, an interrupted run (default: resume one of the same settings, with as many threads)",
    )
    add_overwrite(parser)
    add_dry_run(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when the agent is there."""
    from toprl_export.trainer import train

    outcome = train(
        model=args.model,
        task=args.task,
        method=args.method,
        recipe=args.recipe,
        budgets_kept=args.budget_kept,
        output_dir=args.output_dir,
        seed=args.seed,
        updates=args.updates,
        images=args.limit,
        condition=args.condition,
        threads=args.threads,
        device=args.device,
        resume=args.resume,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        command=command_line(),
    )
    if outcome.summary:
        print(outcome.summary)
    return 0
