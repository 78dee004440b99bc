"""Flags that several commands share, so that each is spelled, checked and explained once."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import TypeAlias

from toprl_export.cli.config import CONFIG_FLAG

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command's ``add_parser`` gets."""

DEFAULT_MODEL = "mini"
MAX_SEED = 2**32 - 1


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model``: id or path of the reference model (str)."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help="a model's name, Hugging Face id or directory (default: %(default)s, the embedded one)",
    )


def add_task(parser: argparse.ArgumentParser) -> None:
    """``--task``: name of a task (str, or None for the model's first)."""
    parser.add_argument("--task", metavar="TASK", help="see `toprl-export tasks` (default: the model's first task)")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """``--seed``: 0 to 2**32 - 1 (int)."""
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of everything random (default: 0)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` (str)."""
    parser.add_argument(
        "--device", type=device, default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto)"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``: CPU threads (int of at least 1, or None for the library's choice)."""
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: all cores)")


def add_provider(parser: argparse.ArgumentParser, default: str) -> None:
    """``--provider``: the engine's name for where it runs (str, or None for ``default``, which is said in words)."""
    parser.add_argument(
        "--provider",
        metavar="NAME",
        help=f"where the engine runs; for onnx: cpu, cuda, tensorrt or tensorrt-rtx (default: {default})",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: print one JSON object instead of text (bool)."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_output_dir(parser: argparse.ArgumentParser, default: Path | None = None) -> None:
    """``--output-dir``: where the result goes (Path, or None where the command derives it)."""
    shown = f" (default: {default})" if default else ""
    parser.add_argument(
        "--output-dir", type=Path, default=default, metavar="DIR", help=f"directory to write the result to{shown}"
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """``--overwrite``: replace an earlier result of the same kind (bool)."""
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result of the same kind")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """``--dry-run``: check everything, say what would be done, write nothing (bool)."""
    parser.add_argument("--dry-run", action="store_true", help="check, say what would be done, write nothing")


def add_config(parser: argparse.ArgumentParser) -> None:
    """``--config``: YAML file of defaults for the other flags, applied by the program itself (Path or None)."""
    parser.add_argument(
        CONFIG_FLAG, type=Path, metavar="FILE", help="YAML file of flags and values; flags typed here win over it"
    )


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small, expected at least 1")
    return value


def budgets(text: str) -> tuple[int, ...]:
    """An argparse type: whole numbers of at least 1, separated by commas."""
    return tuple(positive_int(part.strip()) for part in text.split(","))


def seed(text: str) -> int:
    """An argparse type: a whole number that every random generator accepts."""
    value = _whole(text)
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{value} is out of range, expected 0 to {MAX_SEED}")
    return value


def device(text: str) -> str:
    """An argparse type: the name of a device, in the form torch takes."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"unknown device {text!r}, expected auto, cpu, cuda or cuda:N")
    return text


def command_line() -> str:
    """The command as typed, for records."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
