"""``toprl-export run``: answer questions about images with a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toprl_export.cli import options
from toprl_export.cli.command import BUDGETS, INPUTS, OUTPUT, Command, argument, option
from toprl_export.cli.output import print_json, say
from toprl_export.errors import UserError
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS

if TYPE_CHECKING:
    from toprl_export.api import LoadedBundle
    from toprl_export.runtime.generation import Generation, GenerationRequest


@click.command(
    "run",
    cls=Command,
    help="Answer questions about images with a bundle, one line each.",
    examples=[
        'run engines/mini-colour --image photo.png --prompt "what colour is the 7?" --budget-kept 64',
        'run engines/mini-colour --image a.png --prompt "what is it?" --image b.png --prompt "and here?" --json',
    ],
)
@argument(
    INPUTS,
    "bundle",
    type=options.PATH,
    metavar="BUNDLE",
    help="directory that `toprl-export build` wrote",
)
@option(
    INPUTS,
    "--image",
    "images",
    type=options.PATH,
    multiple=True,
    required=True,
    metavar="FILE",
    help="an image; repeat image and prompt for a batch, or give one image for several prompts",
)
@option(
    INPUTS,
    "--prompt",
    "prompts",
    multiple=True,
    required=True,
    metavar="TEXT",
    help="a question about the image",
)
@options.task("whose agent prunes", default="the bundle's first")
@option(
    BUDGETS,
    "--budget-kept",
    type=options.BUDGET,
    metavar="N[%]",
    show_default="the largest that prunes",
    help="one of the bundle's budgets, or all visual tokens for no pruning",
)
@options.provider(default="the engine's choice")
@options.engine_options
@options.threads
@option(
    OUTPUT,
    "--max-new-tokens",
    type=options.POSITIVE,
    default=str(DEFAULT_NEW_TOKENS),
    metavar="N",
    help="longest answer",
)
@option(OUTPUT, "--stream", is_flag=True, help="print the answer as it is generated (one prompt only)")
@options.as_json
def command(
    bundle: Path,
    images: tuple[Path, ...],
    prompts: tuple[str, ...],
    task: str | None,
    budget_kept: float | None,
    provider: str | None,
    engine_options: dict[str, str],
    threads: int | None,
    max_new_tokens: int,
    stream: bool,
    as_json: bool,
) -> None:
    """Print the answers."""
    if stream and (as_json or len(prompts) > 1):
        raise UserError("--stream prints one answer as it grows: leave out --json and give one --prompt")
    from toprl_export.api import load
    from toprl_export.runtime.generation import GenerationStream

    loaded = load(bundle, threads=threads, provider=provider, engine_options=engine_options)
    request = loaded.request(list(images), list(prompts), task, budget_kept, max_new_tokens)
    growing = GenerationStream(loaded.session, loaded.frontend.tokenizer, request)
    if stream:
        for piece in growing:
            say(piece.text, nl=False)
        say()
    elif as_json:
        print_json(
            {
                "format": "toprl-export/run",
                "version": 1,
                "answers": _answers(images, prompts, growing.result),
                "task": loaded.bundle.agent(task).task if loaded.bundle.manifest.agents else task,
                **describe(loaded, request, growing.result),
            }
        )
    else:
        say("\n".join(growing.result.answers))


def _answers(images: Sequence[Path], prompts: Sequence[str], result: Generation) -> list[dict[str, Any]]:
    """Every prompt with its image and answer, as JSON objects."""
    of_prompts = images if len(images) > 1 else [*images] * len(prompts)
    return [
        {"image": str(image), "prompt": prompt, "answer": answer, "new_tokens": len(tokens)}
        for image, prompt, answer, tokens in zip(of_prompts, prompts, result.answers, result.token_ids, strict=True)
    ]


def describe(loaded: LoadedBundle, request: GenerationRequest, result: Generation) -> dict[str, Any]:
    """Kept counts and times as a JSON object."""
    timings, counts, model = result.timings, request.keep_counts, loaded.bundle.manifest.model
    return {
        "visual_tokens": request.tokens.visual_counts.tolist() if model.varies else model.visual_tokens,
        "keep_counts": list(counts) if isinstance(counts, tuple) else counts.tolist(),
        "timings": {
            "vision_ms": timings.vision_ms,
            "prefill_ms": timings.prefill_ms,
            "decode_ms_per_token": timings.decode_ms_per_token,
            "total_ms": timings.total_ms,
        },
    }
