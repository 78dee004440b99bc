"""``toprl-export run``: answer questions about images with a bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toprl_export.cli.arguments import Subparsers, add_json, add_provider, add_threads, positive_int
from toprl_export.errors import UserError

if TYPE_CHECKING:
    from toprl_export.api import LoadedBundle
    from toprl_export.runtime.generation import Generation, GenerationRequest


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``run`` command."""
    parser = subparsers.add_parser("run")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory that `toprl-export build` wrote")
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="an image; repeat image and prompt for a batch, or give one image for several prompts",
    )
    parser.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="a question about the image")
    parser.add_argument("--task", metavar="TASK", help="whose agent prunes (default: the bundle's first)")
    parser.add_argument(
        "--budget-kept",
        type=positive_int,
        metavar="N",
        help="one of the bundle's budgets, or all visual tokens for no pruning (default: the largest that prunes)",
    )
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=16, metavar="N", help="longest answer (default: %(default)s)"
    )
    parser.add_argument("--stream", action="store_true", help="print words as they are made (one prompt only)")
    add_provider(parser, default="the engine's choice")
    add_threads(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the answers, one line each; 0 when all are there."""
    if args.stream and (args.json or len(args.prompt) > 1):
        raise UserError("--stream prints one answer as it grows: leave out --json and give one --prompt")
    from toprl_export.api import load
    from toprl_export.runtime.generation import GenerationStream

    loaded = load(args.bundle, threads=args.threads, provider=args.provider)
    request = loaded.request(args.image, args.prompt, args.task, args.budget_kept, args.max_new_tokens)
    growing = GenerationStream(loaded.session, loaded.tokenizer, request)
    if args.stream:
        for piece in growing:
            print(piece.text, end="", flush=True)
        print()
    elif args.json:
        print(json.dumps(describe(args, loaded, request, growing.result), indent=2, ensure_ascii=False))
    else:
        print("\n".join(growing.result.answers))
    return 0


def describe(
    args: argparse.Namespace, loaded: LoadedBundle, request: GenerationRequest, result: Generation
) -> dict[str, Any]:
    """Answers, kept counts and times as a JSON object."""
    images = args.image if len(args.image) > 1 else args.image * len(args.prompt)
    timings, manifest = result.timings, loaded.bundle.manifest
    return {
        "format": "toprl-export/run",
        "version": 1,
        "answers": [
            {"image": str(image), "prompt": prompt, "answer": answer, "new_tokens": len(tokens)}
            for image, prompt, answer, tokens in zip(images, args.prompt, result.answers, result.token_ids, strict=True)
        ],
        "task": loaded.bundle.agent(args.task).task if manifest.agents else args.task,
        "visual_tokens": manifest.model.visual_tokens,
        "keep_counts": list(request.keep_counts),
        "timings": {
            "vision_ms": timings.vision_ms,
            "prefill_ms": timings.prefill_ms,
            "decode_ms_per_token": timings.decode_ms_per_token,
            "total_ms": timings.total_ms,
        },
    }
