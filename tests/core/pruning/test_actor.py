import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toprl_export.errors import UserError
from toprl_export.pruning.actor import Actor, ActorConfig, Critic, StackedActors
from toprl_export.pruning.baselines.attention import PyramidDropScorer
from toprl_export.pruning.flops import actor_flops, question_flops
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import select

CONFIG = ActorConfig(input_size=12, hidden_size=8, stages=3)
ASKING = replace(CONFIG, condition="text", residual="pyramiddrop")
QUESTION_MASK = torch.tensor([[False, True, True, False], [True, True, True, True]])


def actor_of(seed: int, config: ActorConfig = CONFIG) -> Actor:
    torch.manual_seed(seed)
    return Actor(config)


def state_of(seed: int, stage: int = 1, alive: Tensor | None = None, tokens: int = 7) -> StageInputs:
    visual = torch.randn(2, tokens, 12, generator=torch.Generator().manual_seed(seed)) * 5 + 1
    return StageInputs(stage, visual, alive, torch.arange(tokens).expand(2, tokens), None)


def asking_state(seed: int, alive: Tensor | None = None, tokens: int = 7) -> StageInputs:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(2, 4, 12, generator=generator) * 3 - 1
    attention = torch.rand(2, 1, tokens, generator=generator)
    return replace(
        state_of(seed, alive=alive, tokens=tokens), text=text, question_mask=QUESTION_MASK, attention=attention
    )


