"""Gates: the limits that a bundle's figures must keep, and whether they do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from toprl_export.errors import UserError
from toprl_export.fields import check_field_types
from toprl_export.manifest import Verdict
from toprl_export.registry import unknown_name
from toprl_export.validation.report import BudgetReport, Comparison, Gate, StockParity

SPEEDUPS = (
    "total_vs_engine_unpruned",
    "prefill_vs_engine_unpruned",
    "total_vs_reference",
    "prefill_vs_reference",
    "realised_share",
)
"""The figures that ``--min-speedup`` can name; without a name it is about the first."""

LATENCIES = ("total", "vision", "prefill", "decode_per_token")
"""The figures, in milliseconds, that ``--max-latency`` can name; without a name it is about the first."""

MOST_DIGITS = 10
"""Of a budget: Python refuses to read thousands of them."""
DEFAULT_RETENTION = 0.9
DEFAULT_QUESTIONS = 100
MEBIBYTE = 2**20


@dataclass(frozen=True)
class BudgetLimits:
    """A limit for every budget, or one for some; ``default`` holds at the budgets that have none of their own."""

    everywhere: float | None = None
    per_budget: tuple[tuple[int, float], ...] = ()
    default: float | None = None

    def __post_init__(self) -> None:
        check_field_types(self)
        for limit in (self.everywhere, self.default, *(limit for _, limit in self.per_budget)):
            _check_limit("a gate's limit", limit)

    @classmethod
    def parse(cls, text: str, flag: str, default: float | None = None) -> BudgetLimits:
        """Read ``0.97`` or ``192=0.97,64=0.9``.

        Args:
            text: the flag's value.
            flag: its name, for messages.
            default: the limit at budgets that ``text`` does not name.

        Raises:
            UserError: neither of these forms, a number that is not positive and finite, or a budget named twice.
        """
        if "=" not in text:
            return cls(everywhere=_positive(text, flag))
        limits: dict[int, float] = {}
        for part in text.split(","):
            budget, _, value = part.partition("=")
            is_number = budget.strip().isascii() and budget.strip().isdecimal() and len(budget) < MOST_DIGITS
            if not is_number or int(budget) in limits:
                raise UserError(f"{flag} {text}: expected one limit, or one per budget such as 192=0.97,64=0.9")
            limits[int(budget)] = _positive(value, flag)
        return cls(per_budget=tuple(limits.items()), default=default)

    def at(self, budget_kept: int) -> float | None:
        """The limit at a budget, None where there is none."""
        own = dict(self.per_budget).get(budget_kept, self.everywhere)
        return self.default if own is None else own

    def is_default(self, budget_kept: int) -> bool:
        """Whether nobody set the limit at a budget."""
        return self.everywhere is None and budget_kept not in dict(self.per_budget)


@dataclass(frozen=True)
class GateLimits:
    """The limits; None, or an empty value, sets none.

    Attributes:
        min_retention: minimum share of the reference's accuracy; the lower end of its 95% interval must reach it.
        min_questions: minimum number of questions, for few of them show little whatever the interval.
        min_speedup: minimum ratios of times, by the names in ``SPEEDUPS``.
        max_latency: largest median milliseconds, by the names in ``LATENCIES``.
        max_memory: largest peak memory of the engine's process, in MiB.
        max_size: largest size of all files of the bundle, in MiB.
        max_logit_error: largest logit error, with forced selection against our pruned reference, and of the unpruned
            engine against the stock model; the selection itself is what ``min_overlap`` limits.
        min_overlap: minimum share of kept tokens on which engine and PyTorch agree, at every stage.
        min_stock_agreement: minimum share of greedy tokens that the unpruned engine has in common with the stock model.
        must_beat_random: the accuracy's gain over random pruning must be above 0 with 95% confidence.
    """

    min_retention: BudgetLimits = field(default_factory=lambda: BudgetLimits(default=DEFAULT_RETENTION))
    min_questions: int = DEFAULT_QUESTIONS
    min_speedup: tuple[tuple[str, BudgetLimits], ...] = ()
    max_latency: tuple[tuple[str, BudgetLimits], ...] = ()
    max_memory: BudgetLimits = field(default_factory=BudgetLimits)
    max_size: float | None = None
    max_logit_error: float | None = 1e-3
    min_overlap: float | None = 0.99
    min_stock_agreement: float | None = 0.99
    must_beat_random: bool = False

    def __post_init__(self) -> None:
        check_field_types(self)
        for name in ("max_size", "max_logit_error", "min_overlap", "min_stock_agreement"):
            _check_limit(name, getattr(self, name))
        for what, limits, known in (("speedup", self.min_speedup, SPEEDUPS), ("latency", self.max_latency, LATENCIES)):
            for name, _ in limits:
                if name not in known:
                    raise unknown_name(what, name, known)
        if self.min_questions < 1:
            raise UserError(f"min_questions is {self.min_questions!r}, expected at least 1")

    def check_budgets(self, budgets: Sequence[int]) -> None:
        """Refuse a limit at a budget that the bundle lacks.

        Raises:
            UserError: lists the bundle's budgets.
        """
        everything = [self.min_retention, self.max_memory]
        everything += [limits for _, limits in (*self.min_speedup, *self.max_latency)]
        for budget in (budget for limits in everything for budget, _ in limits.per_budget):
            if budget not in budgets:
                raise UserError(
                    f"a gate names budget {budget}, which the bundle does not have: "
                    f"use one of {', '.join(map(str, budgets))}"
                )


def _check_limit(name: str, limit: float | None) -> None:
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise UserError(f"{name} is {limit!r}, expected a number above 0 such as 0.97")


def parse_figures(texts: Sequence[str], flag: str, figures: Sequence[str]) -> tuple[tuple[str, BudgetLimits], ...]:
    """Read values of ``flag``: ``[FIGURE:]LIMIT`` or ``[FIGURE:]BUDGET=LIMIT,…``; the first figure is the default."""
    read = []
    for text in texts:
        name, colon, limits = text.rpartition(":")
        if colon and not name:
            known = ", ".join(figures)
            raise UserError(f"{flag} {text}: expected a limit, or FIGURE:LIMIT with one of the figures {known}")
        read.append((name if colon else figures[0], BudgetLimits.parse(limits, flag)))
    return tuple(read)


def evaluate_bundle(questions: int, bundle_bytes: int, stock: StockParity, limits: GateLimits) -> tuple[Gate, ...]:
    """Hold against the limits what concerns the whole bundle, whatever the budget."""
    gates = (
        _gate(None, "questions", questions, ">=", limits.min_questions),
        _gate(None, "logit error, unpruned against stock model", stock.logit_error, "<=", limits.max_logit_error),
        _gate(None, "equal tokens, unpruned against stock model", stock.agreement, ">=", limits.min_stock_agreement),
        _gate(None, "bundle size (MiB)", bundle_bytes / MEBIBYTE, "<=", limits.max_size),
    )
    return tuple(gate for gate in gates if gate is not None)


def evaluate_budget(budget: BudgetReport, limits: GateLimits) -> tuple[Gate, ...]:
    """Hold one budget's figures against the limits."""
    return tuple(gate for gate in _gates_of(budget, limits) if gate is not None)


