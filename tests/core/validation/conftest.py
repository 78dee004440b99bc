"""A report with made-up figures, and ways to change one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from toprl_export.evaluation.machine import Device
from toprl_export.validation.gates import GateLimits, evaluate_budget, evaluate_bundle, verdict_of
from toprl_export.validation.report import (
    Accuracy,
    AccuracyComparison,
    BudgetReport,
    Flops,
    Latency,
    LatencyComparison,
    Parity,
    PeakMemory,
    Report,
    Scores,
    Settings,
    Speedup,
    StockParity,
    Subject,
    Throughput,
)


def budget_report(kept: int, engine: float, random: float, f1: bool = False) -> BudgetReport:
    def accuracy(value: float) -> Accuracy:
        return Accuracy(value, 500, (value - 0.02, min(value + 0.015, 1.0)), value - 0.1 if f1 else None)

    fraction = kept / 576
    latency = LatencyComparison(
        reference=Latency(41.5, 262.0, 9.75, 449.8),
        engine_unpruned=Latency(27.1, 118.0, 3.1, 191.6),
        engine=Latency(27.0, 118.0 * (0.1 + 0.9 * fraction), 2.6, 67.0 + 118.0 * fraction),
    )
    spread = LatencyComparison(Latency(1.2, 8.0, 0.4, 9.0), Latency(0.8, 3.0, 0.1, 4.0), Latency(0.7, 2.0, 0.1, 3.0))
    return BudgetReport(
        budget_kept=kept,
        visual_tokens=576,
        keep_counts=(kept + 40, kept, kept // 2),
        average_kept=float(kept),
        accuracy=AccuracyComparison(accuracy(0.982), accuracy(engine), accuracy(engine), accuracy(random)),
        scores=made_up_scores(engine, random),
        retention=engine / 0.982,
        retention_ci95=(engine / 0.982 - 0.012, engine / 0.982 + 0.008),
        engine_minus_random_ci95=(engine - random - 0.03, engine - random + 0.03),
        parity=Parity((1.0, 0.9991, 0.9984), 2.1e-4, 3.1e-6, 1.0, 64),
        latency_ms=latency,
        latency_iqr_ms=spread,
        speedup=Speedup(
            total_vs_engine_unpruned=latency.engine_unpruned.total / latency.engine.total,
            prefill_vs_reference=latency.reference.prefill / latency.engine.prefill,
            prefill_vs_engine_unpruned=latency.engine_unpruned.prefill / latency.engine.prefill,
            total_vs_reference=latency.reference.total / latency.engine.total,
            realised_share=0.93,
        ),
        throughput=tuple(Throughput(b, 2.2 + b * 0.2, 5.1 + b * 0.3, 7.9 + b * 0.6) for b in (1, 2, 4)),
        peak_memory_bytes=PeakMemory(812 * 2**20, 264 * 2**20, 231 * 2**20),
        flops=Flops(formula=1.4e9 * fraction, formula_unpruned=1.4e9, graph=1.7e9 * fraction, graph_unpruned=1.7e9),
    )


def made_up_scores(engine: float, random: float) -> Scores:
    """The first answers of 500 are right, as many as the accuracy says."""
    shares = {"reference": 0.982, "pruned_reference": engine, "engine": engine, "random": random}
    return Scores.of(
        {name: [1.0] * round(share * 500) + [0.0] * round(500 - share * 500) for name, share in shares.items()}
    )


def made_up_report(limits: GateLimits) -> Report:
    budgets = (budget_report(192, engine=0.974, random=0.871), budget_report(64, engine=0.931, random=0.662))
    stock = StockParity(2.4e-5, 1.0, 16)
    gates = evaluate_bundle(500, 20 * 2**20, stock, limits)
    gates += tuple(gate for budget in budgets for gate in evaluate_budget(budget, limits))
    return Report(
        verdict=verdict_of(gates),
        task="mini-colour",
        metric="accuracy",
        subject=Subject("engines/mini-colour", "a" * 64, "onnx", "fp32", "mini", "b" * 64, "c" * 64, "toprl"),
        gates=gates,
        stock_parity=stock,
        bundle_bytes=20 * 2**20,
        budgets=budgets,
        settings=Settings("held-out", 500, "d" * 64, 64, 3, 20, 16, 591),
        device=Device("cpu", "Some CPU <2.1 GHz>", 2, 2, 8 * 2**30, "Linux-6.1-x86_64"),
        versions={"toprl-export": "0.1.0", "torch": "2.13.0"},
        date="2026-12-01T09:00:00+00:00",
        seconds=61.5,
        commit="0123456789ab",
        seed=0,
        command="toprl-export validate engines/mini-colour --task mini-colour",
    )


@pytest.fixture
def budget() -> BudgetReport:
    return budget_report(192, engine=0.974, random=0.871)


@pytest.fixture
def report() -> Report:
    """Its gates pass."""
    return made_up_report(GateLimits())


@pytest.fixture
def failed_report(report: Report) -> Report:
    """The logit error of one of the two budgets is too large."""
    broken = replace(report.budgets[1], parity=replace(report.budgets[1].parity, logit_error_forced=0.5))
    gates = tuple(gate for one in (report.budgets[0], broken) for gate in evaluate_budget(one, GateLimits()))
    return replace(report, verdict=verdict_of(gates), budgets=(report.budgets[0], broken), gates=gates)
