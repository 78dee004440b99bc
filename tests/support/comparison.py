"""Cells and comparisons of made-up answers."""

from __future__ import annotations

import numpy as np

from tests.support.yes_no_model import LAYERS, VISUAL_TOKENS
from toprl_export.comparison.findings import Findings, all_margins
from toprl_export.comparison.latency import LatencyEntry, LatencyTable
from toprl_export.comparison.method_cell import ComparisonSetting, MethodCell, MethodKind
from toprl_export.comparison.result import AgentNote, Comparison, Gap, MethodRow, TaskColumn
from toprl_export.evaluation.machine import Device, Provenance
from toprl_export.evaluation.questions import UNPRUNED

QUESTIONS = 200
KINDS: dict[str, MethodKind] = {UNPRUNED: "unpruned", "oracle": "oracle", "toprl": "agent"}
SHARES = {
    ("mini-exist", "random", 0): 0.4,
    ("mini-exist", "random", 1): 0.5,
    ("mini-exist", "fastv", 0): 0.7,
    ("mini-exist", "dart", 0): 0.6,
    ("mini-exist", "toprl", 0): 0.9,
    ("mini-exist", "toprl", 1): 0.95,
    ("mini-count", "random", 0): 0.3,
    ("mini-count", "random", 1): 0.3,
    ("mini-count", "fastv", 0): 0.6,
    ("mini-count", "dart", 0): 0.85,
    ("mini-count", "toprl", 0): 0.8,
    ("mini-count", "toprl", 1): 0.9,
    ("mini-exist", "oracle", 0): 1.0,
}
"""Of the unpruned model's correct answers, how many each method keeps; the oracle has one task only."""


def make_cell(
    method: str, task: str = "mini-exist", budget: int = 12, seed: int = 0, questions: int = QUESTIONS
) -> MethodCell:
    """A cell whose further particulars are made up."""
    setting = ComparisonSetting("some/model", "f" * 64, "cpu", "float32", 0)
    kind = KINDS.get(method, "baseline")
    if kind == "unpruned":
        return MethodCell(
            setting, method, kind, method, task, questions, "d", VISUAL_TOKENS, (), (), float(VISUAL_TOKENS), 0
        )
    return MethodCell(setting, method, kind, method, task, questions, "d", budget, (0, 2), (15, 9), budget - 0.25, seed)


def made_up_correctness() -> dict[MethodCell, np.ndarray]:
    """Which questions are answered correctly on two tasks at one budget."""
    generator = np.random.default_rng(5)
    found: dict[MethodCell, np.ndarray] = {}
    full = {task: generator.random(QUESTIONS) < 0.9 for task in ("mini-exist", "mini-count")}
    for task, correct in full.items():
        found[make_cell(UNPRUNED, task)] = correct.astype(float)
    for (task, method, seed), share in SHARES.items():
        correct = full[task] & (generator.random(QUESTIONS) < share)
        found[make_cell(method, task, seed=seed)] = correct.astype(float)
    return found


def made_up_findings() -> Findings:
    """What follows from them."""
    found = made_up_correctness()
    return Findings(list(found), list(found.values()), seed=0)


def made_up_comparison(latency: bool = True) -> Comparison:
    """A whole comparison of them, with one gap."""
    findings = made_up_findings()
    device = Device("cpu", "Some CPU", 2, 1, None, "Linux")
    times = (("unpruned", 25, 40.0), ("random", 12, 20.0), ("fastv", 12, 22.0), ("dart", 12, 24.0), ("toprl", 12, 21.0))
    entries = tuple(LatencyEntry(method, budget, ms, 1.5, 40.0 / ms) for method, budget, ms in times)
    agents = tuple(AgentNote("mini-exist", seed, "a" * 64, f"agents/{seed}") for seed in (0, 1))
    kinds: list[tuple[str, MethodKind]] = [
        ("unpruned", "unpruned"),
        ("random", "baseline"),
        ("fastv", "baseline"),
        ("dart", "baseline"),
        ("toprl", "agent"),
        ("oracle", "oracle"),
    ]
    return Comparison(
        provenance=Provenance(
            "mini", "b" * 64, VISUAL_TOKENS, LAYERS, "cpu", 0, "toprl-export compare", "2026-11-20", {"torch": "2.13"}
        ),
        tasks=(
            TaskColumn("mini-exist", "perception", QUESTIONS),
            TaskColumn("mini-count", "reasoning", QUESTIONS),
        ),
        methods=tuple(MethodRow(name, kind, agents if kind == "agent" else ()) for name, kind in kinds),
        budgets_kept=(12,),
        entries=findings.entries(),
        averages=findings.averages(),
        margins=all_margins(findings),
        gaps=(Gap("oracle", "mini-count", 12, "nobody knows the evidence"),),
        latency=LatencyTable("mini-exist", 20, 3, device, entries) if latency else None,
    )
