"""Ablation: agents of one recipe and of its variants, on the same questions at the same budget (TOP-RL, Appendix C)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

import numpy as np

from toprl_export.agent import load_agent
from toprl_export.analysis.results import AnalysisResult
from toprl_export.analysis.study import ByAgent, Study
from toprl_export.analysis.variants import (
    BASE_NAME,
    OpenTrainer,
    TrainingJob,
    Variant,
    missing_agents,
    train_all,
    trainer_of,
    write_recipe,
)
from toprl_export.errors import UserError
from toprl_export.evaluation.estimates import (
    Correctness,
    Estimate,
    Resampled,
    accuracy,
    mean_difference,
    mean_ratio,
)
from toprl_export.evaluation.questions import UNPRUNED
from toprl_export.evaluation.tables import counted, estimate_fields, markdown_table, percent, points
from toprl_export.tasks.task import Level
from toprl_export.trainer import DEFAULT_BUDGETS_KEPT, DEFAULT_METHOD


@dataclass(frozen=True)
class AblationPlan:
    """What is varied.

    Attributes:
        variants: the base first.
        recipe: the base recipe's name or file.
        seeds: of the trainings.
        budget_kept: average visual tokens kept, in training's plan and in evaluation.
        method: the learner.
        updates: policy updates instead of the recipe's.
        overwrite: replace agents that were trained with other settings.

    Raises:
        UserError: the base is not first, or there is no seed, or one twice.
    """

    variants: tuple[Variant, ...]
    recipe: str = DEFAULT_METHOD
    seeds: tuple[int, ...] = (0, 1, 2)
    budget_kept: int = min(DEFAULT_BUDGETS_KEPT)
    method: str = DEFAULT_METHOD
    updates: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.variants or self.variants[0].name != BASE_NAME:
            raise UserError("the first variant must be the recipe itself: choose variants by `choose_variants`")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            listed = ", ".join(map(str, self.seeds)) or "none"
            raise UserError(f"the seeds are {listed}, expected at least one, each once: such as 0,1,2")


@dataclass(frozen=True)
class AblationTask:
    """A task's questions and the unpruned model's accuracy on them."""

    task: str
    level: Level
    questions: int
    unpruned: Estimate


@dataclass(frozen=True)
class AblationEntry:
    """A variant on one task: means over seeds; ``difference`` is to the base, ``by_seed`` are accuracies."""

    task: str
    accuracy: Estimate
    retention: Estimate | None
    difference: Estimate
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class AblationRow:
    """A variant: its averages over tasks, and its entries in the order of `Ablation.tasks`."""

    variant: str
    group: str
    text: str
    retention: Estimate
    difference: Estimate
    entries: tuple[AblationEntry, ...]


@dataclass(frozen=True)
class Ablation(AnalysisResult):
    """The table; the first row is the recipe itself."""

    name: ClassVar[str] = "ablation"
    format: Literal["toprl-export/analysis-ablation"] = field(default="toprl-export/analysis-ablation", kw_only=True)
    recipe: str
    budget_kept: int
    seeds: tuple[int, ...]
    tasks: tuple[AblationTask, ...]
    rows: tuple[AblationRow, ...]

    def records(self) -> list[dict[str, object]]:
        """See `AnalysisResult.records`."""
        return [
            {
                "variant": row.variant,
                "group": row.group,
                "task": entry.task,
                "budget_kept": self.budget_kept,
                "questions": task.questions,
                **estimate_fields("accuracy", entry.accuracy),
                **estimate_fields("retention", entry.retention),
                **estimate_fields("difference_to_base", entry.difference),
                **{f"accuracy_seed_{seed}": f"{one:.6g}" for seed, one in zip(self.seeds, entry.by_seed, strict=True)},
            }
            for row in self.rows
            for task, entry in zip(self.tasks, row.entries, strict=True)
        ]

    def markdown(self) -> str:
        """See `AnalysisResult.markdown`."""
        names = [f"{task.task} (n = {task.questions:,})" for task in self.tasks]
        base, *others = self.rows
        differences = [
            [f"{row.group}: {row.text}", percent(row.retention), points(row.difference)]
            + [points(entry.difference) for entry in row.entries]
            for row in others
        ]
        first = [f"**{base.text}**", percent(base.retention), "–", *("–" for _ in names)]
        accuracies = [
            [f"{row.group}: {row.text}" if row.group else f"**{row.text}**"]
            + [percent(entry.accuracy) for entry in row.entries]
            for row in self.rows
        ]
        accuracies.append(["unpruned", *(percent(task.unpruned) for task in self.tasks)])
        return (
            "# Ablation\n\n"
            f"Recipe `{self.recipe}` and variants of it at {self.budget_kept} of {self.provenance.visual_tokens} "
            f"visual tokens kept on average; {counted(len(self.seeds), 'seed')} of training, one agent for each task "
            "and seed, all answering the same questions. Differences of accuracy to the recipe as it is are paired, in "
            "percentage points. Brackets are 95% intervals over the questions (bootstrap; Wilson for accuracies), with "
            "the agents as they are: they do not cover what other seeds of training would change.\n\n"
            f"{markdown_table(['variant', 'average retention', 'average difference', *names], [first, *differences])}\n"
            f"Accuracies, means over seeds:\n\n{markdown_table(['variant', *names], accuracies)}\n"
            f"{self.provenance.markdown()}"
        )

    def summary(self) -> str:
        """See `AnalysisResult.summary`."""
        base, *others = self.rows
        lines = [f"{base.text}: {percent(base.retention)} of the accuracy retained at {self.budget_kept} tokens kept"]
        return "\n".join([*lines, *(f"{row.variant:<20} {points(row.difference)} points" for row in others)])


def run_ablation(study: Study, plan: AblationPlan) -> Ablation:
    """Train what is missing, answer every task's questions by every agent, and compare with the base.

    Recipes, agents and answers go to the study's output directory, where a later run finds them.

    Raises:
        UserError: a recipe, a budget or the output directory is wrong, a training fails, or the unpruned model has no
            correct answer on a task.
    """
    scope = study.scope
    Ablation.check_directory(scope.output_dir)
    adapter = study.adapter
    with TemporaryDirectory() as trial:
        # Checked first in a scratch directory: a refused plan must cost no time, and must not change the recipes that
        # existing agents were trained by.
        missing_agents(training_jobs(study, plan, Path(trial)), adapter)
    unpruned = study.unpruned()
    jobs = training_jobs(study, plan, scope.output_dir / "recipes")
    opener = (
        OpenTrainer(scope.model, str(adapter.device), adapter.answering_fingerprint)
        if scope.jobs > 1
        else lambda: trainer_of(adapter)
    )
    train_all(missing_agents(jobs, adapter), opener, scope.jobs)
    tasks = {task.name: task for task in study.tasks}
    found = study.correctness([(tasks[job.task], _method(job)) for job in jobs], "ablation")
    correct = {(job.variant, job.task, job.seed): one for job, one in zip(jobs, found, strict=True)}
    return Ablation(
        provenance=study.provenance(),
        recipe=plan.recipe,
        budget_kept=plan.budget_kept,
        seeds=plan.seeds,
        tasks=tuple(
            AblationTask(task.name, task.level, len(unpruned[task.name]), accuracy(unpruned[task.name]))
            for task in study.tasks
        ),
        rows=_rows(plan, unpruned, correct, scope.seed),
    )


def preview_ablation(study: Study, plan: AblationPlan) -> str:
    """How many agents :func:`run_ablation` would train, in words; everything is checked, nothing is written.

    Raises:
        UserError: a recipe, a budget or the output directory is wrong.
    """
    Ablation.check_directory(study.scope.output_dir)
    with TemporaryDirectory() as trial:
        jobs = training_jobs(study, plan, Path(trial))
        missing = missing_agents(jobs, study.adapter)
    tasks = ", ".join(task.name for task in study.tasks)
    return (
        f"would train {counted(len(missing), 'agent')}, {len(jobs) - len(missing)} of {len(jobs)} are there: "
        f"{counted(len(plan.variants), 'recipe')} × {counted(len(study.tasks), 'task')} ({tasks}) × "
        f"{counted(len(plan.seeds), 'seed')}"
    )


def training_jobs(study: Study, plan: AblationPlan, recipe_dir: Path) -> list[TrainingJob]:
    """One agent for each task, variant and seed; the variants' recipes are written to ``recipe_dir``."""
    directory, depth = study.scope.output_dir, study.adapter.shape.layers
    recipes = {
        variant.name: write_recipe(recipe_dir, variant, plan.recipe, plan.method, depth) for variant in plan.variants
    }
    return [
        TrainingJob(
            variant=variant.name,
            task=task.name,
            seed=seed,
            method=plan.method,
            recipe=recipes[variant.name],
            budget_kept=plan.budget_kept,
            directory=directory / "agents" / variant.name / task.name / f"seed-{seed}",
            updates=plan.updates,
            overwrite=plan.overwrite,
            command=study.scope.command,
        )
        for task in study.tasks
        for variant in plan.variants
        for seed in plan.seeds
    ]


