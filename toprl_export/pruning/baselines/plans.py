"""The plan under which each baseline runs at the same budgets as an agent."""

from __future__ import annotations

from collections.abc import Sequence

from toprl_export.pruning.plan import PruningPlan, default_stage_layers, make_plan
from toprl_export.pruning.schedule import DEFAULT_DECAY, lowest_budget, solve_schedule
from toprl_export.registry import unknown_name

BASELINES: tuple[str, ...] = (
    "random",
    "uniform",
    "fastv",
    "fastv-p",
    "pyramiddrop",
    "sparsevlm",
    "visionzip",
    "divprune",
    "dart",
    "cdpruner",
)
"""Methods that need no training and no knowledge of the answer."""

ORACLE = "oracle"
"""Keeps what the answer depends on, which only generated scenes know: a mark to measure by, no method."""

_ONE_SHOT_AT_THE_INPUT = ("visionzip", "divprune", "cdpruner")
_ONE_SHOT_AFTER_SOME_LAYERS = ("fastv", "dart")
_PYRAMIDDROP_RATIO = 0.5
_LEAST_SHARE_LEFT = 1 / 3
"""Of the budget, after the first stage. One that went to uncut layers would leave a handful of tokens to judge by."""


def baseline_scorer(name: str) -> str:
    """The registered name of the scorer that a baseline uses.

    Raises:
        UserError: no baseline has that name.
    """
    known = (*BASELINES, ORACLE)
    if name not in known:
        raise unknown_name("baseline", name, known)
    return "fastv" if name == "fastv-p" else name


def baseline_plan(
    name: str,
    visual_tokens: int,
    decoder_layers: int,
    budgets: Sequence[int],
    stage_layers: Sequence[int] | None = None,
    decay: float = DEFAULT_DECAY,
) -> PruningPlan:
    """The plan of a baseline: where its paper prunes, and keep counts that meet the budgets.

    VisionZip, DivPrune and CDPruner prune once, at the input; FastV and DART once, at layer 2 of 32; PyramidDrop
    three times, at quarters of the depth, halving; all others at the agent's own stages. What the layers before the
    first stage see counts too: where that leaves less than a third of the smallest budget after it, all stages move
    towards the input by as many layers. (FastV stays at its layer 2 for 192, 128 and 64 of LLaVA-1.5's 576 tokens.)

    Args:
        name: one of `BASELINES`, or `ORACLE`.
        visual_tokens: n, visual tokens of one image.
        decoder_layers: L, layers of the decoder.
        budgets: average visual tokens kept over all layers.
        stage_layers: stages of the agent it is compared with; by default those of
            :func:`default_stage_layers`.
        decay: of the keep counts, where the paper does not say.

    Raises:
        UserError: the name is unknown, or a budget cannot be met.
    """
    scorer = baseline_scorer(name)
    if name in _ONE_SHOT_AT_THE_INPUT:
        return make_plan(visual_tokens, decoder_layers, (0,), scorer, budgets)
    if name in _ONE_SHOT_AFTER_SOME_LAYERS:
        return _early_enough_plan(visual_tokens, decoder_layers, _fastv_layers(decoder_layers), scorer, budgets)
    if name == "pyramiddrop":
        return _early_enough_plan(visual_tokens, decoder_layers, _quarters(decoder_layers), scorer, budgets)
    if stage_layers is None:
        stage_layers = default_stage_layers(decoder_layers)
    return make_plan(visual_tokens, decoder_layers, stage_layers, scorer, budgets, decay)


def _fastv_layers(decoder_layers: int) -> tuple[int, ...]:
    """Layer 2 of 32 as in the papers, at the same relative depth."""
    return (min(max(1, decoder_layers // 16), 2, decoder_layers - 1),)


def _quarters(decoder_layers: int) -> tuple[int, ...]:
    """1/4, 1/2 and 3/4 of the depth, fewer for very shallow decoders."""
    return tuple(sorted({decoder_layers * quarter // 4 for quarter in (1, 2, 3)}))


def _early_enough_plan(
    visual_tokens: int, decoder_layers: int, layers: tuple[int, ...], scorer: str, budgets: Sequence[int]
) -> PruningPlan:
    """A plan that halves at ``layers``, moved towards the input by as little as the smallest budget demands; their
    spacing stays."""
    smallest = min(budgets, default=visual_tokens)
    for first in range(layers[0], -1, -1):
        moved = tuple(layer - layers[0] + first for layer in layers)
        if smallest < lowest_budget(visual_tokens, decoder_layers, first):
            continue
        left = solve_schedule(visual_tokens, decoder_layers, moved, smallest, _PYRAMIDDROP_RATIO).keep_counts[0]
        if _LEAST_SHARE_LEFT * smallest <= left:
            break
    return make_plan(visual_tokens, decoder_layers, moved, scorer, budgets, _PYRAMIDDROP_RATIO)
