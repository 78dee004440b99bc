"""Agent directories for the tiny model, with untrained actors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from toprl_export.agent import Agent, AgentRecord, TrainingRecord, save_agent
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.plan import PruningPlan, make_plan


def save_tiny_agent(
    directory: Path,
    adapter: LVLMAdapter,
    task: str = "mini-exist",
    budgets: Sequence[int] = (12, 8),
    stage_layers: tuple[int, ...] = (0, 2),
    plan: PruningPlan | None = None,
    hidden_size: int = 8,
    seed: int = 0,
    sees_question: bool = False,
) -> Path:
    """Write an agent for ``adapter``, which may see the question's states and attention; return its directory."""
    torch.manual_seed(seed)
    plan = plan or make_plan(adapter.visual_tokens, adapter.shape.layers, stage_layers, "actor", budgets)
    sight = ("text", "pyramiddrop") if sees_question else ("none", "none")
    config = ActorConfig(adapter.shape.hidden, hidden_size, len(plan.stages), *sight)
    actor = Actor(config)
    if sees_question:  # it starts with a head of zeros, which would hide what the rest computes
        torch.nn.init.normal_(actor.head.weight)
    record = AgentRecord(
        task=task,
        method="toprl",
        model_id=adapter.model_id,
        model_fingerprint=adapter.fingerprint,
        plan=plan,
        actor=config,
        seed=seed,
        training=TrainingRecord("toprl", budgets[0], 3, 24, 1.5, "toprl-export train", {"torch": "2"}),
    )
    directory.mkdir(parents=True)
    save_agent(directory, Agent(record, actor), {"value": torch.zeros(1)})
    return directory
