"""TOP-RL behind the `toprl_export.trainer.Trainer` protocol: from a request to an agent's directory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from toprl_export.agent import AGENT_FILE, Agent, AgentRecord, TrainingRecord, save_agent
from toprl_export.errors import require
from toprl_export.evaluation.machine import torch_threads
from toprl_export.fields import to_json
from toprl_export.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from toprl_export.models.reference import Pruning
from toprl_export.places import staged_directory, taken
from toprl_export.pruning.baselines.controls import RandomScorer
from toprl_export.trainer import TrainOutcome, TrainRequest
from toprl_trainers.rl.checkpoint import read_checkpoint_header
from toprl_trainers.rl.processes import SINGLE_PROCESS, Processes, launched_processes
from toprl_trainers.toprl.card import BudgetFigures, card_markdown, mean_quality, validate_agent
from toprl_trainers.toprl.curves import curves_csv, curves_png
from toprl_trainers.toprl.data import BlockSource
from toprl_trainers.toprl.learn import TrainingState, learn
from toprl_trainers.toprl.run import METHOD, RUN_FILE, CheckpointHeader, Run, package_version

RECORDED_PACKAGES = ("toprl-export", "torch", "transformers", "numpy")


class TOPRLTrainer:
    """Task-optimised progressive pruning inside the decoder, by PPO (Wang et al., TOP-RL).

    Args:
        processes: those that train one agent; None joins the processes of a launch, which must come before the model is
            loaded, because it gives each process its own GPU.
    """

    def __init__(self, processes: Processes | None = None) -> None:
        self._processes = launched_processes() if processes is None else processes

    def train(self, request: TrainRequest) -> TrainOutcome:
        """Train, or go on training, and write the agent; see `toprl_export.trainer.Trainer.train`.

        Of several processes the main one writes, and is the only one whose outcome has a summary.
        """
        processes = self._processes
        with processes.collective_errors():
            processes.check_device(request.adapter.device)
            run = Run.of(request, processes)
        with ExitStack() as stack:
            with processes.collective_errors():
                if processes.main and not request.dry_run:  # of several processes only the main one writes
                    stack.enter_context(taken(run.directory))
                resumes, outcome = _prepared(run)
            return self._trained(run, resumes, outcome)

    def _trained(self, run: Run, resumes: bool, outcome: TrainOutcome | None) -> TrainOutcome:
        processes = self._processes
        status = outcome.status if outcome else "resume" if resumes else "fresh"
        processes.check_same("settings or earlier results", f"{run.digest} {status}")
        if outcome is None:
            outcome = _train(run, resumes)
        return outcome if processes.main else replace(outcome, summary="")


def _prepared(run: Run) -> tuple[bool, TrainOutcome | None]:
    """Whether to resume, and the outcome where nothing is to be trained."""
    if run.finished():
        if run.processes.main and not run.request.dry_run:
            run.remove_checkpoint()  # of a run that was killed after the agent was written
        summary = f"{run.directory} is up to date: it holds the agent of these settings"
        return False, TrainOutcome("up-to-date", run.directory, summary)
    run.check_output()
    require("matplotlib", "train")  # draws the curves at the end: better missed now than after hours
    resumes = run.resumes()
    if run.request.dry_run:
        return resumes, TrainOutcome("dry-run", run.directory, describe_run(run, resumes))
    return resumes, None


def _train(run: Run, resumes: bool) -> TrainOutcome:
    processes, threads = run.processes, run.request.threads
    if resumes and not threads:
        threads = read_checkpoint_header(CheckpointHeader, run.checkpoint).threads
    with torch_threads(threads):
        with processes.collective_errors():
            state = _state(run, resumes)
        processes.check_same("checkpoint", state.update)
        learn(run, state, _blocks(run, 0, run.config.images, run.config.precision, processes))
        with processes.collective_errors():
            summary = _finish(run, state) if processes.main else ""
    return TrainOutcome("trained", run.directory, summary)


def _finish(run: Run, state: TrainingState) -> str:
    """Validate the agent, write it in place of the checkpoint, and summarise."""
    adapter, seed = run.request.adapter, run.request.seed
    blocks = list(_blocks(run, run.config.images, run.config.validation_images, "float32"))
    figures = validate_agent(adapter, blocks, run.final_plan(state.curves), state.actor, seed)
    random = None
    if state.curves:
        pruning = Pruning(run.plan.stage_layers, run.trained.keep_counts, RandomScorer(seed))
        random = mean_quality(adapter, blocks, pruning, run.config.reward.quality)
    write_agent(run, state, figures, random)
    run.checkpoint.unlink(missing_ok=True)
    return describe_agent(run, state, figures)


def _state(run: Run, resumes: bool) -> TrainingState:
    state = TrainingState.fresh(
        run.actor_config, run.config.learning_rate, run.request.seed, run.request.adapter.device
    )
    if resumes:
        state.load(run.checkpoint)
    return state


def _blocks(run: Run, first: int, images: int, precision: str, processes: Processes = SINGLE_PROCESS) -> BlockSource:
    request, per_block = run.request, processes.count * run.config.images_per_update
    return BlockSource(request.adapter, request.task, request.seed, first, images, per_block, precision, processes)


def write_agent(run: Run, state: TrainingState, figures: Sequence[BudgetFigures], random: float | None = None) -> None:
    """Write the agent's directory, whole or not at all.

    Args:
        run: settings and plan.
        state: the trained networks and their curves.
        figures: for the card.
        random: the quality of random pruning at the keep counts trained for, a line in the curves.

    Raises:
        UserError: it cannot be written.
    """
    record = _record(run, state)
    stages = len(run.plan.stages)
    with staged_directory(run.directory, run.request.overwrite, AGENT_FILE) as staging:
        write_json_atomic(staging / RUN_FILE, to_json(run.record))
        write_text_atomic(staging / "card.md", card_markdown(record, run.config, figures))
        if state.curves:  # imitation alone has none
            picture = curves_png(state.curves, stages, f"TOP-RL on {record.task}", random)
            write_text_atomic(staging / "curves.csv", curves_csv(state.curves, stages))
            write_bytes_atomic(staging / "curves.png", picture)
        save_agent(staging, Agent(record, state.actor), state.critic.state_dict())


def _record(run: Run, state: TrainingState) -> AgentRecord:
    request = run.request
    return AgentRecord(
        task=request.task.name,
        method=METHOD,
        model_id=request.adapter.model_id,
        model_fingerprint=request.adapter.fingerprint,
        plan=run.final_plan(state.curves),
        actor=run.actor_config,
        seed=request.seed,
        training=TrainingRecord(
            recipe=run.recipe.name,
            trained_budget_kept=run.trained.budget_kept,
            updates=state.update,
            rollouts=run.rollouts(state.update),
            seconds=round(state.seconds, 1),
            command=request.command,
            versions={name: package_version(name) for name in RECORDED_PACKAGES},
        ),
    )


def describe_run(run: Run, resumes: bool) -> str:
    """What a run would do, as lines for people."""
    request, config = run.request, run.config
    stages = ", ".join(str(stage.site) for stage in run.plan.stages)
    budgets = "; ".join(f"{each.budget_kept} kept: {each.keep_counts}" for each in run.plan.schedules)
    return (
        f"would {'resume' if resumes else 'train'} {METHOD} for {request.task.name} on {request.adapter.model_id}: "
        f"{config.updates} updates of {run.images_per_update} images × {config.rollouts_per_image} rollouts\n"
        f"stages before {stages}; {budgets}; rollouts aim at {run.trained.budget_kept}: {run.trained.keep_counts}\n"
        f"into {run.directory}"
    )


def describe_agent(run: Run, state: TrainingState, figures: Sequence[BudgetFigures]) -> str:
    """What the run trained, as lines for people."""
    lines = [
        f"{each.budget_kept} of {run.plan.visual_tokens} tokens kept: {each.agent:.1%} correct, "
        f"unpruned {each.full:.1%}, random pruning {each.random:.1%} ({each.questions} validation questions)"
        for each in figures
    ]
    return "\n".join([f"trained {run.request.task.name} in {state.seconds:.0f} s: {run.directory}", *lines])
