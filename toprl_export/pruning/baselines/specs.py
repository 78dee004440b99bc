"""Every baseline in one table: what scores, where its paper prunes, and whether a graph can hold it.

Whatever else the project knows of baselines (names on the command line, plans, registered scorers) is derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from toprl_export.pruning.plan import PruningPlan, default_stage_layers, make_plan
from toprl_export.pruning.schedule import DEFAULT_DECAY, lowest_budget, solve_schedule
from toprl_export.registry import unknown_name

_HALVING = 0.5
_MIN_SHARE_AFTER_FIRST_STAGE = 1 / 3
"""Of the budget. One that went to unpruned layers would leave a handful of tokens to judge the method by."""


@dataclass(frozen=True)
class BaselineSpec:
    """An untrained pruning method.

    Attributes:
        name: what ``--baseline`` takes.
        scorer: the name of its scorer in plans.
        target: ``"package.module:attribute"`` of the scorer's class, imported when it is first used.
        description: one line, with its paper.
        paper_stages: the layers before which its paper prunes, of a decoder of L layers; None: where the agent that it
            is compared with prunes.
        decay: ratio of each keep count to the one before, where ``paper_stages`` says where they are.
        made_from: what its scorer is constructed from: nothing, a seed, or the evidence of one batch.
        tunable: what of its schedule may be chosen on training questions: nothing (it prunes where the agents do), the
            layer of its one cut, or all stages and their decay.
    """

    name: str
    scorer: str
    target: str
    description: str
    paper_stages: Callable[[int], tuple[int, ...]] | None = None
    decay: float = DEFAULT_DECAY
    made_from: Literal["nothing", "seed", "evidence"] = "nothing"
    tunable: Literal["nothing", "cut", "stages"] = "stages"

    @property
    def buildable(self) -> bool:
        """Whether a graph can hold it: one that draws would keep other tokens than the PyTorch reference."""
        return self.made_from == "nothing"


def _at_the_input(decoder_layers: int) -> tuple[int, ...]:
    del decoder_layers
    return (0,)


def _layer_2_of_32(decoder_layers: int) -> tuple[int, ...]:
    """Layer 2 of 32 as in the papers, at the same relative depth."""
    # Layer 1 at the earliest, where a layer has run whose attention FastV can read; layer 2 at the latest.
    return (min(max(1, decoder_layers // 16), 2, decoder_layers - 1),)


def _quarters(decoder_layers: int) -> tuple[int, ...]:
    """1/4, 1/2 and 3/4 of the depth, fewer for very shallow decoders."""
    return tuple(sorted({decoder_layers * quarter // 4 for quarter in (1, 2, 3)}))


_SPECS = (
    BaselineSpec(
        "random",
        "random",
        "toprl_export.pruning.baselines.controls:RandomScorer",
        "a random subset; the lower mark",
        made_from="seed",
        tunable="nothing",
    ),
    BaselineSpec(
        "uniform",
        "uniform",
        "toprl_export.pruning.baselines.controls:UniformScorer",
        "spread evenly over the image",
        tunable="nothing",
    ),
    BaselineSpec(
        "fastv",
        "fastv",
        "toprl_export.pruning.baselines.attention:FastVScorer",
        "attention of the last text token, once, at layer 2 of 32 (Chen et al. 2024)",
        _layer_2_of_32,
        _HALVING,
        tunable="cut",  # with several it is FastV-P
    ),
    BaselineSpec(
        "fastv-p",
        "fastv",
        "toprl_export.pruning.baselines.attention:FastVScorer",
        "FastV's score at every stage of the agent (TOP-RL, Figure 2)",
    ),
    BaselineSpec(
        "pyramiddrop",
        "pyramiddrop",
        "toprl_export.pruning.baselines.attention:PyramidDropScorer",
        "attention in the coming layer, halving at quarters of the depth (Xing et al. 2025)",
        _quarters,
        _HALVING,
    ),
    BaselineSpec(
        "sparsevlm",
        "sparsevlm",
        "toprl_export.pruning.baselines.attention:SparseVLMScorer",
        "attention of the text tokens relevant to the image (Zhang et al. 2024)",
    ),
    BaselineSpec(
        "visionzip",
        "visionzip",
        "toprl_export.pruning.baselines.attention:VisionZipScorer",
        "attention in the vision tower, once, at the input (Yang et al. 2025)",
        _at_the_input,
    ),
    BaselineSpec(
        "divprune",
        "divprune",
        "toprl_export.pruning.baselines.diversity:DivPruneScorer",
        "the most diverse tokens, once, at the input (Alvar et al. 2025)",
        _at_the_input,
    ),
    BaselineSpec(
        "dart",
        "dart",
        "toprl_export.pruning.baselines.diversity:DARTScorer",
        "the tokens that repeat a few pivots least, once, at layer 2 of 32 (Wen et al. 2025)",
        _layer_2_of_32,
        _HALVING,
    ),
    BaselineSpec(
        "cdpruner",
        "cdpruner",
        "toprl_export.pruning.baselines.diversity:CDPrunerScorer",
        "diverse tokens given the question, once, at the input (Zhang et al. 2025)",
        _at_the_input,
    ),
    BaselineSpec(
        "oracle",
        "oracle",
        "toprl_export.pruning.baselines.controls:OracleScorer",
        "what the answer depends on, which only generated scenes know; the upper mark",
        made_from="evidence",
        tunable="nothing",
    ),
)

BASELINE_SPECS = {spec.name: spec for spec in _SPECS}
"""Every untrained method by its name."""

ORACLE = "oracle"
"""Keeps what the answer depends on, which only generated scenes know: a mark to measure by, no method."""

BASELINES: tuple[str, ...] = tuple(spec.name for spec in _SPECS if spec.made_from != "evidence")
"""Methods that need no training and no knowledge of the answer."""

BUILDABLE_BASELINES: tuple[str, ...] = tuple(spec.name for spec in _SPECS if spec.buildable)
"""Baselines that a graph can hold."""


def baseline_spec(name: str) -> BaselineSpec:
    """The specification of one of `BASELINES`, or of `ORACLE`.

    Raises:
        UserError: no baseline has that name.
    """
    if name not in BASELINE_SPECS:
        raise unknown_name("baseline", name, BASELINE_SPECS)
    return BASELINE_SPECS[name]


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
    three times, at quarters of the depth, halving; all others at the agent's own stages. The layers before the first
    stage count towards the budget too: where they leave less than a third of the smallest budget after it, all stages
    move towards the input by as many layers. (FastV stays at its layer 2 for 192, 128 and 64 of LLaVA-1.5's 576
    tokens.)

    >>> plan = baseline_plan("fastv", visual_tokens=576, decoder_layers=32, budgets=[192])
    >>> plan.stage_layers, plan.schedule(192).keep_counts
    ((2,), (166,))

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
    spec = baseline_spec(name)
    if spec.paper_stages is None:
        layers = default_stage_layers(decoder_layers) if stage_layers is None else stage_layers
        return make_plan(visual_tokens, decoder_layers, layers, spec.scorer, budgets, decay)
    return _early_enough_plan(spec, visual_tokens, decoder_layers, spec.paper_stages(decoder_layers), budgets)


def _early_enough_plan(
    spec: BaselineSpec, visual_tokens: int, decoder_layers: int, layers: tuple[int, ...], budgets: Sequence[int]
) -> PruningPlan:
    """A plan with stages at ``layers``, moved towards the input by as little as the smallest budget demands; their
    spacing stays."""
    smallest = min(budgets, default=visual_tokens)
    for first in range(layers[0], -1, -1):
        moved = tuple(layer - layers[0] + first for layer in layers)
        if smallest < lowest_budget(visual_tokens, decoder_layers, first):
            continue
        left = solve_schedule(visual_tokens, decoder_layers, moved, smallest, spec.decay).keep_counts[0]
        if _MIN_SHARE_AFTER_FIRST_STAGE * smallest <= left:
            break
    return make_plan(visual_tokens, decoder_layers, moved, spec.scorer, budgets, spec.decay)
