"""Rivals tuned as agents are: where each baseline prunes, and how steeply, chosen on questions of the train split.

For every rival and budget the same schedules are tried: its paper's own, one cut at an early layer, and several sets of
stages with several decays. All of them meet the budget. Successive halving saves time: a first round answers a quarter
of the questions with every schedule, a second all questions with the best of the first. What does best on average over
the tasks is the rival's setting for all of them; what does best on one task is its setting for that task alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

from toprl_export.comparison.method_cell import ComparisonSetting, MethodCell
from toprl_export.evaluation.estimates import Correctness
from toprl_export.evaluation.questions import TaskQuestions
from toprl_export.fields import to_json
from toprl_export.files import write_json_atomic
from toprl_export.pruning.baselines.specs import baseline_plan, baseline_spec
from toprl_export.pruning.schedule import Schedule, lowest_budget, solve_schedule
from toprl_export.tasks.task import Split

TUNING_FILE = "tuning.json"
TUNING_SPLIT: Final[Split] = "train"
FIRST_ROUND_SHARE = 4
"""The first round answers one question in so many."""
SURVIVORS = 6
"""Schedules that go on to the second round: the best on average, and the best of every task."""
EIGHTHS = (
    (0,), (1,), (2,), (0, 1), (0, 2), (0, 4),
    (0, 1, 2), (0, 1, 3), (0, 2, 4), (0, 2, 5), (1, 2, 4), (1, 3, 5), (2, 4, 6),
)  # fmt: skip
"""Sets of stages, in eighths of the depth. A first stage deeper than a quarter costs more than any budget compared."""
DECAYS = (0.3, 0.4, 0.5, 0.7)
"""Ratios of each keep count to the one before: papers have 0.5, agents 0.5 or 0.6."""

Measure = Callable[[Sequence[MethodCell]], Sequence[Correctness]]
"""Which questions each cell answers correctly."""


@dataclass(frozen=True)
class Placement:
    """Where a method prunes at one budget, and how many tokens are left after each stage."""

    stage_layers: tuple[int, ...]
    keep_counts: tuple[int, ...]
    average_kept: float

    def schedule(self, budget_kept: int) -> Schedule:
        """The keep counts as a schedule."""
        return Schedule(budget_kept, self.keep_counts, self.average_kept)


@dataclass(frozen=True)
class Tried:
    """A placement that was tried: of each task, how many questions it answered and the share that was correct."""

    placement: Placement
    questions: dict[str, int]
    accuracy: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean of the tasks' accuracies."""
        return float(np.mean(list(self.accuracy.values())))


@dataclass(frozen=True)
class TunedRival:
    """What was chosen for one rival at one budget.

    Attributes:
        method: the baseline's name.
        budget_kept: average visual tokens kept.
        for_all_tasks: the placement of the highest mean accuracy.
        by_task: of each task the placement of the highest accuracy there.
        tried: every placement with its accuracies, the paper's own first; after the first round only the best have
            answered all questions.
    """

    method: str
    budget_kept: int
    for_all_tasks: Placement
    by_task: dict[str, Placement]
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Tuning:
    """``tuning.json``: the rivals' settings, and what they were chosen by.

    Attributes:
        questions: of each task, how many questions of the train split were drawn.
        seed: of the draw.
        rivals: one for each rival and budget that it can meet.
    """

    format: Literal["toprl-export/tuning"] = field(default="toprl-export/tuning", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    questions: dict[str, int]
    seed: int
    rivals: tuple[TunedRival, ...]

    def find(self, method: str, budget_kept: int) -> TunedRival | None:
        """A rival's settings at a budget; None where it has none."""
        wanted = (method, budget_kept)
        return next((one for one in self.rivals if (one.method, one.budget_kept) == wanted), None)


@dataclass(frozen=True)
class TuningGround:
    """What rivals are tuned for: the model, and the questions of every task.

    Attributes:
        setting: what all cells share.
        visual_tokens: n, visual tokens of one image.
        decoder_layers: L, layers of the decoder.
        stage_layers: stages of methods whose papers name none.
        decay: of their keep counts.
        tasks: questions of the train split.
    """

    setting: ComparisonSetting
    visual_tokens: int
    decoder_layers: int
    stage_layers: tuple[int, ...]
    decay: float
    tasks: tuple[TaskQuestions, ...]

    def placements(self, method: str, budget_kept: int) -> tuple[Placement, ...]:
        """What is tried for a rival, each once, its paper's own first; empty if it cannot meet the budget."""
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], Placement] = {}
        for layers, schedule in self._schedules(method, budget_kept):
            key = (layers, schedule.keep_counts)
            found.setdefault(key, Placement(layers, schedule.keep_counts, float(schedule.average_kept)))
        return tuple(found.values())

    def _schedules(self, method: str, budget_kept: int) -> Iterator[tuple[tuple[int, ...], Schedule]]:
        spec, size = baseline_spec(method), (self.visual_tokens, self.decoder_layers)
        own = (self.stage_layers, self.decay)
        tried = [(layers, decay) for layers in stage_sets(self.decoder_layers) for decay in DECAYS]
        if spec.tunable == "cut":
            tried = [one for one in tried if len(one[0]) == 1]
        # A paper's stages move towards the input until they can meet a budget; the agents' stay.
        if self._can_meet(budget_kept, self.stage_layers[0] if spec.paper_stages is None else 0):
            plan = baseline_plan(method, *size, [budget_kept], *own)
            yield plan.stage_layers, plan.schedule(budget_kept)
        for layers, decay in tried:
            if self._can_meet(budget_kept, layers[0]):
                yield layers, solve_schedule(*size, layers, budget_kept, decay)

    def _can_meet(self, budget_kept: int, first_stage_layer: int) -> bool:
        lowest = lowest_budget(self.visual_tokens, self.decoder_layers, first_stage_layer)
        return lowest <= budget_kept <= self.visual_tokens

    def cell(self, method: str, budget_kept: int, placement: Placement, task: TaskQuestions, count: int) -> MethodCell:
        """The first ``count`` questions of a task, answered under a placement."""
        return MethodCell(
            setting=self.setting,
            method=method,
            kind="baseline",
            scorer=method,
            task=task.name,
            questions=count,
            questions_digest=task.digest,
            budget_kept=budget_kept,
            stage_layers=placement.stage_layers,
            keep_counts=placement.keep_counts,
            average_kept=placement.average_kept,
            seed=0,
            split=TUNING_SPLIT,
        )


