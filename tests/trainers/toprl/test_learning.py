"""The learner learns: it keeps the one patch that holds the answer, and does not when the answer is not rewarded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.tiny_world import TASK, request
from toprl_export.models.reference import Pruning
from toprl_export.models.walk import walk_prefill
from toprl_export.pruning.actor import Actor, Critic
from toprl_export.pruning.baselines.controls import RandomScorer
from toprl_export.pruning.scorer import Scorer
from toprl_trainers.toprl.card import correct_answers, validate_agent
from toprl_trainers.toprl.data import BlockSource
from toprl_trainers.toprl.learn import TrainingState, learn
from toprl_trainers.toprl.run import Run
from toprl_trainers.toprl.update import UpdateFigures, ppo_update

IMAGES = 96
SEED = 14


@torch.no_grad()
def evidence_kept(run: Run, scorer: Scorer, source: BlockSource) -> float:
    """Shard of the images whose coloured patch survives the first stage."""
    hits, pruning = 0, Pruning(run.plan.stage_layers, run.trained.keep_counts, scorer)
    for number, block in enumerate(source):
        decoder = run.request.adapter.decoder
        kept = walk_prefill(decoder, block.tokens, block.visual, pruning.stage_layers, pruning.decide).kept[0]
        for row, chosen in enumerate(kept.tolist()):
            evidence = TASK.question_group("train", 5, number * 16 + row).evidence
            hits += int(evidence.flatten().nonzero()[0][0]) in chosen
    return hits / IMAGES


def trained(weights: Path, folder: Path, quality_weight: float, updates: int = 32) -> tuple[Run, TrainingState]:
    run = Run.of(request(weights, folder, updates=updates, quality_weight=quality_weight, seed=SEED))
    state = TrainingState.fresh(run.actor_config, run.config.learning_rate, SEED, run.request.adapter.device)
    blocks = BlockSource(run.request.adapter, TASK, SEED, 0, run.config.images, run.config.images_per_update)
    learn(run, state, blocks)
    return run, state


@pytest.mark.slow
def test_learning_beats_random_and_needs_the_reward(weights: Path, tmp_path: Path):
    run, state = trained(weights, tmp_path / "real", quality_weight=1.0)
    source = BlockSource(run.request.adapter, TASK, 5, 0, IMAGES, 16)
    learned, random = evidence_kept(run, state.actor, source), evidence_kept(run, RandomScorer(0), source)
    assert learned > 0.75
    assert random < 0.45
    blind = evidence_kept(run, trained(weights, tmp_path / "blind", quality_weight=0.0)[1].actor, source)
    assert blind < learned - 0.25
    (figures,) = validate_agent(run.request.adapter, list(source), run.plan, state.actor, 0)
    assert figures.questions == 2 * IMAGES
    assert figures.agent > figures.random + 0.15
    assert figures.retention == pytest.approx(figures.agent / figures.full)


def test_the_learning_rate_falls_with_the_temperature(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rates: list[float] = []

    def noting(actor: Actor, critic: Critic, optimizer: torch.optim.Adam, *rest: Any) -> UpdateFigures:
        rates.append(optimizer.param_groups[0]["lr"])
        return ppo_update(actor, critic, optimizer, *rest)

    monkeypatch.setattr("toprl_trainers.toprl.learn.ppo_update", noting)
    run, _ = trained(weights, tmp_path, quality_weight=1.0, updates=3)
    assert rates == pytest.approx([run.config.learning_rate * each for each in (1.0, 0.05**0.5, 0.05)])


def test_unpruned_scores_are_those_of_keeping_everything(weights: Path, tmp_path: Path):
    run = Run.of(request(weights, tmp_path))
    source = BlockSource(run.request.adapter, TASK, 5, 0, 16, 8)
    everything = Pruning((0, 2), (25, 25), RandomScorer(0))
    correct = correct_answers(run.request.adapter, source, everything)
    assert correct == torch.cat([block.full_correct for block in source]).tolist()
    assert sum(correct) > 24  # of 32: the fitted head does the task