def _method(job: TrainingJob) -> ByAgent:
    agent = load_agent(job.directory)
    return ByAgent(job.directory, agent.fingerprint, agent.record.plan.schedule(job.budget_kept).keep_counts)


def _rows(
    plan: AblationPlan,
    unpruned: Mapping[str, Correctness],
    correct: Mapping[tuple[str, str, int], Correctness],
    seed: int,
) -> tuple[AblationRow, ...]:
    """The table's rows, from ``unpruned`` by task and ``correct`` by variant, task and seed."""
    by_seed = {
        task: {
            variant.name: np.stack([correct[variant.name, task, one] for one in plan.seeds])  # [seeds, n]
            for variant in plan.variants
        }
        for task in unpruned
    }
    resampled = {task: Resampled.of({UNPRUNED: unpruned[task], **by_seed[task]}, seed, task) for task in unpruned}
    every = list(resampled.values())

    def entry(name: str, task: str) -> AblationEntry:
        return AblationEntry(
            task=task,
            accuracy=resampled[task].accuracy(name, by_seed[task][name]),
            retention=resampled[task].ratio(name, UNPRUNED),
            difference=resampled[task].difference(name, BASE_NAME),
            by_seed=tuple(float(correct[name, task, one].mean()) for one in plan.seeds),
        )

    return tuple(
        AblationRow(
            variant=variant.name,
            group=variant.group,
            text=variant.text,
            retention=mean_ratio(every, variant.name, UNPRUNED),
            difference=mean_difference(every, variant.name, BASE_NAME),
            entries=tuple(entry(variant.name, task) for task in unpruned),
        )
        for variant in plan.variants
    )
