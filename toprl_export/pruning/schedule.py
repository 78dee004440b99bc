"""Budget ↔ schedule: the keep counts that meet an average number of visual tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from toprl_export.errors import UserError

DEFAULT_DECAY = 0.6
"""Ratio of each stage's keep count to the one before, by default."""

_SEARCH_SPAN = 3
"""How far from the ideal curve a keep count may be moved to meet the budget exactly."""


@dataclass(frozen=True)
class Schedule:
    """How many visual tokens survive each stage for one budget.

    Attributes:
        budget_kept: the budget requested, average visual tokens kept over all decoder layers.
        keep_counts: visual tokens left after each stage.
        average_kept: the average that these counts give.

    Raises:
        UserError: a number is below 1 or of the wrong type, or the counts increase.
    """

    budget_kept: int
    keep_counts: tuple[int, ...]
    average_kept: float

    def __post_init__(self) -> None:
        counts = self.keep_counts
        whole = all(type(count) is int and count >= 1 for count in (self.budget_kept, *counts))
        if not whole or not counts or any(later > earlier for earlier, later in pairwise(counts)):
            raise UserError(
                f"budget {self.budget_kept!r} with keep counts {counts} is impossible, expected whole numbers of at "
                "least 1 that never increase from stage to stage: correct them"
            )
        if not isinstance(self.average_kept, int | float) or not math.isfinite(self.average_kept):
            raise UserError(f"average_kept is {self.average_kept!r}, expected a finite number: correct it")


def check_stage_layers(visual_tokens: int, decoder_layers: int, stage_layers: Sequence[int]) -> None:
    """Refuse stage layers that a decoder of ``decoder_layers`` layers cannot have.

    Raises:
        UserError: a size is below 1, there is no stage, or the layers do not ascend within the decoder.
    """
    if visual_tokens < 1 or decoder_layers < 1:
        raise UserError(
            f"the model has {visual_tokens} visual tokens and {decoder_layers} decoder layers, "
            "expected at least 1 of each: correct the sizes"
        )
    bounds = (-1, *stage_layers, decoder_layers)
    if not stage_layers or any(later <= earlier for earlier, later in pairwise(bounds)):
        raise UserError(
            f"the stage layers are {', '.join(map(str, stage_layers)) or 'none'}, expected at least one, "
            f"ascending within 0 to {decoder_layers - 1}: correct them"
        )


def check_decay(decay: object) -> None:
    """Refuse a decay that cannot be a ratio of keep counts.

    Raises:
        UserError: it is not above 0 and at most 1.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise UserError(f"decay is {decay!r}, expected a number above 0 and at most 1: correct it")


def average_kept(
    visual_tokens: int, decoder_layers: int, stage_layers: Sequence[int], keep_counts: Sequence[int]
) -> float:
    """Average visual tokens over all decoder layers, ``sum_l n_l / L``."""
    widths = _widths(decoder_layers, stage_layers)
    kept = sum(width * count for width, count in zip(widths, keep_counts, strict=True))
    return (visual_tokens * stage_layers[0] + kept) / decoder_layers


def lowest_budget(visual_tokens: int, decoder_layers: int, first_stage_layer: int) -> int:
    """The smallest whole budget that can be met: all tokens before the first stage, one after it."""
    return math.ceil((visual_tokens * first_stage_layer + decoder_layers - first_stage_layer) / decoder_layers)


def solve_schedule(
    visual_tokens: int, decoder_layers: int, stage_layers: Sequence[int], budget_kept: int, decay: float = DEFAULT_DECAY
) -> Schedule:
    """Keep counts that meet a budget: close to ``k_1 · decay^(t-1)``, never increasing, never above the budget.

    The average met is less than one token below the budget, and usually the budget itself.

    >>> solve_schedule(visual_tokens=576, decoder_layers=8, stage_layers=[0, 2, 5], budget_kept=64)
    Schedule(budget_kept=64, keep_counts=(106, 63, 37), average_kept=64.0)

    Args:
        visual_tokens: n, visual tokens of one image.
        decoder_layers: L, layers of the decoder.
        stage_layers: layers before which tokens are dropped, ascending.
        budget_kept: average visual tokens kept over all L layers; n means no pruning.
        decay: ratio of each keep count to the one before, above 0 and at most 1.

    Raises:
        UserError: the budget cannot be met with these stages (the message gives the range), or an
            argument is impossible.
    """
    check_stage_layers(visual_tokens, decoder_layers, stage_layers)
    check_decay(decay)
    widths = _widths(decoder_layers, stage_layers)
    before_first_stage = visual_tokens * stage_layers[0]  # token-layers that no stage can save
    lowest = lowest_budget(visual_tokens, decoder_layers, stage_layers[0])
    if type(budget_kept) is not int or not lowest <= budget_kept <= visual_tokens:
        where = ", ".join(map(str, stage_layers))
        hint = "a budget in that range" + (" or an earlier first stage" if stage_layers[0] else "")
        raise UserError(
            f"a budget of {budget_kept!r} tokens kept cannot be met with stages at decoder layers {where}, "
            f"expected a whole number from {lowest} to {visual_tokens}: choose {hint}"
        )
    available = budget_kept * decoder_layers - before_first_stage
    ideals = _ideal_counts(widths, available, visual_tokens, decay)
    counts = _nearest_counts(widths, available, visual_tokens, ideals)
    return Schedule(budget_kept, counts, average_kept(visual_tokens, decoder_layers, stage_layers, counts))


def _widths(decoder_layers: int, stage_layers: Sequence[int]) -> list[int]:
    """Layers from each stage to the next."""
    bounds = (*stage_layers, decoder_layers)
    return [stop - start for start, stop in pairwise(bounds)]


def _ideal_counts(widths: Sequence[int], available: int, max_count: int, decay: float) -> list[float]:
    """Real counts ``clip(s · decay^t, 1, max)`` that spend ``available`` token-layers; s by bisection of its log."""
    log_max = math.log(max_count)

    def counts(log_scale: float) -> list[float]:
        return [math.exp(min(log_max, max(0.0, log_scale + t * math.log(decay)))) for t in range(len(widths))]

    low, high = 0.0, log_max - len(widths) * math.log(decay)
    for _ in range(100):
        middle = (low + high) / 2
        spent = sum(width * count for width, count in zip(widths, counts(middle), strict=True))
        low, high = (middle, high) if spent <= available else (low, middle)
    return counts(low)


def _nearest_counts(widths: Sequence[int], available: int, max_count: int, ideals: Sequence[float]) -> tuple[int, ...]:
    """Whole, never increasing counts near ``ideals`` that spend as much of ``available`` as possible, and of these the
    ones closest to ``ideals``; found stage by stage (dynamic programming)."""
    # (last count, token-layers spent) -> (squared deviation, counts so far)
    found: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(max_count, 0): (0.0, ())}
    for width, ideal in zip(widths, ideals, strict=True):
        extended: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (last, spent), (deviation, counts) in found.items():
            for count in range(max(1, round(ideal) - _SEARCH_SPAN), min(last, round(ideal) + _SEARCH_SPAN) + 1):
                state = (count, spent + width * count)
                # Relative to the ideal: one token more or less weighs more where few are kept. Of equal deviations the
                # lexicographically smaller counts win, so that the result is unique.
                candidate = (deviation + (count - ideal) ** 2 / ideal, (*counts, count))
                if state[1] <= available and (state not in extended or candidate < extended[state]):
                    extended[state] = candidate
        found = extended
    best = min(found, key=lambda state: (-state[1], found[state]))
    return found[best][1]
