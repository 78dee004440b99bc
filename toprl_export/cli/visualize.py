"""``toprl-export visualize``: draw the visual tokens that each stage keeps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from toprl_export.cli.arguments import Subparsers, add_overwrite, add_seed, add_threads, positive_int
from toprl_export.errors import UserError
from toprl_export.files import write_bytes_atomic

if TYPE_CHECKING:
    from toprl_export.evaluation.kept_tokens import KeptTokens


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``visualize`` command."""
    parser = subparsers.add_parser("visualize")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--agent", type=Path, metavar="DIR", help="an agent, run in PyTorch with the model it prunes")
    source.add_argument("--bundle", type=Path, metavar="DIR", help="a bundle, run by its engine")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture to ask about, with --prompt")
    parser.add_argument("--prompt", metavar="TEXT", help="the question about --image")
    parser.add_argument("--task", metavar="TASK", help="whose agent prunes and whose question is asked")
    parser.add_argument("--index", type=_index, default=0, metavar="I", help="held-out question I (default: 0)")
    parser.add_argument(
        "--budget-kept", type=positive_int, metavar="K", help="tokens kept on average (default: the largest budget)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png", help="picture to write")
    add_overwrite(parser)
    add_threads(parser)
    add_seed(parser)


def run(args: argparse.Namespace) -> int:
    """Write the picture and say what it shows."""
    _check(args)
    from toprl_export.evaluation.overlay import draw, png_bytes

    tokens = _kept(args)
    write_bytes_atomic(args.output, png_bytes(draw(tokens)))
    kept = ", ".join(f"{site}: {len(one)}" for site, one in zip(tokens.sites, tokens.kept, strict=True))
    print(f"kept of {tokens.visual_tokens}: {kept}; answer: {tokens.answer}\npicture: {args.output}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if (args.image is None) != (args.prompt is None):
        raise UserError("--image and --prompt belong together: give both, or neither for a question of --task")
    if args.image is not None and args.index:
        raise UserError("--image and --index both say what to ask: give --image with --prompt, or --index")
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output {args.output} is not a PNG file's name: end it in .png")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} is already there: add --overwrite to replace it or choose another --output")


def _kept(args: argparse.Namespace) -> KeptTokens:
    from toprl_export.evaluation.kept_tokens import ImageQuestion, TaskQuestion, kept_by_agent, kept_by_bundle

    question = ImageQuestion(args.image, args.prompt) if args.image else TaskQuestion(args.task, args.index, args.seed)
    if args.bundle is not None:
        return kept_by_bundle(args.bundle, question, args.task, args.budget_kept, args.threads)
    return kept_by_agent(args.agent, question, args.budget_kept, args.threads)


def _index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a question's number, expected 0, 1, …")
    return int(text)
