"""``toprl-export visualize``: draw the visual tokens that each stage keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toprl_export.cli import options
from toprl_export.cli.command import BUDGETS, INPUTS, Command, option
from toprl_export.cli.output import print_json, say
from toprl_export.errors import UserError
from toprl_export.files import write_bytes_atomic

if TYPE_CHECKING:
    from toprl_export.evaluation.kept_tokens import KeptTokens


@click.command(
    "visualize",
    cls=Command,
    help="Draw the visual tokens that each stage keeps.",
    examples=[
        "visualize --agent agents/mini-read --index 3 --output kept.png",
        'visualize --bundle engines/mini-read --image photo.png --prompt "what is written?" --output kept.png',
    ],
)
@option(
    INPUTS,
    "--agent",
    type=options.PATH,
    metavar="DIR",
    help="an agent, run in PyTorch with the model it prunes",
)
@option(
    INPUTS,
    "--model",
    metavar="MODEL",
    show_default="the one the agent was trained on",
    help="where the agent's reference model is now; its weights must be those it was trained on",
)
@option(INPUTS, "--bundle", type=options.PATH, metavar="DIR", help="a bundle, run by its engine")
@option(INPUTS, "--image", type=options.PATH, metavar="FILE", help="the image to ask about, with --prompt")
@option(INPUTS, "--prompt", metavar="TEXT", help="the question about --image")
@options.task("whose agent prunes and whose question is asked", default="the agent's or the bundle's first")
@option(INPUTS, "--index", type=options.NOT_NEGATIVE, default="0", metavar="I", help="held-out question I")
@option(
    BUDGETS,
    "--budget-kept",
    type=options.POSITIVE,
    metavar="K",
    show_default="the largest budget",
    help="visual tokens kept, averaged over all decoder layers",
)
@options.threads
@options.seed
@options.picture(required=True, help="picture to write")
@options.overwrite
@options.as_json
def command(output: Path, overwrite: bool, as_json: bool, **source: Any) -> None:
    """Write the picture and say what it shows."""
    _check(source["agent"], source["bundle"], source["image"], source["prompt"], source["index"])
    options.check_picture(output, overwrite)
    from toprl_export.evaluation.overlay import draw, png_bytes

    tokens = _kept(**source)
    write_bytes_atomic(output, png_bytes(draw(tokens)))
    if as_json:
        print_json({"format": "toprl-export/visualize", "version": 1, "picture": str(output), **describe(tokens)})
        return
    kept = ", ".join(f"{site}: {len(one)}" for site, one in zip(tokens.sites, tokens.kept, strict=True))
    say(f"kept of {tokens.visual_tokens}: {kept}; answer: {tokens.answer}\npicture: {output}")


def describe(tokens: KeptTokens) -> dict[str, Any]:
    """What the picture shows, as a JSON object."""
    return {
        "visual_tokens": tokens.visual_tokens,
        "kept": {site: kept.tolist() for site, kept in zip(tokens.sites, tokens.kept, strict=True)},
        "question": tokens.question,
        "answer": tokens.answer,
        "expected": tokens.expected,
    }


def _check(agent: Path | None, bundle: Path | None, image: Path | None, prompt: str | None, index: int) -> None:
    if (agent is None) == (bundle is None):
        raise UserError("the tokens are kept by --agent or by --bundle: give one of the two")
    if (image is None) != (prompt is None):
        raise UserError("--image and --prompt need each other: give both, or neither for a question of --task")
    if image is not None and index:
        raise UserError("--image and --index both say what to ask: give --image with --prompt, or --index")


def _kept(
    agent: Path | None,
    model: str | None,
    bundle: Path | None,
    image: Path | None,
    prompt: str | None,
    task: str | None,
    index: int,
    budget_kept: int | None,
    threads: int | None,
    seed: int,
) -> KeptTokens:
    from toprl_export.evaluation.kept_tokens import ImageQuestion, TaskQuestion, kept_by_agent, kept_by_bundle

    question = ImageQuestion(image, prompt) if image and prompt else TaskQuestion(task, index, seed)
    if bundle is not None:
        return kept_by_bundle(bundle, question, task, budget_kept, threads)
    assert agent is not None  # one of the two is given
    return kept_by_agent(agent, question, budget_kept, threads, model)
