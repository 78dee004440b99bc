"""The agents of an ablation: one for each variant, task and seed, trained where they are not there yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import yaml

from toprl_export.analyze.variants import Variant
from toprl_export.errors import UserError
from toprl_export.evaluation.cells import in_parallel
from toprl_export.files import write_text_atomic
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_unchanged_model
from toprl_export.progress import Progress
from toprl_export.trainer import TrainOutcome, train

RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class TrainingJob:
    """One agent: what `toprl_export.trainer.train` is told besides the model."""

    variant: str
    task: str
    seed: int
    method: str
    recipe: Path
    budget_kept: int
    directory: Path
    updates: int | None
    overwrite: bool
    command: str


@dataclass(frozen=True)
class OpenTrainer:
    """Makes, in another process, what trains one agent after another."""

    model: str
    device: str
    model_fingerprint: str

    def __call__(self) -> Callable[[TrainingJob], TrainOutcome]:
        """Load the model.

        Raises:
            UserError: it cannot be loaded, or answers otherwise by now.
        """
        return trainer_of(load_unchanged_model(self.model, self.device, self.model_fingerprint))


def trainer_of(adapter: LVLMAdapter, dry_run: bool = False) -> Callable[[TrainingJob], TrainOutcome]:
    """What trains one job's agent on a loaded model; ``dry_run`` only checks it."""

    def run(job: TrainingJob) -> TrainOutcome:
        try:
            return train(
                adapter,
                job.task,
                job.method,
                str(job.recipe),
                (job.budget_kept,),
                job.directory,
                job.seed,
                updates=job.updates,
                threads=1,
                overwrite=job.overwrite,
                dry_run=dry_run,
                command=job.command,
            )
        except UserError as error:
            raise UserError(f"variant {job.variant} for {job.task}, seed {job.seed}: {error}") from error

    return run


def missing_agents(jobs: Sequence[TrainingJob], adapter: LVLMAdapter) -> list[TrainingJob]:
    """The jobs whose agents are not there; all are checked, nothing is written.

    Raises:
        UserError: a recipe or a budget is wrong, or a directory holds another agent.
    """
    check = trainer_of(adapter, dry_run=True)
    return [job for job in jobs if check(job).status != "up-to-date"]


def train_all(
    jobs: Sequence[TrainingJob], opener: Callable[[], Callable[[TrainingJob], TrainOutcome]], processes: int
) -> None:
    """Train every job's agent; interrupted ones go on from their checkpoint.

    Args:
        jobs: what is wanted.
        opener: see `toprl_export.evaluation.cells.in_parallel`.
        processes: how many train at the same time.

    Raises:
        UserError: a training fails.
    """
    with (
        Progress("training", len(jobs), "agent") as bar,
        closing(in_parallel(jobs, opener, processes)) as done,
    ):
        for _ in done:
            bar.update()


def write_recipe(directory: Path, variant: Variant, base: str, method: str, decoder_layers: int) -> Path:
    """Write a variant's recipe, which builds on the recipe ``base``, and return its path.

    Args:
        directory: where recipes go.
        variant: what is changed.
        base: a recipe's name, or the path of its file.
        method: the learner.
        decoder_layers: of the model.
    """
    is_file = "/" in base or base.endswith(RECIPE_SUFFIXES)
    content = {
        "method": method,
        "base": str(Path(base).resolve()) if is_file else base,
        "settings": variant.recipe_settings(decoder_layers),
    }
    text = f"# Variant {variant.name} of an ablation.\n" + yaml.safe_dump(content, sort_keys=False)
    path = directory / f"{variant.name}.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text_atomic(path, text)
    return path