def stage_sets(decoder_layers: int) -> tuple[tuple[int, ...], ...]:
    """`EIGHTHS` in layers, each once; sets that a shallow decoder cannot tell apart become one."""
    sets = (tuple(sorted({decoder_layers * eighth // 8 for eighth in eighths})) for eighths in EIGHTHS)
    return tuple(dict.fromkeys(sets))


def tuned_names(names: Sequence[str]) -> tuple[str, ...]:
    """Those of some baselines that are tuned; the others prune where the agents do."""
    return tuple(name for name in names if baseline_spec(name).tunable != "nothing")


def tune(ground: TuningGround, names: Sequence[str], budgets: Sequence[int], measure: Measure) -> Tuning:
    """Choose every rival's placement at every budget.

    Args:
        ground: model and questions.
        names: baselines; those that cannot be tuned are left out.
        budgets: average visual tokens kept.
        measure: answers the questions; called once a round with the cells of all rivals, budgets and tasks, so that
            they can be answered in parallel.
    """
    spaces = {(name, budget): ground.placements(name, budget) for name in tuned_names(names) for budget in budgets}
    everything = {
        place: {task.name: tuple(range(len(space))) for task in ground.tasks} for place, space in spaces.items()
    }
    first = _answered(ground, spaces, everything, FIRST_ROUND_SHARE, measure)
    chosen = {place: _survivors(first[place], len(space)) for place, space in spaces.items() if space}
    second = _answered(ground, spaces, chosen, 1, measure)
    rivals = [
        _decided(name, budget, spaces[name, budget], first[name, budget], second[name, budget])
        for name, budget in chosen
    ]
    return Tuning({task.name: task.count for task in ground.tasks}, ground.setting.seed, tuple(rivals))


_Place = tuple[str, int]  # a method and a budget
_Scores = Mapping[str, Mapping[int, tuple[int, float]]]  # by task and placement: questions answered, share correct


def _answered(
    ground: TuningGround,
    spaces: Mapping[_Place, Sequence[Placement]],
    chosen: Mapping[_Place, Mapping[str, Sequence[int]]],
    share: int,
    measure: Measure,
) -> dict[_Place, dict[str, dict[int, tuple[int, float]]]]:
    """Scores of the chosen placements on one question in ``share``, at least one."""
    keys: list[tuple[_Place, str, int]] = []
    cells: list[MethodCell] = []
    # Task by task, so that a process encodes a task's images once.
    for task in ground.tasks:
        for place, by_task in chosen.items():
            for number in by_task[task.name]:
                keys.append((place, task.name, number))
                count = max(1, task.count // share)
                cells.append(ground.cell(*place, spaces[place][number], task, count))
    scores: dict[_Place, dict[str, dict[int, tuple[int, float]]]] = {}
    for (place, name, number), correct in zip(keys, measure(cells), strict=True):
        scores.setdefault(place, {}).setdefault(name, {})[number] = (len(correct), float(correct.mean()))
    return scores


def _survivors(scores: _Scores, count: int) -> dict[str, tuple[int, ...]]:
    """Of each task, the placements that go on: the best on average and the best there; the paper's own always does."""
    pooled = _best(_means(scores, range(count)))
    return {
        task: tuple(sorted({0, *pooled, *_best({number: score for number, (_, score) in of.items()})}))
        for task, of in scores.items()
    }


def _means(scores: _Scores, numbers: Sequence[int]) -> dict[int, float]:
    return {number: float(np.mean([of[number][1] for of in scores.values()])) for number in numbers}


def _best(score: Mapping[int, float]) -> list[int]:
    """The best few; of equals those tried first."""
    return sorted(score, key=lambda number: (-score[number], number))[:SURVIVORS]


def _decided(method: str, budget: int, space: Sequence[Placement], first: _Scores, second: _Scores) -> TunedRival:
    common = [number for number in range(len(space)) if all(number in of for of in second.values())]
    means = _means(second, common)
    by_task = {}
    for task, of in second.items():
        best = _best({number: score for number, (_, score) in of.items()})
        by_task[task] = space[best[0]]
    tried = []
    for number, placement in enumerate(space):
        found = {task: second[task].get(number, first[task][number]) for task in first}
        tried.append(
            Tried(placement, {task: n for task, (n, _) in found.items()}, {task: a for task, (_, a) in found.items()})
        )
    return TunedRival(method, budget, space[_best(means)[0]], by_task, tuple(tried))


def write_tuning(path: Path, tuning: Tuning) -> None:
    """Write ``tuning.json``."""
    write_json_atomic(path, to_json(tuning))