def _gates_of(budget: BudgetReport, limits: GateLimits) -> Iterator[Gate | None]:
    kept = budget.budget_kept
    worst = budget.retention_ci95[0] if budget.retention_ci95 else None
    default = limits.min_retention.is_default(kept)
    yield _gate(kept, "retention (lower end)", worst, ">=", limits.min_retention.at(kept), default)
    for name, limit in limits.min_speedup:
        measured: float = getattr(budget.speedup, name)
        yield _gate(kept, f"speedup {name}", measured, ">=", limit.at(kept))
    for name, limit in limits.max_latency:
        yield _gate(kept, f"{name} (ms)", getattr(budget.latency_ms.engine, name), "<=", limit.at(kept))
    peak = budget.peak_memory_bytes.engine / MEBIBYTE if budget.peak_memory_bytes else None
    yield _gate(kept, "peak memory (MiB)", peak, "<=", limits.max_memory.at(kept))
    error, overlaps = budget.parity.logit_error_forced, budget.parity.kept_overlap_per_stage
    yield _gate(kept, "logit error (forced selection)", error, "<=", limits.max_logit_error)
    yield _gate(kept, "kept overlap", min(overlaps, default=None), ">=", limits.min_overlap)
    if limits.must_beat_random and kept < budget.visual_tokens:
        gain = budget.engine_minus_random_ci95[0]
        yield _gate(kept, "accuracy above random pruning (lower end)", gain, ">", 0.0)


def verdict_of(gates: Sequence[Gate]) -> Verdict:
    """Passed when every gate was."""
    return "passed" if all(gate.passed for gate in gates) else "failed"


def _gate(
    kept: int | None,
    name: str,
    measured: float | None,
    comparison: Comparison,
    limit: float | None,
    default: bool = False,
) -> Gate | None:
    if limit is None:
        return None
    if measured is None or not math.isfinite(measured):
        return Gate(name, kept, None, comparison, limit, passed=False, default=default)
    met = {">=": measured >= limit, "<=": measured <= limit, ">": measured > limit}[comparison]
    return Gate(name, kept, measured, comparison, limit, passed=met, default=default)


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
