"""One training run: its settings settled, its plan, the digest by which it is recognised, and what it may overwrite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from toprl_export.agent import AGENT_FILE
from toprl_export.errors import UserError
from toprl_export.fields import read_file
from toprl_export.places import check_replaceable, check_writable, resolved
from toprl_export.pruning.actor import ActorConfig
from toprl_export.pruning.plan import PruningPlan, make_plan
from toprl_export.pruning.schedule import Schedule, lowest_budget, solve_schedule
from toprl_export.tasks.task import Task
from toprl_export.trainer import TrainRequest
from toprl_trainers.recipes import Recipe, load_recipe
from toprl_trainers.rl.checkpoint import read_checkpoint_header
from toprl_trainers.rl.processes import SINGLE_PROCESS, Processes
from toprl_trainers.toprl.config import TOPRLConfig
from toprl_trainers.toprl.curves import with_learned_budget

METHOD = "toprl"
RUN_FILE = "training.json"


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint says about its run.

    Attributes:
        digest: of the run's settings.
        thresholds: the fixed ones; None where each image has its own.
        seconds: spent so far.
        threads: CPU threads of PyTorch; sums depend on how many add them up, so a resumed run takes as many.
    """

    format: Literal["toprl-export/toprl-training"] = field(default="toprl-export/toprl-training", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    digest: str
    thresholds: tuple[float, ...] | None
    seconds: float
    threads: int


@dataclass(frozen=True)
class FinishedRun:
    """``training.json``: the settings that an agent was trained with, and their digest."""

    format: Literal["toprl-export/toprl-run"] = field(default="toprl-export/toprl-run", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    digest: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A request and its recipe: ``plan`` holds the requested budgets, ``trained`` the schedule that rollouts aim at."""

    request: TrainRequest
    recipe: Recipe
    config: TOPRLConfig
    plan: PruningPlan
    trained: Schedule
    processes: Processes = SINGLE_PROCESS

    @classmethod
    def of(cls, request: TrainRequest, processes: Processes = SINGLE_PROCESS) -> Run:
        """Read the recipe and solve the schedules.

        Raises:
            UserError: the recipe is unknown or wrong, a budget cannot be met, or the images are too many or cannot be
                divided among the processes.
        """
        adapter = request.adapter
        recipe = load_recipe(request.recipe or METHOD, METHOD, request.task.name)
        config = TOPRLConfig.from_mapping(recipe.settings).limited(request.updates, request.images)
        if config.precision == "auto":
            config = replace(config, precision=_fast_precision(adapter.device))
        if request.condition is not None:
            config = replace(config, condition=request.condition)
        _check_images(config, request.task, processes)
        layers = adapter.default_stage_layers if config.stage_layers is None else config.stage_layers
        total, depth = adapter.visual_tokens, adapter.shape.layers
        plan = make_plan(total, depth, layers, "actor", request.budgets_kept, config.decay)
        budget = request.budgets_kept[0]
        if config.training_fraction_kept is not None:
            # Never above the smallest budget: a ranking learned at few tokens serves larger budgets too.
            target = min(round(config.training_fraction_kept * total), *request.budgets_kept)
            budget = max(target, lowest_budget(total, depth, layers[0]))
        return cls(request, recipe, config, plan, solve_schedule(total, depth, layers, budget, config.decay), processes)

    @property
    def actor_config(self) -> ActorConfig:
        """Sizes of actor and critic, and what they see."""
        config, hidden = self.config, self.request.adapter.shape.hidden
        return ActorConfig(hidden, config.hidden_size, len(self.plan.stages), config.condition, config.residual)

    def final_plan(self, curves: Sequence[Sequence[float]]) -> PruningPlan:
        """The requested budgets, and the one that the policy settled on where the reward alone decided."""
        return with_learned_budget(self.plan, curves) if self.config.threshold == "initial" else self.plan

    @property
    def images_per_update(self) -> int:
        """Images whose rollouts make one batch, over all processes."""
        return min(self.processes.count * self.config.images_per_update, self.config.images)

    def rollouts(self, updates: int) -> int:
        """How many rollouts the first ``updates`` updates take; the last batch of each round may be smaller."""
        full, last = divmod(self.config.images, self.images_per_update)
        sizes = [self.images_per_update] * full + [last] * bool(last)
        rounds, rest = divmod(updates, len(sizes))
        return (rounds * sum(sizes) + sum(sizes[:rest])) * self.config.rollouts_per_image

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, as a JSON object."""
        return {
            "method": METHOD,
            "task": self.request.task.name,
            "model_fingerprint": self.request.adapter.fingerprint,
            "plan": self.plan.to_json(),
            "trained": asdict(self.trained),
            "config": asdict(self.config),
            "processes": self.processes.count,
            "seed": self.request.seed,
            "version": package_version("toprl-export"),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    @property
    def directory(self) -> Path:
        """Where the agent goes."""
        return resolved(self.request.output_dir)

    @property
    def checkpoint(self) -> Path:
        """Where the run's state is kept until the agent is there: a hidden sibling of the agent's directory."""
        return self.directory.with_name(f".{self.directory.name}.training.safetensors")

    @property
    def record(self) -> FinishedRun:
        """What ``training.json`` holds once the agent is there."""
        return FinishedRun(self.digest, self.settings)

    def finished(self) -> bool:
        """Whether the output directory holds the agent of exactly these settings.

        Raises:
            UserError: its ``training.json`` cannot be read, and may not be overwritten.
        """
        path = self.directory / RUN_FILE
        if not (path.is_file() and (self.directory / AGENT_FILE).is_file()):
            return False
        try:
            return read_file(FinishedRun, path, "add --overwrite to start over").digest == self.digest
        except UserError:
            if not self.request.overwrite:
                raise
            return False

    def check_output(self) -> None:
        """Refuse an output directory that holds something else.

        Raises:
            UserError: it does, it holds an earlier agent and may not be overwritten, or it cannot be written.
        """
        check_replaceable(self.directory, self.request.overwrite, AGENT_FILE)
        check_writable(self.directory)

    def remove_checkpoint(self) -> None:
        """Remove the state of a run that is finished; one of other settings stays."""
        with suppress(UserError):  # a damaged file is another run's to judge
            if (
                self.checkpoint.is_file()
                and read_checkpoint_header(CheckpointHeader, self.checkpoint).digest == self.digest
            ):
                self.checkpoint.unlink(missing_ok=True)

    def resumes(self) -> bool:
        """Whether to go on from the checkpoint.

        Raises:
            UserError: resuming is required and there is nothing to resume, or what there is has other settings or is
                damaged and may not be overwritten.
        """
        if self.request.resume is False:
            return False
        if not self.checkpoint.is_file():
            if self.request.resume:
                raise UserError(f"there is no interrupted run of {self.directory} to resume: leave out --resume")
            return False
        may_discard = self.request.overwrite and not self.request.resume
        try:
            same = read_checkpoint_header(CheckpointHeader, self.checkpoint).digest == self.digest
        except UserError:
            if not may_discard:
                raise
            return False
        if same or may_discard:
            return same
        raise UserError(
            f"{self.checkpoint} is an interrupted run of other settings: repeat its command to resume it, or add "
            "--overwrite to start over"
        )


def _check_images(config: TOPRLConfig, task: Task, processes: Processes) -> None:
    """Refuse more images than there are, and images of which some update would leave a process without any."""
    available = task.image_count("train")
    if available is not None and config.images + config.validation_images > available:
        raise UserError(
            f"{config.images} images to train on and {config.validation_images} others to validate on are needed, but "
            f"{task.name} has {available} in its train split: train on fewer with --limit"
        )
    batch = config.images_per_update * processes.count
    fewest = config.images % batch or batch
    if fewest < processes.count:
        raise UserError(
            f"{config.images} images in batches of {batch} leave {fewest} for the last, which cannot be divided among "
            f"{processes.count} processes: make images a multiple of {batch}, or start fewer processes"
        )


def package_version(distribution: str) -> str:
    """The installed version, or "unknown" in a source tree that is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _fast_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the processor multiplies it natively, else float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    features = torch.cpu.get_capabilities()
    return "bfloat16" if features.get("avx512_bf16") or features.get("amx_bf16") else "float32"
