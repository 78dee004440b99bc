"""Where tokens are dropped and how many survive: sites, stages, schedules and the plan that an agent carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import total_ordering
from itertools import pairwise
from typing import Any, Literal, cast

from toprl_export.errors import UserError
from toprl_export.fields import fields_to_json
from toprl_export.pruning.schedule import (
    DEFAULT_DECAY,
    Schedule,
    average_kept,
    check_decay,
    check_stage_layers,
    solve_schedule,
)

__all__ = [
    "PruningPlan",
    "Schedule",
    "Site",
    "Stage",
    "default_stage_layers",
    "make_plan",
    "solve_schedule",
]

_UNSTATED_DECAY = 0.6
"""The decay of a plan whose file states none, whatever the default may become. Plans from before there was a decay are
written as they were read, which keeps the fingerprints of the agents that carry them."""

SHARE_UNITS = 10_000
"""Parts of a whole in which a plan of shares counts: a budget of 3,333 keeps a third."""

_BUDGET_TOLERANCE = 1.0
"""Tokens by which keep counts may miss the budget they are named by: they are whole numbers."""

Tower = Literal["vision", "projector", "decoder"]
_TOWERS = ("vision", "projector", "decoder")


@total_ordering
@dataclass(frozen=True)
class Site:
    """A place in the model where visual tokens may be dropped; sites are ordered as data flows.

    Attributes:
        tower: part of the model.
        layer: 0-based layer whose *input* is pruned; None for the projector, which has no layers.

    Raises:
        UserError: the tower is unknown, or the layer is missing, negative or out of place.
    """

    tower: Tower
    layer: int | None = None

    def __post_init__(self) -> None:
        layered = type(self.layer) is int and self.layer >= 0
        valid = self.layer is None if self.tower == "projector" else layered
        if self.tower not in _TOWERS or not valid:
            raise _site_error(f"{self.tower}" if self.layer is None else f"{self.tower}:{self.layer}")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read ``vision:<layer>``, ``projector`` or ``decoder:<layer>``.

        Raises:
            UserError: ``text`` is none of them.
        """
        tower, colon, layer = text.partition(":")
        if tower not in _TOWERS or bool(colon) != (layer.isascii() and layer.isdecimal()):
            raise _site_error(text)
        return cls(cast(Tower, tower), int(layer) if colon else None)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """In files a site is a text."""
        from pydantic_core import core_schema

        del source, handler
        return core_schema.no_info_after_validator_function(cls.parse, core_schema.str_schema())

    def to_json(self) -> str:
        """The text that :meth:`parse` takes."""
        return str(self)

    def __str__(self) -> str:
        return self.tower if self.layer is None else f"{self.tower}:{self.layer}"

    def __lt__(self, other: Site) -> bool:
        return self._depth < other._depth

    @property
    def _depth(self) -> tuple[int, int]:
        return _TOWERS.index(self.tower), self.layer or 0


def _site_error(text: str) -> UserError:
    return UserError(
        f"pruning site {text!r} is unknown, expected vision:<layer>, projector or decoder:<layer> "
        "with layers counted from 0: write it like decoder:2"
    )


@dataclass(frozen=True)
class Stage:
    """One pruning step: its site and the name of the scorer that decides there."""

    site: Site
    scorer: str


