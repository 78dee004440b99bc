"""Gates: the limits that a bundle's figures must keep, and whether they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from toprl_export.errors import UserError
from toprl_export.manifest import Verdict
from toprl_export.registry import unknown_name
from toprl_export.validation.report import BudgetReport, Comparison, Gate

SPEEDUPS = ("total_vs_reference", "prefill_vs_reference", "prefill_vs_engine_unpruned", "realised_share")
"""The figures that ``--min-speedup`` can name; without a name it is about the first."""


@dataclass(frozen=True)
class BudgetLimits:
    """A limit for every budget, or one for some."""

    everywhere: float | None = None
    per_budget: tuple[tuple[int, float], ...] = ()

    @classmethod
    def parse(cls, text: str, flag: str) -> BudgetLimits:
        """Read ``0.97`` or ``192=0.97,64=0.9``.

        Raises:
            UserError: neither of these forms, a number that is not positive and finite, or a budget named twice.
        """
        if "=" not in text:
            return cls(everywhere=_positive(text, flag))
        limits: dict[int, float] = {}
        for part in text.split(","):
            budget, _, value = part.partition("=")
            if not budget.strip().isdecimal() or int(budget) in limits:
                raise UserError(f"{flag} {text}: expected one limit, or one per budget such as 192=0.97,64=0.9")
            limits[int(budget)] = _positive(value, flag)
        return cls(per_budget=tuple(limits.items()))

    def at(self, budget_kept: int) -> float | None:
        """The limit at a budget, None where there is none."""
        return dict(self.per_budget).get(budget_kept, self.everywhere)


@dataclass(frozen=True)
class GateLimits:
    """The limits; None, or an empty value, sets none.

    Attributes:
        min_retention: minimum share of the reference's accuracy.
        min_speedup: minimum ratios of times, by the names in ``SPEEDUPS``.
        max_logit_error: largest logit error with forced selection; the selection itself is what ``min_overlap`` limits.
        min_overlap: minimum share of kept tokens on which engine and PyTorch agree, at every stage.
        must_beat_random: the accuracy's gain over random pruning must be above 0 with 95% confidence.
    """

    min_retention: BudgetLimits = field(default_factory=lambda: BudgetLimits(everywhere=0.9))
    min_speedup: tuple[tuple[str, BudgetLimits], ...] = ()
    max_logit_error: float | None = 1e-3
    min_overlap: float | None = 0.99
    must_beat_random: bool = False

    def __post_init__(self) -> None:
        for name, _ in self.min_speedup:
            if name not in SPEEDUPS:
                raise unknown_name("speedup", name, SPEEDUPS)

    def check_budgets(self, budgets: Sequence[int]) -> None:
        """Refuse a limit at a budget that the bundle lacks.

        Raises:
            UserError: lists the bundle's budgets.
        """
        named = [budget for _, limits in self.min_speedup for budget, _ in limits.per_budget]
        named += [budget for budget, _ in self.min_retention.per_budget]
        for budget in named:
            if budget not in budgets:
                raise UserError(
                    f"a gate names budget {budget}, which the bundle does not have: "
                    f"use one of {', '.join(map(str, budgets))}"
                )


def parse_speedups(texts: Sequence[str]) -> tuple[tuple[str, BudgetLimits], ...]:
    """Read ``--min-speedup`` values: ``[FIGURE:]LIMIT`` or ``[FIGURE:]BUDGET=LIMIT,…``."""
    read = []
    for text in texts:
        name, colon, limits = text.rpartition(":")
        read.append((name if colon else SPEEDUPS[0], BudgetLimits.parse(limits, "--min-speedup")))
    return tuple(read)


def evaluate_gates(budget: BudgetReport, limits: GateLimits) -> tuple[Gate, ...]:
    """Hold one budget's figures against the limits."""
    gates = [_gate(budget, "retention", budget.retention, ">=", limits.min_retention.at(budget.budget_kept))]
    for name, limit in limits.min_speedup:
        measured: float = getattr(budget.speedup, name)
        gates.append(_gate(budget, f"speedup {name}", measured, ">=", limit.at(budget.budget_kept)))
    error, overlaps = budget.parity.logit_error_forced, budget.parity.kept_overlap_per_stage
    gates.append(_gate(budget, "logit error (forced selection)", error, "<=", limits.max_logit_error))
    gates.append(_gate(budget, "kept overlap", min(overlaps, default=None), ">=", limits.min_overlap))
    if limits.must_beat_random and budget.budget_kept < budget.visual_tokens:
        worst = budget.engine_minus_random_ci95[0]
        gates.append(_gate(budget, "accuracy above random pruning (95% interval)", worst, ">", 0.0))
    return tuple(gate for gate in gates if gate is not None)


def verdict_of(gates: Sequence[Gate]) -> Verdict:
    """Passed when every gate was."""
    return "passed" if all(gate.passed for gate in gates) else "failed"


def _gate(
    budget: BudgetReport, name: str, measured: float | None, comparison: Comparison, limit: float | None
) -> Gate | None:
    if limit is None:
        return None
    if measured is None or not math.isfinite(measured):
        return Gate(name, budget.budget_kept, None, comparison, limit, passed=False)
    met = {">=": measured >= limit, "<=": measured <= limit, ">": measured > limit}[comparison]
    return Gate(name, budget.budget_kept, measured, comparison, limit, passed=met)


def positive_number(text: str) -> float:
    """A limit's number.

    Raises:
        UserError: it is no finite number above 0.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{text!r} is not a limit, expected a number above 0 such as 0.97")
    return value


def _positive(text: str, flag: str) -> float:
    try:
        return positive_number(text)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None
