"""The recipe ``toprl-paper`` against three rollouts worked by hand, from rewards to the losses of PPO."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.tiny_world import TASK, load_adapter
from toprl_export.models.walk import Decision
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_trainers.recipes import load_recipe
from toprl_trainers.rl.gae import advantages_and_returns, normalised_per_stage
from toprl_trainers.rl.gumbel import log_probability, temperature_at
from toprl_trainers.rl.reward import stage_rewards
from toprl_trainers.toprl.config import TOPRLConfig
from toprl_trainers.toprl.data import BlockSource
from toprl_trainers.toprl.update import Rollouts, StageRecord, UpdateFigures, collect, compacted, ppo_update

PAPER = TOPRLConfig.from_mapping(load_recipe("toprl-paper", "toprl", "mini-count").settings)

# Rollouts A, B, C of one image over T = 3 stages. A and C answer correctly, B does not; L_t/L after each stage:
QUALITY = torch.tensor([1.0, 0.0, 1.0])
KEPT = torch.tensor([[0.75, 0.5, 0.25], [0.5, 0.25, 0.25], [1.0, 0.5, 0.5]])
VALUES = torch.tensor([[0.5, 0.5, 0.5], [0.2, 0.1, 0.0], [0.5, 0.5, 0.5]])

# α = (0.95², 0.95, 1) = (0.9025, 0.95, 1)
REWARDS = [
    [1 - 0.676875, 1 - 0.475, 1 - 0.25],
    [-0.45125, -0.2375, -0.25],
    [1 - 0.9025, 1 - 0.475, 1 - 0.5],
]

# δ_t = r_t + 0.9 V_{t+1} − V_t and A_t = δ_t + 0.9·0.95 A_{t+1}, from the last stage back:
# A: δ = (0.323125 + 0.45 − 0.5, 0.525 + 0.45 − 0.5, 0.75 − 0.5) = (0.273125, 0.475, 0.25)
# B: δ = (−0.45125 + 0.09 − 0.2, −0.2375 − 0.1, −0.25)           = (−0.56125, −0.3375, −0.25)
# C: δ = (0.0975 + 0.45 − 0.5, 0.525 + 0.45 − 0.5, 0.5 − 0.5)    = (0.0475, 0.475, 0)
ADVANTAGES = [
    [0.273125 + 0.855 * 0.68875, 0.68875, 0.25],  # 0.68875 = 0.475 + 0.855 · 0.25
    [-0.56125 - 0.855 * 0.55125, -0.55125, -0.25],  # 0.55125 = 0.3375 + 0.855 · 0.25
    [0.0475 + 0.855 * 0.475, 0.475, 0.0],
]
RETURNS = [[1.36200625, 1.18875, 0.75], [-0.83256875, -0.45125, -0.25], [0.953625, 0.975, 0.5]]  # A_t + V_t


def test_the_recipe_says_what_the_paper_says():
    assert (PAPER.discount, PAPER.reward.cost_decay) == (0.9, 0.95)
    assert (PAPER.reward.quality_weight, PAPER.reward.cost_weight, PAPER.reward.budget_weight) == (1, 1, 0)
    assert (PAPER.reward.quality, PAPER.reward.assignment) == ("binary", "every-stage")
    assert (PAPER.threshold, PAPER.group_baseline, PAPER.entropy_weight) == ("initial", False, 0)
    assert (PAPER.condition, PAPER.residual, PAPER.warm_start) == ("none", "none", None)
    annealed = [temperature_at(done, PAPER.temperature_start, PAPER.temperature_end) for done in (0, 0.5, 1)]
    assert annealed == pytest.approx([1.0, math.sqrt(0.05), 0.05])


def test_rewards_by_hand():
    rewards = stage_rewards(QUALITY, KEPT, torch.tensor([0.5, 0.3, 0.2]), PAPER.reward)
    torch.testing.assert_close(rewards, torch.tensor(REWARDS))


def test_discounted_returns_by_hand():
    """Eq. 4 is the first stage's advantage for a GAE lambda of 1 and values of 0."""
    rewards = torch.tensor(REWARDS)
    returns, _ = advantages_and_returns(rewards, torch.zeros(3, 3), PAPER.discount, 1.0)
    # 0.323125 + 0.9 · 0.525 + 0.81 · 0.75; −0.45125 − 0.9 · 0.2375 − 0.81 · 0.25; 0.0975 + 0.4725 + 0.405
    torch.testing.assert_close(returns[:, 0], torch.tensor([1.403125, -0.8675, 0.975]))


