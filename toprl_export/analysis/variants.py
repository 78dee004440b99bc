"""Variants of a training recipe: the file that lists them, and their agents, trained where they are not there yet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import yaml

from toprl_export.errors import UserError
from toprl_export.evaluation.cells import in_parallel
from toprl_export.fields import read_fields
from toprl_export.files import parse_yaml, read_yaml, write_text_atomic
from toprl_export.models.load import load_unchanged_model
from toprl_export.progress import Progress
from toprl_export.registry import unknown_name
from toprl_export.trainer import TrainOutcome, train

if TYPE_CHECKING:
    from toprl_export.models.adapter import LVLMAdapter

BASE_NAME: Final = "base"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Variant:
    """A recipe with something changed.

    Attributes:
        name: of its directory and for ``--variants``.
        group: what is varied.
        text: what it is here.
        settings: the recipe's settings that it replaces; of nested ones, key by key.
        stage_depths: where stages stand as shares of the decoder's depth, which every decoder can follow; None leaves
            them as they are.

    Raises:
        UserError: the name cannot be a directory's, or a depth is out of range.
    """

    name: str
    group: str
    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    stage_depths: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"variant {self.name!r} has no usable name: write it in small letters, digits, '.', '_' and '-'"
            )
        depths = self.stage_depths
        if depths is not None and (not depths or not all(0 <= depth < 1 for depth in depths)):
            raise UserError(f"variant {self.name}: stage_depths are {list(depths)}, expected some from 0 to below 1")

    def recipe_settings(self, decoder_layers: int) -> dict[str, Any]:
        """``settings``, with the stages' layers in a decoder of so many layers."""
        if self.stage_depths is None:
            return dict(self.settings)
        layers = sorted({int(depth * decoder_layers) for depth in self.stage_depths})
        return {**self.settings, "stage_layers": layers}


BASE = Variant(BASE_NAME, "", "the recipe as it is")


@dataclass(frozen=True)
class VariantsFile:
    """The YAML file."""

    format: Literal["toprl-export/variants"]
    version: Literal[1]
    variants: tuple[Variant, ...]


def load_variants(file: Path | None = None) -> tuple[Variant, ...]:
    """The variants that a YAML file lists; None for those that come with the package.

    Raises:
        UserError: the file cannot be read, is of another format, or lists a variant wrongly or twice.
    """
    source = str(file or "variants.yaml")
    if file is None:
        content = parse_yaml(resources.files("toprl_export.analysis").joinpath(source).read_text(encoding="utf-8"))
    else:
        content = read_yaml(file, "a toprl-export/variants file")
    variants = read_fields(VariantsFile, content, source, "correct it").variants
    names = [BASE_NAME, *(variant.name for variant in variants)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{source} has {', '.join(twice)} twice (base is the recipe itself): name each variant once")
    return variants


def choose_variants(known: Sequence[Variant], names: Sequence[str] | None) -> tuple[Variant, ...]:
    """The base, then the variants called ``names`` in their own order; None for all.

    Raises:
        UserError: a name is unknown.
    """
    for name in names or ():
        if name not in (BASE_NAME, *(variant.name for variant in known)):
            raise unknown_name("variant", name, [BASE_NAME, *(variant.name for variant in known)])
    return (BASE, *(variant for variant in known if names is None or variant.name in names))


@dataclass(frozen=True)
class TrainingJob:
    """One agent: the arguments of `toprl_export.trainer.train` besides the model."""

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
            UserError: it cannot be loaded, or changed while the command ran.
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
    # The recipe is written to another directory, where a relative path would not be found.
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
