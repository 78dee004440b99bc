"""Demonstrations: the actor learns to keep what a baseline keeps, the same on every run, and only on request."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.tiny_world import TASK, request
from toprl_export.agent import load_agent
from toprl_export.errors import UserError
from toprl_export.models.reference import Pruning
from toprl_export.models.walk import walk_prefill
from toprl_export.pruning.actor import Actor
from toprl_export.pruning.scorer import Scorer, StageInputs, make_scorer
from toprl_export.trainer import TrainRequest
from toprl_trainers.toprl.config import TOPRLConfig, WarmStart
from toprl_trainers.toprl.data import BlockSource
from toprl_trainers.toprl.learn import TrainingState
from toprl_trainers.toprl.run import Run
from toprl_trainers.toprl.trainer import TOPRLTrainer
from toprl_trainers.toprl.warm_start import demonstrate, gradient_saliency, imitation_loss, teacher_of, warm_start


def request_with(weights: Path, folder: Path, lines: str, **changes: object) -> TrainRequest:
    wanted = request(weights, folder, **changes)
    recipe = Path(str(wanted.recipe))
    recipe.write_text(
        recipe.read_text() + "".join(f"  {line.strip()}\n" for line in lines.splitlines() if line.strip())
    )
    return wanted


def begun(wanted: TrainRequest) -> tuple[Run, TrainingState, BlockSource]:
    run = Run.of(wanted)
    state = TrainingState.fresh(run.actor_config, run.config.learning_rate, 0, wanted.adapter.device)
    return run, state, BlockSource(wanted.adapter, TASK, 0, 0, run.config.images, run.config.images_per_update)


@torch.no_grad()
def agreement(run: Run, scorer: Scorer, teacher: Scorer) -> float:
    """Shard of the teacher's tokens that ``scorer`` keeps too, over both stages and images not trained on."""
    adapter = run.request.adapter
    block = BlockSource(adapter, TASK, 7, 0, 24, 24)[0].every_question(adapter)
    kept = []
    for each in (scorer, teacher):
        pruning = Pruning(run.plan.stage_layers, run.trained.keep_counts, each)
        walked = walk_prefill(
            adapter.decoder, block.tokens, block.visual, pruning.stage_layers, pruning.decide, each.needs
        )
        kept.append([set(row) for stage in walked.kept for row in stage.tolist()])
    return sum(len(ours & theirs) for ours, theirs in zip(*kept, strict=True)) / sum(map(len, kept[1]))


def test_the_actor_comes_to_keep_what_the_baseline_keeps(weights: Path, tmp_path: Path):
    teacher = make_scorer("uniform")
    run, state, source = begun(request_with(weights, tmp_path, "warm_start: {baseline: uniform, updates: 24}"))
    before = agreement(run, state.actor, teacher)
    warm_start(run, state.actor, source)
    after = agreement(run, state.actor, teacher)
    assert before < 0.5
    assert after > before + 0.25


def test_without_the_setting_nothing_happens(weights: Path, tmp_path: Path):
    run, state, source = begun(request_with(weights, tmp_path, ""))
    before = {name: tensor.clone() for name, tensor in state.actor.state_dict().items()}
    warm_start(run, state.actor, source)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.actor.state_dict().items())


def test_the_loss_is_the_cross_entropy_of_the_demonstrated_decisions(weights: Path, tmp_path: Path):
    run, _, source = begun(request_with(weights, tmp_path, ""))

    class Sloped(Actor):
        """Scores that fall from token to token, whatever they show."""

        def forward(self, inputs: StageInputs) -> torch.Tensor:
            return -inputs.origin.float()

    actor = Sloped(run.actor_config)
    teacher = Pruning(run.plan.stage_layers, run.trained.keep_counts, make_scorer("fastv"))
    demonstration = demonstrate(run, teacher, actor, source, 3)
    losses = []
    for (inputs, chosen), count in zip(demonstration.stages, run.trained.keep_counts, strict=True):
        assert chosen.shape == inputs.origin.shape and set(chosen.sum(1).tolist()) == {count}
        rows = []
        for positions, target in zip(inputs.origin.double(), chosen.double(), strict=True):
            # the probabilities that a common threshold gives which keeps `count` tokens on average
            low, high = -40.0, 40.0
            for _ in range(200):
                middle = (low + high) / 2
                low, high = (middle, high) if torch.sigmoid(-positions - middle).sum() > count else (low, middle)
            p = torch.sigmoid(-positions - low)
            rows.append(-(target * p.log() + (1 - target) * (1 - p).log()).mean())
        losses.append(torch.stack(rows).mean())
    expected = float(torch.stack(losses).mean())
    assert float(imitation_loss(actor, demonstration, 1.0)) == pytest.approx(expected, rel=1e-4)
    # at a quarter of the temperature, scores count four times as much
    assert float(imitation_loss(actor, demonstration, 0.25)) > 2 * expected


