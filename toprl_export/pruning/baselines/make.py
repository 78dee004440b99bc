"""Builds the scorer of a baseline by its name."""

from __future__ import annotations

from typing import Any

from toprl_export.errors import UserError
from toprl_export.pruning.baselines.plans import BASELINES, ORACLE, baseline_scorer
from toprl_export.pruning.scorer import SCORERS, Scorer


def make_scorer(name: str, seed: int = 0) -> Scorer:
    """The scorer of one of `BASELINES`, in evaluation mode; only "random" depends on the seed.

    Raises:
        UserError: the name is unknown, or it is the oracle, which needs the evidence of every batch.
    """
    registered = baseline_scorer(name)
    if name == ORACLE:
        raise UserError(
            f"the {ORACLE} scores by the evidence of each image, so no single scorer serves all images: "
            f"choose one of {', '.join(BASELINES)}"
        )
    kind: Any = SCORERS.get(registered)
    scorer: Scorer = kind(seed) if registered == "random" else kind()
    return scorer.eval()
