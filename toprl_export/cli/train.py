"""``toprl-export train``: train a pruning agent for one task."""

from __future__ import annotations

from typing import Any

import click

from toprl_export.cli import options
from toprl_export.cli.command import BUDGETS, TRAINING, Command, option
from toprl_export.cli.output import command_line, print_json, say
from toprl_export.trainer import DEFAULT_BUDGETS_KEPT, DEFAULT_METHOD, TRAINERS


@click.command(
    "train",
    cls=Command,
    help="Train a pruning agent for one task.",
    examples=[
        "train --task mini-colour --budget-kept 192,64 --output-dir agents/mini-colour",
        "train --task mini-count --recipe toprl-text --seed 1",
    ],
)
@options.model
@options.task("see `toprl-export tasks`", default="the model's first task")
@option(
    BUDGETS,
    "--budget-kept",
    "budgets_kept",
    type=options.POSITIVES,
    default=",".join(map(str, DEFAULT_BUDGETS_KEPT)),
    metavar="N[,N]",
    help="visual tokens kept, averaged over all decoder layers; build can add others to the agent's plan",
)
@option(
    TRAINING,
    "--method",
    default=DEFAULT_METHOD,
    metavar="METHOD",
    help="the learner",
    shell_complete=options.complete_from(TRAINERS.names),
)
@option(TRAINING, "--recipe", metavar="RECIPE", show_default="the method's own", help="a recipe's name or YAML file")
@option(TRAINING, "--updates", type=options.POSITIVE, metavar="N", show_default="the recipe's", help="policy updates")
@option(
    TRAINING,
    "--limit",
    "images",
    type=options.POSITIVE,
    metavar="N",
    show_default="the recipe's",
    help="training images",
)
@option(
    TRAINING,
    "--condition",
    type=click.Choice(("none", "text")),
    show_default="the recipe's",
    help="what the policy sees of the question: nothing, or its states at every stage",
)
@option(
    TRAINING,
    "--resume/--no-resume",
    default=None,
    show_default="resume one of the same settings, with as many threads",
    help="require, or ignore, an interrupted run",
)
@options.threads
@options.device
@options.seed
@options.output_dir(otherwise="agents/TASK")
@options.overwrite
@options.dry_run
@options.as_json
def command(as_json: bool, **settings: Any) -> None:
    """Train, and say what came of it."""
    from toprl_export.trainer import train

    outcome = train(**settings, command=command_line())
    if as_json:
        described = {"status": outcome.status, "agent": str(outcome.directory), "summary": outcome.summary}
        print_json({"format": "toprl-export/train", "version": 1, **described})
    elif outcome.summary:
        say(outcome.summary)
