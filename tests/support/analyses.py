"""Made-up results of every analysis."""

from __future__ import annotations

from toprl_export.analysis.ablate import Ablation, AblationEntry, AblationRow, AblationTask
from toprl_export.analysis.cliff import Cliff, CliffCurve, CliffPoint
from toprl_export.analysis.sensitivity import RATIOS, Sensitivity, SensitivityCell, SensitivityMap
from toprl_export.analysis.transfer import Transfer, TransferColumn, TransferEntry
from toprl_export.evaluation.estimates import Estimate
from toprl_export.evaluation.machine import Provenance

MADE = Provenance("mini", "f" * 64, 576, 8, "cpu", 0, "toprl-export analyze", "2026-11-20", {"torch": "2"})
TASKS = ("mini-read", "mini-colour", "mini-count")


def estimate(value: float) -> Estimate:
    return Estimate(value, (max(value - 0.05, 0.0), value + 0.03))


def cliff(step: float = 0.12) -> Cliff:
    points_ = tuple(CliffPoint(at, estimate(step * at), estimate(step * at)) for at in range(9))
    return Cliff(MADE, tuple(CliffCurve(name, "perception", 200, points_) for name in TASKS))


def sensitivity(layers: int = 8) -> Sensitivity:
    cells = tuple(
        SensitivityCell(layer, ratio, round(576 * ratio), estimate(ratio), estimate(ratio))
        for layer in range(layers)
        for ratio in RATIOS
    )
    maps = tuple(SensitivityMap(name, "reasoning", 200, cells) for name in TASKS)
    return Sensitivity(MADE, tuple(range(layers)), RATIOS, maps)


def transfer(relative: float | None = 0.8) -> Transfer:
    def entries(task: str) -> tuple[TransferEntry, ...]:
        return tuple(
            TransferEntry(name, estimate(0.7), None if relative is None else estimate(relative), estimate(-0.1))
            for name in TASKS
        )

    columns = tuple(TransferColumn(name, "perception", 200, estimate(0.9), entries(name)) for name in TASKS)
    return Transfer(MADE, 64, TASKS, dict.fromkeys(TASKS, (0, 1, 2)), columns)


def ablation(variants: int = 5) -> Ablation:
    entries = tuple(AblationEntry(name, estimate(0.8), None, estimate(-0.02), (0.8,)) for name in TASKS)
    tasks = tuple(AblationTask(name, "perception", 200, estimate(0.9)) for name in TASKS)
    rows = tuple(
        AblationRow(
            f"v{at}",
            f"what is varied here {at // 2}",
            f"some variant {at}",
            estimate(0.9),
            estimate(0.01 * at),
            entries,
        )
        for at in range(variants + 1)
    )
    return Ablation(MADE, "toprl", 64, (0,), tasks, rows)
