"""A policy that looks at the question: what it records, where it starts, and that it learns what a blind one cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.trainers.tiny_world import TASK, request
from toprl_export.agent import load_agent
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.reference import Pruning
from toprl_export.models.walk import walk_prefill
from toprl_export.pruning.actor import Actor, ActorConfig, Critic
from toprl_export.pruning.baselines.attention import FastVScorer, PyramidDropScorer
from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs
from toprl_export.pruning.select import select
from toprl_trainers.rl.gae import advantages_and_returns, centred_per_group, normalised_per_stage
from toprl_trainers.rl.gumbel import log_probability, temperature_at
from toprl_trainers.toprl.config import TOPRLConfig
from toprl_trainers.toprl.data import BlockSource, ImageBlock
from toprl_trainers.toprl.run import Run
from toprl_trainers.toprl.trainer import TOPRLTrainer
from toprl_trainers.toprl.update import ImageDraws, Rollouts, SamplingPolicy, collect, ppo_update

LAYERS, COUNTS, ROLLOUTS = (0, 2), (9, 5), 4
CONFIG = TOPRLConfig(rollouts_per_image=ROLLOUTS, precision="float32")


@pytest.fixture
def block(adapter: LlavaAdapter) -> ImageBlock:
    """Three images, the first asked one question and the others another."""
    return BlockSource(adapter, TASK, 2, 0, 3, 3)[0].one_question_each(adapter, (0, 3, 5))


@pytest.fixture
def actor(adapter: LlavaAdapter) -> Actor:
    torch.manual_seed(0)
    made = Actor(ActorConfig(adapter.shape.hidden, 16, 2, condition="text", residual="pyramiddrop"))
    torch.nn.init.normal_(made.head.weight)
    return made


def played(adapter: LlavaAdapter, block: ImageBlock, actor: Actor, config: TOPRLConfig = CONFIG) -> Rollouts:
    torch.manual_seed(1)
    draws = ImageDraws(0, ("test",), range(len(block.visual)), ROLLOUTS, adapter.visual_tokens)
    policy = SamplingPolicy(actor, COUNTS, 0.5, None, ROLLOUTS, draws)
    return collect(adapter, block, policy, Critic(actor.config), LAYERS, config)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_update_recomputes_what_was_drawn(adapter: LlavaAdapter, block: ImageBlock, actor: Actor, precision: str):
    rollouts = played(adapter, block, actor, replace(CONFIG, precision=precision))
    assert [len(record.inputs.visual) for record in rollouts.stages] == [3, 12]
    rows = [8, 9, 10, 11, 0, 1, 2, 3]
    for record in rollouts.stages:
        assert record.inputs.text is not None and record.inputs.attention is not None
        part = record.of_images(torch.tensor([2, 0]), ROLLOUTS)
        again = log_probability(part.logits(actor), part.kept, 0.5)
        torch.testing.assert_close(again, record.log_probability[rows], atol=1e-5, rtol=1e-4)
        # the control: the same tokens under another image's question
        others = replace(part.inputs, text=part.inputs.text.flip(0), question_mask=part.inputs.question_mask.flip(0))
        wrong = log_probability(replace(part, inputs=others).logits(actor), part.kept, 0.5)
        assert (wrong - again).abs().max() > 1e-3


@pytest.mark.parametrize(("residual", "baseline"), [("fastv", FastVScorer), ("pyramiddrop", PyramidDropScorer)])
def test_an_untrained_policy_with_a_residual_keeps_what_its_baseline_keeps(
    adapter: LlavaAdapter, block: ImageBlock, residual: Literal["fastv", "pyramiddrop"], baseline: type[Scorer]
):
    torch.manual_seed(0)
    untrained = Actor(ActorConfig(adapter.shape.hidden, 16, 2, condition="text", residual=residual))
    kept = []
    with torch.no_grad():
        for scorer in (untrained, baseline()):
            pruning = Pruning(LAYERS, COUNTS, scorer)
            walked = walk_prefill(adapter.decoder, block.tokens, block.visual, LAYERS, pruning.decide, scorer.needs)
            kept.append(walked.kept)
    for ours, theirs in zip(*kept, strict=True):
        assert torch.equal(ours, theirs)


def test_the_agent_says_what_it_sees(weights: Path, tmp_path: Path):
    wanted = request(weights, tmp_path, updates=2)
    blind = Run.of(wanted)
    seeing = Run.of(replace(wanted, condition="text"))
    assert (blind.actor_config.condition, seeing.actor_config.condition) == ("none", "text")
    assert blind.digest != seeing.digest
    recipe = Path(str(wanted.recipe))
    recipe.write_text(recipe.read_text() + "  residual: pyramiddrop\n  condition: text\n")
    assert Run.of(replace(wanted, condition="none")).actor_config.condition == "none"
    outcome = TOPRLTrainer().train(wanted)
    agent = load_agent(outcome.directory)
    assert (agent.record.actor.condition, agent.record.actor.residual) == ("text", "pyramiddrop")
    assert agent.actor.needs == ScorerNeeds("last", "next", text=True)
    card = (outcome.directory / "card.md").read_text()
    assert "see the visual tokens and the question's states (condition text); the actor's score is added to" in card
    assert "the question's attention, as pyramiddrop reads it" in card
    assert "96 questions" in card  # each was asked in a row of its own


def test_a_budget_that_the_reward_found_is_in_the_agents_plan(weights: Path, tmp_path: Path):
    wanted = request(weights, tmp_path, updates=2)
    recipe = Path(str(wanted.recipe))
    recipe.write_text(recipe.read_text() + "  threshold: initial\n")
    outcome = TOPRLTrainer().train(wanted)
    schedules = load_agent(outcome.directory).record.plan.schedules
    assert 5 in [schedule.budget_kept for schedule in schedules] and len(schedules) == 2


class Game:
    """Ten of 25 tokens are coloured, five of them warm and five cold; the question names the colour to be kept.

    Five tokens may be kept. Who does not know the question can do no better than half of them.
    """

    IMAGES, TOKENS, KEPT, SIZE, ROLLOUTS = 16, 25, 5, 12, 8

    def __init__(self) -> None:
        looks = torch.Generator().manual_seed(0)
        self.colours = torch.randn(3, self.SIZE, generator=looks)  # background, warm, cold
        self.words = torch.randn(4, self.SIZE, generator=looks)  # "which", "one", "warm", "cold"

    def deal(self, seed: int) -> tuple[StageInputs, Tensor]:
        """Images, and which tokens each question is about, ``bool [g, n]``."""
        draws = torch.Generator().manual_seed(seed)
        order = torch.rand(self.IMAGES, self.TOKENS, generator=draws).argsort(1)
        colour = 1 * (order < 5) + 2 * ((order >= 5) & (order < 10))  # [g, n]
        asked = torch.randint(1, 3, (self.IMAGES,), generator=draws)
        visual = self.colours[colour] + 0.3 * torch.randn(*colour.shape, self.SIZE, generator=draws)
        text = self.words[torch.stack([torch.zeros_like(asked), asked + 1, torch.ones_like(asked)], dim=1)]
        positions = torch.arange(self.TOKENS).expand(self.IMAGES, -1)
        state = StageInputs(0, visual, None, positions, None, text, torch.ones(self.IMAGES, 3, dtype=torch.bool))
        return state, colour == asked[:, None]

    def learn(self, condition: Literal["none", "text"], updates: int) -> Actor:
        """A policy trained by the real sampling, advantages and PPO."""
        torch.manual_seed(0)
        config = ActorConfig(self.SIZE, 16, 1, condition)
        actor, critic = Actor(config), Critic(config)
        settings = TOPRLConfig(rollouts_per_image=self.ROLLOUTS, images_per_update=self.IMAGES, learning_rate=0.004)
        optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=settings.learning_rate)
        for update in range(updates):
            temperature = temperature_at(update / updates, 1.0, 0.2)
            rollouts = self.play(actor, critic, update, temperature, settings)
            ppo_update(actor, critic, optimizer, rollouts, temperature, settings, torch.Generator().manual_seed(update))
        return actor

    @torch.no_grad()
    def play(self, actor: Actor, critic: Critic, update: int, temperature: float, settings: TOPRLConfig) -> Rollouts:
        state, wanted = self.deal(update)
        draws = ImageDraws(update, ("game",), range(self.IMAGES), self.ROLLOUTS, self.TOKENS)
        policy = SamplingPolicy(actor, (self.KEPT,), temperature, None, self.ROLLOUTS, draws)
        repeated = {
            name: x.repeat_interleave(self.ROLLOUTS, dim=0) for name, x in vars(state).items() if isinstance(x, Tensor)
        }
        policy(replace(state, **repeated))
        (record,) = policy.records
        found = (record.kept & wanted.repeat_interleave(self.ROLLOUTS, dim=0)).sum(1)
        rewards = (found / self.KEPT - record.kept.sum(1) / self.TOKENS)[:, None]
        values, weights = record.values(critic)[:, None], torch.ones(len(rewards))
        advantages, returns = advantages_and_returns(rewards, values, settings.discount, settings.gae_lambda)
        advantages = normalised_per_stage(centred_per_group(advantages, weights, self.ROLLOUTS), weights)
        part = range(self.IMAGES)
        return Rollouts((record,), part, rewards[:, 0], weights, rewards, rewards, values, returns, advantages)

    @torch.no_grad()
    def share_found(self, actor: Actor) -> float:
        """Of the tokens asked for, how many the best five are, over images not trained on."""
        hits = 0
        for seed in range(1000, 1008):
            state, wanted = self.deal(seed)
            hits += int(wanted.gather(1, select(actor(state), self.KEPT)).sum())
        return hits / (8 * self.IMAGES * self.KEPT)


def test_who_sees_the_question_learns_what_who_does_not_cannot_know():
    game = Game()
    assert game.share_found(game.learn("text", updates=20)) > 0.9
    assert 0.3 < game.share_found(game.learn("none", updates=20)) < 0.65
