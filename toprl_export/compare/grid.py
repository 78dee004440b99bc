"""The cells of a comparison: every method at every budget on every task, and where that is not possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toprl_export.compare.cell import UNPRUNED, Cell, Kind, Setting
from toprl_export.compare.request import RANDOM, CompareRequest, TaskQuestions
from toprl_export.errors import UserError
from toprl_export.evaluation.compared_agents import Entrant
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.pruning.baselines.specs import ORACLE, baseline_plan
from toprl_export.pruning.schedule import DEFAULT_DECAY, Schedule


@dataclass(frozen=True)
class Gap:
    """A cell that cannot be measured, and why."""

    method: str
    task: str
    budget_kept: int
    reason: str


@dataclass(frozen=True)
class Grid:
    """All cells, task by task with the unpruned one first, and the gaps."""

    cells: tuple[Cell, ...]
    gaps: tuple[Gap, ...]


def build_grid(
    request: CompareRequest,
    adapter: LVLMAdapter,
    setting: Setting,
    tasks: Sequence[TaskQuestions],
    entrants: Sequence[Entrant],
) -> Grid:
    """Lay out all cells.

    A budget that some methods cannot meet leaves gaps.

    Raises:
        UserError: no method can meet a budget, or the seeds of a method prune differently.
    """
    layout = _Layout(adapter, setting, *baseline_layout(entrants, adapter), request.draws)
    methods = tuple(dict.fromkeys(one.method for one in entrants))
    cells: list[Cell] = []
    gaps: list[Gap] = []
    for task in tasks:
        cells.append(layout.unpruned(task))
        for budget in request.budgets:
            found = [layout.baseline(name, task, budget) for name in request.baseline_names]
            found += [layout.agents(method, task, budget, entrants) for method in methods]
            gaps += [one for one in found if isinstance(one, Gap)]
            cells += [cell for one in found if not isinstance(one, Gap) for cell in one]
    _check_budgets(request.budgets, cells, gaps)
    return Grid(tuple(cells), tuple(gaps))


def baseline_layout(entrants: Sequence[Entrant], adapter: LVLMAdapter) -> tuple[tuple[int, ...], float]:
    """Where baselines without stages of their own prune, and the decay of their keep counts: each as the agents have it
    if they agree on it, else the default."""
    layers = {one.agent.record.plan.stage_layers for one in entrants}
    decays = {one.agent.record.plan.decay for one in entrants}
    return (
        layers.pop() if len(layers) == 1 else adapter.default_stage_layers,
        decays.pop() if len(decays) == 1 else DEFAULT_DECAY,
    )


@dataclass(frozen=True)
class _Layout:
    """Makes cells for one model; ``stage_layers`` and ``decay`` are those of baselines that bring none."""

    adapter: LVLMAdapter
    setting: Setting
    stage_layers: tuple[int, ...]
    decay: float
    draws: int

    def unpruned(self, task: TaskQuestions) -> Cell:
        """The whole model."""
        n = self.adapter.visual_tokens
        return self._cell(UNPRUNED, "unpruned", UNPRUNED, task, (), Schedule(n, (n,), n))

    def baseline(self, name: str, task: TaskQuestions, budget: int) -> list[Cell] | Gap:
        """One cell, or as many as there are draws of random pruning."""
        n, depth = self.adapter.visual_tokens, self.adapter.shape.layers
        if name == ORACLE and task.evidence_patches != n:
            marked = task.evidence_patches or "no"
            reason = f"{task.name} marks its evidence on {marked} patches, but the model has {n} visual tokens"
            return Gap(name, task.name, budget, reason)
        try:
            # One plan a budget: another budget of the comparison does not move a baseline's stages.
            plan = baseline_plan(name, n, depth, [budget], self.stage_layers, self.decay)
        except UserError as error:
            return Gap(name, task.name, budget, str(error))
        kind: Kind = "oracle" if name == ORACLE else "baseline"
        schedule, seeds = plan.schedule(budget), range(self.draws if name == RANDOM else 1)
        return [self._cell(name, kind, name, task, plan.stage_layers, schedule, seed) for seed in seeds]

    def agents(self, method: str, task: TaskQuestions, budget: int, entrants: Sequence[Entrant]) -> list[Cell] | Gap:
        """One cell for each seed of a method's agents for the task."""
        chosen = [one for one in entrants if (one.method, one.task) == (method, task.name)]
        if not chosen:
            return Gap(method, task.name, budget, f"no agent for {task.name} was given")
        try:
            cells = [self._agent(one, task, one.schedule(budget)) for one in chosen]
        except UserError as error:
            return Gap(method, task.name, budget, str(error))
        for one, cell in zip(chosen, cells, strict=True):
            if (cell.stage_layers, cell.keep_counts) != (cells[0].stage_layers, cells[0].keep_counts):
                raise UserError(
                    f"{chosen[0].directory} and {one.directory} are to be seeds of one method, but prune differently "
                    f"at {budget} tokens kept: name them apart as NAME={one.directory}"
                )
        return cells

    def _agent(self, one: Entrant, task: TaskQuestions, schedule: Schedule) -> Cell:
        layers, place = one.agent.record.plan.stage_layers, str(one.directory.resolve())
        return self._cell(one.method, "agent", one.agent.fingerprint, task, layers, schedule, one.seed, place)

    def _cell(
        self,
        method: str,
        kind: Kind,
        scorer: str,
        task: TaskQuestions,
        stage_layers: tuple[int, ...],
        schedule: Schedule,
        seed: int = 0,
        agent: str | None = None,
    ) -> Cell:
        return Cell(
            setting=self.setting,
            method=method,
            kind=kind,
            scorer=scorer,
            task=task.name,
            questions=task.count,
            questions_digest=task.digest,
            budget_kept=schedule.budget_kept,
            stage_layers=stage_layers,
            keep_counts=schedule.keep_counts if stage_layers else (),
            average_kept=float(schedule.average_kept),
            seed=seed,
            agent=agent,
        )


def _check_budgets(budgets: Iterable[int], cells: Sequence[Cell], gaps: Sequence[Gap]) -> None:
    """Refuse a budget that no method of its own right can meet."""
    met = {cell.budget_kept for cell in cells if cell.kind in ("baseline", "agent")}
    for budget in budgets:
        if budget not in met:
            first = next(gap for gap in gaps if gap.budget_kept == budget)
            raise UserError(f"no method can keep {budget} visual tokens on average; {first.method}: {first.reason}")
