"""Train `mini` from nothing: ``python -m toprl_export.models.mini.pretrain --output-dir DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

from toprl_export.models.mini.pretrain.recipe import PretrainRecipe, pretrain


def main() -> None:
    """Parse the few flags and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="where the phases' checkpoints go")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(PretrainRecipe(seed=arguments.seed), arguments.output_dir)


if __name__ == "__main__":
    main()
