"""Quality and weights of episodes, by hand, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainers.tiny_world import TASK, load_adapter, request
from toprl_export.errors import UserError
from toprl_export.models.walk import TokenTensors
from toprl_export.pruning.actor import Actor, Critic
from toprl_trainers.rl.reward import RewardConfig
from toprl_trainers.toprl.data import BlockSource, GoldAnswers, ImageBlock
from toprl_trainers.toprl.run import Run
from toprl_trainers.toprl.update import ImageDraws, SamplingPolicy, collect, episode_quality

NO_NEEDS = torch.zeros(0)


def block(full_correct: list[bool], full: list[float], image_of_question: list[int]) -> ImageBlock:
    gold = GoldAnswers(NO_NEEDS, NO_NEEDS, NO_NEEDS, NO_NEEDS, torch.tensor(image_of_question), 0, (2,))
    tokens = TokenTensors(NO_NEEDS, NO_NEEDS, NO_NEEDS, NO_NEEDS, NO_NEEDS)
    visual = torch.zeros(max(image_of_question) + 1, 1, 1)
    return ImageBlock(visual, tokens, gold, torch.tensor(full).log(), torch.tensor(full_correct))


IMAGES = block([True, True, False, False], [0.8, 0.5, 0.9, 0.1], [0, 0, 1, 2])
PRUNED = torch.tensor([[0.4, 0.8], [0.5, 0.1], [0.9, 0.9], [0.2, 0.2]]).log()
RIGHT = torch.tensor([[False, True], [True, True], [True, True], [True, False]])


def test_dense_quality_is_the_mean_over_the_questions_the_model_can_do():
    quality, weights = episode_quality(IMAGES, PRUNED, RIGHT, "dense")
    torch.testing.assert_close(quality[:2], torch.tensor([(0.5 + 1) / 2, (1 + 0.2) / 2]))
    assert weights.tolist() == [1, 1, 0, 0, 0, 0]  # what the unpruned model gets wrong has no weight


def test_binary_quality():
    quality, _ = episode_quality(IMAGES, PRUNED, RIGHT, "binary")
    assert quality[:2].tolist() == [0.5, 1]


def test_an_image_weighs_as_much_as_the_share_of_its_questions_that_count():
    half = block([True, False], [0.8, 0.5], [0, 0])
    quality, weights = episode_quality(half, PRUNED[:2], RIGHT[:2], "dense")
    torch.testing.assert_close(quality, torch.tensor([0.5, 1.0]))
    assert weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("quality", ["dense", "binary"])
def test_nan_probabilities_of_a_pruned_model_are_refused(weights: Path, tmp_path: Path, quality: str):
    """Binary quality alone would not show them: the argmax of NaN logits is a wrong token."""
    run = Run.of(request(weights, tmp_path))
    config = replace(run.config, reward=RewardConfig(quality=quality))
    adapter, actor, critic = load_adapter(weights), Actor(run.actor_config), Critic(run.actor_config)
    block = BlockSource(adapter, TASK, 0, 0, 1, 1)[0]
    adapter.decoder.head.weight.fill_(torch.nan)
    draws = ImageDraws(0, ("test",), range(1), 8, 25)
    policy = SamplingPolicy(actor, run.trained.keep_counts, 1.0, None, 8, draws)
    with pytest.raises(UserError, match=r"^NaN reward: the pruned model tiny gives its answers the probability NaN"):
        collect(adapter, block, policy, critic, run.plan.stage_layers, config)