def test_a_baseline_that_looks_at_the_question_shows_rows_of_one_question(weights: Path, tmp_path: Path):
    run, state, source = begun(request_with(weights, tmp_path, ""))
    teacher = Pruning(run.plan.stage_layers, run.trained.keep_counts, make_scorer("fastv"))
    demonstration = demonstrate(run, teacher, state.actor, source, 9)
    block = source[1].one_question_an_image(run.request.adapter, 1)  # of 8 blocks, number 9 is the second once more
    pruned = walk_prefill(
        run.request.adapter.decoder, block.tokens, block.visual, (0, 2), teacher.decide, teacher.scorer.needs
    )
    for (inputs, chosen), kept in zip(demonstration.stages, pruned.kept, strict=True):
        assert torch.equal(inputs.origin[chosen].reshape(kept.shape), kept)


@pytest.mark.parametrize("interrupted_after", [0, 2])
def test_an_interrupted_run_repeats_or_remembers_it(weights: Path, tmp_path: Path, interrupted_after: int):
    lines = "warm_start: {baseline: fastv-p, updates: 2}\nresidual: fastv\ncondition: text"
    whole, broken = (request_with(weights, tmp_path / name, lines, updates=4) for name in ("whole", "broken"))
    TOPRLTrainer().train(whole)

    class Interrupted(Exception):
        pass

    real = TrainingState.save

    def save(self: TrainingState, path: Path, digest: str) -> None:
        if interrupted_after:
            real(self, path, digest)
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingState, "save", save)
        TOPRLTrainer().train(broken)
    assert Run.of(broken).checkpoint.is_file() == bool(interrupted_after)
    TOPRLTrainer().train(broken)
    ours, theirs = (load_file(each.output_dir / "actor.safetensors") for each in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # the control: without demonstrations, the same recipe ends elsewhere
    plain = request_with(weights, tmp_path / "plain", "residual: fastv\ncondition: text", updates=4)
    TOPRLTrainer().train(plain)
    others = load_file(plain.output_dir / "actor.safetensors")
    assert not torch.equal(others["trunk.enter.weight"], theirs["trunk.enter.weight"])


def test_the_gradient_finds_what_the_answer_depends_on(weights: Path, tmp_path: Path):
    run, _, source = begun(request_with(weights, tmp_path, ""))
    adapter, block = run.request.adapter, source[0]
    scores = gradient_saliency(adapter, block, run.plan.stage_layers)
    assert [tuple(one.shape) for one in scores] == [tuple(block.visual.shape[:2])] * 2
    assert not any(one.requires_grad for one in scores) and adapter.model.lm_head.weight.grad is None
    # Against finite differences: where the score is largest, a small step changes the answers' log-probability more.
    answered = block.full_correct.bool()
    assert answered.any()

    def total(visual: torch.Tensor) -> float:
        with torch.no_grad():
            walked = walk_prefill(adapter.decoder, block.tokens, visual, (), lambda _: None)
            return float((block.gold.score(adapter.decoder, walked.hidden)[0][:, 0] * answered).sum())

    image = int(block.gold.image_of_question[answered][0])
    at_input = gradient_saliency(adapter, block, (0,))[0][image]

    def slope(token: int) -> float:
        generator, squares = torch.Generator().manual_seed(0), []
        for _ in range(12):
            step = torch.zeros_like(block.visual)
            direction = torch.randn(step.shape[2], generator=generator)
            step[image, token] = 1e-2 * direction / direction.norm()
            squares.append(((total(block.visual + step) - total(block.visual - step)) / 2e-2) ** 2)
        return sum(squares)

    assert slope(int(at_input.argmax())) > 2 * slope(int(at_input.argmin()))


def test_supervised_learning_needs_no_ppo(weights: Path, tmp_path: Path):
    lines = "warm_start: {baseline: gradient, updates: 20}"
    wanted = request_with(weights, tmp_path, lines)
    recipe = Path(str(wanted.recipe))
    recipe.write_text(re.sub(r"updates: \d+\n", "updates: 0\n", recipe.read_text(), count=1))
    outcome = TOPRLTrainer().train(wanted)
    assert outcome.status == "trained"
    agent = load_agent(outcome.directory)
    assert (agent.record.training.updates, agent.record.training.rollouts) == (0, 0)
    names = {path.name for path in outcome.directory.iterdir()}
    assert "card.md" in names and not {"curves.csv", "curves.png"} & names
    card = (outcome.directory / "card.md").read_text()
    assert "trained without PPO, by imitating the gradient of the gold answers for 20 batches" in card
    assert "curves.png" not in card
    run, state, source = begun(replace(wanted, output_dir=tmp_path / "elsewhere"))
    teacher = teacher_of(run, "gradient")
    demonstrations = [demonstrate(run, teacher, state.actor, source, number) for number in range(len(source))]

    def loss(actor: Actor) -> float:
        with torch.no_grad():
            return float(np.mean([float(imitation_loss(actor, one, 1.0)) for one in demonstrations]))

    assert loss(agent.actor) < 0.9 * loss(state.actor)  # the same actor, untrained
    assert TOPRLTrainer().train(wanted).status == "up-to-date"


def test_without_ppo_there_must_be_something_to_imitate():
    with pytest.raises(UserError, match="updates is 0, expected a whole number of at least 1"):
        TOPRLConfig(updates=0)
    with pytest.raises(UserError, match="no PPO updates to settle a budget"):
        TOPRLConfig(updates=0, warm_start=WarmStart("gradient"), threshold="initial")
    limited = TOPRLConfig(updates=0, warm_start=WarmStart("gradient")).limited(3, None)
    assert limited.updates == 0 and limited.warm_start == WarmStart("gradient", 3)
