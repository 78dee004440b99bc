"""A bundle for the tiny model with `TorchEngine` for its engine, and a task that the model can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_llava import QUESTIONS, tiny_adapter
from tests.support.torch_engine import TorchEngine
from toprl_export import building, engine
from toprl_export.agent import Agent, AgentRecord, TrainingRecord, save_agent
from toprl_export.building import build as build_bundle
from toprl_export.models import load
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.plan import make_plan
from toprl_export.registry import Registry
from toprl_export.tasks import registry
from toprl_export.tasks.task import Sample, Task
from toprl_export.validation import bench

TASK = "tiny-echo"
BUDGETS = (12, 6)


@dataclass(frozen=True)
class EchoTask(Task):
    """Random pictures. What the model says unpruned, with 12 and with 6 tokens kept is right, and nothing else."""

    answers: tuple[str, ...] = ()

    def score(self, prediction: str, answer: str) -> float:
        return float(prediction in answer.split(" | "))

    def summarise(self, predictions, answers):
        told = [answer if self.score(said, answer) else said for said, answer in zip(predictions, answers, strict=True)]
        return super().summarise(told, answers)

    def question_count(self, split) -> int:
        return len(self.answers)

    def sample(self, split, seed: int, index: int) -> Sample:
        return Sample(picture(index), QUESTIONS[index % 3], self.answers[index], None, str(index))

    def question_group(self, split, seed: int, index: int):
        raise NotImplementedError


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def echo_task(adapter: LVLMAdapter, prunings: Sequence[Pruning]) -> EchoTask:
    reference, answers = ReferenceRunner(adapter), []
    for index in range(8):
        visual = reference.encode_image(adapter.frontend.pixels([picture(index)]))
        prompt = adapter.frontend.tokens([QUESTIONS[index % 3]])
        said = [reference.generate(prompt, visual, 16, pruning).tokens[0] for pruning in (None, *prunings)]
        answers.append(" | ".join(adapter.tokenizer.decode_batch(said)))
    assert len(set(answers)) > 5  # or the task could be done without looking
    return EchoTask(TASK, "perception", "what the model says", "numpy", answers=tuple(answers))


@cache
def ingredients() -> tuple[LVLMAdapter, Agent, EchoTask]:
    """A model, an agent for it and a task for both."""
    adapter = tiny_adapter()
    torch.manual_seed(3)
    actor = Actor(ActorConfig(adapter.shape.hidden, 16, 2)).eval()
    plan = make_plan(adapter.visual_tokens, adapter.shape.layers, (0, 2), "actor", BUDGETS)
    training = TrainingRecord("r", 12, 1, 1, 1.0, "python", {})
    record = AgentRecord(TASK, "toprl", "tiny", adapter.fingerprint, plan, actor.config, 0, training)
    return (
        adapter,
        Agent(record, actor),
        echo_task(adapter, [Pruning.from_plan(plan, budget, actor) for budget in BUDGETS]),
    )


def tiny_bundle(directory: Path, monkeypatch: pytest.MonkeyPatch, baseline: str | None = None) -> Path:
    """Build ``directory/engines/tiny-echo`` from ``directory/agent`` or a baseline, and make every name in it known for
    a test."""
    adapter, agent, task = ingredients()
    (directory / "agent").mkdir()
    save_agent(directory / "agent", agent, {})
    monkeypatch.setattr(TorchEngine, "adapter", adapter, raising=False)
    monkeypatch.setattr(engine, "ENGINES", Registry("engine", {"torch": "tests.support.torch_engine:TorchEngine"}))
    for module in (building, bench, load):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: adapter)
    monkeypatch.setattr(f"{__name__}.THE_TASK", task)
    for module in (bench, registry):
        monkeypatch.setattr(module, "TASKS", Registry("task", {TASK: f"{__name__}:THE_TASK"}))
    bundle = directory / "engines" / TASK
    agents = [] if baseline else [directory / "agent"]
    build_bundle("tiny", agents, BUDGETS, "torch", baseline=baseline, output_dir=bundle)
    return bundle


THE_TASK: EchoTask | None = None
"""What the registry hands out; `tiny_bundle` sets it."""
