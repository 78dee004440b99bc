"""``toprl-export models``: the models known by name, and the families any other checkpoint may be of."""

from __future__ import annotations

import click

from toprl_export.cli import options
from toprl_export.cli.command import Command
from toprl_export.cli.output import print_json, say


@click.command(
    "models",
    cls=Command,
    help="List the models known by name, and the families that any other checkpoint may be of.",
    examples=["models", "models --json"],
)
@options.as_json
def command(as_json: bool) -> None:
    """Print them."""
    from toprl_export.models.registry import FAMILIES, NAMED_MODELS

    described = {name: model.description for name, model in NAMED_MODELS.items()}
    if as_json:
        families = FAMILIES.names()
        print_json({"format": "toprl-export/models", "version": 1, "models": described, "families": families})
        return
    for name, description in described.items():
        say(f"{name:<12}{description}")
    say(f"\nany Hugging Face id or directory of these families: {', '.join(FAMILIES.names())}")
