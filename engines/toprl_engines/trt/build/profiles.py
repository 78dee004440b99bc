"""The optimization profiles that plans are built for: they follow from the pruning plan and three limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toprl_engines.graph.signature import GraphSpec, Layout, TensorSpec
from toprl_engines.trt.build_report import InputRange
from toprl_engines.trt.passes.top_k_limit import TOP_K_LIMIT
from toprl_export.errors import UserError
from toprl_export.pruning.plan import PruningPlan

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class ProfileLimits:
    """The largest request that the plans take, which is the max of their profiles.

    Attributes:
        max_batch: questions at once.
        max_text: text tokens of a prompt.
        max_new_tokens: length of an answer.
    """

    max_batch: int = 4
    max_text: int = 128
    max_new_tokens: int = 256


@dataclass(frozen=True)
class _Case:
    """One request: min, opt or max of the profile. Decoding after it sees ``cached`` visual tokens per stage."""

    batch: int
    text: int
    new_tokens: int
    keep_counts: Numbers
    cached: Numbers


def graph_profiles(
    specs: Mapping[str, GraphSpec], layout: Layout, plan: PruningPlan, limits: ProfileLimits, max_length: int
) -> dict[str, tuple[InputRange, ...]]:
    """Per graph, the range of every input whose sizes or values vary.

    Min is one text token and the smallest counts of all budgets; opt has the default budget; max keeps all n tokens at
    every stage, for a bundle always serves that too, and so do measurements without pruning, which share the decode
    plan.

    Args:
        specs: signatures by graph.
        layout: of the bundle.
        plan: with all budgets.
        limits: the largest request; shortened where the model ends before.
        max_length: positions that the model has, generated tokens included.

    Raises:
        UserError: the model has no room for text beside its visual tokens.
    """
    cases = _cases(layout, plan, limits, max_length)
    return {name: tuple(_ranges(spec, layout, cases)) for name, spec in specs.items()}


def _cases(layout: Layout, plan: PruningPlan, limits: ProfileLimits, max_length: int) -> tuple[_Case, _Case, _Case]:
    n = layout.fixed_tokens
    text = min(limits.max_text, max_length - n - 1)
    if text < 1:
        raise UserError(f"the model's {max_length} positions leave no room for text beside {n} visual tokens")
    new_tokens = min(limits.max_new_tokens, max_length - n - text)
    opt_text = max(1, text // 4)
    fewest = tuple(map(min, zip(*(schedule.keep_counts for schedule in plan.schedules), strict=True)))
    default, all_kept = _default_counts(plan), (min(n, TOP_K_LIMIT),) * layout.stages
    return (
        _Case(1, 1, 0, fewest, fewest),
        _Case(1, opt_text, max(1, new_tokens // 4), default, default),
        _Case(limits.max_batch, text, new_tokens, all_kept, (n,) * layout.stages),
    )


def _ranges(spec: GraphSpec, layout: Layout, cases: tuple[_Case, _Case, _Case]) -> list[InputRange]:
    ranges = []
    for tensor in spec.inputs:
        found = _of_input(tensor, layout)
        if found is not None:
            values, of_case = found
            ranges.append(InputRange(tensor.name, values, *map(of_case, cases)))
    return ranges


def _of_input(tensor: TensorSpec, layout: Layout) -> tuple[bool, Callable[[_Case], Numbers]] | None:
    """Whether values (not sizes) vary, and what they are in a request; None for an input of fixed sizes."""
    if tensor.name == "keep_counts":
        return True, lambda case: case.keep_counts
    if all(isinstance(size, int) for size in tensor.sizes):
        return None
    return False, lambda case: tuple(_size(size, layout, case) for size in tensor.sizes)


def _size(size: int | str, layout: Layout, case: _Case) -> int:
    if isinstance(size, int):
        return size
    if size == "batch":
        return case.batch
    if size == "text":
        return case.text
    if size == "sequence":
        return layout.fixed_tokens + case.text
    name, _, group = size.partition("_")
    past = _visual_in_group(int(group), layout, case) + case.text + case.new_tokens
    return {"past": past, "cached": past + 1}[name]


def _visual_in_group(group: int, layout: Layout, case: _Case) -> int:
    """Visual tokens in the layers of a group; those before the first stage see all."""
    stage = group - layout.first_stage_group
    return layout.fixed_tokens if stage < 0 else case.cached[stage]


def _default_counts(plan: PruningPlan) -> Numbers:
    """Those of the largest budget that prunes, which requests get unless they name another."""
    pruning = [schedule for schedule in plan.schedules if schedule.budget_kept < plan.visual_tokens]
    chosen = max(pruning or plan.schedules, key=lambda schedule: schedule.budget_kept)
    return chosen.keep_counts
