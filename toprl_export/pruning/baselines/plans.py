"""The plan under which each baseline runs at the same budgets as an agent."""

from __future__ import annotations

from collections.abc import Sequence

from toprl_export.pruning.plan import PruningPlan, default_stage_layers, make_plan
from toprl_export.pruning.schedule import lowest_budget
from toprl_export.registry import unknown_name

BASELINE_SCORERS = {"random": "random", "uniform": "uniform", "fastv": "fastv", "fastv-p": "fastv"}
"""Name of each baseline → the registered scorer it uses."""


def baseline_plan(
    name: str,
    visual_tokens: int,
    decoder_layers: int,
    budgets: Sequence[int],
    stage_layers: Sequence[int] | None = None,
) -> PruningPlan:
    """The plan of a baseline: the agent's own stages, except for FastV, which prunes once.

    Args:
        name: random, uniform, fastv or fastv-p.
        visual_tokens: n, visual tokens of one image.
        decoder_layers: L, layers of the decoder.
        budgets: average visual tokens kept over all layers.
        stage_layers: stages of the agent it is compared with; by default those of
            :func:`default_stage_layers`.

    Raises:
        UserError: the name is unknown, or a budget cannot be met.
    """
    if name not in BASELINE_SCORERS:
        raise unknown_name("baseline", name, BASELINE_SCORERS)
    if name == "fastv":
        stage_layers = (_fastv_layer(visual_tokens, decoder_layers, budgets),)
    elif stage_layers is None:
        stage_layers = default_stage_layers(decoder_layers)
    return make_plan(visual_tokens, decoder_layers, stage_layers, BASELINE_SCORERS[name], budgets)


def _fastv_layer(visual_tokens: int, decoder_layers: int, budgets: Sequence[int]) -> int:
    """Layer 2 of 32 as in the paper, at the same relative depth; earlier only where a budget demands it."""
    layer = min(max(1, decoder_layers // 16), 2, decoder_layers - 1)
    while layer > 0 and min(budgets, default=visual_tokens) < lowest_budget(visual_tokens, decoder_layers, layer):
        layer -= 1
    return layer
