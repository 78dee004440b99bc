"""TOP-RL behind the `toprl_export.trainer.Trainer` protocol: from a request to an agent's directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from toprl_export.agent import AGENT_FILE, Agent, AgentRecord, TrainingRecord, save_agent
from toprl_export.errors import require
from toprl_export.files import staged_directory, write_bytes_atomic, write_json_atomic, write_text_atomic
from toprl_export.trainer import TrainOutcome, TrainRequest
from toprl_trainers.toprl.card import card_markdown
from toprl_trainers.toprl.curves import curves_csv, curves_png
from toprl_trainers.toprl.data import BlockSource
from toprl_trainers.toprl.evaluate import BudgetFigures, validate_agent
from toprl_trainers.toprl.learn import learn
from toprl_trainers.toprl.run import METHOD, RUN_FILE, Run, package_version
from toprl_trainers.toprl.state import TrainingState, read_header

RECORDED_PACKAGES = ("toprl-export", "torch", "transformers", "numpy")


class TOPRLTrainer:
    """Task-optimised progressive pruning inside the decoder, by PPO (Wang et al., TOP-RL)."""

    def train(self, request: TrainRequest) -> TrainOutcome:
        """Train, or go on training, and write the agent; see `toprl_export.trainer.Trainer.train`."""
        run = Run.of(request)
        if run.finished():
            return TrainOutcome(
                "up-to-date", run.directory, f"{run.directory} is up to date: it holds the agent of these settings"
            )
        run.check_output()
        require("matplotlib", "train")  # draws the curves in the end: better missed now than after hours
        resumes = run.resumes()
        if request.dry_run:
            return TrainOutcome("dry-run", run.directory, describe(run, resumes))
        threads = read_header(run.checkpoint).whole("threads") if resumes and not request.threads else request.threads
        with cpu_threads(threads):
            state = _state(run, resumes)
            learn(run, state, _blocks(run, 0, run.config.images, run.config.precision))
            figures = validate_agent(
                request.adapter,
                list(_blocks(run, run.config.images, run.config.validation_images, "float32")),
                run.plan,
                state.actor,
                request.seed,
            )
        write_agent(run, state, figures)
        run.checkpoint.unlink(missing_ok=True)
        return TrainOutcome("trained", run.directory, summary(run, state, figures))


def _state(run: Run, resumes: bool) -> TrainingState:
    state = TrainingState.fresh(
        run.actor_config, run.config.learning_rate, run.request.seed, run.request.adapter.device
    )
    if resumes:
        state.load(run.checkpoint)
    return state


def _blocks(run: Run, first: int, images: int, precision: str) -> BlockSource:
    request, per_block = run.request, run.config.images_per_update
    return BlockSource(request.adapter, request.task, request.seed, first, images, per_block, precision)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` CPU threads inside the block; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_agent(run: Run, state: TrainingState, figures: Sequence[BudgetFigures]) -> None:
    """Write the agent's directory, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    record = _record(run, state)
    stages = len(run.plan.stages)
    with staged_directory(run.directory, run.request.overwrite, AGENT_FILE) as staging:
        write_json_atomic(staging / RUN_FILE, run.to_json())
        write_text_atomic(staging / "card.md", card_markdown(record, run.config, figures))
        write_text_atomic(staging / "curves.csv", curves_csv(state.curves, stages))
        write_bytes_atomic(staging / "curves.png", curves_png(state.curves, stages, f"TOP-RL on {record.task}"))
        save_agent(staging, Agent(record, state.actor), state.critic.state_dict())


def _record(run: Run, state: TrainingState) -> AgentRecord:
    request, config = run.request, run.config
    return AgentRecord(
        task=request.task.name,
        method=METHOD,
        model_id=request.adapter.model_id,
        model_fingerprint=request.adapter.fingerprint,
        plan=run.plan,
        actor=run.actor_config,
        seed=request.seed,
        training=TrainingRecord(
            recipe=run.recipe.name,
            trained_budget_kept=run.trained.budget_kept,
            updates=state.update,
            rollouts=state.update * config.images_per_update * config.rollouts_per_image,
            seconds=round(state.seconds, 1),
            command=request.command,
            versions={name: package_version(name) for name in RECORDED_PACKAGES},
        ),
    )


def describe(run: Run, resumes: bool) -> str:
    """What a run would do, for people."""
    request, config = run.request, run.config
    stages = ", ".join(str(stage.site) for stage in run.plan.stages)
    budgets = "; ".join(f"{each.budget_kept} kept: {each.keep_counts}" for each in run.plan.schedules)
    return (
        f"would {'resume' if resumes else 'train'} {METHOD} for {request.task.name} on {request.adapter.model_id}: "
        f"{config.updates} updates of {config.images_per_update} images × {config.rollouts_per_image} rollouts\n"
        f"stages before {stages}; {budgets}; rollouts aim at {run.trained.budget_kept}: {run.trained.keep_counts}\n"
        f"into {run.directory}"
    )


def summary(run: Run, state: TrainingState, figures: Sequence[BudgetFigures]) -> str:
    """What came out, for people."""
    lines = [
        f"{each.budget_kept} of {run.plan.visual_tokens} tokens kept: {each.agent:.1%} right, "
        f"unpruned {each.full:.1%}, random pruning {each.random:.1%} ({each.questions} validation questions)"
        for each in figures
    ]
    return "\n".join([f"trained {run.request.task.name} in {state.seconds:.0f} s: {run.directory}", *lines])
