"""Rewards against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from toprl_export.errors import UserError
from toprl_trainers.rl.reward import RewardConfig, dense_quality, stage_rewards

QUALITY = torch.tensor([0.8])
KEPT, TARGETS = torch.tensor([[0.5, 0.25]]), torch.tensor([0.4, 0.25])
CONFIG = RewardConfig(cost_decay=0.5, budget_weight=0.25)


def test_equation_5_and_the_budget_term_by_hand():
    rewards = stage_rewards(QUALITY, KEPT, TARGETS, CONFIG)
    # α = (0.5, 1); the first stage is 0.1 above its 0.4, the second on target
    torch.testing.assert_close(rewards, torch.tensor([[0.8 - 0.5 * 0.5 - 0.25 * 0.1 / 0.4, 0.8 - 0.25]]))


def test_three_stages_weigh_the_cost_by_powers_of_eta():
    config = RewardConfig(quality_weight=0, budget_weight=0)
    rewards = stage_rewards(QUALITY, torch.ones(1, 3), torch.ones(3), config)
    torch.testing.assert_close(rewards, -torch.tensor([[0.95**2, 0.95, 1.0]]))


@pytest.mark.parametrize(
    ("off", "expected"),
    [
        ("quality_weight", [-0.25 - 0.0625, -0.25]),
        ("cost_weight", [0.8 - 0.0625, 0.8]),
        ("budget_weight", [0.8 - 0.25, 0.8 - 0.25]),
    ],
)
def test_each_part_can_be_switched_off(off: str, expected: list[float]):
    rewards = stage_rewards(QUALITY, KEPT, TARGETS, replace(CONFIG, **{off: 0.0}))
    torch.testing.assert_close(rewards, torch.tensor([expected]))


def test_terminal_assignment_pays_the_mean_at_the_end():
    dense = stage_rewards(QUALITY, KEPT, TARGETS, CONFIG)
    terminal = stage_rewards(QUALITY, KEPT, TARGETS, replace(CONFIG, assignment="terminal"))
    torch.testing.assert_close(terminal, torch.stack([torch.zeros(1), dense.mean(1)], dim=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(bad: float):
    with pytest.raises(UserError, match="NaN or infinite reward"):
        stage_rewards(torch.tensor([bad]), KEPT, TARGETS, CONFIG)


def test_dense_quality_is_a_ratio_capped_at_one():
    pruned, full = torch.tensor([0.2, 0.9]).log(), torch.tensor([0.8, 0.6]).log()
    torch.testing.assert_close(dense_quality(pruned, full), torch.tensor([0.25, 1.0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"quality": "bleu"},
        {"assignment": "never"},
        {"cost_weight": -1.0},
        {"budget_weight": math.nan},
        {"cost_decay": 0.0},
        {"quality_weight": "high"},
        {"cost_weight": True},
        {"budget_weight": math.inf},
        {"cost_decay": None},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]):
    with pytest.raises(UserError, match=next(iter(wrong))):
        RewardConfig(**wrong)


def test_a_reward_without_any_part_is_refused():
    with pytest.raises(UserError, match="the reward is empty: quality_weight, cost_weight, budget_weight are"):
        RewardConfig(quality_weight=0, cost_weight=0, budget_weight=0)


def test_an_eta_of_1_switches_the_scaling_over_stages_off():
    config = RewardConfig(quality_weight=0, budget_weight=0, cost_decay=1)
    rewards = stage_rewards(QUALITY, torch.tensor([[0.5, 0.5, 0.2]]), torch.ones(3), config)
    torch.testing.assert_close(rewards, -torch.tensor([[0.5, 0.5, 0.2]]))
