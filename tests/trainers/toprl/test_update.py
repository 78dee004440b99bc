"""An optimizer step divided among processes: their parts of the losses and gradients add up to the whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.tiny_world import TASK, request
from toprl_export.errors import UserError
from toprl_trainers.rl.processes import SINGLE_PROCESS, Processes
from toprl_trainers.toprl.data import BlockSource
from toprl_trainers.toprl.learn import TrainingState
from toprl_trainers.toprl.run import Run
from toprl_trainers.toprl.update import ImageDraws, Rollouts, SamplingPolicy, collect, ppo_update

IMAGES, ROLLOUTS = 3, 8
WEIGHTS = torch.tensor([1.0, 0.25, 0.5]).repeat_interleave(ROLLOUTS)


class Stopped(Exception):
    """Ends an update before its first step."""


@dataclass(frozen=True)
class Recorder(Processes):
    """Keeps the first step's figures and gradients, and goes no further."""

    found: list[Tensor] = field(default_factory=list)

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter], figures: Tensor) -> Tensor:
        gradients = [each.grad for each in parameters if each.grad is not None]
        self.found.append(torch.cat([figures, nn.utils.parameters_to_vector(gradients)]))
        raise Stopped


@pytest.fixture
def world(weights: Path, tmp_path: Path) -> tuple[Run, TrainingState, Rollouts]:
    run = Run.of(request(weights, tmp_path))
    run = replace(run, config=replace(run.config, epochs=1, minibatches=1))
    state = TrainingState.fresh(run.actor_config, 1e-3, 0, run.request.adapter.device)
    block = BlockSource(run.request.adapter, TASK, 0, 0, IMAGES, IMAGES)[0]
    draws = ImageDraws(0, ("test",), range(IMAGES), ROLLOUTS, 25)
    policy = SamplingPolicy(state.actor, run.trained.keep_counts, 0.5, None, ROLLOUTS, draws)
    rollouts = collect(run.request.adapter, block, policy, state.critic, run.plan.stage_layers, run.config)
    # Other logits than those drawn with, so that ratios are clipped and losses are not their trivial values.
    with torch.no_grad():
        state.actor.head.weight.mul_(30)
    return run, state, replace(rollouts, weights=WEIGHTS)


def first_step(run: Run, state: TrainingState, rollouts: Rollouts) -> Tensor:
    recorder = Recorder()
    with pytest.raises(Stopped):
        update(run, state, rollouts, recorder)
    return recorder.found[0]


def update(run: Run, state: TrainingState, rollouts: Rollouts, processes: Processes = SINGLE_PROCESS) -> None:
    shuffle = torch.Generator().manual_seed(0)
    ppo_update(state.actor, state.critic, state.optimizer, rollouts, 0.5, run.config, shuffle, processes)


def part_of(rollouts: Rollouts, part: range) -> Rollouts:
    records = tuple(record.of_images(torch.arange(part.start, part.stop), ROLLOUTS) for record in rollouts.stages)
    return replace(rollouts, part=part, stages=records)


@pytest.mark.parametrize("parts", [(range(0, 1), range(1, 3)), (range(0, 3), range(3, 3))], ids=["1+2", "3+0"])
def test_parts_add_up_to_the_whole(world: tuple[Run, TrainingState, Rollouts], parts: tuple[range, range]):
    run, state, rollouts = world
    whole = first_step(run, state, rollouts)
    each = [first_step(run, state, part_of(rollouts, part)) for part in parts]
    torch.testing.assert_close(each[0] + each[1], whole, atol=1e-6, rtol=1e-4)
    assert float(whole[5]) > 0  # something was clipped


def test_the_sum_would_notice_parts_that_are_weighed_alike(world: tuple[Run, TrainingState, Rollouts]):
    run, state, rollouts = world
    whole = first_step(run, state, rollouts)
    equal = replace(rollouts, weights=torch.ones_like(WEIGHTS))
    each = [first_step(run, state, part_of(equal, part)) for part in (range(0, 1), range(1, 3))]
    assert float((each[0] + each[1] - whole).abs().max()) > 1e-3


def test_a_minibatch_without_weight_takes_no_step(world: tuple[Run, TrainingState, Rollouts]):
    run, state, rollouts = world
    one = replace(rollouts, weights=torch.tensor([1.0, 0.0, 0.0]).repeat_interleave(ROLLOUTS))
    run = replace(run, config=replace(run.config, minibatches=3))
    steps: list[int] = []
    state.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    update(run, state, one)
    assert len(steps) == 1
    before = state.actor.head.weight.clone()
    update(run, state, replace(rollouts, weights=torch.zeros_like(WEIGHTS)))
    assert torch.equal(state.actor.head.weight, before)


def test_a_nan_loss_is_reported_before_it_spoils_the_weights(
    world: tuple[Run, TrainingState, Rollouts],
):
    run, state, rollouts = world
    before = state.actor.head.weight.clone()
    with pytest.raises(UserError, match="NaN or infinite loss or gradient"):
        update(run, state, replace(rollouts, returns=rollouts.returns * torch.nan))
    assert torch.equal(state.actor.head.weight, before)
