"""Training curves: a row of figures per update, as progress line, CSV and picture, and the budget they settle on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from toprl_export.pruning.plan import PruningPlan
from toprl_export.pruning.schedule import Schedule, average_kept
from toprl_trainers.rl.gae import explained_variance
from toprl_trainers.toprl.update import Rollouts, UpdateFigures

FINAL_SHARE = 0.1
"""The last part of training, whose mean keep counts are what the policy settled on."""


def curve_columns(stages: int) -> Sequence[str]:
    """Names of the figures in a row of the curves."""
    kept = [f"kept_stage_{stage + 1}" for stage in range(stages)]
    return (
        "update", "temperature", "reward", "quality", *kept, "entropy", "explained_variance", "kl", "clipped",
        "policy_loss", "value_loss",
    )  # fmt: skip


def curve_row(
    update: int, temperature: float, rollouts: Rollouts, figures: UpdateFigures, assignment: str
) -> list[float]:
    """An update's figures in the order of `curve_columns`.

    Args:
        update: its number, from 0.
        temperature: τ.
        rollouts: what it learned from.
        figures: of its optimizer steps.
        assignment: of the reward; the figure is a stage's mean reward, also where the last stage is paid for all.
    """
    weights = rollouts.weights / rollouts.weights.sum().clamp(min=1e-8)
    rewards = rollouts.rewards.sum(1) if assignment == "terminal" else rollouts.rewards.mean(1)
    kept = rollouts.kept_counts.mean(0).tolist()
    row = [
        float(update + 1),
        temperature,
        float((rewards * weights).sum()),
        float((rollouts.quality * weights).sum()),
        *kept,
        figures.entropy,
        explained_variance(rollouts.values, rollouts.returns, rollouts.weights),
        figures.kl,
        figures.clipped,
        figures.policy_loss,
        figures.value_loss,
    ]
    assert len(row) == len(curve_columns(len(kept)))
    return row


def progress_line(row: Sequence[float], stages: int, rollouts_per_second: float) -> str:
    """What the progress bar shows of a row."""
    figures = dict(zip(curve_columns(stages), row, strict=True))
    kept = "/".join(f"{figures[f'kept_stage_{stage + 1}']:.0f}" for stage in range(stages))
    return (
        f"reward {figures['reward']:.3f} Q {figures['quality']:.3f} kept {kept} entropy {figures['entropy']:.3f} "
        f"EV {figures['explained_variance']:.2f} KL {figures['kl']:.4f} {rollouts_per_second:.0f} rollouts/s"
    )


def curves_csv(curves: Sequence[Sequence[float]], stages: int) -> str:
    """One line per update, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(curve_columns(stages))
    writer.writerows([int(row[0]), *(f"{value:.6g}" for value in row[1:])] for row in curves)
    return text.getvalue()


PANELS: Mapping[str, tuple[str, str]] = {
    "reward": ("reward", "mean reward of a stage"),
    "quality": ("quality of the answers", "Q_p / Q, 1 is unpruned"),
    "kept": ("tokens kept", "visual tokens after the stage"),
    "entropy": ("entropy", "nats per token"),
    "explained_variance": ("explained variance", "of returns, by the critic"),
    "kl": ("KL", "nats, old to new policy"),
}
"""Title and vertical label of each plot."""


def curves_png(curves: Sequence[Sequence[float]], stages: int, title: str, random: float | None = None) -> bytes:
    """Six small plots over the updates: reward, quality, tokens kept, entropy, explained variance, KL.

    Args:
        curves: rows in the order of `curve_columns`, at least one.
        stages: how many.
        title: above them.
        random: the quality of random pruning at the same keep counts, a dashed line to hold the curve against.
    """
    from matplotlib.figure import Figure

    names = curve_columns(stages)
    columns = dict(zip(names, zip(*curves, strict=True), strict=True))
    kept = [name for name in names if name.startswith("kept_stage_")]
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    figure.suptitle(title)
    for axes, (panel, (heading, label)) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for name in kept if panel == "kept" else [panel]:
            axes.plot(columns["update"], columns[name], linewidth=1, label=name.replace("_", " "))
        if panel == "quality" and random is not None:
            axes.axhline(random, color="grey", linestyle="--", linewidth=1, label="random pruning")
        axes.set_title(heading, fontsize=9)
        axes.set_xlabel("update", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=8)
        if len(axes.get_lines()) > 1:
            axes.legend(fontsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def with_learned_budget(plan: PruningPlan, curves: Sequence[Sequence[float]]) -> PruningPlan:
    """``plan`` with one more schedule: the policy's own mean keep counts over the last tenth of its updates.

    This is for policies whose keep counts the reward decides, not a schedule. The budget's name is their average over
    all layers, rounded up. A plan that has a budget of that name stays as it is.

    Args:
        plan: the requested budgets.
        curves: rows in the order of `curve_columns`, at least one.
    """
    stages = len(plan.stages)
    last = curves[-max(1, round(FINAL_SHARE * len(curves))) :]
    first_column = list(curve_columns(stages)).index("kept_stage_1")
    means = [sum(row[first_column + stage] for row in last) / len(last) for stage in range(stages)]
    counts = tuple(max(1, round(mean)) for mean in means)
    average = average_kept(plan.visual_tokens, plan.decoder_layers, plan.stage_layers, counts)
    found = Schedule(math.ceil(average), counts, average)
    if any(schedule.budget_kept == found.budget_kept for schedule in plan.schedules):
        return plan
    schedules = sorted((*plan.schedules, found), key=lambda schedule: schedule.budget_kept)
    return replace(plan, schedules=tuple(schedules))
