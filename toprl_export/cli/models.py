"""``toprl-export models``: the models known by name, and the families any other checkpoint may be of."""

from __future__ import annotations

import argparse
import json

from toprl_export.cli.arguments import Subparsers, add_json
from toprl_export.models.registry import FAMILIES, NAMED_MODELS


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``models`` command."""
    add_json(subparsers.add_parser("models"))


def run(args: argparse.Namespace) -> int:
    """Print them; always 0."""
    described = {name: model.description for name, model in NAMED_MODELS.items()}
    if args.json:
        print(
            json.dumps(
                {"format": "toprl-export/models", "version": 1, "models": described, "families": FAMILIES.names()}
            )
        )
        return 0
    for name, description in described.items():
        print(f"{name:<12}{description}")
    print(f"\nany Hugging Face id or directory of these families: {', '.join(FAMILIES.names())}")
    return 0
