"""The agent's card: what it is, how it was made, and how well it retains answers on images it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from toprl_export.agent import AgentRecord
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import Pruning
from toprl_export.models.walk import walk_prefill
from toprl_export.pruning.baselines.controls import RandomScorer
from toprl_export.pruning.plan import PruningPlan
from toprl_export.pruning.scorer import Scorer
from toprl_export.tasks.metrics import wilson_interval
from toprl_trainers.toprl.config import GRADIENT, TOPRLConfig
from toprl_trainers.toprl.data import ImageBlock, looks_at_question
from toprl_trainers.toprl.update import episode_quality


@dataclass(frozen=True)
class BudgetFigures:
    """Accuracy (exact match) at one budget: unpruned (``full``), pruned by the agent, pruned at random."""

    budget_kept: int
    keep_counts: tuple[int, ...]
    questions: int
    full: float
    agent: float
    random: float

    @property
    def retention(self) -> float:
        """The agent's accuracy over the unpruned model's; 0 where that is 0."""
        return self.agent / self.full if self.full else 0.0


def validate_agent(
    adapter: LVLMAdapter, blocks: Sequence[ImageBlock], plan: PruningPlan, actor: Scorer, seed: int
) -> tuple[BudgetFigures, ...]:
    """The figures of every budget of ``plan``, on the questions of ``blocks``, by deterministic top-k selection."""
    full = torch.cat([block.full_correct for block in blocks])
    found = []
    for schedule in plan.schedules:
        figures = [
            correct_answers(adapter, blocks, Pruning(plan.stage_layers, schedule.keep_counts, scorer))
            for scorer in (actor, RandomScorer(seed))
        ]
        found.append(
            BudgetFigures(
                budget_kept=schedule.budget_kept,
                keep_counts=schedule.keep_counts,
                questions=len(full),
                full=float(full.float().mean()),
                agent=sum(figures[0]) / len(full),
                random=sum(figures[1]) / len(full),
            )
        )
    return tuple(found)


@torch.no_grad()
def correct_answers(adapter: LVLMAdapter, blocks: Iterable[ImageBlock], pruning: Pruning) -> list[bool]:
    """For each question of ``blocks``, whether greedy decoding under ``pruning`` gives exactly the gold answer."""
    correct: list[bool] = []
    needs = pruning.scorer.needs
    for packed in blocks:
        block = packed.every_question(adapter) if looks_at_question(needs) else packed
        prefill = walk_prefill(adapter.decoder, block.tokens, block.visual, pruning.stage_layers, pruning.decide, needs)
        correct += block.gold.score(adapter.decoder, prefill.hidden)[1][:, 0].tolist()
    return correct


@torch.no_grad()
def mean_quality(adapter: LVLMAdapter, blocks: Iterable[ImageBlock], pruning: Pruning, kind: str) -> float:
    """Q_p/Q under a pruning that is blind to the question, as rollouts measure it, averaged over images."""
    qualities, weights = [], []
    for block in blocks:
        prefill = walk_prefill(
            adapter.decoder, block.tokens, block.visual, pruning.stage_layers, pruning.decide, pruning.scorer.needs
        )
        quality, weight = episode_quality(block, *block.gold.score(adapter.decoder, prefill.hidden), kind)
        qualities.append(quality)
        weights.append(weight)
    weight = torch.cat(weights)
    return float((torch.cat(qualities) * weight).sum() / weight.sum().clamp(min=1e-8))


def card_markdown(record: AgentRecord, config: TOPRLConfig, figures: Sequence[BudgetFigures]) -> str:
    """The card as Markdown.

    Args:
        record: the agent's.
        config: the recipe's settings.
        figures: of every budget in the plan, on validation questions.
    """
    training, reward = record.training, config.reward
    sites = ", ".join(str(stage.site) for stage in record.plan.stages)
    lines = [
        f"# TOP-RL agent for {record.task}",
        "",
        f"Scores the {record.plan.visual_tokens} visual tokens of an image for the model `{record.model_id}` "
        f"(weights {record.model_fingerprint[:12]}) and keeps the highest-scoring ones before {sites} of "
        f"{record.plan.decoder_layers} decoder layers. Trained for the task `{record.task}`; another task or model "
        "needs an agent of its own.",
        "",
        "## Validation",
        "",
        f"{figures[0].questions} questions about images of the train split that were not trained on; accuracy with 95% "
        "intervals. An answer is correct if greedy decoding gives exactly the gold answer. The held-out split was not "
        "looked at: `toprl-export validate` measures there.",
        "",
        "| budget kept | kept per stage | unpruned | agent | random pruning | retention |",
        "|---|---|---|---|---|---|",
        *map(_line, figures),
        "",
        "## Training",
        "",
        f"- {training.updates} PPO updates, {training.rollouts:,} rollouts, {training.seconds:.0f} s "
        f"({training.rollouts / max(training.seconds, 0.1):.1f} rollouts per second); recipe "
        f"`{training.recipe}`, {_aim(record, config)}, seed {record.seed}",
        f"- γ {config.discount:g}, λ {config.gae_lambda:g}, τ {config.temperature_start:g} to "
        f"{config.temperature_end:g}, reward: {reward.quality} quality × {reward.quality_weight:g}, "
        f"cost × {reward.cost_weight:g} (η {reward.cost_decay:g}), budget × {reward.budget_weight:g}, "
        f"paid {'at every stage' if reward.assignment == 'every-stage' else 'at the last stage'}",
        f"- actor and critic {record.actor.input_size} → {record.actor.hidden_size}, {_inputs(record)}; rollouts in "
        f"{config.precision}",
        f"- {_start(config)}",
        f"- command: `{training.command}`",
        f"- versions: {', '.join(f'{name} {found}' for name, found in training.versions.items())}",
        "",
        *(["![training curves](curves.png)", ""] if training.updates else []),
    ]
    return "\n".join(lines)


def _aim(record: AgentRecord, config: TOPRLConfig) -> str:
    schedule = f"{record.training.trained_budget_kept} tokens kept, keep counts × {config.decay:g} from stage to stage"
    if config.threshold == "initial":
        return f"started at {schedule}; from there the reward decided"
    return f"aimed at {schedule}"


def _inputs(record: AgentRecord) -> str:
    sees = "and the question's states" if record.actor.condition == "text" else "alone"
    residual = record.actor.residual
    adds = ""
    if residual != "none":
        adds = f"; the actor's score is added to the question's attention, as {residual} reads it"
    return f"which see the visual tokens {sees} (condition {record.actor.condition}){adds}"


def _start(config: TOPRLConfig) -> str:
    if config.warm_start is None:
        return "started from scratch"
    start = "trained without PPO, by" if config.updates == 0 else "started by"
    teacher = config.warm_start.baseline
    whom = "the gradient of the gold answers" if teacher == GRADIENT else teacher
    return f"{start} imitating {whom} for {config.warm_start.updates} batches"


def _line(figures: BudgetFigures) -> str:
    counts = " / ".join(map(str, figures.keep_counts))
    shares = " | ".join(_share(share, figures.questions) for share in (figures.full, figures.agent, figures.random))
    return f"| {figures.budget_kept} | {counts} | {shares} | {figures.retention:.1%} |"


def _share(share: float, questions: int) -> str:
    low, high = wilson_interval(round(share * questions), questions)
    return f"{share:.1%} ({low:.1%}–{high:.1%})"
