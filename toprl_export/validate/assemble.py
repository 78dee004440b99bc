"""From measurements to the report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from toprl_export.evaluation.machine import describe_device, installed_versions
from toprl_export.pruning.actor import Actor
from toprl_export.pruning.flops import plan_flops
from toprl_export.validate.bench import SPLIT, Bench, ValidationOptions
from toprl_export.validate.gates import GateLimits, evaluate_gates, verdict_of
from toprl_export.validate.latency import GENERATED_TOKENS, Timings
from toprl_export.validate.report import (
    BudgetReport,
    Flops,
    Latency,
    LatencyComparison,
    Parity,
    PeakMemory,
    Report,
    Settings,
    Speedup,
    Subject,
    Throughput,
)
from toprl_export.validate.retention import Retention


@dataclass(frozen=True)
class Measured:
    """What was measured, by budget or by the names of `Bench.latency_contenders`; ``memory`` may be empty."""

    retention: dict[int, Retention]
    parity: dict[int, Parity]
    timings: dict[str, Timings]
    throughput: dict[str, tuple[float, ...]]
    memory: dict[str, int]


def assemble(bench: Bench, options: ValidationOptions, measured: Measured, limits: GateLimits, command: str) -> Report:
    """The report of what was measured, held against the gates; ``command`` is the command line."""
    budgets = tuple(_budget_report(bench, options, measured, budget) for budget in bench.budgets_kept)
    gates = tuple(gate for budget in budgets for gate in evaluate_gates(budget, limits))
    return Report(
        verdict=verdict_of(gates),
        task=bench.task.name,
        metric=bench.task.metric,
        subject=_subject(bench),
        gates=gates,
        budgets=budgets,
        settings=Settings(
            split=SPLIT,
            questions=len(bench.samples),
            parity_questions=min(options.parity_questions, len(bench.samples)),
            warmup=options.warmup,
            iterations=options.iterations,
            generated_tokens=GENERATED_TOKENS,
            prompt_tokens=_prompt_tokens(bench),
        ),
        device=describe_device(options.device, options.thread_count),
        versions=installed_versions(),
        seed=options.seed,
        command=command,
    )


def _budget_report(bench: Bench, options: ValidationOptions, measured: Measured, budget: int) -> BudgetReport:
    plan, name = bench.bundle.manifest.plan, str(budget)
    schedule = plan.schedule(budget)
    retention, flops, memory = measured.retention[budget], _flops(bench, budget), measured.memory
    medians = {one: timings.median for one, timings in measured.timings.items()}
    spreads = {one: timings.interquartile_range for one, timings in measured.timings.items()}
    throughput = (measured.throughput[one] for one in ("reference", "engine_unpruned", name))
    return BudgetReport(
        budget_kept=budget,
        visual_tokens=plan.visual_tokens,
        keep_counts=schedule.keep_counts,
        average_kept=schedule.average_kept,
        accuracy=retention.accuracy,
        retention=retention.retention,
        retention_ci95=retention.retention_ci95,
        engine_minus_random_ci95=retention.engine_minus_random_ci95,
        parity=measured.parity[budget],
        latency_ms=_comparison(medians, name),
        latency_iqr_ms=_comparison(spreads, name),
        speedup=_speedup(_comparison(medians, name), flops),
        throughput=tuple(map(Throughput, bench.throughput_batches(options), *throughput)),
        peak_memory_bytes=PeakMemory(memory["reference"], memory["engine_unpruned"], memory[name]) if memory else None,
        flops=flops,
    )


def _comparison(figures: dict[str, Latency], budget: str) -> LatencyComparison:
    return LatencyComparison(figures["reference"], figures["engine_unpruned"], figures[budget])


def _speedup(latency: LatencyComparison, flops: Flops) -> Speedup:
    pruned = latency.engine
    against_engine = latency.engine_unpruned.prefill / pruned.prefill
    return Speedup(
        prefill_vs_reference=latency.reference.prefill / pruned.prefill,
        prefill_vs_engine_unpruned=against_engine,
        total_vs_reference=latency.reference.total / pruned.total,
        realised_share=against_engine / flops.ratio,
    )


def _flops(bench: Bench, budget: int) -> Flops:
    manifest, scorer = bench.bundle.manifest, bench.scorer
    schedule, shape = manifest.plan.schedule(budget), manifest.model.shape
    sizes = manifest.plan, schedule, shape.hidden, shape.intermediate
    if isinstance(scorer, Actor):
        actor = scorer.config
        formula = plan_flops(*sizes, actor.hidden_size, actor.condition, actor.residual)
    else:
        formula = plan_flops(*sizes, actor_hidden=None)
    length = _prompt_tokens(bench)
    graph, graph_unpruned = (
        bench.engine.graph_flops(bench.bundle, 1, length, counts) for counts in (schedule.keep_counts, None)
    )
    return Flops(formula.pruned + formula.actor, formula.unpruned, graph, graph_unpruned)


def _subject(bench: Bench) -> Subject:
    manifest = bench.bundle.manifest
    entry = None if manifest.baseline else bench.bundle.agent(bench.task.name)
    # Without the stamps of earlier validations: the digest names what was measured.
    content = json.dumps(replace(manifest, validations=()).to_json(), sort_keys=True)
    return Subject(
        bundle=str(bench.bundle.dir),
        manifest_sha256=hashlib.sha256(content.encode()).hexdigest(),
        engine=manifest.engine.name,
        precision=manifest.engine.precision,
        model=manifest.model.id,
        model_fingerprint=manifest.model.fingerprint,
        agent_fingerprint=entry.fingerprint if entry else None,
        method=entry.method if entry else str(manifest.baseline),
    )


def _prompt_tokens(bench: Bench) -> int:
    """Tokens of the first question's prompt, which is the one whose time is taken."""
    return int(bench.batches(1, 1)[0].tokens.input_ids.shape[1])