@dataclass(frozen=True)
class PruningPlan:
    """Everything an exporter must know about pruning besides weights.

    Attributes:
        visual_tokens: n, visual tokens of one image before pruning; `SHARE_UNITS` in a plan of shares.
        decoder_layers: L, layers of the decoder.
        stages: pruning steps in the order in which data passes them.
        schedules: one per budget.
        decay: ratio of each keep count to the one before, where another budget's schedule is solved.
        shares: whether n differs from picture to picture, so that budgets and keep counts are shares of it, in
            `SHARE_UNITS`.

    Raises:
        UserError: sizes below 1, no or unordered stages, a layer the decoder lacks, a decay outside (0, 1], or a
            schedule that does not fit the stages.
    """

    format: Literal["toprl-export/plan"] = field(default="toprl-export/plan", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    visual_tokens: int
    decoder_layers: int
    stages: tuple[Stage, ...]
    schedules: tuple[Schedule, ...]
    decay: float = _UNSTATED_DECAY
    shares: bool = False

    def __post_init__(self) -> None:
        check_decay(self.decay)
        if self.shares and self.visual_tokens != SHARE_UNITS:
            raise UserError(f"a plan of shares has {self.visual_tokens} parts, expected {SHARE_UNITS}: correct it")
        sites = [stage.site for stage in self.stages]
        if not sites or any(later <= earlier for earlier, later in pairwise(sites)):
            raise UserError(
                f"the plan's sites are {', '.join(map(str, sites)) or 'none'}, expected at least one, "
                "each deeper than the one before: put them in order"
            )
        decoder = tuple(site.layer for site in sites if site.tower == "decoder" and site.layer is not None)
        if decoder:
            check_stage_layers(self.visual_tokens, self.decoder_layers, decoder)
        budgets = [schedule.budget_kept for schedule in self.schedules]
        if not budgets or len(set(budgets)) != len(budgets):
            raise UserError(
                f"the plan's budgets are {', '.join(map(str, budgets)) or 'none'}, expected at least one, "
                "each once: correct them"
            )
        for schedule in self.schedules:
            self._check_schedule(schedule, only_decoder=len(decoder) == len(sites))

    def _check_schedule(self, schedule: Schedule, only_decoder: bool) -> None:
        counts = schedule.keep_counts
        if len(counts) != len(self.stages) or counts[0] > self.visual_tokens:
            raise UserError(
                f"budget {schedule.budget_kept} keeps {counts}, expected one count per stage ({len(self.stages)}), "
                f"none above the {self.visual_tokens} visual tokens: correct it"
            )
        if not only_decoder:
            return
        actual = average_kept(self.visual_tokens, self.decoder_layers, self.stage_layers, counts)
        if abs(schedule.average_kept - actual) > 1e-6 * self.visual_tokens:
            raise UserError(
                f"budget {schedule.budget_kept} states an average of {schedule.average_kept:g} tokens kept, "
                f"but its keep counts {counts} average {actual:g} over {self.decoder_layers} layers: correct it"
            )
        if abs(actual - schedule.budget_kept) > _BUDGET_TOLERANCE:
            raise UserError(
                f"a budget of {schedule.budget_kept} tokens kept has keep counts {counts}, which average {actual:g} "
                f"over {self.decoder_layers} layers: correct the counts or call the budget {math.ceil(actual)}"
            )

    @property
    def stage_layers(self) -> tuple[int, ...]:
        """The decoder layer that each stage precedes.

        Raises:
            UserError: a stage is outside the decoder, which this release cannot run.
        """
        layers = []
        for stage in self.stages:
            if stage.site.tower != "decoder" or stage.site.layer is None:
                raise UserError(
                    f"this release prunes at decoder sites only, but the plan has {stage.site}: "
                    "use sites like decoder:2"
                )
            layers.append(stage.site.layer)
        return tuple(layers)

    @property
    def groups(self) -> tuple[range, ...]:
        """Layers that see the same tokens, in order; the first group precedes all stages unless one is at layer 0.

        Raises:
            UserError: a stage is outside the decoder.
        """
        bounds = (0, *self.stage_layers, self.decoder_layers)
        spans = (range(start, stop) for start, stop in pairwise(bounds))
        return tuple(span for span in spans if span)

    def own_schedule(self, budget_kept: int) -> Schedule | None:
        """The schedule of a budget, None if the plan has no such budget."""
        return next((each for each in self.schedules if each.budget_kept == budget_kept), None)

    def schedule(self, budget_kept: int) -> Schedule:
        """The schedule of a budget.

        Raises:
            UserError: the plan has no such budget (the message lists those it has).
        """
        own = self.own_schedule(budget_kept)
        if own is not None:
            return own
        known = ", ".join(str(schedule.budget_kept) for schedule in self.schedules)
        raise UserError(f"the plan has no budget of {budget_kept!r} tokens kept, expected one of {known}: choose one")

    def schedule_or_solved(self, budget_kept: int) -> Schedule:
        """The plan's own schedule for a budget, else one solved for its stages and decay.

        Raises:
            UserError: its stages cannot meet the budget, or one is outside the decoder.
        """
        return self.own_schedule(budget_kept) or solve_schedule(
            self.visual_tokens, self.decoder_layers, self.stage_layers, budget_kept, self.decay
        )

    def tokens_per_layer(self, schedule: Schedule) -> tuple[int, ...]:
        """Visual tokens that enter each of the L layers' computation under ``schedule``.

        Raises:
            UserError: a stage is outside the decoder.
        """
        # The unpruned first group exists only when the first stage is not at layer 0.
        counts = schedule.keep_counts if self.stage_layers[0] == 0 else (self.visual_tokens, *schedule.keep_counts)
        return tuple(count for count, span in zip(counts, self.groups, strict=True) for _ in span)

    def to_json(self) -> dict[str, Any]:
        """The plan field by field, the decay where a file must state it; `read_fields` reads it back."""
        written = fields_to_json(self) | {"decay": float(self.decay)}
        if self.decay == _UNSTATED_DECAY:
            del written["decay"]
        if not self.shares:
            del written["shares"]  # as plans were written before there were shares
        return written

    def shown(self, count: int) -> str:
        """A budget or keep count as people write it: ``192``, or in a plan of shares ``33.33%``."""
        return shown_count(count, self.shares)

    def row_counts(self, counts: Sequence[int], visual_counts: Sequence[int]) -> list[list[int]]:
        """Keep counts of prompts that differ in n, by a plan of shares: ``k = max(1, ceil(share · n))``.

        Args:
            counts: shares kept after every stage, in `SHARE_UNITS`.
            visual_counts: n of each prompt.
        """
        return [[max(1, -(-share * n // SHARE_UNITS)) for share in counts] for n in visual_counts]


def shown_count(count: int, shares: bool) -> str:
    """A budget or keep count as people write it, see `PruningPlan.shown`."""
    return f"{100 * count / SHARE_UNITS:g}%" if shares else str(count)


def budget_count(budget: float, visual_tokens: int | None) -> int:
    """A budget as plans count it.

    Args:
        budget: tokens kept, or a share of them above 0 and below 1.
        visual_tokens: n; None where it differs from picture to picture, so that only a share has a meaning.

    Raises:
        UserError: it is neither, or a count where only a share has a meaning.
    """
    if isinstance(budget, float) and 0 < budget < 1:
        return max(1, round(budget * (SHARE_UNITS if visual_tokens is None else visual_tokens)))
    if type(budget) is not int or budget < 1:
        raise UserError(f"a budget is {budget!r}, expected a number of tokens kept or a share such as 0.33: correct it")
    if visual_tokens is None:
        raise UserError(
            f"a budget of {budget} tokens kept was given, but this model's pictures differ in their number of visual "
            "tokens: give a share of them, such as 33% (0.33 in Python)"
        )
    return budget


def default_stage_layers(decoder_layers: int) -> tuple[int, ...]:
    """Stages at 0, 1/4 and 5/8 of the depth (0, 2, 5 of 8 layers), fewer for very shallow decoders.

    The first is at the very input, because layers before it cost the full price whatever the budget.
    """
    return tuple(sorted({0, decoder_layers // 4, decoder_layers * 5 // 8}))


def make_plan(
    visual_tokens: int,
    decoder_layers: int,
    stage_layers: Sequence[int],
    scorer: str,
    budgets: Sequence[int],
    decay: float = DEFAULT_DECAY,
) -> PruningPlan:
    """A plan of decoder stages that share one scorer, with a solved schedule for every budget.

    >>> plan = make_plan(576, decoder_layers=8, stage_layers=[0, 2, 5], scorer="actor", budgets=[192, 64])
    >>> [str(stage.site) for stage in plan.stages]
    ['decoder:0', 'decoder:2', 'decoder:5']
    >>> plan.tokens_per_layer(plan.schedule(64))
    (106, 106, 63, 63, 63, 37, 37, 37)

    Args:
        visual_tokens: n, visual tokens of one image.
        decoder_layers: L, layers of the decoder.
        stage_layers: layers before which tokens are dropped, ascending.
        scorer: registered name of the scorer.
        budgets: average visual tokens kept over all layers, one schedule each.
        decay: ratio of each keep count to the one before.

    Raises:
        UserError: a value is impossible; see :func:`solve_schedule`.
    """
    check_stage_layers(visual_tokens, decoder_layers, stage_layers)
    return PruningPlan(
        visual_tokens=visual_tokens,
        decoder_layers=decoder_layers,
        stages=tuple(Stage(Site("decoder", layer), scorer) for layer in stage_layers),
        schedules=tuple(solve_schedule(visual_tokens, decoder_layers, stage_layers, k, decay) for k in sorted(budgets)),
        decay=decay,
    )
