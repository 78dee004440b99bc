"""Cells and comparisons with made-up outcomes."""

from __future__ import annotations

import numpy as np

from tests.support.yes_no_model import LAYERS, VISUAL_TOKENS
from toprl_export.analyze.results import Provenance
from toprl_export.compare.cell import UNPRUNED, Cell, Kind, Setting
from toprl_export.compare.findings import Findings
from toprl_export.compare.grid import Gap
from toprl_export.compare.latency import LatencyEntry, LatencyTable
from toprl_export.compare.margins import all_margins
from toprl_export.compare.result import AgentNote, Comparison, MethodRow, TaskColumn
from toprl_export.evaluation.machine import Device

QUESTIONS = 200
KINDS: dict[str, Kind] = {UNPRUNED: "unpruned", "oracle": "oracle", "toprl": "agent"}
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
"""Of the unpruned model's right answers, how many each method keeps; the oracle has one task only."""


def make_cell(
    method: str, task: str = "mini-exist", budget: int = 12, seed: int = 0, questions: int = QUESTIONS
) -> Cell:
    """A cell whose further particulars are made up."""
    setting = Setting("some/model", "f" * 64, "cpu", "float32", 0)
    kind = KINDS.get(method, "baseline")
    if kind == "unpruned":
        return Cell(setting, method, kind, method, task, questions, "d", VISUAL_TOKENS, (), (), float(VISUAL_TOKENS), 0)
    return Cell(setting, method, kind, method, task, questions, "d", budget, (0, 2), (15, 9), budget - 0.25, seed)


def made_up_outcomes() -> dict[Cell, np.ndarray]:
    """The outcomes of two tasks at one budget."""
    generator = np.random.default_rng(5)
    found: dict[Cell, np.ndarray] = {}
    full = {task: generator.random(QUESTIONS) < 0.9 for task in ("mini-exist", "mini-count")}
    for task, right in full.items():
        found[make_cell(UNPRUNED, task)] = right.astype(float)
    for (task, method, seed), share in SHARES.items():
        right = full[task] & (generator.random(QUESTIONS) < share)
        found[make_cell(method, task, seed=seed)] = right.astype(float)
    return found


def made_up_findings() -> Findings:
    """What follows from them."""
    found = made_up_outcomes()
    return Findings(list(found), list(found.values()), seed=0)


def made_up_comparison(latency: bool = True) -> Comparison:
    """A whole comparison of them, with one gap."""
    findings = made_up_findings()
    device = Device("cpu", "Some CPU", 2, 1, None, "Linux")
    times = (("unpruned", 25, 40.0), ("random", 12, 20.0), ("fastv", 12, 22.0), ("dart", 12, 24.0), ("toprl", 12, 21.0))
    entries = tuple(LatencyEntry(method, budget, ms, 1.5, 40.0 / ms) for method, budget, ms in times)
    agents = tuple(AgentNote("mini-exist", seed, "a" * 64, f"agents/{seed}") for seed in (0, 1))
    kinds: list[tuple[str, Kind]] = [
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
