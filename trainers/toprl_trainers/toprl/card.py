"""The page that says what an agent is, how it was made and how well it did while training."""

from __future__ import annotations

from collections.abc import Sequence

from toprl_export.agent import AgentRecord
from toprl_export.tasks.metrics import wilson_interval
from toprl_trainers.toprl.config import TOPRLConfig
from toprl_trainers.toprl.evaluate import BudgetFigures


def card_markdown(record: AgentRecord, config: TOPRLConfig, figures: Sequence[BudgetFigures]) -> str:
    """The card as Markdown.

    Args:
        record: the agent's.
        config: the recipe's settings.
        figures: of every budget in the plan, on validation questions.
    """
    training = record.training
    sites = ", ".join(str(stage.site) for stage in record.plan.stages)
    lines = [
        f"# TOP-RL agent for {record.task}",
        "",
        f"Scores the {record.plan.visual_tokens} visual tokens of an image for the model `{record.model_id}` "
        f"(weights {record.model_fingerprint[:12]}) and keeps the best, before {sites} of "
        f"{record.plan.decoder_layers} decoder layers. Trained for the task `{record.task}`; another task or model "
        "needs another agent.",
        "",
        "## Validation",
        "",
        f"{figures[0].questions} questions about images of the train split that were not trained on; 95% intervals. An "
        "answer is right if greedy decoding gives exactly the gold answer. The held-out split was not looked at: "
        "`toprl-export validate` measures there.",
        "",
        "| budget kept | kept per stage | unpruned | agent | random pruning | retention |",
        "|---|---|---|---|---|---|",
        *map(_line, figures),
        "",
        "## Training",
        "",
        f"- {training.updates} PPO updates, {training.rollouts:,} rollouts, {training.seconds:.0f} s "
        f"({training.rollouts / max(training.seconds, 0.1):.1f} rollouts a second); recipe "
        f"`{training.recipe}`, {_aim(record, config)}, seed {record.seed}",
        f"- γ {config.discount:g}, λ {config.trace:g}, τ {config.temperature_start:g} to {config.temperature_end:g}, "
        f"reward: {config.reward.quality} quality × {config.reward.quality_weight:g}, cost × "
        f"{config.reward.cost_weight:g} (η {config.reward.cost_decay:g}), budget × {config.reward.budget_weight:g}, "
        f"paid {'at every stage' if config.reward.assignment == 'every-stage' else 'at the last stage'}",
        f"- actor and critic {record.actor.input_size} → {record.actor.hidden_size}, {_sight(record)}; rollouts in "
        f"{config.precision}",
        f"- {_start(config)}",
        f"- command: `{training.command}`",
        f"- versions: {', '.join(f'{name} {found}' for name, found in training.versions.items())}",
        "",
        "![training curves](curves.png)",
        "",
    ]
    return "\n".join(lines)


def _aim(record: AgentRecord, config: TOPRLConfig) -> str:
    counted = f"{record.training.trained_budget_kept} tokens kept, each stage {config.decay:g} of the one before"
    if config.threshold == "initial":
        return f"started at {counted}, from where the reward decided"
    return f"aimed at {counted}"


def _sight(record: AgentRecord) -> str:
    sees = "and the question's states" if record.actor.condition == "text" else "alone"
    residual = record.actor.residual
    adds = ""
    if residual != "none":
        adds = f"; the actor's score is added to the question's attention, as {residual} reads it"
    return f"which see the visual tokens {sees} (condition {record.actor.condition}){adds}"


def _start(config: TOPRLConfig) -> str:
    if config.warm_start is None:
        return "started from scratch"
    return f"started by imitating {config.warm_start.baseline} for {config.warm_start.updates} batches"


def _line(figures: BudgetFigures) -> str:
    counts = " / ".join(map(str, figures.keep_counts))
    shares = " | ".join(_share(share, figures.questions) for share in (figures.full, figures.agent, figures.random))
    return f"| {figures.budget_kept} | {counts} | {shares} | {figures.retention:.1%} |"


def _share(share: float, questions: int) -> str:
    low, high = wilson_interval(round(share * questions), questions)
    return f"{share:.1%} ({low:.1%}–{high:.1%})"
