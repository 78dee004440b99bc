"""``toprl-export models``: the models known by name and the families of any other; ``models check`` tries one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toprl_export.cli import options
from toprl_export.cli.command import INPUTS, Command, argument
from toprl_export.cli.output import print_json, say, table_lines
from toprl_export.errors import UserError

if TYPE_CHECKING:
    from toprl_export.models.agreement import Agreement

CHECK = "check"


@click.command(
    "models",
    cls=Command,
    help="List the models known by name, and the families that any other checkpoint may be of. With `check MODEL`, "
    "load that model and hold our walk of it against its own forward and generate.",
    examples=["models", "models --json", "models check path/to/llava-checkpoint"],
)
@argument(INPUTS, "action", required=False, type=click.Choice((CHECK,)), metavar="[check]", help="try one model")
@argument(INPUTS, "model", required=False, metavar="[MODEL]", help="the one to check: its name, directory or hub id")
@options.as_json
def command(action: str | None, model: str | None, as_json: bool) -> None:
    """Print them, or the check's differences."""
    if action == CHECK:
        if model is None:
            raise UserError("models check was given no model: name one, such as mini or a checkpoint's directory")
        _check(model, as_json)
        return
    from toprl_export.models.registry import FAMILIES, NAMED_MODELS

    described = {name: one.description for name, one in NAMED_MODELS.items()}
    if as_json:
        families = FAMILIES.names()
        print_json({"format": "toprl-export/models", "version": 1, "models": described, "families": families})
        return
    for name, description in described.items():
        say(f"{name:<12}{description}")
    say(f"\nany Hugging Face id or directory of these families: {', '.join(FAMILIES.names())}")


def _check(model: str, as_json: bool) -> None:
    from toprl_export.fields import to_json
    from toprl_export.models.agreement import check_agreement
    from toprl_export.models.load import load_model

    adapter = load_model(model)  # refuses what is not computed right
    found = check_agreement(adapter)
    found.require(model)
    if as_json:
        print_json(to_json(found))
        return
    fixed = adapter.frontend.fixed
    tokens = f"{len(fixed.rows)} visual tokens" if fixed else "as many visual tokens as the picture gives"
    say(
        f"{model}: {adapter.family}, {tokens}, {adapter.shape.layers} layers, answers end by the tokens "
        f"{', '.join(map(str, adapter.end_tokens))}, at most {adapter.max_length} tokens"
    )
    say("\n".join(_rows(found)))
    say("computed here as by the model's own forward and generate")


def _rows(found: Agreement) -> list[str]:
    rows = [("part", "largest difference", "largest number", "share")]
    for one in found.differences:
        share = f"{one.largest / one.scale:.1e}" if one.scale else "-"
        rows.append((one.part.removeprefix("the "), f"{one.largest:.1e}", f"{one.scale:.3g}", share))
    return table_lines(rows, "left")
