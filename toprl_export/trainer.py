"""Training an agent: a learner's request and outcome, and the public `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from toprl_export.cores import check_parallel
from toprl_export.errors import UserError, require
from toprl_export.fields import check_types
from toprl_export.registry import Registry

if TYPE_CHECKING:
    from toprl_export.models.adapter import LVLMAdapter
    from toprl_export.tasks.task import Task

DEFAULT_METHOD = "toprl"
DEFAULT_BUDGETS_KEPT = (192, 64)


@dataclass(frozen=True)
class TrainRequest:
    """One training run.

    Attributes:
        adapter: the frozen reference model.
        task: what to train for.
        budgets_kept: average visual tokens kept, one schedule each in the agent's plan; rollouts aim at the first,
            unless the recipe sets another.
        output_dir: the agent's directory, written whole or not at all.
        seed: of everything random.
        recipe: a recipe's name or the path of a YAML file; None for the method's own.
        updates: overrides the recipe's number of updates.
        images: overrides the recipe's number of training images.
        condition: overrides whether the recipe shows the policy the question ("text") or not ("none").
        threads: CPU threads; None for torch's choice, or for those of the run that is resumed.
        resume: True requires an interrupted run, False starts over, None resumes one of the same settings if any.
        overwrite: replace an earlier agent, and discard an interrupted run of other settings.
        dry_run: check and describe what would be done, write nothing.
        command: the command line, for the agent's record.
    """

    adapter: LVLMAdapter
    task: Task
    budgets_kept: tuple[int, ...]
    output_dir: Path
    seed: int = 0
    recipe: str | None = None
    updates: int | None = None
    images: int | None = None
    condition: Literal["none", "text"] | None = None
    threads: int | None = None
    resume: bool | None = None
    overwrite: bool = False
    dry_run: bool = False
    command: str = "python"

    def __post_init__(self) -> None:
        """Refuse budgets that are missing or repeated, and more threads than the machine takes."""
        check_parallel("threads", self.threads)
        if not self.budgets_kept or len(set(self.budgets_kept)) != len(self.budgets_kept):
            listed = ", ".join(map(str, self.budgets_kept)) or "none"
            raise UserError(f"the budgets kept are {listed}, expected at least one, each once: such as 192,64")


@dataclass(frozen=True)
class TrainOutcome:
    """``status``, the agent's directory (for a dry run, where it would be) and ``summary``, lines to be printed."""

    status: Literal["trained", "up-to-date", "dry-run"]
    directory: Path
    summary: str


class Trainer(Protocol):
    """A learner; installed packages register theirs in the entry-point group ``toprl_export.trainers``."""

    def train(self, request: TrainRequest) -> TrainOutcome:
        """Train an agent and write its directory.

        Raises:
            UserError: the recipe, a budget or the output directory is wrong.
        """
        ...


_ARGUMENTS: Mapping[str, Any] = {
    "method": str,
    "recipe": str | None,
    "budgets_kept": Sequence[int],
    "output_dir": str | Path | None,
    "seed": int,
    "updates": int | None,
    "images": int | None,
    "condition": Literal["none", "text"] | None,
    "threads": int | None,
    "device": str,
    "resume": bool | None,
    "overwrite": bool,
    "dry_run": bool,
    "command": str | None,
}
"""Types of `train`'s plain arguments."""

TRAINERS: Registry[type[Trainer]] = Registry("training method", group="toprl_export.trainers")


def train(
    model: str | LVLMAdapter = "mini",
    task: str | Task | None = None,
    method: str = DEFAULT_METHOD,
    recipe: str | None = None,
    budgets_kept: Sequence[int] = DEFAULT_BUDGETS_KEPT,
    output_dir: str | Path | None = None,
    seed: int = 0,
    *,
    updates: int | None = None,
    images: int | None = None,
    condition: Literal["none", "text"] | None = None,
    threads: int | None = None,
    device: str = "auto",
    resume: bool | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    command: str | None = None,
) -> TrainOutcome:
    """Train an agent that prunes ``model`` for ``task``; see `TrainRequest` for details.

    Args:
        model: a name, path or hub id, or an adapter already loaded.
        task: its name, or a task of your own; None for the first one.
        method: the learner.
        recipe: a recipe's name or file.
        budgets_kept: average visual tokens kept.
        output_dir: None for ``agents/TASK``.
        seed: of everything random.
        updates: instead of the recipe's number of PPO updates.
        images: instead of the recipe's number of training images.
        condition: instead of the recipe's.
        threads: CPU threads.
        device: where the model runs: "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one.
        resume: True requires an interrupted run, False starts over, None resumes one of the same settings if any.
        overwrite: replace an earlier agent.
        dry_run: write nothing.
        command: the command line, for the agent's record.

    Raises:
        UserError: a name is unknown, a value impossible, or the output directory holds something else.
        MissingExtraError: an optional package is missing.
    """
    from toprl_export.places import check_writable
    from toprl_export.tasks.registry import TASKS

    check_types("train", _ARGUMENTS, locals())
    check_parallel("threads", threads)
    trainer = TRAINERS.get(method)()
    chosen = TASKS.get(task or TASKS.names()[0]) if task is None or isinstance(task, str) else task
    missing = chosen.missing()
    if missing:
        raise missing
    directory = Path(output_dir) if output_dir is not None else Path("agents") / chosen.name
    check_writable(directory)  # before a model is loaded, which may take minutes
    return trainer.train(
        TrainRequest(
            adapter=_load(model, device) if isinstance(model, str) else model,
            task=chosen,
            budgets_kept=tuple(budgets_kept),
            output_dir=directory,
            seed=seed,
            recipe=recipe,
            updates=updates,
            images=images,
            condition=condition,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            dry_run=dry_run,
            command=command or "python",
        )
    )


def _load(model: str, device: str) -> LVLMAdapter:
    torch = require("torch", "train")
    from toprl_export.models.load import load_model

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(model, device=device)