def test_advantages_and_the_critics_targets_by_hand():
    advantages, returns = advantages_and_returns(torch.tensor(REWARDS), VALUES, PAPER.discount, PAPER.gae_lambda)
    torch.testing.assert_close(advantages, torch.tensor(ADVANTAGES))
    torch.testing.assert_close(returns, torch.tensor(RETURNS))
    # The last stage's (0.25, −0.25, 0) have mean 0 and a variance of 0.125 / 3, the second's (0.68875, −0.55125,
    # 0.475) a mean of 0.2041667 and a variance of 0.2929420.
    normalised = normalised_per_stage(torch.tensor(ADVANTAGES), torch.ones(3))
    last = 0.25 / math.sqrt(0.125 / 3)
    torch.testing.assert_close(normalised[:, 2], torch.tensor([last, -last, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(normalised[:, 1], torch.tensor([0.8953, -1.3956, 0.5004]), atol=1e-3, rtol=0)


def test_log_probabilities_by_hand():
    """A score of 1.5 over a threshold of 0.5 is kept with probability 1 / (1 + e⁻¹) = 0.7310586 at τ = 1."""
    logits = torch.tensor([[1.5, -0.5]]) - 0.5
    kept = torch.tensor([[True, True]])
    torch.testing.assert_close(log_probability(logits, kept, 1.0), torch.tensor([[-0.3132617, -1.3132617]]))
    torch.testing.assert_close(log_probability(logits, ~kept, 1.0), torch.tensor([[-1.3132617, -0.3132617]]))
    # at τ = 0.5 with 1 / (1 + e⁻²) = 0.8807971
    torch.testing.assert_close(log_probability(logits, kept, 0.5), torch.tensor([[-0.1269280, -2.1269280]]))


class Actor(nn.Module):
    """Scores 1.5 and -0.5 for the two tokens of any image."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([1.5, -0.5]))

    def forward(self, inputs: StageInputs) -> Tensor:
        return self.scores.expand(len(inputs.visual), -1)


class Critic(nn.Module):
    """Values 0.5 and 0.2 for the two rollouts."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([0.5, 0.2]))

    def forward(self, inputs: StageInputs) -> Tensor:
        assert len(inputs.visual) == 2
        return self.values


def decided(alive: list[list[bool]], kept: list[list[bool]], chances: list[list[float]]) -> StageRecord:
    """What A and B decided about two tokens each, and how likely the policy of then was to decide so."""
    state = StageInputs(0, torch.zeros(2, 2, 4), None, torch.arange(2).expand(2, 2))
    drawn = torch.tensor(chances).log()
    return StageRecord(state, 1, torch.tensor(alive), torch.tensor(kept), torch.full((2, 1), 0.5), drawn)


def rollouts_of(stages: list[StageRecord], returns: list[list[float]], advantages: list[list[float]]) -> Rollouts:
    unused = torch.zeros(2, len(stages))
    return Rollouts(
        stages=tuple(stages),
        part=range(1),
        quality=torch.tensor([1.0, 0.0]),
        weights=torch.ones(2),
        kept_counts=unused,
        rewards=unused,
        values=unused,
        returns=torch.tensor(returns),
        advantages=torch.tensor(advantages),
    )


def one_update(actor: Actor, critic: Critic, rollouts: Rollouts, temperature: float) -> UpdateFigures:
    config = replace(PAPER, rollouts_per_image=2, images_per_update=1, epochs=1, minibatches=1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=config.learning_rate)
    return ppo_update(actor, critic, optimizer, rollouts, temperature, config, torch.Generator())


ALL = [[True, True], [True, True]]
EVEN = [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("alive", "policy_loss", "clipped"),
    [
        # Ratios 2 · 0.7310586 = 1.4621172 where the actor of now would have decided so too, 2 · 0.2689414 = 0.5378828
        # where not. A, advantage 1: min(1.4621172, 1.2) and 0.5378828, mean 0.8689414. B, advantage −2: twice
        # min(−2.9242343, −2.4). Loss: −(0.8689414 − 2.9242343) / 2.
        (ALL, 1.0276464, 1.0),
        # Without A's second token, which was dropped before: −(1.2 − 2.9242343) / 2.
        ([[True, False], [True, True]], 0.8621172, 1.0),
    ],
    ids=["all alive", "one dropped before"],
)
def test_losses_of_ppo_by_hand(alive: list[list[bool]], policy_loss: float, clipped: float):
    """Drawn with an even chance, A keeps both tokens, B the first."""
    actor, critic = Actor(), Critic()
    stage = decided(alive, [[True, True], [True, False]], EVEN)
    figures = one_update(actor, critic, rollouts_of([stage], [[1.5], [-0.8]], [[1.0], [-2.0]]), 1.0)
    assert figures.policy_loss == pytest.approx(policy_loss, abs=1e-5)
    assert figures.value_loss == pytest.approx(0.5, abs=1e-6)  # half of the mean of (0.5 − 1.5)² and (0.2 + 0.8)²
    assert figures.clipped == clipped
    # Adam's first step is as long as its rate, against the gradient. The critic is pulled towards 1.5 and −0.8. Of the
    # actor's tokens only those whose ratio is not clipped away have one: B, punished, is to keep the first token less.
    moved = critic.values.detach() - torch.tensor([0.5, 0.2])
    torch.testing.assert_close(moved, torch.tensor([1.0, -1.0]) * PAPER.learning_rate, rtol=1e-3, atol=0)
    assert actor.scores[0].item() == pytest.approx(1.5 - PAPER.learning_rate, abs=1e-5)


def test_losses_of_ppo_over_two_stages_by_hand():
    """τ = 0.5 and another advantage at each stage.

    The first token is kept with probability 1 / (1 + e⁻²) = 0.8807971, the second with 0.1192029. To what was drawn
    with an even chance that makes ratios of 1.7615942 and 0.2384058. First stage, A keeps both at advantage 1:
    min(1.7615942, 1.2) and 0.2384058, mean 0.7192029; B keeps the first and drops the second at −2: −3.5231884 both.
    Second stage, A does the same at −1: −1.7615942 both. B drops the first, for which it had the chance of now, and
    keeps the second, at 0.5: 0.5 and 0.1192029, mean 0.3096015. Losses: −(0.7192029 − 3.5231884) / 2 = 1.4019928 and
    −(−1.7615942 + 0.3096015) / 2 = 0.7259964. Of the ratios only that of 1 stays within the clip: 1 and 3/4.
    """
    first = decided(ALL, [[True, True], [True, False]], EVEN)
    second = decided(ALL, [[True, False], [False, True]], [[0.5, 0.5], [0.1192029, 0.5]])
    rollouts = rollouts_of([first, second], [[1.5, 0.5], [-0.8, 0.2]], [[1.0, -1.0], [-2.0, 0.5]])
    actor, critic = Actor(), Critic()
    figures = one_update(actor, critic, rollouts, 0.5)
    assert figures.policy_loss == pytest.approx((1.4019928 + 0.7259964) / 2, abs=1e-5)
    assert figures.clipped == pytest.approx((1 + 3 / 4) / 2)
    assert figures.value_loss == pytest.approx(0.25, abs=1e-6)  # of errors 1 and 0 for each, half of the mean square
    # B's −2 at the first stage, A's −1 and B's 0.5 at the second are against keeping the first token, and all eight
    # decisions but those that are clipped away for keeping the second.
    moved = actor.scores.detach() - torch.tensor([1.5, -0.5])
    torch.testing.assert_close(moved, torch.tensor([-1.0, 1.0]) * PAPER.learning_rate, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("alive", "moved"),
    [(ALL, (-0.01503857, 0.11503857)), ([[True, False], [True, True]], (-0.01361764, 0.01645951))],
    ids=["all alive", "one dropped before"],
)
def test_a_step_with_an_entropy_bonus_by_hand(alive: list[list[bool]], moved: tuple[float, float]):
    """τ = 0.5 and a bonus of 0.1; gradient descent of rate 1, so that the step is the gradient.

    The tokens' logits over τ are x = ±2 and p = 0.8807971, 0.1192029 is how likely they are kept. Both decisions have
    the entropy log(1 + e²) − 2p = 0.3653338, whose derivative by a score is −x·p(1 − p)/τ = ∓0.4199743.

    Drawn by the policy of now, all ratios are 1. A keeps both tokens at advantage 0.2, B the first at −0.1, so the
    policy's loss is −(0.2 − 0.1) / 2. Its derivative is minus the advantages' mean with (1 − p)/τ = 0.2384058 and
    1.7615942 for a kept token, −p/τ = −0.2384058 for B's dropped one: −(0.2 − 0.1) · 0.2384058 / 4 = −0.0059601 and
    −(0.2 · 1.7615942 + 0.1 · 0.2384058) / 4 = −0.0940399. The mean entropy of two tokens, half of whose derivative
    each gets, is taken off with a weight of 0.1: +0.0209987 and −0.0209987. In all 0.0150386 and −0.1150386: the bonus
    pulls the first token towards an even chance though its advantage is positive.

    Without A's second token, A's first has all of A's mean: −(0.2 − 0.1 / 2) · 0.2384058 / 2 = −0.0178804 with
    +0.1 · 0.4199743 · (1 + 1/2) / 2 = 0.0314981; of the second B's part is left: −0.1 · 0.2384058 / 4 = −0.0059601 with
    −0.1 · 0.4199743 / 4 = −0.0104994.
    """
    drawn = [[0.8807971, 0.1192029], [0.8807971, 0.8807971]]
    stage = decided(alive, [[True, True], [True, False]], drawn)
    rollouts = rollouts_of([stage], [[1.5], [-0.8]], [[0.2], [-0.1]])
    actor, critic = Actor(), Critic()
    config = replace(
        PAPER, rollouts_per_image=2, images_per_update=1, epochs=1, minibatches=1, entropy_weight=0.1, gradient_clip=1e6
    )
    descent: Any = torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=1.0)
    figures = ppo_update(actor, critic, descent, rollouts, 0.5, config, torch.Generator())
    assert figures.policy_loss == pytest.approx(-0.05, abs=1e-6)
    assert figures.entropy == pytest.approx(0.3653338, abs=1e-6)
    assert (figures.value_loss, figures.clipped) == (pytest.approx(0.5, abs=1e-6), 0)
    torch.testing.assert_close(
        actor.scores.detach() - torch.tensor([1.5, -0.5]), torch.tensor(moved), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(critic.values.detach(), torch.tensor([1.0, -0.3]))  # half way to their returns


IMAGE = 6
"""Whose colour the tiny model answers correctly when it sees it, and wrongly when not."""


class FixedMasks:
    """A policy of two stages whose rollouts A and B keep given tokens, and a critic of values 0.5, then 0.25."""

    needs = ScorerNeeds()
    counts = (15, 8)

    def __init__(self, kept: list[Tensor]) -> None:
        self.kept = kept  # bool [2, 25] of all visual tokens, one a stage
        self.records: list[StageRecord] = []

    def __call__(self, inputs: StageInputs) -> Decision:
        alive = torch.ones_like(inputs.origin, dtype=torch.bool) if inputs.alive is None else inputs.alive
        kept = self.kept[inputs.stage].gather(1, inputs.origin) & alive
        self.records.append(StageRecord(inputs, 1, alive, kept, torch.zeros(2, 1), torch.zeros(kept.shape)))
        return compacted(kept)

    @staticmethod
    def value(inputs: StageInputs) -> Tensor:
        return torch.full((2,), (0.5, 0.25)[inputs.stage])


def test_a_batch_of_rollouts_by_hand(weights: Path):
    """From masks to what PPO learns from: A keeps 20, then 10 of 25 tokens, with the one that holds the answer; B keeps
    15, then 5, without it.

    α = (0.95, 1): A is paid 1 − 0.95 · 0.8 = 0.24 and 1 − 0.4 = 0.6, B −0.95 · 0.6 = −0.57 and −0.2. Second stage: A's
    advantage 0.6 − 0.25 = 0.35, B's −0.45. First: A's 0.24 + 0.9 · 0.25 − 0.5 + 0.855 · 0.35 = 0.26425, B's
    −0.57 + 0.9 · 0.25 − 0.5 − 0.855 · 0.45 = −1.22975. Of two equally weighed rollouts each is one deviation off.
    """
    adapter, config = load_adapter(weights), replace(PAPER, rollouts_per_image=2, precision="float32")
    block = BlockSource(adapter, TASK, 0, IMAGE, 1, 1)[0]
    evidence = torch.from_numpy(TASK.question_group("train", 0, IMAGE).evidence).flatten()
    others = (~evidence).nonzero().flatten()

    def keeping(count: int, with_evidence: bool) -> Tensor:
        kept = evidence.clone() if with_evidence else torch.zeros_like(evidence)
        kept[others[: count - int(with_evidence)]] = True
        return kept

    masks = [torch.stack([keeping(a, True), keeping(b, False)]) for a, b in ((20, 15), (10, 5))]
    policy: Any = FixedMasks(masks)
    rollouts = collect(adapter, block, policy, policy.value, (0, 2), config)
    assert rollouts.quality.tolist() == [1, 0] and rollouts.weights.tolist() == [1, 1]
    assert rollouts.kept_counts.tolist() == [[20, 10], [15, 5]]
    torch.testing.assert_close(rollouts.rewards, torch.tensor([[0.24, 0.6], [-0.57, -0.2]]))
    raw = torch.tensor([[0.26425, 0.35], [-1.22975, -0.45]])
    torch.testing.assert_close(rollouts.returns, raw + torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(rollouts.advantages, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), atol=1e-3, rtol=0)
