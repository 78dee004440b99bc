"""The information cliff: accuracy when all visual tokens are removed before a layer (TOP-RL, Figure 1a)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from toprl_export.analysis.results import AnalysisResult
from toprl_export.analysis.study import RETAINED, OneCut, Study
from toprl_export.evaluation.estimates import Correctness, Estimate, accuracy, retention
from toprl_export.evaluation.tables import estimate_fields, markdown_table, percent
from toprl_export.tasks.task import Level, Task


@dataclass(frozen=True)
class CliffPoint:
    """``layer`` is the decoder layer before which all visual tokens go; L for none, which is the unpruned model."""

    layer: int
    accuracy: Estimate
    retention: Estimate


@dataclass(frozen=True)
class CliffCurve:
    """One task: ``questions`` answered at each of L + 1 points."""

    task: str
    level: Level
    questions: int
    points: tuple[CliffPoint, ...]

    @property
    def past_cliff(self) -> int:
        """The first layer before which, and before all later ones, removal leaves 95% of the accuracy or more."""
        falls = [point.layer for point in self.points if point.retention.value < RETAINED]
        return max(falls, default=-1) + 1


@dataclass(frozen=True)
class Cliff(AnalysisResult):
    """One curve a task."""

    name: ClassVar[str] = "cliff"
    format: Literal["toprl-export/analysis-cliff"] = field(default="toprl-export/analysis-cliff", kw_only=True)
    curves: tuple[CliffCurve, ...]

    def records(self) -> list[dict[str, object]]:
        """See `AnalysisResult.records`."""
        return [
            {
                "task": curve.task,
                "level": curve.level,
                "removed_before_layer": "none" if point.layer == self.provenance.decoder_layers else point.layer,
                "questions": curve.questions,
                **estimate_fields("accuracy", point.accuracy),
                **estimate_fields("retention", point.retention),
            }
            for curve in self.curves
            for point in curve.points
        ]

    def markdown(self) -> str:
        """See `AnalysisResult.markdown`."""
        layers = range(self.provenance.decoder_layers)
        head = ["task", "level", "questions", "unpruned accuracy", *(f"before {layer}" for layer in layers), "95% from"]
        rows = [
            [
                curve.task,
                curve.level,
                str(curve.questions),
                percent(curve.points[-1].accuracy),
                *(percent(point.retention) for point in curve.points[:-1]),
                f"layer {curve.past_cliff}" if curve.past_cliff in layers else "no layer",
            ]
            for curve in self.curves
        ]
        return (
            "# Information cliff\n\n"
            "Accuracy retained (accuracy over that of the unpruned model) when all visual tokens are removed before a "
            "decoder layer, counted from 0; TOP-RL's Figure 1a. Brackets are 95% intervals: Wilson for accuracies, "
            "paired bootstrap over the questions for retention. *95% from* is the first layer from which on no removal "
            f"costs more than 5%.\n\n{markdown_table(head, rows)}\n{self.provenance.markdown()}"
        )

    def summary(self) -> str:
        """See `AnalysisResult.summary`."""
        return "\n".join(
            f"{curve.task} ({curve.level}): {curve.points[0].retention.value:.1%} of the accuracy is retained without "
            f"the image, {RETAINED:.0%} when it goes {self._from(curve)}"
            for curve in self.curves
        )

    def _from(self, curve: CliffCurve) -> str:
        known = curve.past_cliff < self.provenance.decoder_layers
        return f"before layer {curve.past_cliff} or later" if known else "before no layer"


def measure_cliff(study: Study) -> Cliff:
    """Answer every task's questions once for each layer, and once unpruned.

    Raises:
        UserError: the output directory holds something else, or the unpruned model has no correct answer on a task.
    """
    Cliff.check_directory(study.scope.output_dir)
    unpruned = study.unpruned()
    layers = range(study.adapter.shape.layers)
    cells = [(task, OneCut(layer, kept=0)) for task in study.tasks for layer in layers]
    found = iter(study.correctness(cells, "cliff"))
    curves = [_curve(study, task, [next(found) for _ in layers], unpruned[task.name]) for task in study.tasks]
    return Cliff(study.provenance(), tuple(curves))


def _curve(study: Study, task: Task, by_layer: list[Correctness], unpruned: Correctness) -> CliffCurve:
    seed = study.scope.seed
    points = [
        CliffPoint(layer, accuracy(correct), retention(correct, unpruned, seed))
        for layer, correct in enumerate(by_layer)
    ]
    # The last point, after all layers, removes nothing, and so retains all by definition.
    points.append(CliffPoint(len(by_layer), accuracy(unpruned), Estimate(1.0, (1.0, 1.0))))
    return CliffCurve(task.name, task.level, len(unpruned), tuple(points))
