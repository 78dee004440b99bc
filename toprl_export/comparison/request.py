"""What is to be compared: the request, and the grid of cells that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from toprl_export.comparison.method_cell import ComparisonSetting, MethodCell, MethodKind
from toprl_export.comparison.result import Gap
from toprl_export.comparison.tuning import Placement, TunedRival, Tuning, tuned_names
from toprl_export.cores import check_parallel
from toprl_export.errors import UserError
from toprl_export.evaluation.compared_agents import ComparedAgent
from toprl_export.evaluation.questions import ALL, UNPRUNED, TaskQuestions
from toprl_export.fields import check_field_types
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.pruning.baselines.specs import BASELINES, ORACLE, baseline_plan
from toprl_export.pruning.schedule import DEFAULT_DECAY, Schedule
from toprl_export.registry import unknown_name

RANDOM = "random"


@dataclass(frozen=True)
class CompareRequest:
    """What is to be compared.

    Attributes:
        output_dir: where tables, plots and cells go.
        model: the reference model's name, path or hub id.
        agents: patterns of agent directories, see `find_agents`.
        baselines: their names, or "all" for every baseline and the oracle; random pruning is always among them.
        tasks: their names, or "all" for every one whose data is installed; None for those of the agents, or all.
        budgets_kept: visual tokens kept, averaged over all decoder layers.
        limit: held-out questions a task, where it has as many.
        draws: seeds of random pruning.
        tune: questions of the train split, a task, by which the rivals' schedules are chosen; 0 leaves them as their
            papers have them.
        seed: of the questions, of random pruning and of the bootstrap.
        jobs: processes that answer questions at the same time.
        iterations: rounds of the latency measurement; 0 leaves it out.
        threads: CPU threads of the latency measurement; None for all cores.
        device: "cpu", "cuda", "cuda:N", or "auto" for a GPU if there is one.
        command: the command line, for the record.

    Raises:
        UserError: a number is out of range, or a baseline is unknown.
    """

    output_dir: Path
    model: str = "mini"
    agents: tuple[str, ...] = ()
    baselines: tuple[str, ...] = (ALL,)
    tasks: tuple[str, ...] | None = None
    budgets_kept: tuple[int, ...] = (192, 64)
    limit: int = 1000
    draws: int = 3
    tune: int = 0
    seed: int = 0
    jobs: int = 1
    iterations: int = 20
    threads: int | None = None
    device: str = "auto"
    command: str = "python"

    def __post_init__(self) -> None:
        check_field_types(self)
        check_parallel("threads", self.threads)
        check_parallel("jobs", self.jobs)
        counts = {"limit": self.limit, "random draws": self.draws}
        counts |= {f"budget_kept[{at}]": budget for at, budget in enumerate(self.budgets_kept)}
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name} is {value}, expected at least 1")
        for name, value in {"iterations": self.iterations, "tune": self.tune}.items():
            if value < 0:
                raise UserError(f"{name} is {value}, expected at least 0")
        if not self.budgets_kept:
            raise UserError("no budget was given to compare at: give at least one")
        for name in self.baselines:
            if name not in (ALL, *BASELINES, ORACLE):
                raise unknown_name("baseline", name, (ALL, *BASELINES, ORACLE))

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets, each once, largest first."""
        return tuple(sorted(set(self.budgets_kept), reverse=True))

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """The baselines to compare, in the registry's order, the oracle last."""
        known = (*BASELINES, ORACLE)
        return known if ALL in self.baselines else tuple(n for n in known if n == RANDOM or n in self.baselines)


@dataclass(frozen=True)
class Grid:
    """All cells, task by task with the unpruned one first, and the gaps."""

    cells: tuple[MethodCell, ...]
    gaps: tuple[Gap, ...]


def build_grid(
    request: CompareRequest,
    adapter: LVLMAdapter,
    setting: ComparisonSetting,
    tasks: Sequence[TaskQuestions],
    agents: Sequence[ComparedAgent],
    tuning: Tuning | None = None,
) -> Grid:
    """Lay out all cells.

    A budget that some methods cannot meet leaves gaps. With ``tuning``, a rival prunes as was chosen for it, in a row
    for all tasks and in one of its own for each task.

    Raises:
        UserError: no method can meet a budget, or the seeds of a method prune differently.
    """
    layout = _Layout(adapter, setting, *baseline_layout(agents, adapter), request.draws, tuning)
    methods = tuple(dict.fromkeys(one.method for one in agents))
    cells: list[MethodCell] = []
    gaps: list[Gap] = []
    for task in tasks:
        cells.append(layout.unpruned(task))
        for budget in request.budgets:
            found = [one for name in request.baseline_names for one in layout.baseline(name, task, budget)]
            found += [layout.agents(method, task, budget, agents) for method in methods]
            gaps += [one for one in found if isinstance(one, Gap)]
            cells += [cell for one in found if not isinstance(one, Gap) for cell in one]
    _check_budgets(request.budgets, cells, gaps)
    return Grid(tuple(cells), tuple(gaps))


