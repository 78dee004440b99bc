"""Pruning sensitivity: accuracy after one cut, by layer and keep ratio (TOP-RL, Figure 1b)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from toprl_export.analysis.results import AnalysisResult
from toprl_export.analysis.study import RETAINED, OneCut, PruningMethod, Study, Unpruned
from toprl_export.errors import UserError
from toprl_export.evaluation.estimates import Correctness, Estimate, accuracy, retention
from toprl_export.evaluation.tables import estimate_fields, markdown_table, percent
from toprl_export.tasks.task import Level, Task

RATIOS = tuple(step / 10 for step in range(11))
"""Shares of the visual tokens kept, as in the paper: eleven from none to all."""
SHALLOW = 12
"""Decoders of at most this many layers are cut before every one of them."""


@dataclass(frozen=True)
class SensitivityCell:
    """A cut before ``layer`` that keeps ``kept`` of the n visual tokens, the share ``ratio``."""

    layer: int
    ratio: float
    kept: int
    accuracy: Estimate
    retention: Estimate


@dataclass(frozen=True)
class SensitivityMap:
    """One task: ``questions`` answered in each cell; cells by layer, then by ratio."""

    task: str
    level: Level
    questions: int
    cells: tuple[SensitivityCell, ...]


@dataclass(frozen=True)
class Sensitivity(AnalysisResult):
    """One map a task over the same layers and ratios."""

    name: ClassVar[str] = "sensitivity"
    format: Literal["toprl-export/analysis-sensitivity"] = field(
        default="toprl-export/analysis-sensitivity", kw_only=True
    )
    layers: tuple[int, ...]
    ratios: tuple[float, ...]
    maps: tuple[SensitivityMap, ...]

    def records(self) -> list[dict[str, object]]:
        """See `AnalysisResult.records`."""
        return [
            {
                "task": one.task,
                "level": one.level,
                "layer": cell.layer,
                "ratio_kept": cell.ratio,
                "tokens_kept": cell.kept,
                "questions": one.questions,
                **estimate_fields("accuracy", cell.accuracy),
                **estimate_fields("retention", cell.retention),
            }
            for one in self.maps
            for cell in one.cells
        ]

    def markdown(self) -> str:
        """See `AnalysisResult.markdown`."""
        text = (
            "# Pruning sensitivity\n\n"
            "Accuracy retained (accuracy over that of the unpruned model) after one cut before a decoder layer, "
            "counted from 0, that keeps the tokens of the highest FastV scores there; TOP-RL's Figure 1b. Columns: "
            f"share of the {self.provenance.visual_tokens} visual tokens kept. Brackets are 95% intervals (paired "
            "bootstrap over the questions).\n\n"
        )
        return text + "".join(f"{self._table(one)}\n" for one in self.maps) + self.provenance.markdown()

    def summary(self) -> str:
        """See `AnalysisResult.summary`."""
        return "\n".join(f"{one.task} ({one.level}): {self._enough(one)}" for one in self.maps)

    def _enough(self, one: SensitivityMap) -> str:
        """The smallest share that retains 95% of the accuracy, at each layer."""
        found = []
        for layer in self.layers:
            ratios = [cell.ratio for cell in one.cells if cell.layer == layer and cell.retention.value >= RETAINED]
            found.append(f"{f'{min(ratios):.0%}' if ratios else 'no share'} before layer {layer}")
        return f"{RETAINED:.0%} of the accuracy is retained with {', '.join(found)}"

    def _table(self, one: SensitivityMap) -> str:
        rows = [
            [f"before {layer}", *(percent(cell.retention) for cell in one.cells if cell.layer == layer)]
            for layer in self.layers
        ]
        title = f"## {one.task} ({one.level}, {one.questions:,} questions)\n\n"
        return title + markdown_table(["cut", *(f"{ratio:.0%}" for ratio in self.ratios)], rows)


def default_layers(decoder_layers: int) -> tuple[int, ...]:
    """All layers of a shallow decoder; of a deep one four, which for 32 layers are the paper's 2, 8, 16 and 24."""
    if decoder_layers <= SHALLOW:
        return tuple(range(decoder_layers))
    return (decoder_layers // 16, decoder_layers // 4, decoder_layers // 2, decoder_layers * 3 // 4)


def measure_sensitivity(
    study: Study, layers: Sequence[int] | None = None, ratios: Sequence[float] = RATIOS
) -> Sensitivity:
    """Answer every task's questions once for each layer and ratio; keeping all is the unpruned model.

    Args:
        study: model, tasks and questions.
        layers: decoder layers to cut before, one at a time; None for `default_layers`.
        ratios: shares of the visual tokens kept, 0 to 1.

    Raises:
        UserError: the decoder has no such layer, a ratio is out of range, the output directory holds something else,
            or the unpruned model has no correct answer on a task.
    """
    Sensitivity.check_directory(study.scope.output_dir)
    depth = study.adapter.shape.layers
    chosen = tuple(sorted(set(default_layers(depth) if layers is None else layers)))
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        listed = ", ".join(map(str, chosen)) or "none"
        raise UserError(f"the layers are {listed}, expected some within 0 to {depth - 1}: choose --layers among them")
    if not ratios or not all(0 <= ratio <= 1 for ratio in ratios):
        raise UserError(f"the keep ratios are {', '.join(map(str, ratios)) or 'none'}, expected some from 0 to 1")
    unpruned = study.unpruned()
    cuts = [(layer, ratio) for layer in chosen for ratio in ratios]
    n = study.adapter.visual_tokens
    cells = [(task, _method(*cut, n)) for task in study.tasks for cut in cuts]
    found = iter(study.correctness(cells, "sensitivity"))
    maps = [_map(study, task, cuts, [next(found) for _ in cuts], unpruned[task.name]) for task in study.tasks]
    return Sensitivity(study.provenance(), chosen, tuple(ratios), tuple(maps))


def tokens_kept(ratio: float, visual_tokens: int) -> int:
    """The nearest number of tokens, but none only for a ratio of 0."""
    return max(round(ratio * visual_tokens), 1) if ratio else 0


def _method(layer: int, ratio: float, visual_tokens: int) -> PruningMethod:
    kept = tokens_kept(ratio, visual_tokens)
    return Unpruned() if kept == visual_tokens else OneCut(layer, kept)


def _map(
    study: Study,
    task: Task,
    cuts: Sequence[tuple[int, float]],
    by_cut: Sequence[Correctness],
    unpruned: Correctness,
) -> SensitivityMap:
    n, seed = study.adapter.visual_tokens, study.scope.seed
    cells = [
        SensitivityCell(layer, ratio, tokens_kept(ratio, n), accuracy(correct), retention(correct, unpruned, seed))
        for (layer, ratio), correct in zip(cuts, by_cut, strict=True)
    ]
    return SensitivityMap(task.name, task.level, len(unpruned), tuple(cells))