def trained_actor(seed: int, config: ActorConfig = ASKING) -> Actor:
    """An actor whose head and gains are no longer what they start as."""
    actor = actor_of(seed, config)
    nn.init.normal_(actor.head.weight)
    nn.init.normal_(actor.gain)
    return actor


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def test_logits_by_numpy():
    actor, inputs = actor_of(0), state_of(1, stage=2)
    weights = {name: value.double().numpy() for name, value in actor.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = inputs.visual.double().numpy()
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = gelu(linear("trunk.enter", x) + weights["trunk.stage_embedding"][2])
    x = gelu(linear("trunk.last", gelu(linear("trunk.middle", x))))
    logits = linear("head", x)
    np.testing.assert_allclose(actor.logits(inputs).detach().numpy(), logits, atol=1e-6)
    np.testing.assert_allclose(actor(inputs).detach().numpy(), logits[..., 1] - logits[..., 0], atol=1e-6)


def test_the_question_shifts_and_gates_by_numpy():
    actor, inputs = trained_actor(0), asking_state(1)
    weights = {name: value.detach().double().numpy() for name, value in actor.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    text, attention = inputs.text.double().numpy(), inputs.attention.double().numpy()
    for row, (question, last) in enumerate(((slice(1, 3), 2), (slice(0, 4), 3))):
        states = np.concatenate([normed(text[row, question].mean(0)), normed(text[row, last])])
        entered = linear("trunk.question", states)
        x = linear("trunk.enter", normed(inputs.visual[row].double().numpy()))
        x = gelu(x * (1 + entered[8:]) + entered[:8] + weights["trunk.stage_embedding"][1])
        logits = linear("head", gelu(linear("trunk.last", gelu(linear("trunk.middle", x)))))
        noticed = np.log(attention[row, 0])
        logits[:, 1] += np.log1p(np.exp(weights["gain"][1])) * (noticed - noticed.mean())
        np.testing.assert_allclose(actor.logits(inputs)[row].detach().numpy(), logits, atol=2e-4)


def test_another_question_orders_the_tokens_anew():
    actor, inputs = trained_actor(3), asking_state(2)
    other = replace(inputs, text=inputs.text.flip(0), question_mask=inputs.question_mask.flip(0))
    assert not torch.equal(actor(inputs).argsort(1), actor(other).argsort(1))
    critic = Critic(ASKING)
    assert (critic(inputs) - critic(other)).abs().max() > 1e-4


def test_padding_and_answers_of_the_question_are_not_read():
    actor, inputs = trained_actor(0), asking_state(1)
    noise = torch.where(QUESTION_MASK.unsqueeze(-1), inputs.text, 100 * torch.randn(2, 4, 12))
    torch.testing.assert_close(actor(replace(inputs, text=noise)), actor(inputs))


def test_an_untrained_actor_with_a_residual_keeps_what_its_baseline_keeps():
    actor, inputs = actor_of(0, ASKING), asking_state(4, tokens=40)
    for stage, count in ((0, 13), (1, 5), (2, 1)):
        state = replace(inputs, stage=stage)
        assert torch.equal(select(actor(state), count), select(PyramidDropScorer()(state), count))
    assert not torch.equal(select(trained_actor(0)(inputs), 13), select(PyramidDropScorer()(inputs), 13))


def test_attention_is_centred_over_the_living():
    actor, inputs = actor_of(0, ASKING), asking_state(5)
    alive = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1, 0]], dtype=torch.bool)
    masked = replace(inputs, alive=alive, attention=inputs.attention * alive[:, None])
    scores = actor(masked)
    assert scores.isfinite().all()
    for row in range(2):
        living = scores[row, alive[row]]  # untrained, the gain is 1 and the actor's own score 0
        torch.testing.assert_close(living.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        one = slice(row, row + 1)
        visual, attention = inputs.visual[one, alive[row]], inputs.attention[one, :, alive[row]]
        gathered = StageInputs(1, visual, None, inputs.origin[:1], attention, inputs.text[one], QUESTION_MASK[one])
        torch.testing.assert_close(actor(gathered)[0], living, atol=1e-5, rtol=0)
    dead = replace(masked, alive=torch.zeros(2, 7, dtype=torch.bool))
    assert actor(dead).isfinite().all()


def test_attention_tells_tokens_apart_alike_whoever_else_is_there():
    actor, inputs = trained_actor(2), asking_state(5)
    left = inputs.attention[:, :, :4] * 3  # what the softmax makes of it when other tokens are gone
    fewer = replace(inputs, visual=inputs.visual[:, :4], origin=inputs.origin[:, :4], attention=left)
    torch.testing.assert_close(actor(fewer).diff(dim=1), actor(inputs)[:, :4].diff(dim=1), atol=1e-4, rtol=0)


def test_an_actor_asks_for_what_it_sees():
    assert actor_of(0).needs == ScorerNeeds()
    assert actor_of(0, replace(CONFIG, condition="text")).needs == ScorerNeeds(text=True)
    assert actor_of(0, replace(CONFIG, residual="fastv")).needs == ScorerNeeds(attention="last")
    assert StackedActors([actor_of(0, ASKING)]).needs == ScorerNeeds("last", "next", text=True)


def test_what_the_walk_did_not_give_is_missed():
    with pytest.raises(ValueError, match="no attention row"):
        actor_of(0, replace(CONFIG, residual="fastv"))(state_of(0))
    with pytest.raises(ValueError, match="no text"):
        actor_of(0, replace(CONFIG, condition="text"))(state_of(0))


def test_the_stage_changes_the_scores():
    actor = actor_of(0)
    assert (actor(state_of(1, stage=0)) - actor(state_of(1, stage=1))).abs().max() > 1e-4


def test_half_precision_states_are_scored_in_float32():
    actor, inputs = actor_of(0), state_of(1)
    scores = actor(replace(inputs, visual=inputs.visual.half()))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, actor(inputs), rtol=0, atol=5e-3)


def test_the_trunk_is_as_light_as_eq_11_says():
    matrices = [weight for name, weight in actor_of(0).trunk.named_parameters() if name.endswith("weight")]
    assert 2 * sum(weight.numel() for weight in matrices) * 100 == actor_flops(12, 8, 100)
    assert 2 * actor_of(0, ASKING).trunk.question.weight.numel() == question_flops(12, 8)


def test_the_critic_reads_only_living_tokens():
    torch.manual_seed(0)
    critic, inputs = Critic(CONFIG), state_of(1)
    alive = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1, 0]], dtype=torch.bool)
    values = critic(replace(inputs, alive=alive))
    assert values.shape == (2,)
    for row in range(2):
        gathered = StageInputs(1, inputs.visual[row : row + 1, alive[row]], None, inputs.origin[:1], None)
        torch.testing.assert_close(critic(gathered)[0], values[row], rtol=0, atol=1e-6)
    noise = torch.where(alive.unsqueeze(-1), inputs.visual, 100 * torch.randn(2, 7, 12))
    torch.testing.assert_close(critic(replace(inputs, visual=noise, alive=alive)), values)
    assert (critic(inputs) - values).abs().max() > 1e-4