def baseline_layout(agents: Sequence[ComparedAgent], adapter: LVLMAdapter) -> tuple[tuple[int, ...], float]:
    """Where baselines without stages of their own prune, and the decay of their keep counts: each as the agents have it
    if they agree on it, else the default."""
    # At the same layers and as steeply, scores alone are compared.
    layers = {one.agent.record.plan.stage_layers for one in agents}
    decays = {one.agent.record.plan.decay for one in agents}
    return (
        layers.pop() if len(layers) == 1 else adapter.default_stage_layers,
        decays.pop() if len(decays) == 1 else DEFAULT_DECAY,
    )


@dataclass(frozen=True)
class _Layout:
    """Makes cells for one model; ``stage_layers`` and ``decay`` are for baselines that do not set their own and are
    not tuned."""

    adapter: LVLMAdapter
    setting: ComparisonSetting
    stage_layers: tuple[int, ...]
    decay: float
    draws: int
    tuning: Tuning | None

    def unpruned(self, task: TaskQuestions) -> MethodCell:
        """The unpruned reference."""
        n = self.adapter.visual_tokens
        return self._cell(UNPRUNED, "unpruned", UNPRUNED, task, (), Schedule(n, (n,), n))

    def baseline(self, name: str, task: TaskQuestions, budget: int) -> list[list[MethodCell] | Gap]:
        """One cell, or one for each seed of random pruning; a tuned rival's row and its row per task."""
        if self.tuning is None or not tuned_names([name]):
            return [self._untuned(name, task, budget)]
        rival = self.tuning.find(name, budget)
        if rival is not None:
            return [[cell] for cell in self._tuned(rival, task)]
        gap = self._untuned(name, task, budget)
        assert isinstance(gap, Gap), "what its paper's schedule can meet is tuned"
        return [gap, Gap(per_task(name), task.name, budget, gap.reason)]

    def _tuned(self, rival: TunedRival, task: TaskQuestions) -> Iterator[MethodCell]:
        rows: list[tuple[str, MethodKind, Placement]] = [
            (rival.method, "baseline", rival.for_all_tasks),
            (per_task(rival.method), "baseline per task", rival.by_task[task.name]),
        ]
        for method, kind, chosen in rows:
            schedule = chosen.schedule(rival.budget_kept)
            yield self._cell(method, kind, rival.method, task, chosen.stage_layers, schedule)

    def _untuned(self, name: str, task: TaskQuestions, budget: int) -> list[MethodCell] | Gap:
        n, depth = self.adapter.visual_tokens, self.adapter.shape.layers
        if name == ORACLE and task.evidence_patches != n:
            marked = task.evidence_patches or "no"
            reason = f"{task.name} marks its evidence on {marked} patches, but the model has {n} visual tokens"
            return Gap(name, task.name, budget, reason)
        try:
            # A plan of its own for each budget: in a common one the smallest budget decides where the stages are.
            plan = baseline_plan(name, n, depth, [budget], self.stage_layers, self.decay)
        except UserError as error:
            return Gap(name, task.name, budget, str(error))
        kind: MethodKind = "oracle" if name == ORACLE else "baseline"
        schedule, seeds = plan.schedule(budget), range(self.draws if name == RANDOM else 1)
        return [self._cell(name, kind, name, task, plan.stage_layers, schedule, seed) for seed in seeds]

    def agents(
        self, method: str, task: TaskQuestions, budget: int, compared: Sequence[ComparedAgent]
    ) -> list[MethodCell] | Gap:
        """One cell for each seed of a method's agents for the task."""
        chosen = [one for one in compared if (one.method, one.task) == (method, task.name)]
        if not chosen:
            return Gap(method, task.name, budget, f"no agent for {task.name} was given")
        try:
            cells = [self._agent(one, task, one.schedule(budget)) for one in chosen]
        except UserError as error:
            return Gap(method, task.name, budget, str(error))
        for one, cell in zip(chosen, cells, strict=True):
            if (cell.stage_layers, cell.keep_counts) != (cells[0].stage_layers, cells[0].keep_counts):
                raise UserError(
                    f"{chosen[0].directory} and {one.directory} would count as seeds of one method, but prune "
                    f"differently at {budget} tokens kept: name them apart as NAME={one.directory}"
                )
        return cells

    def _agent(self, one: ComparedAgent, task: TaskQuestions, schedule: Schedule) -> MethodCell:
        layers, place = one.agent.record.plan.stage_layers, str(one.directory.resolve())
        return self._cell(one.method, "agent", one.agent.fingerprint, task, layers, schedule, one.seed, place)

    def _cell(
        self,
        method: str,
        kind: MethodKind,
        scorer: str,
        task: TaskQuestions,
        stage_layers: tuple[int, ...],
        schedule: Schedule,
        seed: int = 0,
        agent: str | None = None,
    ) -> MethodCell:
        return MethodCell(
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


def per_task(method: str) -> str:
    """The row of a rival whose setting is chosen for each task."""
    return f"{method} (per task)"


def _check_budgets(budgets: Iterable[int], cells: Sequence[MethodCell], gaps: Sequence[Gap]) -> None:
    """Refuse a budget that no baseline and no agent can meet; the unpruned model and the oracle do not count."""
    met = {cell.budget_kept for cell in cells if cell.kind in ("baseline", "agent")}
    for budget in budgets:
        if budget not in met:
            first = next(gap for gap in gaps if gap.budget_kept == budget)
            raise UserError(f"no method can keep {budget} visual tokens on average; {first.method}: {first.reason}")
