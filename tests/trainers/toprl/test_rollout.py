"""Quality and weights of episodes, by hand."""

from __future__ import annotations

import torch

from toprl_export.models.walk import TokenTensors
from toprl_trainers.toprl.data import ImageBlock
from toprl_trainers.toprl.questions import GoldAnswers
from toprl_trainers.toprl.rollout import episode_quality

NOTHING = torch.zeros(0)


def block(full_right: list[bool], full: list[float], image_of_question: list[int]) -> ImageBlock:
    gold = GoldAnswers(NOTHING, NOTHING, NOTHING, NOTHING, torch.tensor(image_of_question), 0)
    tokens = TokenTensors(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    visual = torch.zeros(max(image_of_question) + 1, 1, 1)
    return ImageBlock(visual, tokens, gold, torch.tensor(full).log(), torch.tensor(full_right))


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