def test_a_state_without_living_tokens_has_a_value_and_a_gradient():
    torch.manual_seed(0)
    critic = Critic(CONFIG)
    critic(state_of(1, alive=torch.zeros(2, 7, dtype=torch.bool))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters())


def test_stacked_actors_equal_the_single_ones():
    actors = [actor_of(seed) for seed in range(3)]
    stacked, inputs = StackedActors(actors), state_of(5)
    for index, actor in enumerate(actors):
        torch.testing.assert_close(stacked(inputs, torch.tensor(index)), actor(inputs), rtol=0, atol=1e-6)
    torch.testing.assert_close(stacked(inputs), actors[0](inputs), rtol=0, atol=1e-6)
    assert (actors[0](inputs) - actors[1](inputs)).abs().max() > 1e-2
    assert stacked.state_dict()["trunk_enter_weight"].shape == (3, 8, 12)


class Pick(nn.Module):
    def __init__(self, stacked: StackedActors) -> None:
        super().__init__()
        self.stacked = stacked

    def forward(self, visual: Tensor, agent_index: Tensor) -> Tensor:
        return self.stacked(StageInputs(1, visual, None, torch.zeros(0), None), agent_index)


def test_stacked_actors_export_with_the_agent_as_an_input(as_onnx):
    actors = [actor_of(seed) for seed in range(3)]
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    run = as_onnx(Pick(StackedActors(actors)), (state_of(0).visual, torch.tensor(1)), ({0: batch, 1: tokens}, {}))
    inputs = state_of(9, tokens=11)
    for index, actor in enumerate(actors):
        (scores,) = run(inputs.visual, torch.tensor(index))
        np.testing.assert_allclose(scores, actor(inputs).detach().numpy(), atol=1e-5)


class PickAsking(nn.Module):
    def __init__(self, stacked: StackedActors) -> None:
        super().__init__()
        self.stacked = stacked

    def forward(
        self, visual: Tensor, text: Tensor, question_mask: Tensor, attention: Tensor, agent_index: Tensor
    ) -> Tensor:
        alive = torch.ones_like(visual[:, :, 0], dtype=torch.bool)
        return self.stacked(StageInputs(2, visual, alive, torch.zeros(0), attention, text, question_mask), agent_index)


def test_stacked_actors_that_ask_export_too(as_onnx):
    actors = [trained_actor(seed) for seed in range(2)]
    batch, tokens, length = (torch.export.Dim(name) for name in ("batch", "tokens", "length"))
    state = asking_state(0)
    example = (state.visual, state.text, state.question_mask, state.attention, torch.tensor(1))
    shapes = ({0: batch, 1: tokens}, {0: batch, 1: length}, {0: batch, 1: length}, {0: batch, 2: tokens}, {})
    run = as_onnx(PickAsking(StackedActors(actors)), example, shapes)
    inputs = replace(asking_state(9, tokens=11), stage=2)
    for index, actor in enumerate(actors):
        (scores,) = run(inputs.visual, inputs.text, inputs.question_mask, inputs.attention, torch.tensor(index))
        np.testing.assert_allclose(scores, actor(inputs).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ActorConfig(0),
            "actor input_size is 0, expected a whole number of at least 1: correct it",
        ),
        (
            lambda: ActorConfig(8, hidden_size=2.5),
            "actor hidden_size is 2.5, expected a whole number of at least 1: correct it",
        ),
        (
            lambda: ActorConfig(8, stages=True),
            "actor stages is True, expected a whole number of at least 1: correct it",
        ),
        (
            lambda: ActorConfig(8, condition="image"),
            "actor condition is 'image', expected one of none, text: correct it",
        ),
        (
            lambda: ActorConfig(8, residual=["fastv"]),
            "actor residual is ['fastv'], expected one of none, fastv, pyramiddrop: correct it",
        ),
        (lambda: StackedActors([]), "no agent was given to stack, expected at least one: add one"),
        (
            lambda: StackedActors([actor_of(0), actor_of(0, ActorConfig(12, 4))]),
            "agents of one bundle must have one shape, but ActorConfig(input_size=12, hidden_size=4, stages=3, "
            "condition='none', residual='none') differs from ActorConfig(input_size=12, hidden_size=8, stages=3, "
            "condition='none', residual='none'): train them alike or build one bundle each",
        ),
    ],
)
def test_the_impossible_is_refused(make, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make()
