"""Sampling inside the walk: compacted rows equal masked ones, counts, records and their minibatches."""

from __future__ import annotations

import pytest
import torch

from tests.trainers.tiny_world import TASK, repeated
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.walk import Decision, walk_prefill
from toprl_export.pruning.actor import Actor, ActorConfig, Critic
from toprl_trainers.rl.gumbel import log_probability
from toprl_trainers.toprl.data import model_precision, pack_questions
from toprl_trainers.toprl.update import ImageDraws, SamplingPolicy, compacted

LAYERS, COUNTS, ROLLOUTS = (0, 2), (9, 5), 4


@pytest.fixture
def actor(adapter: LlavaAdapter) -> Actor:
    torch.manual_seed(0)
    return Actor(ActorConfig(adapter.shape.hidden, 16, 2))


@torch.no_grad()
def rolled_out(
    adapter: LlavaAdapter, actor: Actor, thresholds=None, temperature: float = 1.0, precision: str = "float32"
):
    groups = [TASK.question_group("train", 2, index) for index in range(3)]
    tokens, gold = pack_questions(adapter, [group.questions for group in groups])
    pixels = torch.from_numpy(adapter.frontend.pixels([group.image for group in groups]))
    visual = adapter.encode_image(pixels).repeat_interleave(ROLLOUTS, dim=0)
    policy = SamplingPolicy(
        actor, COUNTS, temperature, thresholds, ROLLOUTS, ImageDraws(0, ("test",), range(3), ROLLOUTS, 25)
    )
    tokens = repeated(tokens, ROLLOUTS)
    with model_precision(adapter, precision):
        prefill = walk_prefill(adapter.decoder, tokens, visual, LAYERS, policy)
    return policy, prefill, tokens, visual, gold


@torch.no_grad()
def test_compacted_walk_equals_the_full_length_masked_walk(adapter: LlavaAdapter, actor: Actor):
    policy, prefill, tokens, visual, gold = rolled_out(adapter, actor)
    survivors = []
    for record, kept in zip(policy.records, prefill.kept, strict=True):
        alive = record.inputs.origin.repeat_interleave(record.repeats, dim=0)
        mask = torch.zeros(len(visual), 25, dtype=torch.bool)
        survivors.append(mask.scatter(1, alive, record.kept))
        assert kept.shape[1] == int(record.kept.sum(1).max()) < 25

    def masked(inputs):
        everyone = torch.arange(25).expand(len(visual), -1)
        return Decision(everyone, survivors[inputs.stage])

    full = walk_prefill(adapter.decoder, tokens, visual, LAYERS, masked)
    scores = [gold.score(adapter.decoder, each.hidden)[0] for each in (prefill, full)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)
    # the control: masks in which one rollout's are exchanged for another's
    survivors[1] = survivors[0] & survivors[1].roll(1, dims=0)
    wrong = gold.score(adapter.decoder, walk_prefill(adapter.decoder, tokens, visual, LAYERS, masked).hidden)[0]
    assert float((wrong - scores[0]).abs().max()) > 1e-2


def test_rows_without_any_kept_token_are_filled_with_dead_ones():
    decision = compacted(torch.zeros(2, 5, dtype=torch.bool))
    assert decision.kept.tolist() == [[0], [0]]
    assert decision.alive is not None and not decision.alive.any()


def test_kept_tokens_come_in_order_and_fillers_are_dead():
    kept = torch.tensor([[False, True, False, True], [False, False, False, True]])
    decision = compacted(kept)
    assert decision.kept.tolist() == [[1, 3], [0, 3]]
    assert decision.alive is not None and decision.alive.tolist() == [[True, True], [False, True]]


def test_thresholds_per_image_meet_the_counts(adapter: LlavaAdapter, actor: Actor):
    policy, *_ = rolled_out(adapter, actor)
    for record, count in zip(policy.records, COUNTS, strict=True):
        probability = torch.sigmoid(record.logits(actor)) * record.alive
        reachable = record.alive.sum(1).clamp(max=count).float()
        torch.testing.assert_close(probability.sum(1), reachable, atol=1e-2, rtol=0)


def test_fixed_thresholds_are_used(adapter: LlavaAdapter, actor: Actor):
    policy, *_ = rolled_out(adapter, actor, thresholds=(100.0, 100.0))
    assert not policy.records[0].kept.any()
    policy, *_ = rolled_out(adapter, actor, thresholds=(-100.0, -100.0))
    assert policy.records[1].kept.all()


def test_the_dropped_are_never_kept_again(adapter: LlavaAdapter, actor: Actor):
    policy, *_ = rolled_out(adapter, actor)
    second = policy.records[1]
    assert not (second.kept & ~second.alive).any()
    assert torch.equal(second.alive.sum(1), policy.records[0].kept.sum(1))


def test_minibatches_hold_the_rows_of_their_images(adapter: LlavaAdapter, actor: Actor):
    policy, *_ = rolled_out(adapter, actor, temperature=0.5)
    critic = Critic(actor.config)
    for record in policy.records:
        whole, part = record.logits(actor), record.of_images(torch.tensor([2, 0]), ROLLOUTS)
        rows = [8, 9, 10, 11, 0, 1, 2, 3]
        torch.testing.assert_close(part.logits(actor), whole[rows])
        torch.testing.assert_close(part.values(critic), record.values(critic)[rows])
        assert torch.equal(part.kept, record.kept[rows])
        recomputed = log_probability(part.logits(actor), part.kept, 0.5)
        torch.testing.assert_close(recomputed, part.log_probability, atol=1e-5, rtol=1e-4)


def test_the_policy_is_float32_where_the_model_runs_in_bfloat16(adapter: LlavaAdapter, actor: Actor):
    policy, *_ = rolled_out(adapter, actor, temperature=0.1, precision="bfloat16")
    exact, *_ = rolled_out(adapter, actor, temperature=0.1)
    assert not torch.equal(policy.records[1].inputs.visual, exact.records[1].inputs.visual)  # autocast was on
    for record in policy.records:
        assert record.log_probability.dtype == record.threshold.dtype == torch.float32
        recomputed = log_probability(record.logits(actor), record.kept, 0.1)
        ratio = (recomputed - record.log_probability)[record.alive].exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)


def test_first_stage_states_are_stored_once_an_image(adapter: LlavaAdapter, actor: Actor):
    policy, *_ = rolled_out(adapter, actor)
    assert [len(record.inputs.visual) for record in policy.records] == [3, 12]
    assert not torch.equal(policy.records[0].kept[0], policy.records[0].kept[1])  # yet every rollout draws for itself


def test_draws_belong_to_an_image_and_a_token():
    def noise(images: range, positions: torch.Tensor) -> list[torch.Tensor]:
        draws = ImageDraws(3, ("test",), images, 2, 25)
        return [draws.noise(positions) for _ in range(2)]

    everything = torch.arange(25).expand(8, -1)
    whole, part = noise(range(4), everything), noise(range(2, 4), everything[:4])
    assert all(torch.equal(mine, all_of_them[:, 4:]) for mine, all_of_them in zip(part, whole, strict=True))
    few = torch.tensor([[3, 7, 24]]).expand(8, -1)
    assert all(torch.equal(a, b[..., [3, 7, 24]]) for a, b in zip(noise(range(4), few), whole, strict=True))
    assert not torch.equal(whole[0], whole[1])
    rows = whole[0].flatten(2).transpose(0, 1).flatten(1)
    assert len(rows.unique(dim=0)) == 8
